//! The XSAVE area of a vCPU: its FPU and vector registers.
#![expect(unsafe_code, reason = "KVM reads as much of the area as it thinks there is")]

use kvm_bindings::kvm_xsave;
use kvm_ioctls::VcpuFd;
use vmm_sys_util::errno::Error as Errno;

/// Reads the area. Without XSAVE on the host KVM makes it from what FXSAVE gives.
pub(super) fn save(vcpu: &VcpuFd) -> Result<kvm_xsave, Errno> {
    vcpu.get_xsave()
}

/// Writes the area.
pub(super) fn restore(vcpu: &VcpuFd, area: &kvm_xsave) -> Result<(), Errno> {
    // KVM_GET_XSAVE fails where a vCPU's area can be larger than `kvm_xsave`. It never is here:
    // this process asks for no features (AMX) that are off until asked for.
    vcpu.get_xsave()?;
    // SAFETY: KVM reads an area of the size that KVM_GET_XSAVE has just filled on the same vCPU,
    // which is that of `kvm_xsave`.
    unsafe { vcpu.set_xsave(area) }
}
