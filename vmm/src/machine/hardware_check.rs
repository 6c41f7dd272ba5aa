//! The facts about SEV hardware: processor, firmware, certificates, memory that may be locked, SNP.

use kvm_bindings::CpuId;

use super::config::PlatformKind;
use super::encrypted::vouch;
use super::finding::Finding;
use super::host::lockable_bytes;
use crate::sev::device::{PlatformStatus, platform_status};
use crate::sev::endorsement::cek_address;
use crate::sev::launch::PIECE_LEN;
use crate::sev::measurement::FirmwareVersion;
use crate::sev::target::verify_target;
use crate::sev::vendor::Root;
use crate::sev::{Policy, SevDevice};
use crate::text::chain_of;
use crate::vcpu::cpuid::{GuestCpu, MemoryEncryption, guest_cpuid, hardware_c_bit};

/// The oldest firmware API whose launch measurements have the form that is known here.
const API_MIN: (u8, u8) = (0, 17);

/// Where KVM says whether the host is initialised for SEV-SNP guests.
pub(super) const SNP_PARAMETER: &str = "/sys/module/kvm_amd/parameters/sev_snp";

/// What KVM says of the processor, and whether a guest's CPUID can be made of that.
pub(super) fn processor(supported: Option<&CpuId>) -> Finding {
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
pub(super) fn firmware(
    device: &dyn SevDevice,
    platform: Option<&PlatformKind>,
    findings: &mut Vec<Finding>,
) {
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
    if !status.is_initialised {
        findings.push(Finding::note(
            "initialisation",
            "the platform was not initialised: asking for its certificates, as this check does, or a guest's \
             start, initialises it, and Linux 6.15 and newer shut it down again after a question",
            "nothing needs to be done; ccp's psp_init_on_probe=1 initialises it when the module is loaded",
        ));
    }
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

/// Whether the certificate chain is complete: it decides which policies a guest that arrives may have.
fn certificates(device: &dyn SevDevice, platform: Option<&PlatformKind>) -> Finding {
    const SUBJECT: &str = "certificates";
    let given = match platform {
        Some(kind @ PlatformKind::Hardware { endorsement, .. }) if endorsement.cek.is_some() => {
            kind
        }
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
pub(super) fn memory_lock() -> Finding {
    const SUBJECT: &str = "locked memory";
    match lockable_bytes() {
        None => Finding::ok(SUBJECT, "no limit"),
        Some(bytes) => Finding::note(
            SUBJECT,
            format!(
                "at most {} MiB: guests can have up to {} MiB of RAM, because commands lock up to {} MiB besides",
                bytes >> 20,
                bytes.saturating_sub(PIECE_LEN) >> 20,
                PIECE_LEN >> 20
            ),
            "raise it with `ulimit -l unlimited`, /etc/security/limits.conf (memlock) or LimitMEMLOCK=infinity",
        ),
    }
}

/// Whether the host is initialised for SEV-SNP guests, by what [`SNP_PARAMETER`] says: then the kernel hands every
/// buffer of ours to the firmware and takes it back, with a command for each page.
pub(super) fn snp(parameter: Option<&str>) -> Option<Finding> {
    matches!(parameter?.trim(), "Y" | "1").then(|| {
        Finding::note(
            "SEV-SNP",
            "KVM has initialised this host for SNP guests: each page that is sent costs up to four commands of \
             the secure processor, each that arrives or is launched two, and a buffer that cannot be \
             handed over is EFAULT, then EBUSY until the host is restarted",
            "if no SNP guest runs here, turn it off: kvm_amd.sev_snp=0, or SNP in the firmware setup",
        )
    })
}

#[cfg(test)]
mod tests {
    use kvm_bindings::CpuId;

    use super::*;
    use crate::machine::Verdict;
    use crate::sev::software::{Identity, Model, SoftwareHost};
    use crate::vcpu::cpuid::epyc;

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

    /// A host that is initialised for SNP guests is warned of what that costs; any other is not.
    #[test]
    fn a_host_that_is_initialised_for_snp_is_warned() {
        for parameter in ["Y\n", "1\n", "Y"] {
            let finding = snp(Some(parameter)).unwrap();
            assert_eq!(finding.verdict, Verdict::Note);
            assert!(finding.found.contains("four commands"), "{finding:?}");
            assert!(finding.advice.unwrap().contains("kvm_amd.sev_snp=0"), "{finding:?}");
        }
        for parameter in [Some("N\n"), Some("0"), Some(""), None] {
            assert_eq!(snp(parameter), None, "{parameter:?}");
        }
    }

    /// A platform that is not initialised yet is reported so, before the question that initialises it.
    #[test]
    fn a_platform_that_is_not_initialised_is_named() {
        for is_initialised in [false, true] {
            let model = Model { is_initialised, ..Model::default() };
            let host = SoftwareHost::modelled(Identity::ephemeral().unwrap(), model);
            let device = host.open_device().unwrap();
            let mut findings = Vec::new();
            firmware(&device, None, &mut findings);
            let named = findings.iter().find(|finding| finding.subject == "initialisation");
            assert_eq!(named.is_some(), !is_initialised, "{findings:?}");
            assert!(named.is_none_or(|finding| finding.verdict == Verdict::Note));
        }
    }
}
