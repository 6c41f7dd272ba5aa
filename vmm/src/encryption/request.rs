//! A `KVM_HC_MAP_GPA_RANGE` exit, parsed into the pages and the status that the guest reports.
//!
//! ABI: Linux `Documentation/virt/kvm/x86/hypercalls.rst`, section 8, and `uapi/linux/kvm_para.h`.

use thiserror::Error;

use super::Status;
use crate::page::{Frame, PAGE_SIZE, PageRange};

/// The hypercall number with which a guest reports page status.
pub const KVM_HC_MAP_GPA_RANGE: u64 = 12;

/// Bit of the attributes: set if the pages are encrypted.
const ENCRYPTED: u64 = 1 << 4;

/// Bits of the attributes that give the preferred page size.
const PAGE_SIZE_CODE: u64 = 0xf;

/// The largest page size code that the ABI defines: 0 is 4 KiB, 1 is 2 MiB, 2 is 1 GiB.
const PAGE_SIZE_CODE_MAX: u64 = 2;

/// One past the last frame that any x86 processor can address: 52 address bits.
const FRAMES_MAX: u64 = 1 << 40;

/// `KVM_EINVAL` as the guest sees it in RAX.
const KVM_EINVAL: u64 = (-22_i64).cast_unsigned();

/// `KVM_ENOSYS` as the guest sees it in RAX.
const KVM_ENOSYS: u64 = (-1000_i64).cast_unsigned();

/// What a guest reports: that all these pages have this status. They need not be RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapGpaRange {
    /// The pages.
    pub range: PageRange,
    /// How the guest maps them from now on.
    pub status: Status,
}

impl MapGpaRange {
    /// Parses `nr` and `args` of a `KVM_EXIT_HYPERCALL`.
    ///
    /// KVM has already refused unaligned addresses, no pages, and a frame number that wraps; all of
    /// it is checked again. KVM does not look at the attributes: bits that the ABI reserves and page
    /// sizes that it does not define are refused here, because a guest that sets them means
    /// something else than we would record. The preferred page size itself is only a hint and is
    /// ignored. A range that ends beyond the 52-bit address space is refused; one that is merely
    /// outside RAM is not, since firmware reports device memory too.
    ///
    /// # Errors
    /// [`BadRequest`], which knows what to return to the guest.
    pub fn parse(nr: u64, args: &[u64; 6]) -> Result<Self, BadRequest> {
        if nr != KVM_HC_MAP_GPA_RANGE {
            return Err(BadRequest::UnknownHypercall { nr });
        }
        let [gpa, pages, attributes, ..] = *args;
        if !gpa.is_multiple_of(PAGE_SIZE) {
            return Err(BadRequest::Unaligned { gpa });
        }
        if attributes & !(ENCRYPTED | PAGE_SIZE_CODE) != 0 {
            return Err(BadRequest::ReservedAttributes { attributes });
        }
        if attributes & PAGE_SIZE_CODE > PAGE_SIZE_CODE_MAX {
            return Err(BadRequest::UnknownPageSize { code: attributes & PAGE_SIZE_CODE });
        }
        let base = gpa / PAGE_SIZE;
        let limit = base.checked_add(pages).filter(|&limit| limit <= FRAMES_MAX);
        let limit = limit.ok_or(BadRequest::BeyondAddressSpace { gpa, pages })?;
        let range = PageRange::new(Frame(base), Frame(limit));
        let range = range.map_err(|_none| BadRequest::NoPages { gpa })?;
        let status = if attributes & ENCRYPTED == 0 { Status::Shared } else { Status::Private };
        Ok(Self { range, status })
    }
}

