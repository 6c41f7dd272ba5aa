//! Advice to the kernel about guest RAM: huge pages, pages to map at once, pages that must not move.
#![expect(unsafe_code, reason = "system calls that take the addresses of mappings")]

use std::ffi::{c_int, c_ulong};
use std::io::Error as IoError;
use std::ptr::null;

use log::debug;
use vm_memory::VolatileSlice;

/// Gives the kernel a hint on whole pages of guest RAM.
pub(super) fn advise(pages: &VolatileSlice<'_>, advice: c_int) {
    let start = pages.ptr_guard_mut();
    // SAFETY: the slice is a live mapping of guest RAM, and the advice changes none of its contents here:
    // huge pages, populating, and not being copied to a child are all that callers ask for.
    if unsafe { libc::madvise(start.as_ptr().cast(), pages.len(), advice) } != 0 {
        debug!("madvise {advice} on {:#x} bytes: {}", pages.len(), IoError::last_os_error());
    }
}

/// Gives pages of guest RAM a policy of their own: from the node of the CPU that touches them first, as
/// without one. What has a policy is left alone by automatic NUMA balancing, unless the policy asks for it
/// (`MPOL_F_NUMA_BALANCING`). A kernel without NUMA has no balancing.
pub(super) fn keep_where_it_is(pages: &VolatileSlice<'_>) {
    let start = pages.ptr_guard_mut();
    let (mode, nodes, flags) = (libc::MPOL_LOCAL, null::<c_ulong>(), 0);
    // SAFETY: the slice is a live mapping of guest RAM, which the policy neither moves nor changes; there
    // is no mask of nodes to be read.
    let result = unsafe {
        let (address, bytes) = (start.as_ptr(), pages.len());
        libc::syscall(libc::SYS_mbind, address, bytes, mode, nodes, 0_usize, flags)
    };
    if result != 0 {
        debug!("mbind on {:#x} bytes: {}", pages.len(), IoError::last_os_error());
    }
}

#[cfg(test)]
mod tests {
    use std::fs::read_to_string;

    use crate::encryption::Status;
    use crate::memory::GuestRam;
    use crate::page::RamLayout;

    /// The line of `/proc/self/numa_maps` for the mapping that `address` is in; `None` if this kernel has
    /// no NUMA.
    fn numa_policy(address: u64) -> Option<String> {
        let maps = read_to_string("/proc/self/numa_maps").ok()?;
        let start = |line: &&str| u64::from_str_radix(line.split(' ').next()?, 16).ok();
        let before = |line: &&str| start(line).is_some_and(|start| start <= address);
        maps.lines().rfind(before).map(str::to_owned)
    }

    /// The flags of that mapping.
    fn flags(address: u64) -> String {
        let maps = read_to_string("/proc/self/smaps").unwrap();
        let mut is_here = false;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|word| word.split_once('-'));
            let number = |text| u64::from_str_radix(text, 16).ok();
            if let Some((Some(start), Some(end))) = range.map(|(a, b)| (number(a), number(b))) {
                is_here = (start..end).contains(&address);
            } else if is_here && line.starts_with("VmFlags:") {
                return format!("{line} ");
            }
        }
        panic!("nothing is mapped at {address:#x}");
    }

    /// The RAM of an SEV guest on hardware is left alone by automatic NUMA balancing, and by whatever
    /// child this process has; that of a plain VM may be moved about.
    #[test]
    fn pinned_ram_stays_where_it_is() {
        let layout = RamLayout::new(16 << 20).unwrap();
        let (pinned, plain) =
            (GuestRam::pinned(layout).unwrap(), GuestRam::single(layout).unwrap());
        for (ram, stays) in [(&pinned, true), (&plain, false)] {
            layout.ranges().for_each(|range| ram.populate(range, Status::Shared));
            let (address, _bytes) = ram.mappings().next().unwrap();
            if let Some(line) = numa_policy(address) {
                let policy = line.split(' ').nth(1);
                assert_eq!(policy, Some(if stays { "local" } else { "default" }), "{line}");
            }
            assert_eq!(flags(address).contains(" dc "), stays, "{}", flags(address));
        }
    }
}
