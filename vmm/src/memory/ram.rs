//! Maps guest RAM and registers it with KVM.
#![expect(
    unsafe_code,
    reason = "KVM is told raw addresses of mappings that must outlive the VM; this file owns both"
)]

use std::ffi::CStr;
use std::fs::File;
use std::io::Error as IoError;
use std::os::fd::FromRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::VmFd;
use libc::{MFD_CLOEXEC, memfd_create};
use log::debug;
#[cfg(test)]
use vm_memory::Bytes;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion};

use super::advice::{advise, keep_where_it_is};
use super::error::RamError;
use super::guest_view::GuestView;
use super::slot::{memory_slot, refused};
use super::view::{Backing, SwitchedView};
use crate::encryption::{PageStatus, Status};
use crate::page::{Gpa, PageRange, RamLayout};

/// Guest RAM as the VMM, devices and the migration engine see it.
///
/// A private page read here is not the guest's plaintext.
pub type HostView = GuestMemoryMmap<()>;

/// First memory slot of the C=1 view; the C=0 view's slots count from 0.
const C1_SLOTS: u32 = 8;

/// Guest RAM, mapped; its mappings live as long as this value.
#[derive(Debug)]
pub struct GuestRam {
    layout: RamLayout,
    host: HostView,
    split: Option<Split>,
}

/// The software platform's other two views.
#[derive(Debug)]
struct Split {
    c_bit: u8,
    c0: Mutex<SwitchedView>,
    c1: GuestMemoryMmap<()>,
}

impl GuestRam {
    /// One mapping that everyone shares: a plain VM's.
    ///
    /// # Errors
    /// [`RamError::Map`] if the host refuses the mapping.
    pub fn single(layout: RamLayout) -> Result<Self, RamError> {
        let mut ranges = Vec::new();
        for range in layout.ranges() {
            ranges.push((GuestAddress(range.start().0), length(range)?));
        }
        let host = HostView::from_ranges(&ranges)
            .map_err(|cause| RamError::Map { bytes: layout.bytes(), cause: cause.to_string() })?;
        for region in host.iter() {
            // Guests and migrations touch nearly all of it, in large runs.
            if let Ok(whole) = region.as_volatile_slice() {
                advise(&whole, libc::MADV_HUGEPAGE);
            }
        }
        Ok(Self { layout, host, split: None })
    }

    /// The same for SEV hardware, whose kernel writes back the caches of all CPUs whenever a page of a memory
    /// slot is unmapped, moved or protected. Pages that are pinned cannot move, but the kernel tries:
    /// automatic NUMA balancing protects pages to learn which CPU uses them, unless their memory has a
    /// policy of its own, and a child process would have them protected to share them. Nothing here
    /// unmaps, protects or discards any of it while there is a VM.
    ///
    /// # Errors
    /// [`RamError::Map`] if the host refuses the mapping.
    pub fn pinned(layout: RamLayout) -> Result<Self, RamError> {
        let ram = Self::single(layout)?;
        for region in ram.host.iter() {
            if let Ok(whole) = region.as_volatile_slice() {
                advise(&whole, libc::MADV_DONTFORK);
                keep_where_it_is(&whole);
            }
        }
        Ok(ram)
    }

    /// The software platform's two memories and three views, all pages shown private.
    ///
    /// # Errors
    /// [`RamError`] if the host refuses the memories or the mappings.
    pub fn split(layout: RamLayout, c_bit: u8) -> Result<(Self, GuestView), RamError> {
        let shared = memory_file(c"sevferry-shared", layout.bytes())?;
        let private = memory_file(c"sevferry-private", layout.bytes())?;
        let host = map_file(&layout, &shared)?;
        let c1 = map_file(&layout, &private)?;
        let firmware = GuestView::new(host.clone(), c1.clone())
            .map_err(|cause| RamError::Create { bytes: layout.bytes(), cause })?;
        let c0 = SwitchedView::new(
            map_file(&layout, &private)?,
            Backing { file: shared, mapping: host.clone() },
            Backing { file: private, mapping: c1.clone() },
        );
        let split = Some(Split { c_bit, c0: Mutex::new(c0), c1 });
        Ok((Self { layout, host, split }, firmware))
    }

    /// Which frames are RAM.
    #[must_use]
    pub fn layout(&self) -> RamLayout {
        self.layout
    }

    /// The host's view.
    #[must_use]
    pub fn host(&self) -> &HostView {
        &self.host
    }

    /// The host's mappings as `(user address, bytes)`, for `KVM_MEMORY_ENCRYPT_REG_REGION`.
    pub fn mappings(&self) -> impl Iterator<Item = (u64, u64)> {
        self.host.iter().map(|region| (region.as_ptr() as u64, region.len()))
    }

