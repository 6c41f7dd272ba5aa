//! What this host can do, and what to do about what it cannot: each fact found out by trying it.
//!
//! SEV is looked for where it is used: in KVM's CPUID, by `KVM_MEMORY_ENCRYPT_OP(NULL)`, at `/dev/sev`.
//! Not by `KVM_CAP_VM_COPY_ENC_CONTEXT_FROM` or `KVM_CAP_VM_MOVE_ENC_CONTEXT_FROM`, which read 1 on any x86
//! host, nor by `/proc/cpuinfo`, which names what the processor has even where KVM may not use it.

use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_EXIT_HYPERCALL, KVM_CAP_VM_TYPES, KVM_CAP_X86_MSR_FILTER,
};
use rustix::system::uname;
use serde::Serialize;

use super::chain_of;
use super::config::PlatformKind;
use super::encrypted::vouch;
use super::host::{Host, lockable_bytes};
use super::probe::probe;
use crate::encryption::KVM_HC_MAP_GPA_RANGE;
use crate::sev::Policy;
use crate::sev::SevDevice;
use crate::sev::device::{PlatformStatus, platform_status};
use crate::sev::endorsement::cek_address;
use crate::sev::hardware::{HardwareDevice, HardwarePlatform};
use crate::sev::launch::VmType;
use crate::sev::measurement::FirmwareVersion;
use crate::sev::target::verify_target;
use crate::sev::vendor::Root;
use crate::vcpu::cpuid::{
    GuestCpu, MemoryEncryption, guest_cpuid, hardware_c_bit, require_rdrand, software_c_bit,
};

/// The oldest firmware API whose launch measurements have the form that is known here.
const API_MIN: (u8, u8) = (0, 17);

/// What KVM cannot do with an SEV-ES or SEV-SNP guest, whatever the host.
pub const NOT_PORTABLE: &str = "SEV-ES and SEV-SNP guests: refused. KVM has no command that saves or \
     restores their encrypted vCPU state (SEND_UPDATE_VMSA and RECEIVE_UPDATE_VMSA are numbered but not \
     connected), so such a guest could be started but never moved";

/// How a fact bears on what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As needed.
    Ok,
    /// It works without, or only in part.
    Note,
    /// Without this it does not work.
    Missing,
}

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Of what.
    pub subject: &'static str,
    /// How it bears.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do, unless all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<&'static str>,
}

impl Finding {
    fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    fn note(subject: &'static str, found: impl Into<String>, advice: &'static str) -> Self {
        Self { subject, verdict: Verdict::Note, found: found.into(), advice: Some(advice) }
    }

    fn missing(subject: &'static str, found: impl Into<String>, advice: &'static str) -> Self {
        Self { verdict: Verdict::Missing, ..Self::note(subject, found, advice) }
    }
}

/// A host, as far as guests are concerned.
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
    findings
}

/// What KVM says of the processor, and whether a guest's CPUID can be made of that.
fn processor(supported: Option<&CpuId>) -> Finding {
    const SUBJECT: &str = "CPUID 0x8000001F";
    let setup =
        "on an AMD EPYC turn SME and SEV on in the firmware setup (SMEE, SEV ASIDs above 0)";
    let Some((table, bit)) = supported.and_then(|table| Some((table, hardware_c_bit(table)?)))
    else {
        return Finding::missing(SUBJECT, "KVM offers no SEV", setup);
    };
    let cpu = GuestCpu { index: 0, count: 1, c_bit: Some(bit), tsc_deadline: false };
    if let Err(cause) = guest_cpuid(table, &cpu) {
        let advice = "use a newer kernel, and report this";
        return Finding::missing(SUBJECT, cause.to_string(), advice);
    }
    match MemoryEncryption::of(table).map_or(0, |leaf| leaf.sev_asids()) {
        0 => Finding::missing(SUBJECT, "SEV, but no ASID for guests without ES", setup),
        asids => Finding::ok(SUBJECT, format!("SEV; C-bit {bit}; {asids} guests at once")),
    }
}

