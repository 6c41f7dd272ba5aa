//! The host's KVM: opening it, what we need of it, and a VM with the PC's interrupt hardware.

use std::fs::{read_link, read_to_string};
use std::io::Error as IoError;
use std::path::Path;

use kvm_bindings::{
    CpuId, KVM_CAP_EXIT_HYPERCALL, KVM_CAP_TSC_DEADLINE_TIMER, KVM_CAP_VM_TYPES,
    KVM_CAP_X86_USER_SPACE_MSR, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_enable_cap,
    kvm_pit_config,
};
use kvm_ioctls::{
    Cap, Kvm, MsrExitReason, MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VcpuFd,
    VmFd,
};
use rustix::process::{Resource, getrlimit};
use thiserror::Error;
use vmm_sys_util::errno::Error as Errno;

use super::config::PlatformKind;
use crate::encryption::{KVM_HC_MAP_GPA_RANGE, MSR_KVM_MIGRATION_CONTROL, MSR_PAGE_TABLE};
use crate::sev::launch::{PIECE_LEN, VmType};
use crate::vcpu::MSR_AMD64_SEV;

/// Where KVM may put the three pages that Intel hosts need for real mode, below the reset vector.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// `CAP_IPC_LOCK` in `include/uapi/linux/capability.h`: a process that has it may lock any amount of memory.
const CAP_IPC_LOCK: u32 = 14;

/// Where `/proc/self/ns/user` of a process outside of containers leads (`PROC_USER_INIT_INO` in
/// `include/linux/proc_ns.h`).
const INITIAL_USER_NAMESPACE: &str = "user:[4026531837]";

/// What every guest needs.
const NEEDED: [(Cap, &str); 5] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::Pit2, "KVM_CAP_PIT2"),
];

/// An open `/dev/kvm` that has all that a guest needs.
#[derive(Debug)]
pub struct Host {
    kvm: Kvm,
}

