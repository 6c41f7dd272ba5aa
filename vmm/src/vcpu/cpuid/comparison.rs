//! Finds the features that a guest was promised and that another host's processor does not have.

use std::fmt::{Display, Formatter, Result as FmtResult};

use kvm_bindings::kvm_cpuid_entry2;

/// A feature that a guest was promised and that is not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortfall {
    /// The leaf.
    pub function: u32,
    /// The sub-leaf.
    pub index: u32,
    /// The register.
    pub register: Register,
    /// What the guest was told.
    pub told: u32,
    /// What is here.
    pub here: u32,
    compared: Compared,
}

/// A register of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Register {
    /// `EAX`.
    Eax,
    /// `EBX`.
    Ebx,
    /// `ECX`.
    Ecx,
    /// `EDX`.
    Edx,
}

/// What the numbers mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    /// Each set bit promises a feature.
    Features,
    /// It must be the same number.
    Equal,
    /// The low byte is a number that must not be larger.
    LowByteAtMost,
}

impl Display for Shortfall {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let Self { function, index, register, told, here, compared } = self;
        let register = format!("{register:?}").to_uppercase();
        write!(f, "CPUID {function:#x}.{index} {register} ")?;
        match compared {
            Compared::Features => write!(f, "lacks {:#x} here", told & !here),
            Compared::Equal => write!(f, "is {told:#x} for the guest and {here:#x} here"),
            Compared::LowByteAtMost => {
                write!(f, "is {} for the guest and {} here", told & 0xff, here & 0xff)
            }
        }
    }
}

/// The registers in which every set bit is a promise. Others describe: the guest keeps what it was
/// told.
const FEATURES: [(u32, u32, Register); 19] = [
    (1, 0, Register::Ecx),
    (1, 0, Register::Edx),
    (7, 0, Register::Ebx),
    (7, 0, Register::Ecx),
    (7, 0, Register::Edx),
    (7, 1, Register::Eax),
    (7, 1, Register::Edx),
    (7, 2, Register::Edx),
    (0xd, 0, Register::Eax),
    (0xd, 0, Register::Edx),
    (0xd, 1, Register::Eax),
    (0xd, 1, Register::Ecx),
    (0x4000_0001, 0, Register::Eax),
    (0x8000_0001, 0, Register::Ecx),
    (0x8000_0001, 0, Register::Edx),
    (0x8000_0007, 0, Register::Edx),
    (0x8000_0008, 0, Register::Ebx),
    (0x8000_001f, 0, Register::Eax),
    (0x8000_0021, 0, Register::Eax),
];

/// Registers that must be the same: the vendor, because kernels choose by it how to work.
const EQUAL: [(u32, u32, Register); 3] =
    [(0, 0, Register::Ebx), (0, 0, Register::Ecx), (0, 0, Register::Edx)];

/// `EAX[7:0]`: MAXPHYADDR, above which the guest's page tables have reserved bits.
const ADDRESS_SIZES: (u32, u32, Register) = (0x8000_0008, 0, Register::Eax);

/// Sub-leaves from 2: size and offset of each part of the XSAVE area, which the processor lays out.
const XSAVE: u32 = 0xd;

/// Everything that `told` promises and `here` does not have.
pub fn shortfalls(
    told: &[kvm_cpuid_entry2],
    here: &[kvm_cpuid_entry2],
) -> impl Iterator<Item = Shortfall> {
    let parts = told.iter().filter(|leaf| leaf.function == XSAVE && leaf.index >= 2);
    let layout = parts.flat_map(|leaf| {
        [Register::Eax, Register::Ebx].map(|register| (XSAVE, leaf.index, register))
    });
    let rows = FEATURES.iter().map(|&row| (row, Compared::Features));
    let rows = rows.chain(EQUAL.iter().map(|&row| (row, Compared::Equal)));
    let rows = rows.chain([(ADDRESS_SIZES, Compared::LowByteAtMost)]);
    rows.chain(layout.map(|row| (row, Compared::Equal))).filter_map(|(row, compared)| {
        let (function, index, register) = row;
        let (told, here) = (value(told, row), value(here, row));
        let short = match compared {
            Compared::Features => told & !here != 0,
            Compared::Equal => told != here,
            Compared::LowByteAtMost => told & 0xff > here & 0xff,
        };
        short.then_some(Shortfall { function, index, register, told, here, compared })
    })
}

/// What a register of a leaf says; 0 where there is no such leaf.
fn value(table: &[kvm_cpuid_entry2], (function, index, register): (u32, u32, Register)) -> u32 {
    let leaf = table.iter().find(|leaf| leaf.function == function && leaf.index == index);
    leaf.map_or(0, |leaf| match register {
        Register::Eax => leaf.eax,
        Register::Ebx => leaf.ebx,
        Register::Ecx => leaf.ecx,
        Register::Edx => leaf.edx,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, eax: u32, ebx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ..kvm_cpuid_entry2::default() }
    }

    fn texts(told: &[kvm_cpuid_entry2], here: &[kvm_cpuid_entry2]) -> Vec<String> {
        shortfalls(told, here).map(|shortfall| shortfall.to_string()).collect()
    }

    /// A processor that has all and more is good enough; the other way round, each missing bit is
    /// named.
    #[test]
    fn more_features_are_fine_and_fewer_are_named() {
        let little = [leaf(7, 0, 0, 0b0001), leaf(7, 1, 0b1, 0)];
        let much = [leaf(7, 0, 2, 0b0111), leaf(7, 1, 0b11, 0)];
        assert_eq!(texts(&little, &much), Vec::<String>::new());
        assert_eq!(
            texts(&much, &little),
            ["CPUID 0x7.0 EBX lacks 0x6 here", "CPUID 0x7.1 EAX lacks 0x2 here"]
        );
        assert_eq!(texts(&much, &[]).len(), 2);
    }

    /// Another vendor, fewer address bits or another layout of the XSAVE area are no features, and
    /// are found all the same.
    #[test]
    fn what_must_be_equal_is_compared_as_a_number() {
        let guest = [leaf(0, 0, 0, 1), leaf(0xd, 2, 256, 576), leaf(0x8000_0008, 0, 0x3030, 0)];
        assert_eq!(texts(&guest, &guest), Vec::<String>::new());
        let here = [leaf(0, 0, 0, 3), leaf(0xd, 2, 256, 832), leaf(0x8000_0008, 0, 0x302f, 0)];
        assert_eq!(
            texts(&guest, &here),
            [
                "CPUID 0x0.0 EBX is 0x1 for the guest and 0x3 here",
                "CPUID 0x80000008.0 EAX is 48 for the guest and 47 here",
                "CPUID 0xd.2 EBX is 0x240 for the guest and 0x340 here",
            ]
        );
    }
}