    /// The user address of `range` in the host's view, for commands that name guest memory.
    ///
    /// # Errors
    /// [`RamError::NotRam`] if the range is not inside one run of RAM.
    pub fn user_address(&self, range: PageRange) -> Result<u64, RamError> {
        let bytes = length(range)?;
        self.host
            .get_slice(GuestAddress(range.start().0), bytes)
            .map(|slice| slice.ptr_guard().as_ptr() as u64)
            .map_err(|_outside| RamError::NotRam { range })
    }

    /// Gives all pages of `range`, of private or of shared memory, at once: the caller is about to
    /// write them, and would find them missing one by one. That costs more time, but nothing else,
    /// so whatever keeps the host from it is no error.
    pub fn populate(&self, range: PageRange, status: Status) {
        let view = match (&self.split, status) {
            (Some(split), Status::Private) => &split.c1,
            (None, _) | (_, Status::Shared) => &self.host,
        };
        let bytes = usize::try_from(range.bytes()).unwrap_or(usize::MAX);
        if let Ok(pages) = view.get_slice(GuestAddress(range.start().0), bytes) {
            advise(&pages, libc::MADV_POPULATE_WRITE);
        }
    }

    /// Gives the guest its RAM: memory slots at the GPA and, for the split views, at GPA + 2^C.
    ///
    /// # Errors
    /// [`RamError::AddressWidth`], or [`RamError::Register`] with KVM's errno.
    pub fn register(&self, vm: &VmFd) -> Result<(), RamError> {
        self.set_slots(vm, 0)
    }

    /// Registers all memory slots with these flags, or changes their flags.
    pub(super) fn set_slots(&self, vm: &VmFd, flags: u32) -> Result<(), RamError> {
        let Some(split) = &self.split else {
            return register_view(vm, &self.host, (0, flags), Gpa(0));
        };
        let c0 = split.c0();
        register_view(vm, c0.mapping(), (0, flags), Gpa(0))?;
        register_view(vm, &split.c1, (C1_SLOTS, flags), Gpa(1 << split.c_bit))
    }

    /// The number of every memory slot, with the RAM that it shows.
    pub(super) fn slots(&self) -> impl Iterator<Item = (u32, PageRange)> + use<> {
        let views = if self.split.is_some() { &[0, C1_SLOTS][..] } else { &[0] };
        let layout = self.layout;
        views.iter().flat_map(move |&first| (first..).zip(layout.ranges()))
    }

    /// Makes the C=0 view follow page status in `range`; a no-op where there is only one view.
    ///
    /// `any_shared` says whether any page of a range is shared now; `reported_shared` is true
    /// when the guest has just reported `range` shared.
    ///
    /// # Errors
    /// [`RamError::Switch`] if the host refuses to change the mapping.
    pub fn show(
        &self,
        range: PageRange,
        reported_shared: bool,
        any_shared: &dyn Fn(PageRange) -> bool,
    ) -> Result<(), RamError> {
        let Some(split) = &self.split else { return Ok(()) };
        let mut c0 = split.c0();
        for ram in self.layout.clip(range) {
            c0.follow(ram, reported_shared, any_shared)
                .map_err(|cause| RamError::Switch { range: ram, cause })?;
        }
        Ok(())
    }

    /// Makes the C=0 view show what `status` says, copying nothing: page status and memory came
    /// from elsewhere together. A no-op where there is only one view.
    ///
    /// # Errors
    /// [`RamError::Switch`] if the host refuses to change the mapping.
    pub fn show_restored(&self, status: &PageStatus) -> Result<(), RamError> {
        let Some(split) = &self.split else { return Ok(()) };
        let mut c0 = split.c0();
        for range in self.layout.ranges() {
            c0.restore(range, &|piece| status.may_share(piece))
                .map_err(|cause| RamError::Switch { range, cause })?;
        }
        Ok(())
    }
}

#[cfg(test)]
impl GuestRam {
    /// Writes as the guest does through a mapping without the C-bit.
    pub(crate) fn write_without_c_bit(&self, start: Gpa, bytes: &[u8]) {
        let c0 = self.split.as_ref().unwrap().c0();
        c0.mapping().write_slice(bytes, GuestAddress(start.0)).unwrap();
    }
}

