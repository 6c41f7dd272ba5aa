//! An EPYC that is not there: preloaded into a sevferry that is linked dynamically, it answers
//! `/dev/sev` and KVM's SEV ioctls with the software platform, and passes every other call on.
//!
//! For tests only, so that the hardware platform's own code runs where there is no SEV hardware. What
//! the processor and KVM would do besides, it does too (`vm`): the guest's private view at C=1, page
//! status hypercalls seen before sevferry sees them, one dirty log for both views, and the leaf
//! 0x8000001F of `KVM_GET_SUPPORTED_CPUID`. Like AMD's firmware it exports its CEK unsigned.
//!
//! `SEVFERRY_EPYC` names the directory of the chip's keys. There it leaves what AMD's key server would
//! give: `cek.cert`, and `ask_ark.cert` under the software platform's root, which is not AMD's.
#![expect(
    unsafe_code,
    clippy::multiple_unsafe_ops_per_block,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    reason = "it stands where the kernel stands, and has nobody to report its own failures to"
)]

mod pinned;
mod vm;

use std::cell::Cell;
use std::collections::HashMap;
use std::env;
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong, c_void};
use std::fs;
use std::os::fd::IntoRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};

use kvm_bindings::{KVM_CAP_VM_TYPES, KVM_X86_SEV_VM, kvm_cpuid_entry2, kvm_cpuid2};
use sevferry::sev::abi::{SevIssueCmd, device_command};
use sevferry::sev::certificate::{CERTIFICATE_LEN, Usage};
use sevferry::sev::device::export_pdh;
use sevferry::sev::hardware::DEVICE_PATH;
use sevferry::sev::software::{Identity, SoftwareDevice, SoftwareHost, vendor_chain};
use sevferry::sev::{Errno, SevDevice};
use vm::{Vcpu, Vm};

// From include/uapi/linux/kvm.h and psp-sev.h.
const KVM_CREATE_VM: c_ulong = 0xae01;
const KVM_CHECK_EXTENSION: c_ulong = 0xae03;
const KVM_GET_SUPPORTED_CPUID: c_ulong = 0xc008_ae05;
const KVM_CREATE_VCPU: c_ulong = 0xae41;
const KVM_GET_DIRTY_LOG: c_ulong = 0x4010_ae42;
const KVM_SET_USER_MEMORY_REGION: c_ulong = 0x4020_ae46;
const KVM_RUN: c_ulong = 0xae80;
const KVM_MEMORY_ENCRYPT_OP: c_ulong = 0xc008_aeba;
const KVM_MEMORY_ENCRYPT_REG_REGION: c_ulong = 0x8010_aebb;
const KVM_MEMORY_ENCRYPT_UNREG_REGION: c_ulong = 0x8010_aebc;
const SEV_ISSUE_CMD: c_ulong = 0xc010_5300;

/// Where KVM says whether the host is initialised for SNP guests.
const SNP_PARAMETER: &[u8] = b"/sys/module/kvm_amd/parameters/sev_snp";

/// ASIDs, as a small EPYC has them.
const ASIDS: u32 = 509;

/// The secure processor of this process.
static CHIP: LazyLock<SoftwareHost> = LazyLock::new(|| {
    let identity = Identity::load_or_create(&directory()).unwrap();
    SoftwareHost::new(identity)
});

/// What the descriptors of this process stand for.
static OPEN: LazyLock<Mutex<Open>> = LazyLock::new(Mutex::default);

#[derive(Default)]
struct Open {
    devices: HashMap<c_int, SoftwareDevice>,
    vms: HashMap<c_int, Arc<Vm>>,
    vcpus: HashMap<c_int, Arc<Vcpu>>,
}

thread_local! {
    /// Our own calls go to the kernel.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Does `work`, whose own system calls are not answered here.
fn inside<T>(work: impl FnOnce() -> T) -> T {
    INSIDE.set(true);
    let result = work();
    INSIDE.set(false);
    result
}

fn open_files() -> MutexGuard<'static, Open> {
    OPEN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn directory() -> PathBuf {
    env::var_os("SEVFERRY_EPYC").map(PathBuf::from).unwrap()
}

fn kernel_ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    // SAFETY: the call of whoever called us, unchanged.
    let result = unsafe { libc::syscall(libc::SYS_ioctl, fd, request, argument) };
    c_int::try_from(result).unwrap_or(-1)
}

/// What a system call returns to C.
fn answer(result: Result<(), Errno>) -> c_int {
    match result {
        Ok(()) => 0,
        Err(Errno(number)) => {
            // SAFETY: the address of this thread's own errno.
            unsafe { *libc::__errno_location() = number };
            -1
        }
    }
}

