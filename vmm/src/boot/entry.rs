//! How the first processor starts, by boot protocol.

use super::gdt::{Mode, Segments, segments};

/// The registers of the first processor. All others wait for start-up interrupts; registers not
/// named here are 0, interrupts are off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// 64-bit mode with paging (`CR0.PE`, `CR0.PG`, `CR4.PAE`, `EFER.LME`, `EFER.LMA`).
    Linux64 {
        /// `RIP`.
        rip: u64,
        /// `RSI`: the address of `boot_params`.
        rsi: u64,
        /// `CR3`, without the C-bit.
        cr3: u64,
        /// `RSP`: the top of a page that is free, but not measured.
        rsp: u64,
    },
    /// 32-bit protected mode without paging (`CR0.PE` alone).
    Pvh {
        /// `EIP`.
        rip: u32,
        /// `EBX`: the address of `hvm_start_info`.
        rbx: u32,
    },
}

impl Entry {
    /// The segment registers and `GDTR` that go with this entry.
    #[must_use]
    pub fn segments(self) -> Segments {
        segments(self.mode())
    }

    fn mode(self) -> Mode {
        match self {
            Self::Linux64 { .. } => Mode::Long,
            Self::Pvh { .. } => Mode::Protected,
        }
    }
}
