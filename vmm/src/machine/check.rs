//! What this host can do, and how to get what it lacks. Each fact is found out by trying it.
//!
//! SEV is looked for where it is used: in KVM's CPUID, by `KVM_MEMORY_ENCRYPT_OP(NULL)`, and at `/dev/sev`. Two other
//! places do not tell: `KVM_CAP_VM_COPY_ENC_CONTEXT_FROM` and `KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM` read 1 on any x86
//! host, and `/proc/cpuinfo` names what the processor has even where KVM may not use it.

use std::fs::read_to_string;
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_EXIT_HYPERCALL, KVM_CAP_VM_TYPES, KVM_CAP_X86_MSR_FILTER,
};
use rustix::system::uname;
use serde::Serialize;

use super::config::PlatformKind;
use super::finding::{Finding, Verdict};
use super::hardware_check::{SNP_PARAMETER, firmware, memory_lock, processor, snp};
use super::host::Host;
use super::probe::probe;
use crate::encryption::KVM_HC_MAP_GPA_RANGE;
use crate::sev::hardware::{HardwareDevice, HardwarePlatform};
use crate::sev::launch::VmType;
use crate::text::chain_of;
use crate::vcpu::cpuid::{require_rdrand, software_c_bit};

/// What KVM cannot do with an SEV-ES or SEV-SNP guest, whatever the host.
pub const NOT_PORTABLE: &str = "SEV-ES and SEV-SNP guests: refused. KVM has no command that saves or \
     restores their encrypted vCPU state (SEND_UPDATE_VMSA and RECEIVE_UPDATE_VMSA are numbered but not \
     connected), so such a guest could be started but never moved";

/// What a host has and lacks for guests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostCheck {
    /// What every guest needs.
    pub kvm: Vec<Finding>,
    /// What every SEV guest needs besides, whatever its platform.
    pub sev: Vec<Finding>,
    /// What SEV hardware needs besides.
    pub hardware: Vec<Finding>,
}

impl HostCheck {
    /// Finds out; `platform`, if it is hardware, names the certificate files.
    #[must_use]
    pub fn of_this_host(platform: Option<&PlatformKind>) -> Self {
        let mut kvm = vec![kernel()];
        let host = match Host::open() {
            Ok(host) => {
                kvm.push(Finding::ok("KVM", "/dev/kvm is open, with what every guest needs"));
                host
            }
            Err(cause) => {
                let advice = "load kvm_amd or kvm_intel, turn virtualization on in the firmware setup, and \
                     add this user to the group of /dev/kvm (usually kvm)";
                kvm.push(Finding::missing("KVM", chain_of(&cause), advice));
                let unknown = "not looked at: there is no KVM to ask";
                let sev = vec![Finding::missing("SEV guests", unknown, "see KVM above")];
                return Self { kvm, hardware: sev.clone(), sev };
            }
        };
        let supported = host.supported_cpuid().ok();
        let sev = shared_needs(&host, supported.as_ref());
        let hardware = hardware(&host, supported.as_ref(), platform);
        Self { kvm, sev, hardware }
    }

    /// Whether plain VMs can run.
    #[must_use]
    pub fn runs_plain(&self) -> bool {
        complete(&self.kvm)
    }

    /// Whether SEV guests of the software platform can run.
    #[must_use]
    pub fn runs_software(&self) -> bool {
        self.runs_plain() && complete(&self.sev)
    }

    /// Whether SEV guests of the hardware platform can run.
    #[must_use]
    pub fn runs_hardware(&self) -> bool {
        self.runs_software() && complete(&self.hardware)
    }
}

fn complete(findings: &[Finding]) -> bool {
    findings.iter().all(|finding| finding.verdict != Verdict::Missing)
}

fn kernel() -> Finding {
    let release = uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    match (numbers.next(), numbers.next()) {
        (Some(major), Some(minor)) if (major, minor) < (5, 14) => Finding::note(
            "kernel",
            format!("Linux {release}"),
            "SEV guests need Linux 5.14 or newer: page-status hypercalls came with it",
        ),
        _ => Finding::ok("kernel", format!("Linux {release}")),
    }
}

