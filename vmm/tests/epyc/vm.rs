//! A VM of the EPYC that is not there: the software platform's two memories under sevferry's one.
//!
//! sevferry maps guest RAM once and registers it; here that mapping becomes the host's view of the
//! software platform's [`GuestRam`], whose other two views are what the guest gets. Nothing of page
//! status comes from sevferry: at the source the hypercalls say it, and at a destination a page is
//! private if it was received as a packet and the host has not written it since, as in DRAM.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::ffi::{c_int, c_void};
use std::iter;
use std::mem::ManuallyDrop;
use std::os::fd::RawFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use kvm_bindings::{
    KVM_EXIT_HYPERCALL, kvm_dirty_log, kvm_enc_region, kvm_run, kvm_sev_cmd, kvm_sev_init,
    kvm_userspace_memory_region, sev_cmd_id_KVM_SEV_DBG_DECRYPT as DBG_DECRYPT,
    sev_cmd_id_KVM_SEV_INIT as INIT, sev_cmd_id_KVM_SEV_INIT2 as INIT2,
    sev_cmd_id_KVM_SEV_LAUNCH_SECRET as LAUNCH_SECRET,
    sev_cmd_id_KVM_SEV_LAUNCH_UPDATE_DATA as LAUNCH_UPDATE_DATA,
    sev_cmd_id_KVM_SEV_RECEIVE_FINISH as RECEIVE_FINISH,
    sev_cmd_id_KVM_SEV_RECEIVE_UPDATE_DATA as RECEIVE_UPDATE_DATA,
    sev_cmd_id_KVM_SEV_SEND_UPDATE_DATA as SEND_UPDATE_DATA,
};
use kvm_ioctls::{Kvm, VmFd};
use sevferry::encryption::{KVM_HC_MAP_GPA_RANGE, Overflow, PageStatus};
use sevferry::memory::{GuestRam, Pages};
use sevferry::page::{PAGE_SIZE, RamLayout};
use sevferry::sev::software::{SoftwareHost, SoftwarePlatform};
use sevferry::sev::{Errno, Platform};

use super::{KVM_GET_DIRTY_LOG, KVM_SET_USER_MEMORY_REGION, kernel_ioctl};

/// Slots of the C=1 view follow those of the C=0 view at this distance, as `GuestRam` numbers them.
const C1_SLOTS: u32 = 8;

const PAGE: usize = 4096;

thread_local! {
    /// The memory slots that the software platform would set.
    static HEARD: RefCell<Vec<kvm_userspace_memory_region>> = const { RefCell::new(Vec::new()) };
}

/// `KVM_SET_USER_MEMORY_REGION` by the software platform's own code: heard, not set, because sevferry
/// chooses the flags.
pub(super) fn hear_slot(slot: kvm_userspace_memory_region) {
    HEARD.with_borrow_mut(|heard| heard.push(slot));
}

/// A VM, which `KVM_SEV_INIT` makes an SEV guest.
pub(super) struct Vm {
    fd: RawFd,
    /// `KVM_X86_SEV_VM`.
    is_sev_type: bool,
    init: Mutex<Init>,
    sev: OnceLock<Sev>,
}

/// What is known before there is memory.
#[derive(Default)]
struct Init {
    done: bool,
    has_vcpu: bool,
    regions: Vec<kvm_enc_region>,
}

