//! The descriptor table that the boot processor starts with, and what it holds.
//!
//! Both boot protocols want a GDT in memory and the segment registers loaded from it; the Linux
//! one (`Documentation/arch/x86/boot.rst`) fixes the selectors too.

use kvm_bindings::{kvm_dtable, kvm_segment};

use super::layout::GDT;

/// Selector of the code segment (`__BOOT_CS`).
pub const CODE_SELECTOR: u16 = 0x10;

/// Selector of the data segment (`__BOOT_DS`).
pub const DATA_SELECTOR: u16 = 0x18;

/// Selector of the task state segment.
pub const TASK_SELECTOR: u16 = 0x20;

/// Six descriptors of eight bytes.
const GDT_BYTES: u16 = 48;

/// Which mode the processor starts in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// 32-bit protected mode, paging off.
    Protected,
    /// 64-bit mode.
    Long,
}

/// What to load into the segment registers, as the table in memory says.
#[derive(Debug, Clone, Copy)]
pub struct Segments {
    /// `CS`.
    pub code: kvm_segment,
    /// `DS`, `ES`, `FS`, `GS` and `SS`.
    pub data: kvm_segment,
    /// `TR`: 104 bytes at address 0, never switched to.
    pub task: kvm_segment,
    /// `GDTR`.
    pub gdt: kvm_dtable,
}

/// The segment registers for `mode`.
#[must_use]
pub fn segments(mode: Mode) -> Segments {
    let flat = kvm_segment { limit: u32::MAX, present: 1, s: 1, g: 1, ..Default::default() };
    let long = u8::from(mode == Mode::Long);
    // Execute and read, accessed. A long-mode segment has L set and D clear.
    let code = kvm_segment { type_: 0xb, selector: CODE_SELECTOR, l: long, db: 1 - long, ..flat };
    // Read and write, accessed.
    let data = kvm_segment { type_: 0x3, selector: DATA_SELECTOR, db: 1, ..flat };
    // A busy task state segment, as VM entry demands.
    let task = kvm_segment {
        limit: 0x67,
        type_: 0xb,
        selector: TASK_SELECTOR,
        present: 1,
        ..Default::default()
    };
    let gdt = kvm_dtable { base: GDT.0, limit: GDT_BYTES - 1, padding: [0; 3] };
    Segments { code, data, task, gdt }
}

/// The table for `mode`, as it lies at [`GDT`].
pub(super) fn table(mode: Mode) -> Vec<u8> {
    let Segments { code, data, task, .. } = segments(mode);
    // A task descriptor of 64-bit mode has a second half: the upper base, zero.
    let entries = [0, 0, descriptor(&code), descriptor(&data), descriptor(&task), 0];
    entries.iter().flat_map(|entry| entry.to_le_bytes()).collect()
}

/// The eight bytes that describe `segment` (base 0); AMD64 manual volume 2, 4.7 and 4.8.
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    (limit & 0xffff) | access << 40 | (limit >> 16) << 48 | flags << 52
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(mode: Mode) -> Vec<u64> {
        let table = table(mode);
        assert_eq!(table.len(), usize::from(GDT_BYTES));
        table.chunks(8).map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap())).collect()
    }

    /// The descriptors are the well-known flat ones, at the selectors of the boot protocol.
    #[test]
    fn descriptors_are_flat() {
        let data = 0x00cf_9300_0000_ffff;
        let task = 0x0000_8b00_0000_0067;
        assert_eq!(entries(Mode::Long), [0, 0, 0x00af_9b00_0000_ffff, data, task, 0]);
        assert_eq!(entries(Mode::Protected), [0, 0, 0x00cf_9b00_0000_ffff, data, task, 0]);
    }
}
