//! KVM's dirty log: which frames the guest, or KVM itself, has written.
#![expect(unsafe_code, reason = "KVM writes the log to an address that it is given")]

use std::ffi::{c_ulong, c_void};
use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, kvm_dirty_log, kvm_dirty_log__bindgen_ty_1};
use kvm_ioctls::VmFd;
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::ioctl::ioctl_with_ref;

use super::error::RamError;
use super::ram::GuestRam;
use crate::page::{FrameSet, PageRange};

/// `KVM_GET_DIRTY_LOG` in `include/uapi/linux/kvm.h`: `_IOW(KVMIO, 0x42, struct kvm_dirty_log)`.
///
/// kvm-ioctls has it too, but allocates the log anew each time.
const KVM_GET_DIRTY_LOG: c_ulong = 0x4010_ae42;

/// The dirty log of all memory slots, from when it is started until it is stopped.
///
/// Writes by the VMM through the host's view are not in it.
#[derive(Debug)]
pub struct DirtyLog {
    /// Dropped before the RAM that it uses.
    vm: Arc<VmFd>,
    ram: Arc<GuestRam>,
    /// The log of one slot; kept, because a round must not allocate.
    words: Vec<u64>,
}

impl DirtyLog {
    /// Starts to log: the guest's writes from now on are dirty, nothing is dirty yet.
    ///
    /// # Errors
    /// [`RamError::Register`] with KVM's errno.
    pub fn start(vm: Arc<VmFd>, ram: Arc<GuestRam>) -> Result<Self, RamError> {
        let largest = ram.layout().ranges().map(words_of).max().unwrap_or(0);
        ram.set_slots(&vm, KVM_MEM_LOG_DIRTY_PAGES)?;
        Ok(Self { vm, ram, words: vec![0; largest] })
    }

    /// Adds the frames written since the last call to `into`, through whichever view: a frame is
    /// dirty if any slot says so. They are clean for the next call, so `into` must not get lost.
    ///
    /// # Errors
    /// [`RamError::DirtyLog`] with KVM's errno; `into` may have got some frames by then.
    pub fn take(&mut self, into: &mut FrameSet) -> Result<(), RamError> {
        for (slot, range) in self.ram.slots() {
            let words = self.words.get_mut(..words_of(range)).unwrap_or_default();
            words.fill(0);
            let log = kvm_dirty_log {
                slot,
                padding1: 0,
                __bindgen_anon_1: kvm_dirty_log__bindgen_ty_1 {
                    dirty_bitmap: words.as_mut_ptr().cast::<c_void>(),
                },
            };
            // SAFETY: KVM writes one bit for each frame of the slot, rounded up to whole words;
            // `words` has as many, because the slot is `range`, and is borrowed until afterwards.
            if unsafe { ioctl_with_ref(&*self.vm, KVM_GET_DIRTY_LOG, &log) } != 0 {
                return Err(RamError::DirtyLog { slot, cause: Errno::last() });
            }
            into.insert_bits(range, words);
        }
        Ok(())
    }

    /// Stops to log. What was not taken is forgotten.
    ///
    /// # Errors
    /// [`RamError::Register`] with KVM's errno.
    pub fn stop(self) -> Result<(), RamError> {
        self.ram.set_slots(&self.vm, 0)
    }
}

/// Words of a log of `range`.
fn words_of(range: PageRange) -> usize {
    usize::try_from(range.pages().div_ceil(u64::from(u64::BITS))).unwrap_or(usize::MAX)
}
