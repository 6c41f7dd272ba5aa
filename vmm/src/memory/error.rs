//! Why guest RAM cannot be had, shown or watched.

use std::io::Error as IoError;

use thiserror::Error;
use vmm_sys_util::errno::Error as Errno;

use crate::page::{Gpa, PageRange};

/// Why guest RAM cannot be had.
#[derive(Debug, Error)]
pub enum RamError {
    /// The host has no such memory to give.
    #[error("mapping {bytes:#x} bytes of guest RAM: {cause}; ask for less with --memory")]
    Map {
        /// Bytes asked for.
        bytes: u64,
        /// The host's words.
        cause: String,
    },
    /// The memory behind the software platform's views.
    #[error("creating {bytes:#x} bytes of memory for the software platform's guest")]
    Create {
        /// Bytes asked for.
        bytes: u64,
        /// From `memfd_create` or `ftruncate`.
        #[source]
        cause: IoError,
    },
    /// `KVM_SET_USER_MEMORY_REGION` failed.
    #[error("giving KVM the guest memory at {gpa} ({bytes:#x} bytes): {cause}")]
    Register {
        /// Where the slot starts.
        gpa: Gpa,
        /// Its size.
        bytes: u64,
        /// KVM's errno.
        cause: Errno,
    },
    /// RAM ends beyond what the host's processors can address.
    #[error(
        "guest RAM ends at {end:#x}, but this host's processors address {bits} bits, which is below \
         {limit:#x}: give the guest less memory"
    )]
    AddressWidth {
        /// The first address after RAM.
        end: u64,
        /// The width.
        bits: u8,
        /// The first address that it does not reach.
        limit: u64,
    },
    /// `KVM_GET_DIRTY_LOG` failed.
    #[error("asking KVM which pages of memory slot {slot} were written: {cause}")]
    DirtyLog {
        /// The memory slot.
        slot: u32,
        /// KVM's errno.
        cause: Errno,
    },
    /// The C=0 view could not be switched.
    #[error("switching what the guest sees without the C-bit in pages {range}")]
    Switch {
        /// The pages.
        range: PageRange,
        /// From `mmap`, or from copying.
        #[source]
        cause: IoError,
    },
    /// The pages are not RAM.
    #[error("pages {range} are not inside one run of guest RAM")]
    NotRam {
        /// The pages.
        range: PageRange,
    },
}