/// An SEV guest with its memory.
struct Sev {
    platform: SoftwarePlatform,
    ram: Arc<GuestRam>,
    /// As sevferry knows them.
    regions: Vec<kvm_enc_region>,
    slots: Vec<kvm_userspace_memory_region>,
    pages: Mutex<Pages>,
    /// Addresses of the pages that came as packets.
    received: Mutex<BTreeSet<u64>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Vm {
    pub(super) fn new(fd: RawFd, is_sev_type: bool) -> Self {
        Self { fd, is_sev_type, init: Mutex::default(), sev: OnceLock::new() }
    }

    pub(super) fn is_sev(&self) -> bool {
        lock(&self.init).done
    }

    /// `KVM_MEMORY_ENCRYPT_OP`. That of `KVM_SEV_INIT` is repeated when there is memory.
    pub(super) fn command(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        if command.id == INIT || command.id == INIT2 {
            return self.turn_on(command);
        }
        let sev = self.sev.get().ok_or(Errno::ENOTTY)?;
        if command.id == RECEIVE_FINISH {
            sev.show_received();
        }
        let Some(place) = guest_address(command) else {
            return sev.platform.memory_encrypt_op(command);
        };
        // SAFETY: the structure of this command, which its caller has borrowed for the call.
        let (theirs, result) = unsafe {
            let theirs = place.read();
            place.write(sev.translate(theirs));
            let result = sev.platform.memory_encrypt_op(command);
            place.write(theirs);
            (theirs, result)
        };
        if result.is_ok() && command.id == RECEIVE_UPDATE_DATA {
            sev.leave_noise(theirs);
        }
        result
    }

    /// `KVM_SEV_INIT` of a VM as any other, or `KVM_SEV_INIT2` of one for SEV guests; never the other.
    fn turn_on(&self, command: &kvm_sev_cmd) -> Result<(), Errno> {
        let mut init = lock(&self.init);
        if (command.id == INIT2) != self.is_sev_type || init.has_vcpu {
            return Err(Errno::EINVAL);
        }
        if self.is_sev_type {
            // SAFETY: the structure of this command, which its caller has borrowed for the call.
            let asked = unsafe { (command.data as usize as *const kvm_sev_init).read() };
            let nothing = (asked.vmsa_features, asked.flags, asked.ghcb_version) == (0, 0, 0);
            if init.done || !nothing {
                return Err(Errno::EINVAL);
            }
        } else if init.done {
            return Err(Errno::EBUSY);
        }
        init.done = true;
        Ok(())
    }

    /// KVM makes no vCPU of a VM for SEV guests before `KVM_SEV_INIT2`.
    pub(super) fn needs_init(&self) -> bool {
        self.is_sev_type && !lock(&self.init).done
    }

    /// KVM has made a vCPU of it.
    pub(super) fn vcpu_created(&self) {
        lock(&self.init).has_vcpu = true;
    }

    /// `KVM_MEMORY_ENCRYPT_REG_REGION`, repeated when there is memory. What comes after that is no RAM.
    pub(super) fn register(&self, region: kvm_enc_region) -> Result<(), Errno> {
        if let Some(sev) = self.sev.get() {
            return sev.platform.register_region(&region);
        }
        let mut init = lock(&self.init);
        if !init.done {
            return Err(Errno::ENOTTY);
        }
        match init.regions.last_mut() {
            // The next piece of the same mapping.
            Some(last) if last.addr + last.size == region.addr => last.size += region.size,
            _ => init.regions.push(region),
        }
        Ok(())
    }

    /// `KVM_MEMORY_ENCRYPT_UNREG_REGION`, of what is no RAM: KVM writes back all caches then.
    pub(super) fn unregister(&self, region: kvm_enc_region) -> Result<(), Errno> {
        let sev = self.sev.get().ok_or(Errno::EINVAL)?;
        sev.platform.unregister_region(&region)?;
        eprintln!("epyc: caches written back");
        Ok(())
    }

    /// Whether any of these bytes are RAM that was registered, and that the guest has.
    pub(super) fn has_pinned(&self, address: u64, bytes: u64) -> bool {
        let overlaps = |region: &kvm_enc_region| {
            address < region.addr + region.size && region.addr < address + bytes
        };
        // Without memory slots the kernel has nothing to write back.
        self.sev.get().is_some() && lock(&self.init).regions.iter().any(overlaps)
    }

    /// `KVM_SET_USER_MEMORY_REGION`: the guest gets two views of the slot.
    pub(super) fn set_slot(&self, chip: &SoftwareHost, slot: kvm_userspace_memory_region) -> c_int {
        let sev = self.sev.get_or_init(|| self.take_memory(chip));
        for view in sev.slots.iter().filter(|view| view.slot % C1_SLOTS == slot.slot) {
            let mut view = kvm_userspace_memory_region { flags: slot.flags, ..*view };
            let argument = (&raw mut view).cast::<c_void>();
            if kernel_ioctl(self.fd, KVM_SET_USER_MEMORY_REGION, argument) < 0 {
                return -1;
            }
        }
        0
    }

    /// Puts the software platform's memory in place of what sevferry has mapped and registered, all of
    /// it and still empty.
    fn take_memory(&self, chip: &SoftwareHost) -> Sev {
        let regions = lock(&self.init).regions.clone();
        let layout = RamLayout::new(regions.iter().map(|region| region.size).sum()).unwrap();
        let kvm = Kvm::new().unwrap();
        let supported = kvm.get_supported_cpuid(256).unwrap();
        let sizes =
            supported.as_slice().iter().find(|entry| entry.function == 0x8000_0008).unwrap();
        let c_bit = u8::try_from(sizes.eax & 0xff).unwrap() - 1;
        let (ram, private) = GuestRam::split(layout, c_bit).unwrap();
        let platform = chip.new_vm(private);
        platform.memory_encrypt_op(&mut kvm_sev_cmd { id: INIT, ..Default::default() }).unwrap();
        for (region, (address, bytes)) in regions.iter().zip(ram.mappings()) {
            assert_eq!(region.size, bytes, "guest RAM has another layout");
            platform.register_region(&kvm_enc_region { addr: address, size: bytes }).unwrap();
            mirror(address, bytes, region.addr);
        }
        // SAFETY: the descriptor is a VM and open; it is not closed here.
        let vm: ManuallyDrop<VmFd> =
            ManuallyDrop::new(unsafe { kvm.create_vmfd_from_rawfd(self.fd) }.unwrap());
        ram.register(&vm).unwrap();
        let slots = HEARD.take();
        let ram = Arc::new(ram);
        let status = PageStatus::new(layout, Overflow::Promote);
        let pages = Mutex::new(Pages::new(status, Arc::clone(&ram)));
        Sev { platform, ram, regions, slots, pages, received: Mutex::default() }
    }

    /// `KVM_GET_DIRTY_LOG`: a page is dirty if either view says so.
    pub(super) fn dirty_log(&self, asked: &kvm_dirty_log) -> c_int {
        let result = self.kernel_dirty_log(asked);
        let slot = asked.slot + C1_SLOTS;
        let Some(sev) = self.sev.get().filter(|_| result == 0) else { return result };
        let Some(view) = sev.slots.iter().find(|view| view.slot == slot) else { return result };
        let words = usize::try_from(view.memory_size.div_ceil(64 * PAGE_SIZE)).unwrap();
        let mut other = vec![0_u64; words];
        let mut log = kvm_dirty_log { slot, ..*asked };
        log.__bindgen_anon_1.dirty_bitmap = other.as_mut_ptr().cast();
        if self.kernel_dirty_log(&log) < 0 {
            return -1;
        }
        // SAFETY: KVM has just filled as many words there.
        let all = unsafe {
            let bitmap = asked.__bindgen_anon_1.dirty_bitmap.cast::<u64>();
            std::slice::from_raw_parts_mut(bitmap, words)
        };
        iter::zip(all, other).for_each(|(word, other)| *word |= other);
        0
    }

    fn kernel_dirty_log(&self, log: &kvm_dirty_log) -> c_int {
        kernel_ioctl(self.fd, KVM_GET_DIRTY_LOG, (&raw const *log).cast_mut().cast())
    }
}

/// Where a command has the address of guest memory, if it has one.
fn guest_address(command: &kvm_sev_cmd) -> Option<*mut u64> {
    let offset = match command.id {
        LAUNCH_UPDATE_DATA | DBG_DECRYPT => 0,
        LAUNCH_SECRET | SEND_UPDATE_DATA | RECEIVE_UPDATE_DATA => 16,
        _ => return None,
    };
    Some((command.data as usize + offset) as *mut u64)
}

/// Maps what is at `from` at `to` too, in place of what is there.
fn mirror(from: u64, bytes: u64, to: u64) {
    let pointer = |address: u64| address as *mut c_void;
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: `from` is a shared mapping of that size, and `to` sevferry's own, as yet unused one.
    let there = unsafe {
        libc::mremap(pointer(from), 0, usize::try_from(bytes).unwrap(), flags, pointer(to))
    };
    assert_eq!(there, pointer(to), "mirroring guest RAM: {}", std::io::Error::last_os_error());
}

/// What the host sees of a page that the firmware has just written: no plaintext, and nothing that the
/// host would write.
fn noise(address: u64) -> impl Iterator<Item = u64> {
    (0..PAGE as u64 / 8).map(move |word| {
        (address + word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29) ^ 0x5345_5645_5059_4321
    })
}

/// A page of guest RAM in sevferry's mapping.
fn words(address: u64) -> *mut [u64; PAGE / 8] {
    address as *mut [u64; PAGE / 8]
}

impl Sev {
    /// The address in the software platform's own mapping.
    fn translate(&self, address: u64) -> u64 {
        let pairs = self.regions.iter().zip(self.ram.mappings());
        let found = pairs.into_iter().find_map(|(theirs, (own, bytes))| {
            let offset = address.checked_sub(theirs.addr)?;
            (offset < bytes).then_some(own + offset)
        });
        found.unwrap_or(address)
    }

