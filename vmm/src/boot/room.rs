//! Advice for a file that does not fit into RAM: more memory, but only where that helps.

use std::fmt::{Display, Formatter, Result as FmtResult};

use crate::page::{LOW_RAM_END, PAGE_SIZE};

/// What would make room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// That much memory, in MiB.
    Memory {
        /// At least.
        mib: u64,
    },
    /// Nothing: the hole for devices begins below where it would end.
    Hole,
    /// Nothing: the kernel reads an initramfs only below this, by its `initrd_addr_max`.
    Reach {
        /// One past the last byte that it reads.
        end: u64,
    },
}

impl Room {
    /// For what ends at `end`; `None` is beyond all addresses.
    pub(super) fn to_end_at(end: Option<u64>) -> Self {
        match end {
            Some(end) if end <= LOW_RAM_END.0 => Self::Memory { mib: end.div_ceil(1 << 20) },
            _ => Self::Hole,
        }
    }

    /// For the `bytes` of an initramfs, from a page boundary after `kernel_end` to `reach` at most.
    pub(super) fn for_initramfs(bytes: u64, kernel_end: u64, reach: u64) -> Self {
        let start = kernel_end.checked_next_multiple_of(PAGE_SIZE);
        let end = start.and_then(|start| start.checked_add(bytes));
        if reach <= LOW_RAM_END.0 && end.is_none_or(|end| end > reach) {
            return Self::Reach { end: reach };
        }
        Self::to_end_at(end)
    }
}

impl Display for Room {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        match self {
            Self::Memory { mib } => write!(f, "give the guest at least {mib} MiB"),
            Self::Hole => write!(
                f,
                "more memory does not help, because nothing is loaded above {:#x}, where the hole for \
                 devices begins",
                LOW_RAM_END.0
            ),
            Self::Reach { end } => write!(
                f,
                "more memory does not help, because this kernel reads an initramfs only below {end:#x} \
                 (its initrd_addr_max)"
            ),
        }
    }
}