/// What an SEV guest needs of KVM on any platform, tried in this order.
fn shared_needs(host: &Host, supported: Option<&CpuId>) -> Vec<Finding> {
    let newer = "use a newer kernel";
    let exits = u64::try_from(host.extension(KVM_CAP_EXIT_HYPERCALL)).unwrap_or(0);
    let mut findings = vec![if exits & 1 << KVM_HC_MAP_GPA_RANGE == 0 {
        let lacks = "KVM_CAP_EXIT_HYPERCALL does not offer KVM_HC_MAP_GPA_RANGE";
        Finding::missing("page-status exits", lacks, "use Linux 5.14 or newer")
    } else {
        Finding::ok("page-status exits", "KVM_CAP_EXIT_HYPERCALL offers KVM_HC_MAP_GPA_RANGE")
    }];
    findings.push(if host.extension(KVM_CAP_X86_MSR_FILTER) > 0 {
        Finding::ok("MSR filter", "KVM_CAP_X86_MSR_FILTER")
    } else {
        Finding::missing("MSR filter", "no KVM_CAP_X86_MSR_FILTER", newer)
    });
    findings.push(match probe() {
        Ok(()) => Finding::ok("hypercalls", "a tiny guest made one, and it arrived"),
        Err(cause) => Finding::missing(
            "hypercalls",
            chain_of(&cause),
            "this KVM is nested under something that keeps hypercalls to itself: use a host with AMD-V or VT-x \
             of its own, or `scripts/lab`, an emulated host that runs anywhere",
        ),
    });
    findings.push(match supported.and_then(software_c_bit) {
        Some(bit) => {
            Finding::ok("C-bit (software)", format!("bit {bit}, the top of guest addresses"))
        }
        None => Finding::missing("C-bit (software)", "no room above 32 address bits", newer),
    });
    findings.push(match supported {
        Some(table) if require_rdrand(table).is_ok() => Finding::ok("RDRAND", "guests check their C-bit with it"),
        _ => Finding::missing(
            "RDRAND",
            "KVM offers none, and Linux cannot start as an SEV guest without",
            "use a processor that has it, or, if this is a virtual machine, give it the host's CPU model",
        ),
    });
    let ring = host.extension(KVM_CAP_DIRTY_LOG_RING);
    let ring =
        if ring > 0 { format!("and a ring of {ring} bytes, not used") } else { "no ring".into() };
    findings.push(Finding::ok("dirty log", format!("bitmaps, which migration uses; {ring}")));
    findings
}

/// What SEV hardware needs, from the processor up to certificates.
fn hardware(
    host: &Host,
    supported: Option<&CpuId>,
    platform: Option<&PlatformKind>,
) -> Vec<Finding> {
    let mut findings = vec![processor(supported)];
    let vm = host.create_vm().map_err(|cause| cause.to_string());
    let encrypt =
        vm.and_then(|vm| HardwarePlatform::new(Arc::new(vm)).map_err(|cause| cause.to_string()));
    findings.push(match encrypt {
        Ok(_) => Finding::ok(
            "KVM and SEV",
            match VmType::best_of(host.extension(KVM_CAP_VM_TYPES)) {
                VmType::Sev => {
                    "KVM_MEMORY_ENCRYPT_OP answers; VMs are of KVM's type for SEV (KVM_SEV_INIT2)"
                }
                VmType::Default => {
                    "KVM_MEMORY_ENCRYPT_OP answers; no VM type for SEV, as before Linux 6.10 \
                 (KVM_SEV_INIT)"
                }
            },
        ),
        Err(cause) => Finding::missing(
            "KVM and SEV",
            cause,
            "load kvm_amd with sev=1, after ccp; dmesg says why if it stays off",
        ),
    });
    match HardwareDevice::open() {
        Ok(device) => firmware(&device, platform, &mut findings),
        Err(cause) => findings.push(Finding::missing(
            "/dev/sev",
            chain_of(&cause),
            "load the ccp module; give this user read and write access to /dev/sev (a udev rule does it)",
        )),
    }
    findings.push(memory_lock());
    findings.extend(snp(read_to_string(SNP_PARAMETER).ok().as_deref()));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only what is missing makes a host useless, and hardware needs what all SEV guests need.
    #[test]
    fn a_host_is_as_good_as_what_it_lacks() {
        let ok = vec![Finding::ok("one", "fine")];
        let note = vec![Finding::note("two", "half", "do it")];
        let missing = vec![Finding::missing("three", "not", "get it")];
        let host = HostCheck { kvm: ok.clone(), sev: note.clone(), hardware: missing.clone() };
        assert_eq!(
            [host.runs_plain(), host.runs_software(), host.runs_hardware()],
            [true, true, false]
        );
        let host = HostCheck { kvm: ok.clone(), sev: missing.clone(), hardware: ok.clone() };
        assert_eq!(
            [host.runs_plain(), host.runs_software(), host.runs_hardware()],
            [true, false, false]
        );
        let host = HostCheck { kvm: missing, sev: ok.clone(), hardware: ok };
        assert_eq!([host.runs_plain(), host.runs_software(), host.runs_hardware()], [false; 3]);
    }

    /// Whatever host this is: what is not well comes with advice, and the rest without.
    #[test]
    fn what_is_not_well_comes_with_advice() {
        let HostCheck { kvm, sev, hardware } = HostCheck::of_this_host(None);
        for finding in kvm.iter().chain(&sev).chain(&hardware) {
            assert_eq!(finding.advice.is_none(), finding.verdict == Verdict::Ok, "{finding:?}");
            assert!(!finding.found.is_empty(), "{finding:?}");
        }
    }
}
