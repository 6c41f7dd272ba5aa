//! All of a vCPU's state: read from a paused vCPU, written to a new one with the same CPUID.

use kvm_bindings::{
    kvm_debugregs, kvm_lapic_state, kvm_mp_state, kvm_regs, kvm_sregs, kvm_vcpu_events, kvm_xcrs,
    kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm_sys_util::errno::Error as Errno;

use super::msrs::{self, MSR_TSC, MSRS_MAX, MsrError};
use super::xsave;
use crate::saved::{KernelStruct, at_most};

/// The state of one vCPU that is outside `KVM_RUN`, with no exit of it unfinished.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(Default))]
pub struct VcpuState {
    mp_state: KernelStruct<kvm_mp_state>,
    regs: KernelStruct<kvm_regs>,
    sregs: KernelStruct<kvm_sregs>,
    xsave: KernelStruct<kvm_xsave>,
    /// None in it where the host has no XSAVE.
    xcrs: KernelStruct<kvm_xcrs>,
    debug: KernelStruct<kvm_debugregs>,
    lapic: KernelStruct<kvm_lapic_state>,
    /// In the order in which to write them.
    #[serde(deserialize_with = "at_most::<MSRS_MAX, _, _>")]
    msrs: Vec<(u32, u64)>,
    events: KernelStruct<kvm_vcpu_events>,
    /// How fast the guest's TSC counts.
    tsc_khz: u32,
}

impl VcpuState {
    /// Reads the state; `msrs` is from [`super::state_msrs`]. All vCPUs of the machine must be paused.
    ///
    /// # Errors
    /// [`StateError`] with what KVM did not give.
    pub fn save(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Self, StateError> {
        let step = |what| move |cause| StateError::Save { what, cause };
        // KVM_GET_MP_STATE comes first, because it makes the vCPU take INITs and start-up
        // interrupts that wait in its LAPIC; events last, because the others may change them.
        Ok(Self {
            mp_state: KernelStruct(vcpu.get_mp_state().map_err(step("run state"))?),
            regs: KernelStruct(vcpu.get_regs().map_err(step("registers"))?),
            sregs: KernelStruct(vcpu.get_sregs().map_err(step("system registers"))?),
            xsave: KernelStruct(xsave::save(vcpu).map_err(step("vector registers"))?),
            xcrs: KernelStruct(vcpu.get_xcrs().map_err(step("extended control registers"))?),
            debug: KernelStruct(vcpu.get_debug_regs().map_err(step("debug registers"))?),
            lapic: KernelStruct(vcpu.get_lapic().map_err(step("LAPIC"))?),
            msrs: msrs::read(vcpu, msrs).map_err(step("MSRs"))?,
            tsc_khz: vcpu.get_tsc_khz().map_err(step("TSC frequency"))?,
            events: KernelStruct(vcpu.get_vcpu_events().map_err(step("events"))?),
        })
    }

    /// Writes the state to a vCPU that has its CPUID and has never run; its TSC goes on as if
    /// `elapsed_ns` nanoseconds had passed since it was read.
    ///
    /// # Errors
    /// [`StateError`] with what KVM did not take.
    pub fn restore(&self, vcpu: &VcpuFd, elapsed_ns: u64) -> Result<(), StateError> {
        let step = |what| move |cause| StateError::Restore { what, cause };
        // - System registers hold the LAPIC's base, so they come before the LAPIC; the LAPIC
        //   before the MSR that arms its timer.
        // - XCR0 says which parts of the XSAVE area are in use.
        // - Setting registers drops pending exceptions, so events come after them.
        // - The run state comes after system registers, which may change it.
        vcpu.set_sregs(&self.sregs.0).map_err(step("system registers"))?;
        vcpu.set_regs(&self.regs.0).map_err(step("registers"))?;
        if self.xcrs.0.nr_xcrs > 0 {
            vcpu.set_xcrs(&self.xcrs.0).map_err(step("extended control registers"))?;
        }
        xsave::restore(vcpu, &self.xsave.0).map_err(step("vector registers"))?;
        vcpu.set_lapic(&self.lapic.0).map_err(step("LAPIC"))?;
        msrs::write(vcpu, &self.msrs_after(elapsed_ns))?;
        vcpu.set_debug_regs(&self.debug.0).map_err(step("debug registers"))?;
        vcpu.set_vcpu_events(&self.events.0).map_err(step("events"))?;
        vcpu.set_mp_state(self.mp_state.0).map_err(step("run state"))
    }

    /// Which MSRs it has.
    pub fn msrs(&self) -> impl Iterator<Item = u32> {
        self.msrs.iter().map(|(index, _)| *index)
    }

    /// The MSRs with the TSC moved on.
    fn msrs_after(&self, elapsed_ns: u64) -> Vec<(u32, u64)> {
        let cycles = u128::from(elapsed_ns) * u128::from(self.tsc_khz) / 1_000_000;
        let cycles = u64::try_from(cycles).unwrap_or(u64::MAX);
        let moved = |&(index, value): &(u32, u64)| match index {
            MSR_TSC => (index, value.wrapping_add(cycles)),
            _ => (index, value),
        };
        self.msrs.iter().map(moved).collect()
    }
}

/// A vCPU's state could not be read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StateError {
    /// KVM did not give it.
    #[error("reading the {what}: {cause}")]
    Save {
        /// Which part.
        what: &'static str,
        /// KVM's errno.
        cause: Errno,
    },
    /// KVM did not take it.
    #[error("restoring the {what}: {cause}")]
    Restore {
        /// Which part.
        what: &'static str,
        /// KVM's errno.
        cause: Errno,
    },
    /// An MSR.
    #[error("restoring the MSRs")]
    Msr(#[from] MsrError),
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The TSC goes on with the time that passed, however long; no other register changes.
    #[test]
    fn the_tsc_goes_on() {
        let state = |tsc, tsc_khz| VcpuState {
            msrs: vec![(MSR_TSC, tsc), (0x174, 5)],
            tsc_khz,
            ..VcpuState::default()
        };
        let moved = state(1000, 2_500_000).msrs_after(1_000_000_000);
        assert_eq!(moved, [(MSR_TSC, 1000 + 2_500_000_000), (0x174, 5)]);
        assert_eq!(state(7, 2_500_000).msrs_after(0), [(MSR_TSC, 7), (0x174, 5)]);
        state(u64::MAX, u32::MAX).msrs_after(u64::MAX);
    }
}