impl Host {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// [`HostError`] if there is none, it may not be opened, or it lacks something.
    pub fn open() -> Result<Self, HostError> {
        let kvm = Kvm::new()
            .map_err(|cause| HostError::Open(IoError::from_raw_os_error(cause.errno())))?;
        match NEEDED.iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
            None => Ok(Self { kvm }),
            Some((_, name)) => Err(HostError::Missing { name }),
        }
    }

    /// A VM of KVM's own type, with in-kernel interrupt controllers and timer and without RAM.
    ///
    /// # Errors
    /// [`HostError::Vm`] with the step that KVM refused.
    pub fn create_vm(&self) -> Result<VmFd, HostError> {
        let vm = self.create_bare_vm(VmType::Default)?;
        Self::add_interrupts(&vm)?;
        Ok(vm)
    }

    /// A VM with nothing in it, of a type that this KVM has.
    ///
    /// # Errors
    /// [`HostError::Vm`] with the step that KVM refused.
    pub fn create_bare_vm(&self, vm_type: VmType) -> Result<VmFd, HostError> {
        let vm = self.kvm.create_vm_with_type(vm_type.number()).map_err(step("creating a VM"))?;
        vm.set_tss_address(TSS_ADDRESS).map_err(step("setting the TSS address"))?;
        Ok(vm)
    }

    /// Gives the VM its interrupt controllers and timer: after its RAM, before its vCPUs.
    ///
    /// KVM frees the VM's old table of devices when a grace period of its readers is over, and adds a memory
    /// slot only after the grace periods that have begun: 4 to 10 ms for RAM that comes later, 0.1 ms for RAM
    /// that is there (`kvm_io_bus_register_dev` and `kvm_set_memslot` in `virt/kvm/kvm_main.c`).
    ///
    /// # Errors
    /// [`HostError::Vm`] with the step that KVM refused.
    pub fn add_interrupts(vm: &VmFd) -> Result<(), HostError> {
        vm.create_irq_chip().map_err(step("creating the interrupt controllers"))?;
        let timer = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..kvm_pit_config::default() };
        vm.create_pit2(timer).map_err(step("creating the timer"))
    }

    /// The type of VM for a guest on `platform`: KVM's own for SEV guests, if KVM answers its commands
    /// and has one.
    #[must_use]
    pub fn vm_type(&self, platform: Option<&PlatformKind>) -> VmType {
        match platform {
            Some(PlatformKind::Hardware { .. }) => {
                VmType::best_of(self.extension(KVM_CAP_VM_TYPES))
            }
            Some(PlatformKind::Software { .. }) | None => VmType::Default,
        }
    }

    /// Makes the guest's page-status hypercalls and its three SEV-related MSRs leave the guest.
    /// Must come before their CPUID bits are offered.
    ///
    /// # Errors
    /// [`HostError`] if this KVM cannot.
    pub fn trap_page_status(&self, vm: &VmFd) -> Result<(), HostError> {
        let exits = self.kvm.check_extension_raw(u64::from(KVM_CAP_EXIT_HYPERCALL));
        let wanted = 1_u64 << KVM_HC_MAP_GPA_RANGE;
        if u64::try_from(exits).unwrap_or(0) & wanted == 0 {
            return Err(HostError::Missing { name: "KVM_CAP_EXIT_HYPERCALL (Linux 5.14)" });
        }
        if !self.kvm.check_extension(Cap::X86MsrFilter) {
            return Err(HostError::Missing { name: "KVM_CAP_X86_MSR_FILTER (Linux 5.10)" });
        }
        vm.enable_cap(&capability(KVM_CAP_EXIT_HYPERCALL, wanted))
            .map_err(step("asking for hypercall exits"))?;
        let reasons = u64::from(MsrExitReason::Filter.bits());
        vm.enable_cap(&capability(KVM_CAP_X86_USER_SPACE_MSR, reasons))
            .map_err(step("asking for MSR exits"))?;
        let trapped = [MSR_AMD64_SEV, MSR_KVM_MIGRATION_CONTROL, MSR_PAGE_TABLE];
        let filtered = trapped.map(|base| MsrFilterRange {
            flags: MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE,
            base,
            msr_count: 1,
            bitmap: &[0],
        });
        vm.set_msr_filter(MsrFilterDefaultAction::ALLOW, &filtered)
            .map_err(step("filtering the SEV MSRs"))
    }

    /// What `KVM_CHECK_EXTENSION` says of a capability; 0 is no.
    pub(super) fn extension(&self, capability: u32) -> i32 {
        self.kvm.check_extension_raw(u64::from(capability))
    }

    /// What CPUID this KVM can give a guest.
    ///
    /// # Errors
    /// [`HostError::Vm`] with KVM's errno.
    pub fn supported_cpuid(&self) -> Result<CpuId, HostError> {
        self.kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(step("reading KVM's CPUID"))
    }

    /// Which MSRs KVM says are a vCPU's state.
    ///
    /// # Errors
    /// [`HostError::Vm`] with KVM's errno.
    pub fn listed_msrs(&self) -> Result<Vec<u32>, HostError> {
        let list = self.kvm.get_msr_index_list().map_err(step("reading KVM's list of MSRs"))?;
        Ok(list.as_slice().to_vec())
    }

    /// A vCPU of a VM without memory, to ask what vCPUs are like here.
    ///
    /// # Errors
    /// [`HostError::Vm`] with KVM's errno.
    pub(super) fn sample_vcpu(&self) -> Result<VcpuFd, HostError> {
        let vm = self.kvm.create_vm().map_err(step("creating a VM"))?;
        vm.create_vcpu(0).map_err(step("creating a vCPU"))
    }

    /// Whether KVM can make a guest's TSC count at another speed than the host's.
    #[must_use]
    pub fn has_tsc_scaling(&self) -> bool {
        self.kvm.check_extension(Cap::TscControl)
    }

    /// Whether KVM emulates the LAPIC's TSC deadline mode.
    #[must_use]
    pub fn has_tsc_deadline(&self) -> bool {
        self.kvm.check_extension_raw(u64::from(KVM_CAP_TSC_DEADLINE_TIMER)) > 0
    }
}

/// How much memory an SEV guest of this process may lock, in bytes; `None` is all of it, by the limit or
/// because the process has `CAP_IPC_LOCK` where KVM looks for it.
pub(super) fn lockable_bytes() -> Option<u64> {
    let status = read_to_string("/proc/self/status").unwrap_or_default();
    let namespace = read_link("/proc/self/ns/user").unwrap_or_default();
    let may_lock_all = may_lock_all(&status, &namespace);
    getrlimit(Resource::Memlock).current.filter(|_| !may_lock_all)
}

