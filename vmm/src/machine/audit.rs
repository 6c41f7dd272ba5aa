//! Compares what a guest has reported with its own page tables, where its policy lets the host read them.

use std::thread::park_timeout;
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use thiserror::Error;
use vmm_sys_util::errno::Error as Errno;

use super::running::{Assembly, RunningMachine};
use crate::encryption::{Contradictions, ENTRIES, Incomplete, PageTables, Unwalked};
use crate::memory::RamError;
use crate::page::{Frame, PageRange};
use crate::sev::Policy;
use crate::sev::command::CommandError;
use crate::vcpu::{PauseError, VcpuError};

/// A page counts as contradicted only if this many looks find it so: a guest changes its tables and then reports
/// it, and may be stopped in between.
const LOOKS: u32 = 3;

/// How long the guest runs between two of them.
const BETWEEN: Duration = Duration::from_millis(50);

/// `CR0.PG`, `CR4.LA57`, `EFER.LMA`: AMD APM volume 2, 3.1.
const PAGING: u64 = 1 << 31;
const FIVE_LEVELS: u64 = 1 << 12;
const LONG_MODE: u64 = 1 << 10;

/// The result of an audit.
#[derive(Debug)]
pub struct Audit {
    /// How many page tables were read, at the last look.
    pub tables: u64,
    /// Pages whose reports and tables do not agree.
    pub contradictions: Contradictions,
}

impl RunningMachine {
    /// Whether the guest's policy lets the host read its page tables.
    #[must_use]
    pub fn can_be_audited(&self) -> bool {
        self.launch().is_some_and(|launch| !launch.policy.has(Policy::NODBG))
    }

    /// Pauses the guest for a look at its page tables, or for a few if the first does not agree with what it has
    /// reported. Reading a table takes a firmware command: half a millisecond on hardware.
    ///
    /// # Errors
    /// [`Unaudited`]; with [`Unaudited::Stopped`] and [`Unaudited::Lost`] the guest does not run any more.
    pub fn audit(&mut self) -> Result<Audit, Unaudited> {
        if self.launch().is_none() {
            return Err(Unaudited::Plain);
        }
        if !self.can_be_audited() {
            return Err(Unaudited::Policy);
        }
        let mut found: Option<Audit> = None;
        for _ in 0..LOOKS {
            if found.is_some() {
                park_timeout(BETWEEN);
            }
            let mut audit = self.while_paused(look)??;
            if let Some(before) = found {
                audit.contradictions = audit.contradictions.also_in(&before.contradictions);
            }
            if audit.contradictions.is_empty() {
                return Ok(audit);
            }
            found = Some(audit);
        }
        found.ok_or(Unaudited::NoTables)
    }
}

/// One look at the tables of all vCPUs that use any.
fn look(machine: &Assembly, vcpus: &[VcpuFd]) -> Result<Audit, Unaudited> {
    let (Some(launch), Some(status)) = (machine.launch(), machine.page_status()) else {
        return Err(Unaudited::Plain);
    };
    let mut tables = PageTables::new(*status.layout(), launch.c_bit);
    for vcpu in vcpus {
        let sregs = vcpu.get_sregs().map_err(Unaudited::Vcpu)?;
        if sregs.cr0 & PAGING == 0 || sregs.efer & LONG_MODE == 0 {
            continue;
        }
        let levels = if sregs.cr4 & FIVE_LEVELS == 0 { 4 } else { 5 };
        tables.walk(sregs.cr3, levels, &mut |frame| table(machine, frame))?;
    }
    if tables.tables() == 0 {
        return Err(Unaudited::NoTables);
    }
    let contradictions = tables.compare(&status)?;
    Ok(Audit { tables: tables.tables(), contradictions })
}

/// A page table, which is always private.
fn table(machine: &Assembly, frame: Frame) -> Result<[u64; ENTRIES], Unreadable> {
    let page = PageRange::one(frame);
    let page = page.map_err(|_beyond| Unreadable::NotSent)?;
    let address = machine.board.ram.user_address(page)?;
    let mut bytes = [0; ENTRIES * size_of::<u64>()];
    machine.launched().ok_or(Unreadable::NotSent)?.read_private(address, &mut bytes)?;
    let mut entries = [0; ENTRIES];
    let (words, _rest) = bytes.as_chunks();
    for (entry, word) in entries.iter_mut().zip(words) {
        *entry = u64::from_le_bytes(*word);
    }
    Ok(entries)
}
/// Why a guest's reports cannot be compared with its page tables.
#[derive(Debug, Error)]
pub enum Unaudited {
    /// Without SEV nothing is reported.
    #[error("this is a plain VM: no page is encrypted")]
    Plain,
    /// The policy forbids it.
    #[error(
        "the guest's policy forbids debugging (NODBG), so the host cannot read its page tables: \
         what it reports cannot be checked; a guest launched with policy=0x20 can be audited"
    )]
    Policy,
    /// A vCPU does not pause.
    #[error("a vCPU did not pause: is the output of the guest's serial port blocked?")]
    Busy,
    /// The guest has ended by itself, and an event says how.
    #[error("the guest has ended")]
    Stopped,
    /// It could not go on after a look.
    #[error("the guest was lost")]
    Lost(#[source] VcpuError),
    /// Registers.
    #[error("asking KVM for a vCPU's registers: {0}")]
    Vcpu(Errno),
    /// No vCPU uses page tables.
    #[error("no vCPU is in 64-bit mode yet: there are no page tables to read")]
    NoTables,
    /// Reading them.
    #[error(transparent)]
    Tables(#[from] Unwalked<Unreadable>),
    /// There is nothing to compare them with.
    #[error(transparent)]
    Incomplete(#[from] Incomplete),
}

/// Why a page table cannot be read.
#[derive(Debug, Error)]
pub enum Unreadable {
    /// The firmware has no such guest any more.
    #[error("the guest is being sent")]
    NotSent,
    /// Outside RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The firmware.
    #[error(transparent)]
    Command(#[from] CommandError),
}

impl From<PauseError> for Unaudited {
    fn from(why: PauseError) -> Self {
        match why {
            PauseError::Busy => Self::Busy,
            PauseError::Stopped => Self::Stopped,
            PauseError::Resume(cause) => Self::Lost(cause),
        }
    }
}
