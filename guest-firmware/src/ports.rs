//! Port accesses of every size and count, tried on the registers of the first serial port.

use core::fmt::{Display, Formatter, Result as FmtResult};

use crate::cpu;

const COM1: u16 = 0x3f8;
/// Modem control, line status, modem status and scratch register: a double word of ports.
const MODEM_CONTROL: u16 = COM1 + 4;
const MODEM_STATUS: u16 = COM1 + 6;
/// Keeps what is written to it.
const SCRATCH: u16 = COM1 + 7;
/// All of that double word but the line status, which changes while a line is still being sent.
const STEADY: u32 = 0xffff_00ff;
/// A port far from any device, of any machine that runs this.
const NOBODY: u16 = 0x5a0;

/// An access that read something else than the single bytes there.
#[derive(Debug)]
pub(crate) struct Mismatch {
    access: &'static str,
    expected: u64,
    got: u64,
}

impl Display for Mismatch {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let Self { access, expected, got } = self;
        write!(f, "{access} expected={expected:#x} got={got:#x}")
    }
}

/// Reads and writes by every instruction, and compares with what single bytes say.
pub(crate) fn check() -> Result<(), Mismatch> {
    let same = |access, expected: u64, got: u64| match expected == got {
        true => Ok(()),
        false => Err(Mismatch { access, expected, got }),
    };
    cpu::out8(SCRATCH, 0x5a);
    same("inb", 0x5a, cpu::in8(SCRATCH).into())?;
    same("inw of nobody", 0xffff, cpu::in16(NOBODY).into())?;
    same("inl of nobody", 0xffff_ffff, cpu::in32(NOBODY).into())?;
    let registers = MODEM_CONTROL..=SCRATCH;
    let single = registers.rev().fold(0, |word, port| word << 8 | u32::from(cpu::in8(port)));
    same("inl", (single & STEADY).into(), (cpu::in32(MODEM_CONTROL) & STEADY).into())?;
    let high = u64::from(single >> 16);
    same("inw", high, cpu::in16(MODEM_STATUS).into())?;

    let mut bytes = [0; 7];
    cpu::in_string8(SCRATCH, &mut bytes);
    same("rep insb", 0x5a5a_5a5a_5a5a_5a00, padded(bytes))?;
    let mut words = [0; 3];
    cpu::in_string16(MODEM_STATUS, &mut words);
    for word in words {
        same("rep insw", high, word.into())?;
    }

    cpu::out16(MODEM_STATUS, 0xa500);
    same("outw", 0xa5, cpu::in8(SCRATCH).into())?;
    cpu::out32(MODEM_CONTROL, single & 0xff | 0xc300_0000);
    same("outl", 0xc3, cpu::in8(SCRATCH).into())?;
    same("outl, first byte", (single & 0xff).into(), cpu::in8(MODEM_CONTROL).into())?;
    cpu::out_string8(SCRATCH, &[1, 2, 3, 4]);
    same("rep outsb", 4, cpu::in8(SCRATCH).into())?;
    cpu::out_string16(MODEM_STATUS, &[0x1100, 0x2200, 0x3300]);
    same("rep outsw", 0x33, cpu::in8(SCRATCH).into())
}

/// Seven bytes as one number, the first one above a byte of zeros.
fn padded(bytes: [u8; 7]) -> u64 {
    bytes.into_iter().rev().fold(0, |word, byte| word << 8 | u64::from(byte)) << 8
}
