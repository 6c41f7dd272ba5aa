//! CPUID tables of guests, made from small tables as KVM gives them.

use proptest::prelude::*;

use super::leaves::XSAVE;
use super::*;

fn entry(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = registers;
    kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
}

/// An AMD processor with AVX, nested virtualization, and the topology leaves of Zen.
fn supported() -> Vec<kvm_cpuid_entry2> {
    vec![
        entry(0, 0, [0xd, 0x6874_7541, 0x444d_4163, 0x6974_6e65]),
        entry(1, 0, [0x00a0_0f11, 0x0702_0800, 0x7ed8_320b | MONITOR | VMX | OSXSAVE, 0x078b_fbff]),
        entry(5, 0, [0x40, 0x40, 3, 0x11]),
        entry(7, 0, [0, 0x219c_97a9, 0x40_0684, 0]),
        entry(0xb, 0, [0, 0, 0, 7]),
        entry(0xd, 0, [7, 0x340, 0x340, 0]),
        entry(0xd, 1, [0xf, 0x340, 0, 0]),
        entry(0xd, 2, [0x100, 0x240, 0, 0]),
        entry(0x4000_0000, 0, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
        entry(0x4000_0001, 0, [0x0100_7efb, 0, 0, 0]),
        entry(0x8000_0000, 0, [0x8000_001e, 0, 0, 0]),
        entry(0x8000_0001, 0, [0, 0, 0x0040_0393 | SVM_BIT | MONITORX, 0]),
        entry(0x8000_0008, 0, [0x3030, 0, 0x7007, 0]),
        entry(0x8000_000a, 0, [1, 8, 0, 0]),
        entry(0x8000_001d, 0, [0x4121, 0, 0, 0]),
        entry(0x8000_001d, 3, [0x4163, 0, 0, 0]),
        entry(0x8000_001e, 0, [7, 0x103, 0, 0]),
    ]
}

fn table(entries: &[kvm_cpuid_entry2]) -> CpuId {
    CpuId::from_entries(entries).unwrap()
}

fn cpu(index: u8, count: u8, c_bit: Option<u8>) -> GuestCpu {
    GuestCpu { index, count, c_bit, tsc_deadline: true }
}

/// What the guest reads from a leaf: zeros, if there is none.
fn leaf(cpuid: &CpuId, function: u32, index: u32) -> [u32; 4] {
    let found = |e: &&kvm_cpuid_entry2| e.function == function && e.index == index;
    let leaf = cpuid.as_slice().iter().find(found).copied().unwrap_or_default();
    [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]
}

fn guest(entries: &[kvm_cpuid_entry2], cpu: &GuestCpu) -> CpuId {
    guest_cpuid(&table(entries), cpu).unwrap()
}

/// A hypervisor with a usable timer, and nothing that a guest needs to be a hypervisor itself.
#[test]
fn every_guest_sees_kvm_and_no_nested_virtualization() {
    let cpuid = guest(&supported(), &cpu(0, 1, None));
    let [_, _, ecx, edx] = leaf(&cpuid, 1, 0);
    let expected = HYPERVISOR | TSC_DEADLINE | RDRAND | XSAVE;
    assert_eq!(ecx & expected, expected);
    assert_eq!(ecx & (MONITOR | VMX | OSXSAVE), 0);
    assert_eq!(edx & (MTRR | PAT), MTRR | PAT);
    assert_eq!(leaf(&cpuid, 5, 0), [0; 4]);
    assert_eq!(leaf(&cpuid, EXTENDED_FEATURES, 0)[2] & (SVM_BIT | MONITORX), 0);
    assert_eq!(leaf(&cpuid, SVM, 0), [0; 4]);
    assert_eq!(leaf(&cpuid, KVM_SIGNATURE, 0)[1..], [0x4b4d_564b, 0x564b_4d56, 0x4d]);

    let without = GuestCpu { tsc_deadline: false, ..cpu(0, 1, None) };
    assert_eq!(leaf(&guest(&supported(), &without), 1, 0)[2] & TSC_DEADLINE, 0);
}

/// SEV, the C-bit and one address bit less; page status and migration control offered.
#[test]
fn an_sev_guest_sees_sev() {
    let cpuid = guest(&supported(), &cpu(0, 1, Some(47)));
    assert_eq!(leaf(&cpuid, MEMORY_ENCRYPTION, 0), [SEV | COHERENT, 47 | 1 << 6, 0, 0]);
    assert_eq!(leaf(&cpuid, EXTENDED, 0)[0], MEMORY_ENCRYPTION);
    assert_eq!(leaf(&cpuid, KVM_FEATURES, 0)[0], 0x0103_7efb);
}

/// On hardware the guest flushes caches where the processor needs it, and learns nothing of ASIDs.
#[test]
fn hardware_says_itself_whether_caches_are_coherent() {
    for coherent in [0, COHERENT] {
        let mut entries = supported();
        entries.push(entry(MEMORY_ENCRYPTION, 0, [0b1010 | coherent, 51, 509, 1]));
        entries[12].eax = 0x3034;
        assert_eq!(hardware_c_bit(&table(&entries)), Some(51));
        let cpuid = guest(&entries, &cpu(0, 1, Some(51)));
        assert_eq!(leaf(&cpuid, MEMORY_ENCRYPTION, 0), [SEV | coherent, 51 | 1 << 6, 0, 0]);
    }
}

/// Every generation of EPYC can start a guest with its own C-bit, also Milan, which has it above all
/// address bits; the software platform's, on the same processors, is the top address bit.
#[test]
fn every_epyc_has_guests_with_its_own_c_bit() {
    for epyc in epyc::ALL {
        let entries = epyc.of(&supported());
        let c_bit = hardware_c_bit(&table(&entries));
        assert_eq!(c_bit, Some(epyc.c_bit), "{}", epyc.name);
        let cpuid = guest_cpuid(&table(&entries), &cpu(0, 1, c_bit));
        let cpuid = cpuid.unwrap_or_else(|cause| panic!("{}: {cause}", epyc.name));
        let coherent = if epyc.coherent { COHERENT } else { 0 };
        let leaf_1f = leaf(&cpuid, MEMORY_ENCRYPTION, 0);
        assert_eq!(leaf_1f, [SEV | coherent, u32::from(epyc.c_bit) | 1 << 6, 0, 0]);
        assert_eq!(leaf(&cpuid, ADDRESS_SIZES, 0)[0] & 0xff, epyc.physical);

        let software = software_c_bit(&table(&entries)).unwrap();
        assert_eq!(u32::from(software), epyc.physical - 1, "{}", epyc.name);
        guest(&entries, &cpu(0, 1, Some(software)));
    }
    // The processor's own bit may be there, and no other.
    let milan = epyc::MILAN.of(&supported());
    for c_bit in [48, 50, 52] {
        let refused = guest_cpuid(&table(&milan), &cpu(0, 1, Some(c_bit))).unwrap_err();
        assert_eq!(refused, CpuidError::CBit { c_bit, max_phys_addr: 48 });
    }
}

/// A plain VM on an SEV host does not take itself for an SEV guest.
#[test]
fn a_plain_vm_sees_no_memory_encryption() {
    let mut entries = supported();
    entries.push(entry(MEMORY_ENCRYPTION, 0, [0b1010, 51, 509, 1]));
    entries[9].eax |= PAGE_STATUS_FEATURES;
    let cpuid = guest(&entries, &cpu(0, 1, None));
    assert_eq!(leaf(&cpuid, MEMORY_ENCRYPTION, 0), [0; 4]);
    assert_eq!(leaf(&cpuid, KVM_FEATURES, 0)[0], 0x0100_7efb);
}

/// The software platform's C-bit is the top address bit; bits that no guest could use are none.
#[test]
fn c_bits_come_from_the_address_width() {
    for (width, expected) in
        [(40, Some(39)), (48, Some(47)), (52, Some(51)), (32, None), (0, None), (53, None)]
    {
        let entries = [entry(ADDRESS_SIZES, 0, [0x3000 | width, 0, 0, 0])];
        assert_eq!(software_c_bit(&table(&entries)), expected);
    }
    assert_eq!(software_c_bit(&table(&[])), None);
    assert_eq!(hardware_c_bit(&table(&supported())), None);
    let no_sev = [entry(MEMORY_ENCRYPTION, 0, [1, 47, 0, 0])];
    assert_eq!(hardware_c_bit(&table(&no_sev)), None);
}

/// What could only hang is refused.
#[test]
fn hosts_that_cannot_have_sev_guests_are_refused() {
    let mut entries = supported();
    let refused = |c_bit| guest_cpuid(&table(&supported()), &cpu(0, 1, Some(c_bit)));
    let error = CpuidError::CBit { c_bit: 48, max_phys_addr: 48 };
    assert_eq!(refused(48).unwrap_err(), error);
    assert!(matches!(refused(31).unwrap_err(), CpuidError::CBit { c_bit: 31, .. }));
    entries[1].ecx &= !RDRAND;
    let without_rdrand = table(&entries);
    assert_eq!(require_rdrand(&without_rdrand), Err(CpuidError::NoRdrand));
    require_rdrand(&table(&supported())).unwrap();
}

/// KVM takes 256 entries; a host that already has that many is told so.
#[test]
fn more_entries_than_kvm_takes_are_refused() {
    let mut entries = supported();
    entries.extend((0..256 - 17).map(|index| entry(0x14, index, [0; 4])));
    let full = table(&entries);
    let error = guest_cpuid(&full, &cpu(0, 1, Some(47))).unwrap_err();
    assert!(matches!(error, CpuidError::TooMany { entries } if entries > 256));
}

/// An Intel processor's caches and levels tell the same story.
#[test]
fn intel_caches_and_levels_agree() {
    let mut entries = supported();
    (entries[0].eax, entries[0].ebx) = (0x1f, 0x756e_6547);
    (entries[0].ecx, entries[0].edx) = (0x6c65_746e, 0x4965_6e69);
    let l1 = 0x1c00_4121;
    entries.push(entry(4, 0, [l1, 1, 2, 3]));
    entries.push(entry(4, 3, [0xfc1f_c163, 1, 2, 3]));
    entries.push(entry(4, 4, [0; 4]));
    let cpuid = guest(&entries, &cpu(1, 4, None));
    assert_eq!(leaf(&cpuid, 4, 0), [3 << 26 | 0x121, 1, 2, 3]);
    assert_eq!(leaf(&cpuid, 4, 3), [3 << 26 | 3 << 14 | 0x163, 1, 2, 3]);
    assert_eq!(leaf(&cpuid, 4, 4), [0; 4]);
    for index in 0..3 {
        assert_eq!(leaf(&cpuid, 0x1f, index), leaf(&cpuid, 0xb, index));
    }
    assert_eq!(leaf(&cpuid, 0x8000_0008, 0)[2], 0x7007);
}

/// Components without their feature, or without a size, are not offered; sizes follow.
#[test]
fn xsave_components_need_feature_and_size() {
    let mut entries = supported();
    // AVX-512 without its feature, protection keys with it, AMX without sub-leaves.
    entries[5].eax = 0x0006_02e7;
    entries[3].ecx |= 1 << 3;
    entries[3].edx |= 1 << 24;
    entries.push(entry(0xd, 5, [0x40, 0x340, 0, 0]));
    entries.push(entry(0xd, 9, [8, 0x980, 0, 0]));
    let cpuid = guest(&entries, &cpu(0, 1, None));
    assert_eq!(leaf(&cpuid, 0xd, 0), [0x207, 576, 0x988, 0]);
    assert_eq!(leaf(&cpuid, 0xd, 5), [0; 4]);
}

/// Supervisor components exist only with XSAVES.
#[test]
fn supervisor_components_need_xsaves() {
    for (features, offered) in [(0xf, 0x1800), (0x7, 0)] {
        let mut entries = supported();
        entries[6].eax = features;
        entries[6].ecx = 0x1800;
        entries.push(entry(0xd, 11, [16, 0, 1, 0]));
        entries.push(entry(0xd, 12, [24, 0, 1, 0]));
        let cpuid = guest(&entries, &cpu(0, 1, None));
        assert_eq!(leaf(&cpuid, 0xd, 1), [features, 576, offered, 0]);
        assert_eq!(leaf(&cpuid, 0xd, 11) == [0; 4], offered == 0);
        assert_eq!(leaf(&cpuid, 0xd, 0), [7, 576, 0x340, 0]);
    }
}

/// Leaf 0xD of a processor without XSAVE is left out.
#[test]
fn no_xsave_no_sizes() {
    let mut entries = supported();
    entries[1].ecx &= !XSAVE;
    let cpuid = guest(&entries, &cpu(0, 1, None));
    assert!(cpuid.as_slice().iter().all(|entry| entry.function != 0xd));
}

proptest! {
    /// Every leaf names the same APIC id, different for each vCPU, and puts all in one package.
    #[test]
    fn all_leaves_agree_on_the_topology(count in 1u8..=255, index in any::<prop::sample::Index>()) {
        let index = u8::try_from(index.index(count.into())).unwrap();
        let cpuid = guest(&supported(), &cpu(index, count, Some(47)));
        let (id, all) = (u32::from(index), u32::from(count));
        let [_, ebx, _, edx] = leaf(&cpuid, 1, 0);
        prop_assert_eq!((ebx >> 24, ebx >> 16 & 0xff), (id, all));
        prop_assert_eq!(edx >> 28 & 1 == 1, count > 1);
        prop_assert_eq!(leaf(&cpuid, EXTENDED_FEATURES, 0)[2] >> 1 & 1 == 1, count > 1);
        prop_assert_eq!(leaf(&cpuid, 0x8000_001e, 0), [id, id, 0, 0]);
        let sizes = leaf(&cpuid, ADDRESS_SIZES, 0)[2];
        prop_assert_eq!(sizes & 0xff, all - 1);

        let threads = leaf(&cpuid, 0xb, 0);
        prop_assert_eq!(threads, [0, 1, 0x100, id]);
        let [shift, processors, kind, x2apic] = leaf(&cpuid, 0xb, 1);
        prop_assert_eq!((processors, kind, x2apic), (all, 0x201, id));
        prop_assert_eq!(sizes >> 12, shift);
        // The highest id still fits into the bits below the package number, barely.
        prop_assert_eq!((all - 1) >> shift, 0);
        prop_assert!(shift == 0 || (all - 1) >> (shift - 1) != 0);
        prop_assert_eq!(leaf(&cpuid, 0xb, 2)[1], 0);

        prop_assert_eq!(leaf(&cpuid, 0x8000_001d, 0)[0] >> 14, 0);
        prop_assert_eq!(leaf(&cpuid, 0x8000_001d, 3)[0] >> 14, all - 1);
    }

    /// What KVM says in another order makes the same table; and a table made once stays as it is.
    #[test]
    fn the_table_is_stable(seed in Just(supported()).prop_shuffle(), c_bit in prop::option::of(32u8..48)) {
        let cpu = cpu(1, 2, c_bit);
        let made = guest(&seed, &cpu);
        let (ordered, again) = (guest(&supported(), &cpu), guest(made.as_slice(), &cpu));
        prop_assert_eq!(made.as_slice(), ordered.as_slice());
        prop_assert_eq!(made.as_slice(), again.as_slice());
    }

    /// The size of the XSAVE area is what its components need, whichever there are.
    #[test]
    fn xsave_sizes_add_up(
        components in any::<u32>(),
        sizes in prop::collection::vec(0u32..0x2000, 30),
        features: [u32; 3],
    ) {
        let mut entries = supported();
        entries[5].eax = components | 3;
        [entries[3].ebx, entries[3].ecx, entries[3].edx] = features;
        let mut at = 0x340;
        for (index, size) in (3u32..).zip(&sizes) {
            entries.push(entry(0xd, index, [*size, at, 0, 0]));
            at += size;
        }
        let cpuid = guest(&entries, &cpu(0, 1, None));
        let [low, at_reset, largest, _] = leaf(&cpuid, 0xd, 0);
        prop_assert_eq!(low & !components & !3, 0);
        prop_assert_eq!(at_reset, 576);
        let mut expected = 576;
        for bit in 2..32 {
            let [size, offset, ..] = leaf(&cpuid, 0xd, bit);
            prop_assert_eq!(low >> bit & 1 == 1, size != 0);
            expected = expected.max(if size == 0 { 0 } else { offset + size });
        }
        prop_assert_eq!(largest, expected);
    }
}