/// `ioctl(2)`, of which C says that it takes any arguments; on x86-64 the third is here.
///
/// # Safety
/// As the kernel's: the argument is what the request demands.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    if INSIDE.get() {
        if request == KVM_SET_USER_MEMORY_REGION {
            // SAFETY: the library hands in a memory region with this request.
            vm::hear_slot(unsafe { *argument.cast() });
            return 0;
        }
        return kernel_ioctl(fd, request, argument);
    }
    match request {
        KVM_CHECK_EXTENSION if argument as usize == KVM_CAP_VM_TYPES as usize => {
            let types = kernel_ioctl(fd, request, argument);
            if has_sev_type(types) { types | 1 << KVM_X86_SEV_VM } else { types }
        }
        KVM_CREATE_VM => create_vm(fd, argument),
        KVM_CREATE_VCPU if open_files().vms.get(&fd).is_some_and(|vm| vm.needs_init()) => {
            answer(Err(Errno::EINVAL))
        }
        KVM_CREATE_VCPU => {
            let vcpu = kernel_ioctl(fd, request, argument);
            let mut open = open_files();
            if let Some(vm) = open.vms.get(&fd).filter(|_| vcpu >= 0).cloned() {
                vm.vcpu_created();
                open.vcpus.insert(vcpu, Arc::new(Vcpu::new(vcpu, vm)));
            }
            vcpu
        }
        KVM_GET_SUPPORTED_CPUID => {
            // SAFETY: KVM's table, with room for as many entries as it says before the call.
            unsafe { supported_cpuid(fd, argument.cast()) }
        }
        KVM_RUN => {
            let ended = kernel_ioctl(fd, request, argument);
            let vcpu = open_files().vcpus.get(&fd).cloned();
            if let Some(vcpu) = vcpu.filter(|_| ended == 0) {
                inside(|| vcpu.follow_exit());
            }
            ended
        }
        SEV_ISSUE_CMD => {
            // SAFETY: the argument of this request.
            let command = unsafe { &mut *argument.cast::<SevIssueCmd>() };
            let open = open_files();
            match open.devices.get(&fd) {
                Some(device) => answer(inside(|| issue(device, command))),
                None => kernel_ioctl(fd, request, argument),
            }
        }
        // SAFETY: the argument goes with the request.
        _ => unsafe { of_vm(fd, request, argument) },
    }
}

/// Whether this host's KVM would have a type of VM for SEV guests: if it has types at all, as Linux 6.12
/// and not 6.1, unless `SEVFERRY_EPYC_VM_TYPES` is `yes` or `no`.
fn has_sev_type(types: c_int) -> bool {
    match env::var("SEVFERRY_EPYC_VM_TYPES").as_deref() {
        Ok("yes") => true,
        Ok("no") => false,
        _ => types > 0,
    }
}

/// `KVM_CREATE_VM`; the kernel here has no type for SEV guests and makes one of any guest's.
fn create_vm(fd: c_int, vm_type: *mut c_void) -> c_int {
    let types = kernel_ioctl(fd, KVM_CHECK_EXTENSION, KVM_CAP_VM_TYPES as usize as *mut c_void);
    let is_sev_type = vm_type as usize == KVM_X86_SEV_VM as usize && has_sev_type(types);
    let asked = if is_sev_type { std::ptr::null_mut() } else { vm_type };
    let vm = kernel_ioctl(fd, KVM_CREATE_VM, asked);
    if vm >= 0 {
        open_files().vms.insert(vm, Arc::new(Vm::new(vm, is_sev_type)));
    }
    vm
}

/// The requests to a VM that an SEV guest changes.
///
/// # Safety
/// The argument is what the request demands.
unsafe fn of_vm(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    let vm = open_files().vms.get(&fd).cloned();
    let kernel = || kernel_ioctl(fd, request, argument);
    let Some(vm) = vm else { return kernel() };
    // SAFETY: each request has the argument that the kernel's header gives it.
    unsafe {
        inside(|| match request {
            KVM_MEMORY_ENCRYPT_OP if argument.is_null() => 0,
            KVM_MEMORY_ENCRYPT_OP => answer(vm.command(&mut *argument.cast())),
            KVM_MEMORY_ENCRYPT_REG_REGION => answer(vm.register(*argument.cast())),
            KVM_MEMORY_ENCRYPT_UNREG_REGION => answer(vm.unregister(*argument.cast())),
            KVM_SET_USER_MEMORY_REGION if vm.is_sev() => vm.set_slot(&CHIP, *argument.cast()),
            KVM_GET_DIRTY_LOG if vm.is_sev() => vm.dirty_log(&*argument.cast()),
            _ => kernel(),
        })
    }
}

/// A command of `/dev/sev`; the CEK leaves the chip without its signature.
fn issue(device: &SoftwareDevice, command: &mut SevIssueCmd) -> Result<(), Errno> {
    device.issue(command)?;
    if command.cmd == device_command::PDH_CERT_EXPORT {
        let chain_at = command.data as usize + 12;
        // SAFETY: the command was done, so its packed structure and the chain's buffer are there: PEK,
        // OCA and CEK, of which the last ends in two signature slots of 520 bytes.
        unsafe {
            let chain = (chain_at as *const u64).read_unaligned() as usize;
            for slot in [0x414, 0x61c] {
                let slot = (chain + 2 * CERTIFICATE_LEN + slot) as *mut u8;
                slot.write_bytes(0, 520);
                slot.cast::<Usage>().write_unaligned(Usage::NONE);
            }
        }
    }
    Ok(())
}

