//! Holds virtual machines open for as long as a lab host is up, and never runs them.
//!
//! KVM patches the kernel's code when the first VM comes and when the last one goes (its static
//! keys), and again for the first vCPU with its local APIC off and for the first without any. QEMU's
//! TCG may translate an instruction while another CPU patches it, and then keeps the breakpoint
//! that was there for a moment: the host loops in its breakpoint handler for ever. With these two
//! VMs open nothing is left to be patched while work goes on.

use std::error::Error;
use std::ffi::{c_int, c_ulong};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread;

// linux/kvm.h, type 0xae.
const KVM_CREATE_VM: c_ulong = 0xae01;
const KVM_CREATE_VCPU: c_ulong = 0xae41;
const KVM_CREATE_IRQCHIP: c_ulong = 0xae60;

unsafe extern "C" {
    fn ioctl(fd: c_int, request: c_ulong, argument: c_ulong) -> c_int;
}

fn call(file: &impl AsRawFd, request: c_ulong) -> io::Result<c_int> {
    // SAFETY: of the three requests above, none takes a pointer.
    match unsafe { ioctl(file.as_raw_fd(), request, 0) } {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

fn call_for_file(file: &impl AsRawFd, request: c_ulong) -> io::Result<OwnedFd> {
    let fd = call(file, request)?;
    // SAFETY: a new file descriptor, and nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn main() -> Result<(), Box<dyn Error>> {
    let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm")?;
    let with_apic = call_for_file(&kvm, KVM_CREATE_VM)?;
    call(&with_apic, KVM_CREATE_IRQCHIP)?;
    let without = call_for_file(&kvm, KVM_CREATE_VM)?;
    let _vcpus =
        [call_for_file(&with_apic, KVM_CREATE_VCPU)?, call_for_file(&without, KVM_CREATE_VCPU)?];
    // The shell that started this waits for the file.
    File::create("/run/kvm-kept")?;
    loop {
        thread::park();
    }
}
