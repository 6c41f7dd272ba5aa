//! Guest RAM as devices see it: the host's view, with a record of the pages that they write.
//!
//! KVM's dirty log knows nothing of what this process writes. So devices have a mapping type of
//! their own, over the same bytes, whose every write marks its page; a migration takes both logs.
#![expect(unsafe_code, reason = "a second description of mappings that the first one keeps alive")]

use std::sync::Arc;

use vm_memory::bitmap::{AtomicBitmap, NewBitmap, RefSlice};
use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{
    GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
    VolatileSlice,
};

use super::error::RamError;
use super::ram::GuestRam;
use crate::page::FrameSet;

/// Guest RAM that remembers which pages were written through it.
pub type DeviceView = GuestMemoryMmap<AtomicBitmap>;

/// A run of bytes of it.
pub type DeviceSlice<'a> = VolatileSlice<'a, RefSlice<'a, AtomicBitmap>>;

/// Guest RAM for devices. A private page read here is not the guest's plaintext.
#[derive(Debug)]
pub struct DeviceMemory {
    view: DeviceView,
    /// Keeps what `view` describes mapped.
    ram: Arc<GuestRam>,
}

impl DeviceMemory {
    /// The same bytes as [`GuestRam::host`].
    ///
    /// # Errors
    /// [`RamError::Map`] if the mappings cannot be described.
    pub fn new(ram: Arc<GuestRam>) -> Result<Self, RamError> {
        let failed = |cause: &dyn ToString| RamError::Map {
            bytes: ram.layout().bytes(),
            cause: cause.to_string(),
        };
        let mut regions = Vec::new();
        for region in ram.host().iter() {
            let bytes = region.size();
            let described =
                MmapRegionBuilder::new_with_bitmap(bytes, AtomicBitmap::with_len(bytes))
                    .with_mmap_prot(region.prot())
                    .with_mmap_flags(region.flags());
            // SAFETY: the pointer is the start of a live mapping of `bytes` bytes, which `self.ram`
            // keeps; nobody has references into it, all access is volatile.
            let described = unsafe { described.with_raw_mmap_pointer(region.as_ptr()) };
            let described = described.build().map_err(|cause| failed(&cause))?;
            let placed = GuestRegionMmap::new(described, region.start_addr());
            regions.push(placed.ok_or_else(|| failed(&"beyond the address space"))?);
        }
        let view = DeviceView::from_regions(regions).map_err(|cause| failed(&cause))?;
        Ok(Self { view, ram })
    }

    /// The bytes.
    #[must_use]
    pub fn view(&self) -> &DeviceView {
        &self.view
    }

    /// Adds the frames that devices have written since the last call to `into`. A write is in it
    /// once it is done: one that goes on is in the next call's.
    pub fn take_written(&self, into: &mut FrameSet) {
        for (region, range) in self.view.iter().zip(self.ram.layout().ranges()) {
            into.insert_bits(range, &MmapRegion::bitmap(region).get_and_reset());
        }
    }

    /// Forgets what was written so far.
    pub fn forget_written(&self) {
        for region in self.view.iter() {
            MmapRegion::bitmap(region).reset();
        }
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::page::{Frame, PAGE_SIZE, RamLayout};

    /// What a device writes is in the host's view, and exactly its pages are in the log, once.
    #[test]
    fn writes_of_devices_are_logged_page_by_page() {
        let ram = Arc::new(GuestRam::single(RamLayout::new(4 << 30).unwrap()).unwrap());
        let memory = DeviceMemory::new(Arc::clone(&ram)).unwrap();
        memory.view().write_slice(&[7; 5000], GuestAddress(PAGE_SIZE - 1)).unwrap();
        memory.view().write_obj(9_u64, GuestAddress(0x1_0000_0000)).unwrap();
        memory.view().read_obj::<u64>(GuestAddress(0x50_0000)).unwrap();
        assert_eq!(ram.host().read_obj::<u8>(GuestAddress(PAGE_SIZE)).unwrap(), 7);
        let mut written = FrameSet::new(ram.layout());
        memory.take_written(&mut written);
        let frames: Vec<_> = written.frames().collect();
        assert_eq!(frames, [Frame(0), Frame(1), Frame(2), Frame(0x10_0000)]);
        let mut written = FrameSet::new(ram.layout());
        memory.take_written(&mut written);
        assert!(written.is_empty());
        memory.view().write_obj(9_u64, GuestAddress(0)).unwrap();
        memory.forget_written();
        memory.take_written(&mut written);
        assert!(written.is_empty());
    }
}