    fn leave_noise(&self, address: u64) {
        let page = address & !(PAGE_SIZE - 1);
        for (index, word) in noise(page).enumerate() {
            // SAFETY: the page is guest RAM, or the command would have failed; it is being received,
            // so nobody else touches it.
            unsafe { (&raw mut (*words(page))[index]).write_volatile(word) };
        }
        lock(&self.received).insert(page);
    }

    /// Whether the page came as a packet, and is as that has left it.
    fn is_private(&self, page: u64) -> bool {
        let untouched = || {
            noise(page).enumerate().all(|(index, word)| {
                // SAFETY: a page of guest RAM.
                unsafe { (&raw const (*words(page))[index]).read_volatile() == word }
            })
        };
        lock(&self.received).contains(&page) && untouched()
    }

    /// Makes the guest's view without the C-bit what arrived: shared where the host wrote last.
    fn show_received(&self) {
        let layout = self.ram.layout();
        let mut status = PageStatus::new(layout, Overflow::Promote);
        for (range, region) in layout.ranges().zip(&self.regions) {
            for (index, frame) in (0..).zip(range.frames()) {
                if !self.is_private(region.addr + index * PAGE_SIZE) {
                    let args = [frame.0 * PAGE_SIZE, 1, 0, 0, 0, 0];
                    status.hypercall(KVM_HC_MAP_GPA_RANGE, &args, &mut |_flipped| {}).unwrap();
                }
            }
        }
        self.ram.show_restored(&status).unwrap();
        *lock(&self.pages) = Pages::new(status, Arc::clone(&self.ram));
    }
}

/// A vCPU, and its page of what KVM says when it leaves the guest.
pub(super) struct Vcpu {
    vm: Arc<Vm>,
    run: *mut kvm_run,
}

// SAFETY: the page is mapped as long as the vCPU lives, and only read.
unsafe impl Send for Vcpu {}
// SAFETY: likewise; KVM writes it only while the one thread that reads it is in `KVM_RUN`.
unsafe impl Sync for Vcpu {}

impl Vcpu {
    pub(super) fn new(fd: RawFd, vm: Arc<Vm>) -> Self {
        let (nowhere, read) = (std::ptr::null_mut(), libc::PROT_READ);
        // SAFETY: a new mapping of KVM's page.
        let run = unsafe { libc::mmap(nowhere, PAGE, read, libc::MAP_SHARED, fd, 0) };
        assert_ne!(run, libc::MAP_FAILED, "mapping a vCPU's page");
        Self { vm, run: run.cast() }
    }

    /// After `KVM_RUN`: a page's status changes in memory before sevferry hears of it.
    pub(super) fn follow_exit(&self) {
        let Some(sev) = self.vm.sev.get() else { return };
        // SAFETY: KVM's page, between two runs of this thread.
        let call = unsafe {
            if (*self.run).exit_reason != KVM_EXIT_HYPERCALL {
                return;
            }
            (*self.run).__bindgen_anon_1.hypercall
        };
        lock(&sev.pages).hypercall(call.nr, &call.args);
    }
}

impl Drop for Vcpu {
    fn drop(&mut self) {
        // SAFETY: our own mapping.
        unsafe { libc::munmap(self.run.cast(), PAGE) };
    }
}
