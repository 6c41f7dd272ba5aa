//! Offers compared with what a host has: every difference is found and named.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::compatibility::{
    Difference, HostOffer, Incompatible, MachineOffer, PlatformName, SevOffer, compare,
};
use super::config::DeviceConfig;
use super::device_offer::{DeviceHere, DeviceOffer};
use super::wire::MACHINE_VERSION;
use crate::encryption::Design;
use crate::saved::KernelStruct;
use crate::vcpu::cpuid::epyc::{self, Epyc};
use crate::vcpu::cpuid::{GuestCpu, guest_cpuid};

const C_BIT: u8 = 47;

fn leaf(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = registers;
    kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..kvm_cpuid_entry2::default() }
}

/// An AMD processor with RDRAND, 48 address bits and an invariant TSC.
fn supported() -> Vec<kvm_cpuid_entry2> {
    vec![
        leaf(0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        leaf(1, [0x00a0_0f11, 0, 1 << 30, 0x078b_fbff]),
        leaf(7, [0, 0b1011, 0, 0]),
        leaf(0x4000_0000, [0x4000_0001, 0, 0, 0]),
        leaf(0x4000_0001, [0x0100_7efb, 0, 0, 0]),
        leaf(0x8000_0000, [0x8000_001f, 0, 0, 0]),
        leaf(0x8000_0001, [0, 0, 0x0040_0393, 0]),
        leaf(0x8000_0007, [0, 0, 0, 1 << 8]),
        leaf(0x8000_0008, [0x3030, 0, 0, 0]),
    ]
}

fn host() -> HostOffer {
    HostOffer {
        supported: CpuId::from_entries(&supported()).unwrap(),
        tsc_deadline: true,
        msrs: vec![0x10, 0x174, 0x6e0],
        tsc_khz: 2_000_000,
        tsc_scaling: false,
        platform: Some(PlatformName::Software),
        lockable_bytes: None,
        devices: Vec::new(),
    }
}

/// The same host, with one leaf as given.
fn host_with(leaf: kvm_cpuid_entry2) -> HostOffer {
    let replaced =
        |entry: kvm_cpuid_entry2| if entry.function == leaf.function { leaf } else { entry };
    let table: Vec<_> = supported().into_iter().map(replaced).collect();
    HostOffer { supported: CpuId::from_entries(&table).unwrap(), ..host() }
}

/// What `host` offers of an SEV guest with two vCPUs.
fn offer() -> MachineOffer {
    let table = |index| {
        let cpu = GuestCpu { index, count: 2, c_bit: Some(C_BIT), tsc_deadline: true };
        let cpuid = guest_cpuid(&host().supported, &cpu).unwrap();
        cpuid.as_slice().iter().copied().map(KernelStruct).collect()
    };
    MachineOffer {
        version: MACHINE_VERSION,
        ram_bytes: 64 << 20,
        cpuid: (0..2).map(table).collect(),
        msrs: vec![0x10, 0x174, 0x6e0],
        tsc_khz: 2_000_000,
        devices: Vec::new(),
        sev: Some(SevOffer {
            platform: PlatformName::Software,
            policy: 0x21,
            c_bit: C_BIT,
            status: Design::default(),
        }),
    }
}

/// A device of the guest that is not here is a difference, and one that it does not have is none.
#[test]
fn devices_must_be_there() {
    let rng = DeviceHere::look(&DeviceConfig::Rng { source: "/dev/urandom".into() });
    let devices = vec![DeviceOffer { slot: 1, ..rng.offer.clone().unwrap() }];
    let with = MachineOffer { devices, ..offer() };
    let text = difference(&with, &host());
    assert!(text.contains("it has a rng in slot 1, and none was given here"), "{text}");
    let has = HostOffer { devices: vec![rng], ..host() };
    assert_eq!(compare(&with, &has), Ok(()));
    assert_eq!(compare(&offer(), &has), Ok(()));
    let bytes = with.to_bytes().unwrap();
    assert_eq!(MachineOffer::from_bytes(&bytes).unwrap(), with);
}

/// The one difference between the two.
#[track_caller]
fn difference(offer: &MachineOffer, host: &HostOffer) -> String {
    let Incompatible { differences } = compare(offer, host).unwrap_err();
    assert_eq!(differences.len(), 1, "{differences:?}");
    differences[0].to_string()
}

/// A host takes its own machines, and an offer survives its serial form.
#[test]
fn a_host_is_compatible_with_itself() {
    let read = MachineOffer::from_bytes(&offer().to_bytes().unwrap()).unwrap();
    assert_eq!(read, offer());
    assert_eq!(compare(&read, &host()), Ok(()));
    let without = HostOffer { platform: None, ..host() };
    assert!(difference(&offer(), &without).contains("none receives guests here"));
    // A plain VM whose CPUID speaks of SEV is none that we would make.
    let plain = MachineOffer { sev: None, ..offer() };
    let refused = compare(&plain, &host()).unwrap_err().to_string();
    assert!(refused.contains("CPUID 0x8000001f.0 EAX lacks"), "{refused}");
}

/// One feature less is named, once for all vCPUs; one more is welcome.
#[test]
fn processors_are_compared_feature_by_feature() {
    let less = difference(&offer(), &host_with(leaf(7, [0, 0b0011, 0, 0])));
    assert_eq!(less, "CPUID 0x7.0 EBX lacks 0x8 here");
    assert_eq!(compare(&offer(), &host_with(leaf(7, [0, 0b1111, 0, 0]))), Ok(()));
    let other = host_with(leaf(0, [0xd, 0x756e_6547, 0x6c65_746e, 0x4965_6e69]));
    assert_eq!(compare(&offer(), &other).unwrap_err().differences.len(), 3);
    let without_deadline = HostOffer { tsc_deadline: false, ..host() };
    assert_eq!(difference(&offer(), &without_deadline), "CPUID 0x1.0 ECX lacks 0x1000000 here");
}

/// A TSC of another speed matters to guests that were told that theirs is invariant, unless KVM can
/// scale it; a quarter of a thousandth does not matter.
#[test]
fn the_tsc_is_compared_where_it_matters() {
    let nearly = HostOffer { tsc_khz: 2_000_499, ..host() };
    assert_eq!(compare(&offer(), &nearly), Ok(()));
    let faster = || HostOffer { tsc_khz: 2_000_600, ..host() };
    let text = difference(&offer(), &faster());
    assert!(text.contains("2000000 kHz") && text.contains("2000600 kHz"), "{text}");
    assert_eq!(compare(&offer(), &HostOffer { tsc_scaling: true, ..faster() }), Ok(()));
    let mut variant = offer();
    for entry in variant.cpuid.iter_mut().flatten() {
        entry.0.edx = if entry.0.function == 0x8000_0007 { 0 } else { entry.0.edx };
    }
    assert_eq!(compare(&variant, &faster()), Ok(()));
}

/// MSRs, platform, C-bit, policy: each difference has its own words, and all come at once.
#[test]
fn everything_else_is_named_too() {
    let fewer = HostOffer { msrs: vec![0x10, 0x6e0], ..host() };
    assert!(difference(&offer(), &fewer).contains("no MSR"));
    let sev = offer().sev.unwrap();
    let hardware = SevOffer { platform: PlatformName::Hardware, ..sev };
    let text = difference(&MachineOffer { sev: Some(hardware), ..offer() }, &host());
    assert!(text.contains("hardware SEV platform") && text.contains("software receives"), "{text}");
    let other_bit = MachineOffer { sev: Some(SevOffer { c_bit: 51, ..sev }), ..offer() };
    let text = difference(&other_bit, &host());
    assert!(text.contains("bit 51") && text.contains("bit 47"), "{text}");
    let policy = SevOffer { policy: 0x40, ..sev };
    let both = MachineOffer { sev: Some(policy), tsc_khz: 1, ..offer() };
    let found = compare(&both, &host()).unwrap_err();
    assert!(matches!(found.differences[..], [Difference::Tsc { .. }, Difference::Policy(_)]));
    assert!(found.to_string().contains("; "), "{found}");
}

/// SEV hardware pins a guest's RAM and a piece, so both must fit into what may be locked; software pins
/// nothing.
#[test]
fn pinned_memory_must_be_lockable() {
    let little = || HostOffer { lockable_bytes: Some((68 << 20) - 1), ..host() };
    assert_eq!(compare(&offer(), &little()), Ok(()));
    let sev = SevOffer { platform: PlatformName::Hardware, ..offer().sev.unwrap() };
    let hardware = MachineOffer { sev: Some(sev), ..offer() };
    let found = |host| compare(&hardware, &host).unwrap_err().differences;
    let text = found(little()).pop().unwrap().to_string();
    assert!(text.contains("68 MiB, and this process may lock 67 MiB"), "{text}");
    for enough in [Some(68 << 20), None] {
        let found = found(HostOffer { lockable_bytes: enough, ..host() });
        assert!(matches!(found[..], [Difference::Platform { .. }]), "{found:?}");
    }
}

/// A host of this generation, which receives on hardware.
fn epyc_host(epyc: &Epyc) -> HostOffer {
    let table = epyc.of(&supported());
    let platform = Some(PlatformName::Hardware);
    HostOffer { supported: CpuId::from_entries(&table).unwrap(), platform, ..host() }
}

/// A guest on hardware of this generation.
fn epyc_offer(epyc: &Epyc) -> MachineOffer {
    let host = epyc_host(epyc);
    let table = |index| {
        let cpu = GuestCpu { index, count: 2, c_bit: Some(epyc.c_bit), tsc_deadline: true };
        let cpuid = guest_cpuid(&host.supported, &cpu).unwrap();
        cpuid.as_slice().iter().copied().map(KernelStruct).collect()
    };
    let platform = PlatformName::Hardware;
    let sev = SevOffer { platform, c_bit: epyc.c_bit, ..offer().sev.unwrap() };
    MachineOffer { cpuid: (0..2).map(table).collect(), sev: Some(sev), ..offer() }
}

/// A guest moves within its generation, Milan's too, and on to one that has the same C-bit and as many
/// address bits; another C-bit is named, and nothing else is then made of it.
#[test]
fn guests_move_between_epycs_with_the_same_c_bit() {
    for epyc in epyc::ALL {
        assert_eq!(compare(&epyc_offer(&epyc), &epyc_host(&epyc)), Ok(()), "{}", epyc.name);
    }
    let (naples, rome, milan) = (epyc::NAPLES, epyc::ROME, epyc::MILAN);
    for (from, to) in [(naples, rome), (milan, epyc::GENOA), (epyc::GENOA, epyc::TURIN)] {
        assert_eq!(compare(&epyc_offer(&from), &epyc_host(&to)), Ok(()), "{from:?} {to:?}");
    }
    let refused = compare(&epyc_offer(&rome), &epyc_host(&milan)).unwrap_err();
    let c_bit = Difference::CBit { offered: 47, here: Some(51) };
    assert!(refused.differences.contains(&c_bit), "{refused}");
    let other_c_bit = |found: &&Difference| matches!(found, Difference::CpuidHere(_));
    assert_eq!(refused.differences.iter().find(other_c_bit), None, "{refused}");
}

/// Numbers that no machine has are refused before anything is made of them.
#[test]
fn impossible_machines_are_refused() {
    for ram_bytes in [0, 1, u64::MAX, (16 << 20) + 1] {
        let refused = compare(&MachineOffer { ram_bytes, ..offer() }, &host()).unwrap_err();
        assert!(matches!(refused.differences[..], [Difference::Ram(_)]), "{refused}");
    }
    for count in [0, 9, 300] {
        let cpuid = (0..count).map(|_| Vec::new()).collect();
        let refused = compare(&MachineOffer { cpuid, ..offer() }, &host()).unwrap_err();
        assert!(matches!(refused.differences[..], [Difference::Vcpus(_)]), "{refused}");
    }
    let refused = compare(&MachineOffer { version: 9, ..offer() }, &host()).unwrap_err();
    assert!(matches!(refused.differences[..], [Difference::Version { offered: 9 }]), "{refused}");
}
