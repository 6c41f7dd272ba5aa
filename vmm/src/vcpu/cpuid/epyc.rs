//! What KVM says of five generations of EPYC, for tests: address sizes and memory encryption.
//!
//! From public listings of CPUID and `lscpu`; KVM reports the raw number of address bits when it uses nested
//! paging, and of leaf 0x8000001F `EBX` the C-bit alone. How many ASIDs there are depends on the
//! firmware setup.

use kvm_bindings::kvm_cpuid_entry2;

/// A generation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Epyc {
    pub(crate) name: &'static str,
    /// Physical address bits, leaf 0x80000008 `EAX[7:0]`.
    pub(crate) physical: u32,
    /// Linear address bits, leaf 0x80000008 `EAX[15:8]`.
    linear: u32,
    pub(crate) c_bit: u8,
    /// Whether caches are coherent between a page's private and shared view (`SME_COHERENT`).
    pub(crate) coherent: bool,
    last_asid: u32,
}

pub(crate) const NAPLES: Epyc =
    Epyc { name: "Naples", physical: 48, linear: 48, c_bit: 47, coherent: false, last_asid: 15 };

pub(crate) const ROME: Epyc = Epyc { name: "Rome", last_asid: 509, ..NAPLES };

/// The C-bit is above all address bits.
pub(crate) const MILAN: Epyc = Epyc { name: "Milan", c_bit: 51, coherent: true, ..ROME };

pub(crate) const GENOA: Epyc =
    Epyc { name: "Genoa", physical: 52, linear: 57, last_asid: 1006, ..MILAN };

pub(crate) const TURIN: Epyc = Epyc { name: "Turin", ..GENOA };

pub(crate) const ALL: [Epyc; 5] = [NAPLES, ROME, MILAN, GENOA, TURIN];

impl Epyc {
    /// The two leaves.
    pub(crate) fn leaves(&self) -> [kvm_cpuid_entry2; 2] {
        let (sev, sev_es, coherent) = (1 << 1, 1 << 3, u32::from(self.coherent) << 10);
        [
            kvm_cpuid_entry2 {
                function: 0x8000_0008,
                eax: self.physical | self.linear << 8,
                ..kvm_cpuid_entry2::default()
            },
            kvm_cpuid_entry2 {
                function: 0x8000_001f,
                eax: sev | sev_es | coherent,
                ebx: self.c_bit.into(),
                ecx: self.last_asid,
                edx: 1,
                ..kvm_cpuid_entry2::default()
            },
        ]
    }

    /// `table` of another AMD processor, made this one's.
    pub(crate) fn of(&self, table: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
        let ours = self.leaves();
        let others =
            table.iter().filter(|entry| ours.iter().all(|our| our.function != entry.function));
        others.copied().chain(ours).collect()
    }
}