/// Why a hypercall is refused. Nothing is recorded for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadRequest {
    /// Not the hypercall that exits are enabled for.
    #[error("hypercall {nr} is not KVM_HC_MAP_GPA_RANGE (12)")]
    UnknownHypercall {
        /// Its number.
        nr: u64,
    },
    /// The address is not that of a page.
    #[error("page status of {gpa:#x}, which is not 4 KiB aligned")]
    Unaligned {
        /// Guest-physical address in bytes.
        gpa: u64,
    },
    /// The number of pages is 0.
    #[error("page status of 0 pages at {gpa:#x}")]
    NoPages {
        /// Guest-physical address in bytes.
        gpa: u64,
    },
    /// The range ends beyond 2^52 bytes, or wraps.
    #[error("page status of {pages:#x} pages at {gpa:#x}, which end beyond 2^52")]
    BeyondAddressSpace {
        /// Guest-physical address in bytes.
        gpa: u64,
        /// Number of 4 KiB pages.
        pages: u64,
    },
    /// Attribute bits 63:5 are not all 0.
    #[error("page status with reserved attribute bits: {attributes:#x}")]
    ReservedAttributes {
        /// The third argument.
        attributes: u64,
    },
    /// A preferred page size that the ABI does not define.
    #[error("page status with page size code {code}, of which only 0 to 2 are defined")]
    UnknownPageSize {
        /// Attribute bits 3:0.
        code: u64,
    },
}

impl BadRequest {
    /// What the hypercall returns to the guest in RAX: a negative `KVM_E*` number.
    #[must_use]
    pub fn ret(self) -> u64 {
        match self {
            Self::UnknownHypercall { .. } => KVM_ENOSYS,
            Self::Unaligned { .. }
            | Self::NoPages { .. }
            | Self::BeyondAddressSpace { .. }
            | Self::ReservedAttributes { .. }
            | Self::UnknownPageSize { .. } => KVM_EINVAL,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(gpa: u64, pages: u64, attributes: u64) -> Result<MapGpaRange, BadRequest> {
        MapGpaRange::parse(KVM_HC_MAP_GPA_RANGE, &[gpa, pages, attributes, 0, 0, 0])
    }

    /// Bit 4 tells private from shared; a defined page size changes nothing.
    #[test]
    fn reads_range_and_status() {
        let range = PageRange::new(Frame(2), Frame(5)).unwrap();
        for size in 0..=2 {
            let shared = MapGpaRange { range, status: Status::Shared };
            assert_eq!(parse(0x2000, 3, size), Ok(shared));
            let private = MapGpaRange { range, status: Status::Private };
            assert_eq!(parse(0x2000, 3, 0x10 | size), Ok(private));
        }
    }

    /// Each argument that the ABI does not allow is named, and the guest gets `KVM_EINVAL`.
    #[test]
    fn refuses_what_the_abi_does_not_allow() {
        let top_page = u64::MAX - 0xfff;
        let beyond = |gpa, pages| BadRequest::BeyondAddressSpace { gpa, pages };
        for ((gpa, pages, attributes), expected) in [
            ((0x2001, 1, 0), BadRequest::Unaligned { gpa: 0x2001 }),
            ((0x2000, 0, 0), BadRequest::NoPages { gpa: 0x2000 }),
            ((0, 1 << 52, 0), beyond(0, 1 << 52)),
            ((0, (1 << 40) + 1, 0), beyond(0, (1 << 40) + 1)),
            ((0x1000, u64::MAX, 0), beyond(0x1000, u64::MAX)),
            ((top_page, 1, 0), beyond(top_page, 1)),
            ((0, 1, 0x20), BadRequest::ReservedAttributes { attributes: 0x20 }),
            ((0, 1, 1 << 63), BadRequest::ReservedAttributes { attributes: 1 << 63 }),
            ((0, 1, 3), BadRequest::UnknownPageSize { code: 3 }),
            ((0, 1, 0x1f), BadRequest::UnknownPageSize { code: 15 }),
        ] {
            let refused = parse(gpa, pages, attributes).unwrap_err();
            assert_eq!(refused, expected);
            assert_eq!(refused.ret().cast_signed(), -22, "{refused}");
        }
    }

    /// The whole 52-bit address space is a range that a guest may name.
    #[test]
    fn accepts_the_largest_range() {
        assert_eq!(parse(0, 1 << 40, 0x10).unwrap().range.pages(), 1 << 40);
    }

    /// A hypercall that we never enabled is answered as KVM answers one it does not know.
    #[test]
    fn does_not_know_other_hypercalls() {
        let refused = MapGpaRange::parse(5, &[0; 6]).unwrap_err();
        assert_eq!(refused, BadRequest::UnknownHypercall { nr: 5 });
        assert_eq!(refused.ret().cast_signed(), -1000);
    }
}
