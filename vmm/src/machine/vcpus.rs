//! The state in which vCPUs start: CPUID, MSRs, and the first one's registers.

use kvm_bindings::{CpuId, Msrs, kvm_msr_entry, kvm_regs, kvm_sregs};
use kvm_ioctls::{VcpuFd, VmFd};
use log::warn;
use vmm_sys_util::errno::Error as Errno;

use super::compatibility::is_same_tsc;
use super::error::{MachineError, VcpuSetupError};
use super::host::Host;
use crate::boot::Entry;
use crate::boot::gdt::Segments;
use crate::vcpu::state_msrs;

/// `IA32_MISC_ENABLE`, and its bit for fast string operations, which firmware sets.
const MSR_MISC_ENABLE: (u32, u64) = (0x1a0, 1);

/// `IA32_MTRR_DEF_TYPE`: MTRRs and fixed MTRRs enabled, write-back by default. Linux 6.1 sets up
/// PAT, and with it the write-protected mappings that in-place encryption needs, only if firmware
/// has enabled MTRRs.
const MSR_MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 0xc06);

/// `CR0.PE` and `CR0.ET`.
const CR0_PROTECTED: u64 = 0x11;
/// `CR0.PG`.
const CR0_PAGING: u64 = 1 << 31;
/// `CR4.PAE`.
const CR4_PAE: u64 = 1 << 5;
/// `EFER.LME` and `EFER.LMA`.
const EFER_LONG: u64 = (1 << 8) | (1 << 10);
/// `RFLAGS`: only the bit that is always one.
const RFLAGS_RESET: u64 = 2;

/// Creates vCPU `index` with its CPUID.
///
/// # Errors
/// [`VcpuSetupError`] with the step that KVM refused.
pub(super) fn create(vm: &VmFd, index: u8, cpuid: &CpuId) -> Result<VcpuFd, VcpuSetupError> {
    let step = |step| move |cause| VcpuSetupError { index, step, cause };
    let vcpu = vm.create_vcpu(u64::from(index)).map_err(step("creating it"))?;
    vcpu.set_cpuid2(cpuid).map_err(step("setting CPUID"))?;
    Ok(vcpu)
}

/// Makes the TSC of vCPU `index` count at `khz`, if KVM can; one that counts nearly so is left
/// alone. Where it cannot, guests that keep time by the TSC have been refused before.
///
/// # Errors
/// [`VcpuSetupError`] if KVM does not say how fast it counts.
pub(super) fn set_tsc_speed(vcpu: &VcpuFd, index: u8, khz: u32) -> Result<(), VcpuSetupError> {
    let step = "reading the TSC frequency";
    let here = vcpu.get_tsc_khz().map_err(|cause| VcpuSetupError { index, step, cause })?;
    if !is_same_tsc(khz, here)
        && let Err(cause) = vcpu.set_tsc_khz(khz)
    {
        warn!("vCPU {index}: its TSC counts at {here} kHz and not at {khz} kHz: {cause}");
    }
    Ok(())
}

/// Gives vCPU `index` the MSRs that firmware would have set, and the first one `entry`.
///
/// # Errors
/// [`VcpuSetupError`] with the step that KVM refused.
pub(super) fn start_at(vcpu: &VcpuFd, index: u8, entry: Entry) -> Result<(), VcpuSetupError> {
    let step = |step| move |cause| VcpuSetupError { index, step, cause };
    let entries = [MSR_MISC_ENABLE, MSR_MTRR_DEF_TYPE].map(|(index, data)| kvm_msr_entry {
        index,
        data,
        reserved: 0,
    });
    let refused = step("setting MSRs");
    match Msrs::from_entries(&entries) {
        Ok(msrs) => vcpu.set_msrs(&msrs).map_err(refused)?,
        Err(_too_many) => return Err(refused(Errno::new(libc::E2BIG))),
    };
    if index == 0 {
        let system = vcpu.get_sregs().map_err(step("reading system registers"))?;
        vcpu.set_sregs(&system_registers(system, entry))
            .map_err(step("setting system registers"))?;
        vcpu.set_regs(&registers(entry)).map_err(step("setting registers"))?;
    }
    Ok(())
}

/// What to say of a machine's vCPUs elsewhere: their MSRs, and how fast their TSC counts in kHz.
///
/// # Errors
/// [`MachineError`] if KVM does not say.
pub(super) fn facts(host: &Host, vcpus: &[VcpuFd]) -> Result<(Vec<u32>, u32), MachineError> {
    let listed = host.listed_msrs()?;
    let Some(first) = vcpus.first() else { return Ok((Vec::new(), 0)) };
    let msrs = state_msrs(first, &listed).map_err(MachineError::Msrs)?;
    Ok((msrs, first.get_tsc_khz().map_err(MachineError::Msrs)?))
}

fn registers(entry: Entry) -> kvm_regs {
    let reset = kvm_regs { rflags: RFLAGS_RESET, ..kvm_regs::default() };
    match entry {
        Entry::Linux64 { rip, rsi, rsp, .. } => kvm_regs { rip, rsi, rsp, ..reset },
        Entry::Pvh { rip, rbx } => kvm_regs { rip: rip.into(), rbx: rbx.into(), ..reset },
    }
}

fn system_registers(reset: kvm_sregs, entry: Entry) -> kvm_sregs {
    let Segments { code, data, task, gdt } = entry.segments();
    let protected = kvm_sregs {
        cs: code,
        ds: data,
        es: data,
        fs: data,
        gs: data,
        ss: data,
        tr: task,
        gdt,
        cr0: CR0_PROTECTED,
        ..reset
    };
    match entry {
        Entry::Pvh { .. } => protected,
        Entry::Linux64 { cr3, .. } => kvm_sregs {
            cr0: CR0_PROTECTED | CR0_PAGING,
            cr3,
            cr4: CR4_PAE,
            efer: EFER_LONG,
            ..protected
        },
    }
}