/// What the secure processor says of itself.
fn firmware(device: &dyn SevDevice, platform: Option<&PlatformKind>, findings: &mut Vec<Finding>) {
    findings.push(Finding::ok("/dev/sev", "open for reading and writing"));
    let update = "update the SEV firmware: linux-firmware's amd/amd_sev_*.sbin, or the BIOS";
    let status = match platform_status(device) {
        Ok(status) => status,
        Err(cause) => {
            findings.push(Finding::missing("firmware", chain_of(&cause), update));
            return;
        }
    };
    let PlatformStatus { version: FirmwareVersion { major, minor, build }, .. } = status;
    let said = format!("API {major}.{minor} build {build}, {} guests now", status.guests);
    findings.push(if (major, minor) < API_MIN {
        Finding::missing("firmware", format!("{said}; it must be 0.17 or newer"), update)
    } else {
        Finding::ok("firmware", said)
    });
    findings.push(if status.externally_owned {
        Finding::ok("owner", "an owner's certificate (OCA): policy bit DOMAIN keeps guests among that owner's")
    } else {
        Finding::note(
            "owner",
            "owned by itself: a guest with policy bit DOMAIN can be moved nowhere else",
            "to use DOMAIN, take ownership with `sevctl provision`, of both hosts with one certificate",
        )
    });
    findings.push(certificates(device, platform));
}

/// Whether the chain is complete, and so which policies a guest that arrives may have.
fn certificates(device: &dyn SevDevice, platform: Option<&PlatformKind>) -> Finding {
    const SUBJECT: &str = "certificates";
    let given = match platform {
        Some(kind @ PlatformKind::Hardware { endorsement }) if endorsement.cek.is_some() => kind,
        _ => {
            return Finding::note(
                SUBJECT,
                format!("no signed CEK given; this chip's is at {}", cek_address(device)),
                "fetch it once and give it with --platform sev=hardware,cek_cert_file=FILE: without it \
                 guests run but cannot be moved",
            );
        }
    };
    let advice = "guests run but cannot be moved until this is right";
    let verified = vouch(given, device).map_err(|cause| chain_of(&cause)).and_then(|own| {
        let satisfied = verify_target(&own, Policy::default(), &own);
        satisfied.map(|()| own.vendor.root()).map_err(|cause| chain_of(&cause))
    });
    match verified {
        Ok(Some(Root::Amd(generation))) => {
            let found =
                format!("complete up to AMD's root ({generation}): policy bit SEV is satisfied");
            Finding::ok(SUBJECT, found)
        }
        Ok(_) => Finding::note(
            SUBJECT,
            "complete, but up to a root that is not AMD's",
            "this is for tests: no guest of a real host comes here, and AMD's firmware sends none",
        ),
        Err(cause) => Finding::note(SUBJECT, cause, advice),
    }
}

/// SEV pins all of a guest's RAM.
fn memory_lock() -> Finding {
    const SUBJECT: &str = "locked memory";
    match lockable_bytes() {
        None => Finding::ok(SUBJECT, "no limit"),
        Some(bytes) => Finding::note(
            SUBJECT,
            format!("at most {} MiB: so much RAM can a guest have", bytes >> 20),
            "raise it with `ulimit -l unlimited`, /etc/security/limits.conf (memlock) or LimitMEMLOCK=infinity",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vcpu::cpuid::epyc;

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

    /// Every EPYC's processor will do if its ASIDs are not all given to SEV-ES; `check` and a guest's start
    /// agree, because both make the guest's CPUID.
    #[test]
    fn every_epyc_will_do_and_one_without_asids_will_not() {
        for epyc in epyc::ALL {
            let [sizes, mut encryption] = epyc.leaves();
            let look =
                |encryption| processor(CpuId::from_entries(&[sizes, encryption]).ok().as_ref());
            let finding = look(encryption);
            assert_eq!(finding.verdict, Verdict::Ok, "{}: {finding:?}", epyc.name);
            assert!(finding.found.contains(&format!("C-bit {}", epyc.c_bit)), "{finding:?}");
            encryption.edx = encryption.ecx + 1;
            let finding = look(encryption);
            assert_eq!(finding.verdict, Verdict::Missing, "{finding:?}");
            assert!(finding.found.contains("no ASID"), "{finding:?}");
        }
        assert_eq!(processor(None).verdict, Verdict::Missing);
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
