//! Segments, interrupt gates and task states of all processors.

use crate::paging::Pool;
use crate::physical::write64;
use crate::{cpu, symbols};

/// Selectors, as in `entry.s`.
const CODE64: u64 = 0x18;
const FIRST_TASK: u64 = 0x30;

const SEGMENTS: [u64; 6] = [
    0,
    0x00cf_9b00_0000_ffff, // code, 32-bit
    0x00cf_9300_0000_ffff, // data
    0x00af_9b00_0000_ffff, // code, 64-bit
    0x00cf_f300_0000_ffff, // data of ring 3
    0x00af_fb00_0000_ffff, // code of ring 3, 64-bit
];

/// Task states, in the page of the segments.
const TASKS_OFFSET: u64 = 512;
const TASK_BYTES: u64 = 128;
const TASK_LIMIT: u64 = 103;
/// In a task state: the stack of ring 0, the first interrupt stack, the I/O bitmap's offset.
const TASK_RSP0: u64 = 4;
const TASK_IST1: u64 = 36;
const TASK_TAIL: u64 = 96;

const EXCEPTIONS: u64 = 32;
/// The vector by which ring 3 returns.
const USER_RETURN: u64 = 0x80;
const INTERRUPT_GATE: u64 = 0x8e;
const USER_GATE: u64 = 0xee;

/// Where the tables are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptors {
    /// Address of the page of segments and task states.
    pub(crate) segments: u64,
    /// Address of the page of interrupt gates.
    pub(crate) interrupts: u64,
}

impl Descriptors {
    /// Pages that [`Descriptors::build`] takes.
    pub(crate) const PAGES: u64 = 2;

    /// Writes the tables.
    pub(crate) fn build(pool: &mut Pool) -> Self {
        let tables = Self { segments: pool.take(), interrupts: pool.take() };
        for (at, segment) in (tables.segments..).step_by(8).zip(SEGMENTS) {
            write64(at, segment);
        }
        for vector in 0..EXCEPTIONS {
            tables.gate(vector, symbols::exception_entry(vector), 1, INTERRUPT_GATE);
        }
        tables.gate(USER_RETURN, symbols::user_return(), 0, USER_GATE);
        tables
    }

    /// Loads the tables on the processor with this number.
    pub(crate) fn load(self, processor: u64) {
        let task = self.task(processor);
        write64(task + TASK_IST1, symbols::exception_stack(processor));
        write64(task + TASK_TAIL, (TASK_LIMIT + 1) << 48);
        let selector = FIRST_TASK + processor * 16;
        let available = 0x89 << 40 | (task & 0xff_ffff) << 16 | (task >> 24 & 0xff) << 56;
        write64(self.segments + selector, TASK_LIMIT | available);
        write64(self.segments + selector + 8, task >> 32);
        let selector = u16::try_from(selector).unwrap_or_default();
        cpu::load_descriptors((self.segments, 511), (self.interrupts, 4095), selector);
    }

    /// The address of TSS.RSP0 of a processor.
    pub(crate) fn task_stack(self, processor: u64) -> u64 {
        self.task(processor) + TASK_RSP0
    }

    fn task(self, processor: u64) -> u64 {
        self.segments + TASKS_OFFSET + processor * TASK_BYTES
    }

    fn gate(self, vector: u64, target: u64, stack: u64, kind: u64) {
        let gate = self.interrupts + vector * 16;
        let (low, middle) = (target & 0xffff, target >> 16 & 0xffff);
        write64(gate, low | CODE64 << 16 | stack << 32 | kind << 40 | middle << 48);
        write64(gate + 8, target >> 32);
    }
}