/// Whether KVM would pin any amount. It asks for the capability in the initial user namespace, so the capability of
/// root in a container does not count.
fn may_lock_all(status: &str, namespace: &Path) -> bool {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = line.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
    bits & 1 << CAP_IPC_LOCK != 0 && namespace == Path::new(INITIAL_USER_NAMESPACE)
}

/// Whether an SEV guest with so much RAM can be pinned here.
///
/// # Errors
/// [`NotLockable`].
pub(super) fn check_lockable(ram_bytes: u64, lockable: Option<u64>) -> Result<(), NotLockable> {
    let wanted = locked_bytes(ram_bytes);
    match lockable {
        Some(most) if most < wanted => Err(NotLockable { wanted, most }),
        _ => Ok(()),
    }
}

/// How much an SEV guest with so much RAM locks at most: its RAM, and what a command pins besides.
fn locked_bytes(ram_bytes: u64) -> u64 {
    ram_bytes.saturating_add(PIECE_LEN)
}

/// SEV hardware pins all of a guest's RAM, and the limit is lower.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "SEV hardware locks all of the guest's memory, and {} MiB more while it works: {} MiB, and this process \
     may lock {} MiB; raise LimitMEMLOCK or `ulimit -l`, or give it CAP_IPC_LOCK, which counts only outside \
     of user namespaces", PIECE_LEN >> 20, wanted >> 20, most >> 20
)]
pub struct NotLockable {
    /// What the guest needs, in bytes.
    wanted: u64,
    /// `RLIMIT_MEMLOCK`, in bytes.
    most: u64,
}

/// Why this host cannot run a guest.
#[derive(Debug, Error)]
pub enum HostError {
    /// `/dev/kvm` cannot be opened.
    #[error(
        "opening /dev/kvm; the kvm module must be loaded, virtualization enabled in the firmware \
         setup, and this user in the group that owns the device"
    )]
    Open(#[source] IoError),
    /// A capability is missing.
    #[error("this host's KVM lacks {name}; use a newer kernel")]
    Missing {
        /// The capability, and the kernel that first had it.
        name: &'static str,
    },
    /// KVM refused a step.
    #[error("{step}: {cause}")]
    Vm {
        /// What was being done.
        step: &'static str,
        /// KVM's errno.
        cause: Errno,
    },
}

fn step(step: &'static str) -> impl FnOnce(Errno) -> HostError {
    move |cause| HostError::Vm { step, cause }
}

fn capability(cap: u32, argument: u64) -> kvm_enable_cap {
    kvm_enable_cap { cap, args: [argument, 0, 0, 0], ..kvm_enable_cap::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Root locks what it wants, but not root of a container; nor does anybody without the capability.
    #[test]
    fn the_capability_counts_only_in_the_initial_user_namespace() {
        let root = "Name:\tsevferry\nCapEff:\t000001ffffffffff\nCapBnd:\t0\n";
        let user = "CapEff:\t0000000000000000\n";
        let all_but = "CapEff:\t000001ffffffbfff\n";
        let here = Path::new("user:[4026531837]");
        assert!(may_lock_all(root, here));
        for (status, namespace) in [
            (root, Path::new("user:[4026532281]")),
            (root, Path::new("")),
            (user, here),
            (all_but, here),
            ("", here),
        ] {
            assert!(!may_lock_all(status, namespace), "{status:?} {namespace:?}");
        }
    }

    /// A guest needs its RAM and a piece; both are named where the limit is a byte less.
    #[test]
    fn ram_and_a_piece_must_be_lockable() {
        let ram = 64 << 20;
        for enough in [None, Some(68 << 20), Some(u64::MAX)] {
            assert_eq!(check_lockable(ram, enough), Ok(()));
        }
        let refused = check_lockable(ram, Some((68 << 20) - 1)).unwrap_err().to_string();
        assert!(refused.contains("68 MiB, and this process may lock 67 MiB"), "{refused}");
        assert!(check_lockable(u64::MAX, Some(u64::MAX - 1)).is_err());
    }
}
