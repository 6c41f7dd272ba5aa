//! Which model-specific registers are a vCPU's state, and in which order KVM takes them.
//!
//! `KVM_GET_MSR_INDEX_LIST` names most of them, some that are no state, and not MTRRs or
//! machine-check banks.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;
use log::debug;
use thiserror::Error;
use vmm_sys_util::errno::Error as Errno;

/// Most MSRs of a vCPU in a description or a state that is read: several times as many as KVM has.
pub const MSRS_MAX: usize = 1024;

/// `IA32_TIME_STAMP_COUNTER`.
pub(super) const MSR_TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`: arms the LAPIC's timer against the TSC, so it comes after both.
const MSR_TSC_DEADLINE: u32 = 0x6e0;
/// `IA32_MCG_CAP`: how many machine-check banks KVM has, in its low byte.
const MSR_MCG_CAP: u32 = 0x179;
/// `IA32_MC0_CTL`; each bank has four registers.
const MSR_MC0_CTL: u32 = 0x400;
/// `IA32_MTRR_DEF_TYPE`.
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;

/// Fixed MTRRs, and eight pairs of variable ones.
const MTRRS: [u32; 27] = [
    0x250, 0x258, 0x259, 0x268, 0x269, 0x26a, 0x26b, 0x26c, 0x26d, 0x26e, 0x26f, 0x200, 0x201,
    0x202, 0x203, 0x204, 0x205, 0x206, 0x207, 0x208, 0x209, 0x20a, 0x20b, 0x20c, 0x20d, 0x20e,
    0x20f,
];

/// `MSR_KVM_WALL_CLOCK` under its old and its new number. Writing it makes KVM write the time into
/// guest memory at once, wherever the guest once wanted it; a guest that wants to know the time
/// writes it again.
const WALL_CLOCKS: [u32; 2] = [0x11, 0x4b56_4d00];
/// `MSR_KVM_SYSTEM_TIME` under its old number: KVM keeps one value for both.
const OLD_SYSTEM_TIME: u32 = 0x12;

/// Most entries of one `KVM_GET_MSRS` or `KVM_SET_MSRS`.
const BATCH: usize = 128;

/// The registers that are a vCPU's state on this host, in the order in which to restore them;
/// `listed` is from `KVM_GET_MSR_INDEX_LIST`, and `vcpu` is any vCPU.
///
/// # Errors
/// KVM's errno.
pub fn state_msrs(vcpu: &VcpuFd, listed: &[u32]) -> Result<Vec<u32>, Errno> {
    let [banks, ..] = read_one(vcpu, MSR_MCG_CAP)?.unwrap_or(0).to_le_bytes();
    Ok(in_order(listed, banks))
}

fn in_order(listed: &[u32], banks: u8) -> Vec<u32> {
    let is_state = |index: &u32| {
        let hyper_v = (0x4000_0000..0x4000_0200).contains(index);
        let vmx = (0x480..0x4a0).contains(index);
        let placed = [MSR_TSC, MSR_TSC_DEADLINE, OLD_SYSTEM_TIME].contains(index);
        let mtrr = MTRRS.contains(index) || *index == MSR_MTRR_DEF_TYPE;
        let bank = (MSR_MC0_CTL..MSR_MC0_CTL + 4 * 32).contains(index);
        // Guests are offered neither Hyper-V nor nested virtualization.
        !hyper_v && !vmx && !placed && !mtrr && !bank && !WALL_CLOCKS.contains(index)
    };
    let mut state = vec![MSR_TSC];
    let mut others: Vec<_> = listed.iter().copied().filter(is_state).collect();
    others.sort_unstable();
    others.dedup();
    state.append(&mut others);
    state.extend(MSR_MC0_CTL..MSR_MC0_CTL + 4 * u32::from(banks));
    state.extend(MTRRS);
    state.extend([MSR_MTRR_DEF_TYPE, MSR_TSC_DEADLINE]);
    state
}

/// Reads `indices`; those that KVM does not let be read are left out.
pub(super) fn read(vcpu: &VcpuFd, indices: &[u32]) -> Result<Vec<(u32, u64)>, Errno> {
    let mut values = Vec::with_capacity(indices.len());
    let mut rest = indices;
    while !rest.is_empty() {
        let (batch, later) = rest.split_at(rest.len().min(BATCH));
        let mut msrs = entries(batch.iter().map(|&index| (index, 0)))?;
        let read = vcpu.get_msrs(&mut msrs)?;
        values.extend(msrs.as_slice().iter().take(read).map(|msr| (msr.index, msr.data)));
        // KVM stops at the first that it refuses.
        rest = match batch.split_at_checked(read) {
            Some((_, [refused, ..])) => {
                debug!("MSR {refused:#x} is listed but cannot be read");
                rest.split_at_checked(read + 1).map_or(&[], |(_, later)| later)
            }
            _ => later,
        };
    }
    Ok(values)
}

/// Writes `values` in order. KVM lists some registers that cannot be set. Such a register is accepted if it has the
/// value already, or if it cannot be read and the value is 0.
pub(super) fn write(vcpu: &VcpuFd, values: &[(u32, u64)]) -> Result<(), MsrError> {
    let mut rest = values;
    while !rest.is_empty() {
        let (batch, later) = rest.split_at(rest.len().min(BATCH));
        let msrs = entries(batch.iter().copied()).map_err(MsrError::Kvm)?;
        let written = vcpu.set_msrs(&msrs).map_err(MsrError::Kvm)?;
        rest = match batch.split_at_checked(written) {
            Some((_, [(index, value), ..])) => {
                let (index, value) = (*index, *value);
                let current = read_one(vcpu, index).map_err(MsrError::Kvm)?;
                if current.unwrap_or(0) != value {
                    return Err(MsrError::Refused { index, value, current });
                }
                debug!("MSR {index:#x} cannot be set, but has its value {value:#x}");
                rest.split_at_checked(written + 1).map_or(&[], |(_, later)| later)
            }
            _ => later,
        };
    }
    Ok(())
}

/// One register; `None` if KVM does not let it be read.
fn read_one(vcpu: &VcpuFd, index: u32) -> Result<Option<u64>, Errno> {
    let mut one = entries([(index, 0)].into_iter())?;
    let read = vcpu.get_msrs(&mut one)?;
    Ok(one.as_slice().iter().take(read).map(|msr| msr.data).next())
}

fn entries(values: impl Iterator<Item = (u32, u64)>) -> Result<Msrs, Errno> {
    let entries: Vec<_> =
        values.map(|(index, data)| kvm_msr_entry { index, data, reserved: 0 }).collect();
    Msrs::from_entries(&entries).map_err(|_too_many| Errno::new(libc::E2BIG))
}

/// A model-specific register could not be restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MsrError {
    /// KVM refused the call.
    #[error("setting MSRs: {0}")]
    Kvm(Errno),
    /// KVM refused the value.
    #[error("KVM does not let MSR {index:#x} be set to {value:#x} (it is {current:x?} here)")]
    Refused {
        /// Which register.
        index: u32,
        /// What it should be.
        value: u64,
        /// What it is; `None` if it cannot be read.
        current: Option<u64>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The TSC comes first and its deadline last, MTRRs are there though KVM does not list them,
    /// and nothing is there twice.
    #[test]
    fn the_order_is_the_one_that_kvm_needs() {
        let listed = [MSR_TSC_DEADLINE, 0x174, 0x277, MSR_TSC, 0x4b56_4d01, 0x250, 0x277];
        let state = in_order(&listed, 2);
        assert_eq!((state.first(), state.last()), (Some(&MSR_TSC), Some(&MSR_TSC_DEADLINE)));
        for index in [0x174, 0x277, 0x4b56_4d01, 0x250, 0x2ff, 0x20f, 0x400, 0x407] {
            assert_eq!(state.iter().filter(|&&other| other == index).count(), 1, "{index:#x}");
        }
    }

    /// What would write into guest memory, and what belongs to features that no guest has, stays
    /// behind.
    #[test]
    fn what_is_no_state_stays_behind() {
        let state = in_order(&[0x11, 0x12, 0x4b56_4d00, 0x4000_0020, 0x480, 0x491, 0x3b], 0);
        for index in [0x11, 0x12, 0x4b56_4d00, 0x4000_0020, 0x480, 0x491] {
            assert!(!state.contains(&index), "{index:#x}");
        }
        assert!(state.contains(&0x3b));
    }
}