impl Split {
    fn c0(&self) -> MutexGuard<'_, SwitchedView> {
        self.c0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn length(range: PageRange) -> Result<usize, RamError> {
    usize::try_from(range.bytes()).map_err(|_too_large| RamError::NotRam { range })
}

/// A file of `bytes` zeros that lives in memory and has no name.
fn memory_file(name: &CStr, bytes: u64) -> Result<File, RamError> {
    // SAFETY: the name is NUL-terminated and outlives the call.
    let descriptor = unsafe { memfd_create(name.as_ptr(), MFD_CLOEXEC) };
    if descriptor < 0 {
        return Err(RamError::Create { bytes, cause: IoError::last_os_error() });
    }
    // SAFETY: the descriptor was just made and nothing else owns it.
    let file = unsafe { File::from_raw_fd(descriptor) };
    file.set_len(bytes).map_err(|cause| RamError::Create { bytes, cause })?;
    Ok(file)
}

/// Maps `file` at the addresses of RAM; the device hole takes no space in the file.
fn map_file(layout: &RamLayout, file: &File) -> Result<GuestMemoryMmap<()>, RamError> {
    let mut ranges = Vec::new();
    let mut offset = 0;
    for range in layout.ranges() {
        let file = file.try_clone().map_err(|cause| RamError::Create { bytes: 0, cause })?;
        let backing = Some(FileOffset::new(file, offset));
        ranges.push((GuestAddress(range.start().0), length(range)?, backing));
        offset += range.bytes();
    }
    GuestMemoryMmap::from_ranges_with_files(&ranges)
        .map_err(|cause| RamError::Map { bytes: layout.bytes(), cause: cause.to_string() })
}

fn register_view(
    vm: &VmFd,
    view: &GuestMemoryMmap<()>,
    (first_slot, flags): (u32, u32),
    offset: Gpa,
) -> Result<(), RamError> {
    for (slot, region) in (first_slot..).zip(view.iter()) {
        let slot = kvm_userspace_memory_region { flags, ..memory_slot(slot, region, offset) };
        debug!("memory slot {slot:?}");
        // SAFETY: the region is a live mapping of that size. `GuestRam` keeps it until the VM is
        // gone (whoever keeps a VM drops it first), and its pages are only ever accessed as volatile.
        unsafe { vm.set_user_memory_region(slot) }.map_err(|cause| refused(&slot, cause))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::encryption::{MapGpaRange, Overflow};
    use crate::page::{Frame, PAGE_SIZE};

    const MIB: u64 = 1 << 20;

    fn split() -> (GuestRam, GuestView) {
        GuestRam::split(RamLayout::new(8 * MIB).unwrap(), 47).unwrap()
    }

    fn pages(base: u64, count: u64) -> PageRange {
        PageRange::new(Frame(base), Frame(base + count)).unwrap()
    }

    fn seen_without_c_bit(ram: &GuestRam, gpa: u64) -> u8 {
        let split = ram.split.as_ref().unwrap();
        let c0 = split.c0.lock().unwrap();
        c0.mapping().read_obj(GuestAddress(gpa)).unwrap()
    }

    /// Pages that are populated stay as they are, in both memories; what is not RAM is left alone.
    #[test]
    fn populating_changes_nothing() {
        let (ram, firmware) = split();
        let range = pages(0x300, 64);
        let address = ram.user_address(range).unwrap();
        firmware.write(address, &[7; 4096]).unwrap();
        ram.host().write_slice(&[9; 4096], GuestAddress(range.start().0)).unwrap();
        for status in [Status::Private, Status::Shared] {
            ram.populate(range, status);
            ram.populate(pages(u64::MAX >> 12, 1), status);
            ram.populate(pages(0x7ff, 2), status);
        }
        let (mut private, mut shared) = ([1; 8192], [1; 8192]);
        firmware.read(address, &mut private).unwrap();
        ram.host().read_slice(&mut shared, GuestAddress(range.start().0)).unwrap();
        let halves = |byte| [[byte; 4096], [0; 4096]].concat();
        assert_eq!((private.to_vec(), shared.to_vec()), (halves(7), halves(9)));
    }

    /// After `LAUNCH_UPDATE_DATA` the guest sees what was loaded, with and without the C-bit while
    /// the page is private, and the host sees something else.
    #[test]
    fn the_host_cannot_read_what_it_loaded() {
        let (ram, firmware) = split();
        let text = b"a secret of the guest, 32 bytes.";
        ram.host().write_slice(text, GuestAddress(3 * MIB)).unwrap();
        let address = ram.user_address(pages(3 * MIB / PAGE_SIZE, 1)).unwrap();
        let mut measured: Vec<u8> = Vec::new();
        firmware.encrypt_in_place(address, 4096, &mut |bytes| measured.extend(bytes)).unwrap();
        assert_eq!(&measured[..32], text);
        let mut seen = [0; 32];
        firmware.read(address, &mut seen).unwrap();
        assert_eq!(&seen, text);
        assert_eq!(seen_without_c_bit(&ram, 3 * MIB), text[0]);
        ram.host().read_slice(&mut seen, GuestAddress(3 * MIB)).unwrap();
        assert_ne!(&seen, text);
    }

    /// A page reported shared keeps the bytes that the guest wrote to it without the C-bit, and
    /// its neighbours' private bytes do not reach the host.
    #[test]
    fn a_page_converted_in_place_survives_and_its_neighbour_stays_private() {
        let (ram, firmware) = split();
        let gpa = 4 * MIB;
        let address = ram.user_address(pages(gpa / PAGE_SIZE, 2)).unwrap();
        firmware.write(address, &[7; 8192]).unwrap();
        let converted = pages(gpa / PAGE_SIZE, 1);
        ram.show(converted, true, &|range| range.intersection(converted).is_some()).unwrap();
        assert_eq!(seen_without_c_bit(&ram, gpa), 7);
        assert_eq!(ram.host().read_obj::<u8>(GuestAddress(gpa)).unwrap(), 7);
        assert_eq!(ram.host().read_obj::<u8>(GuestAddress(gpa + PAGE_SIZE)).unwrap(), 0);
        ram.host().write_obj(9_u8, GuestAddress(gpa)).unwrap();
        assert_eq!(seen_without_c_bit(&ram, gpa), 9);
        ram.show(converted, false, &|_| false).unwrap();
        assert_eq!(seen_without_c_bit(&ram, gpa), 7);
    }

    /// Below 1 MiB a shared page does not make its neighbours show the shared memory.
    #[test]
    fn low_pages_switch_one_by_one() {
        let (ram, firmware) = split();
        let address = ram.user_address(pages(8, 2)).unwrap();
        firmware.write(address, &[5; 8192]).unwrap();
        let converted = pages(8, 1);
        ram.show(converted, true, &|range| range.intersection(converted).is_some()).unwrap();
        ram.host().write_obj(1_u8, GuestAddress(8 * PAGE_SIZE)).unwrap();
        assert_eq!(seen_without_c_bit(&ram, 8 * PAGE_SIZE), 1);
        assert_eq!(seen_without_c_bit(&ram, 9 * PAGE_SIZE), 5);
    }

    /// A record that cannot rule out any shared page leaves the view of private pages alone.
    #[test]
    fn an_unsure_record_does_not_hide_private_pages() {
        let (ram, firmware) = split();
        let address = ram.user_address(pages(8, 1)).unwrap();
        firmware.write(address, &[5; 4096]).unwrap();
        ram.show(pages(8, 1), false, &|_| true).unwrap();
        assert_eq!(seen_without_c_bit(&ram, 8 * PAGE_SIZE), 5);
    }

    /// Restoring page status shows what it says, and leaves both memories as they came: nothing is
    /// copied from one to the other.
    #[test]
    fn restored_status_is_shown_and_copies_nothing() {
        let (ram, firmware) = split();
        let layout = ram.layout();
        let mut status = PageStatus::new(layout, Overflow::Promote);
        let mut report = |base, count, kind| {
            let range = pages(base, count);
            status.apply(MapGpaRange { range, status: kind }, &mut |_| ());
        };
        report(8, 1, Status::Shared);
        report(0x400, 1, Status::Shared);
        for page in [8, 9, 0x300, 0x400] {
            let range = pages(page, 1);
            ram.host().write_obj(1_u8, GuestAddress(range.start().0)).unwrap();
            firmware.write(ram.user_address(range).unwrap(), &[2]).unwrap();
        }
        // Something else was shown before.
        ram.show(pages(0x300, 1), true, &|_| true).unwrap();
        ram.host().write_obj(1_u8, GuestAddress(0x300 << 12)).unwrap();
        ram.show_restored(&status).unwrap();
        let seen = [8, 9, 0x300, 0x400].map(|page| seen_without_c_bit(&ram, page << 12));
        assert_eq!(seen, [1, 2, 2, 1]);
        let host = |page: u64| ram.host().read_obj::<u8>(GuestAddress(page << 12)).unwrap();
        assert_eq!([8, 9, 0x300, 0x400].map(host), [1; 4]);
    }

    /// A user address outside guest RAM, or a length that leaves it, is refused.
    #[test]
    fn firmware_refuses_what_is_not_guest_ram() {
        let (ram, firmware) = split();
        let address = ram.user_address(pages(0, 1)).unwrap();
        assert!(firmware.read(address - 1, &mut [0; 1]).is_err());
        assert!(firmware.encrypt_in_place(address, 9 * MIB, &mut |_| ()).is_err());
        assert!(firmware.encrypt_in_place(address, u64::MAX, &mut |_| ()).is_err());
        assert!(firmware.write(0, &[0; 16]).is_err());
    }
}