/// `KVM_GET_SUPPORTED_CPUID` of a host with SEV: its C-bit is the top bit of MAXPHYADDR, because a
/// memory slot must be where it is set. With `SEVFERRY_EPYC_PROCESSOR=milan` it is where Milan has it, and
/// its guests can be made, but not run.
///
/// # Safety
/// `table` has room for as many entries as it says.
unsafe fn supported_cpuid(fd: c_int, table: *mut kvm_cpuid2) -> c_int {
    // SAFETY: the caller's.
    let room = unsafe { (*table).nent } as usize;
    let result = kernel_ioctl(fd, KVM_GET_SUPPORTED_CPUID, table.cast());
    if result < 0 {
        return result;
    }
    // SAFETY: KVM has written `nent` entries behind the header, and there is `room` for more.
    let (count, entries) = unsafe {
        let entries = (&raw mut (*table).entries).cast::<kvm_cpuid_entry2>();
        ((*table).nent as usize, std::slice::from_raw_parts_mut(entries, room))
    };
    let known = entries.get(..count).unwrap_or_default();
    let find = |function| known.iter().position(|entry| entry.function == function);
    let sizes = find(0x8000_0008);
    let bits = sizes.map_or(40, |at| known[at].eax & 0xff);
    let (highest, ours) = (find(0x8000_0000), find(0x8000_001f).unwrap_or(count));
    if ours == room {
        return answer(Err(Errno(libc::E2BIG)));
    }
    // SAFETY: as above.
    unsafe { (*table).nent = c_uint::try_from(count.max(ours + 1)).unwrap() };
    if let Some(at) = highest {
        entries[at].eax = entries[at].eax.max(0x8000_001f);
    }
    let is_milan = env::var("SEVFERRY_EPYC_PROCESSOR").is_ok_and(|name| name == "milan");
    if let Some(at) = sizes.filter(|_| is_milan) {
        entries[at].eax = 0x3030;
    }
    // SEV, and caches that are coherent between the views.
    let (eax, ebx) = (1 << 1 | 1 << 10, if is_milan { 51 } else { bits - 1 });
    let (function, ecx, edx) = (0x8000_001f, ASIDS, 1);
    entries[ours] =
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..kvm_cpuid_entry2::default() };
    result
}

/// `open(2)`, as Rust's standard library calls it.
///
/// # Safety
/// As the kernel's: a path that ends in a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn open64(path: *const c_char, flags: c_int, mode: c_uint) -> c_int {
    // SAFETY: the caller's.
    let name = unsafe { CStr::from_ptr(path) }.to_bytes();
    if !INSIDE.get() && name == DEVICE_PATH.as_bytes() {
        return inside(open_device);
    }
    if !INSIDE.get() && name == SNP_PARAMETER && env::var_os("SEVFERRY_EPYC_SNP").is_some() {
        return inside(open_snp_parameter);
    }
    // SAFETY: the call of whoever called us, unchanged.
    let result = unsafe { libc::syscall(libc::SYS_openat, libc::AT_FDCWD, path, flags, mode) };
    c_int::try_from(result).unwrap_or(-1)
}

/// Opens the secure processor; leaves beside its keys what AMD's key server would give.
fn open_device() -> c_int {
    let device = CHIP.open_device().unwrap();
    let (_pdh, chain) = export_pdh(&device).unwrap();
    leave(&directory().join("cek.cert"), chain.cek.as_bytes());
    leave(&directory().join("ask_ark.cert"), &vendor_chain().to_bytes());
    let fd = device.fd();
    open_files().devices.insert(fd, device);
    fd
}

/// Opens what KVM says of SNP on a host that is initialised for it.
fn open_snp_parameter() -> c_int {
    let path = directory().join("sev_snp");
    fs::write(&path, "Y\n").unwrap();
    fs::File::open(path).unwrap().into_raw_fd()
}

/// Makes a file, whole as soon as it is there.
fn leave(path: &Path, bytes: &[u8]) {
    if !path.exists() {
        let unfinished = path.with_extension(std::process::id().to_string());
        fs::write(&unfinished, bytes).unwrap();
        fs::rename(&unfinished, path).unwrap();
    }
}

/// `close(2)`: a device or a VM is gone.
///
/// # Safety
/// As the kernel's: nobody uses the descriptor any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn close(fd: c_int) -> c_int {
    let kernel = || {
        // SAFETY: the call of whoever called us, unchanged.
        let result = unsafe { libc::syscall(libc::SYS_close, fd) };
        c_int::try_from(result).unwrap_or(-1)
    };
    if INSIDE.get() {
        return kernel();
    }
    let mut open = open_files();
    let (device, vm, vcpu) =
        (open.devices.remove(&fd), open.vms.remove(&fd), open.vcpus.remove(&fd));
    drop(open);
    // The device's own descriptor is this one.
    let done = if device.is_some() { 0 } else { kernel() };
    inside(|| drop((device, vm, vcpu)));
    done
}
