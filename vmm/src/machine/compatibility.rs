//! Whether a machine can run here: what it is made of, compared with what this host can give.
//!
//! [`MachineOffer`] is what the source's machine has. [`HostOffer`] is what the destination could make. [`compare`]
//! names every difference, before the first page moves.

use std::fmt::{Display, Formatter, Result as FmtResult};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use rmp_serde::encode::Error as EncodeError;
use serde::{Deserialize, Deserializer, Serialize};
use thiserror::Error;

use super::config::{BadRam, BadVcpuCount, DeviceConfig, PlatformKind, VcpuCount, ram_layout};
use super::device_offer::{DeviceDifference, DeviceHere, DeviceOffer, matching};
use super::devices::DEVICES_MAX;
use super::error::MachineError;
use super::host::{Host, NotLockable, check_lockable, lockable_bytes};
use super::wire::{MACHINE_VERSION, Undecodable, decode};
use crate::encryption::Design;
use crate::page::RamLayout;
use crate::saved::{AtMost, KernelStruct, at_most};
use crate::sev::{BadPolicy, Policy};
use crate::vcpu::cpuid::{
    CpuidError, GuestCpu, Shortfall, guest_cpuid, hardware_c_bit, shortfalls, software_c_bit,
};
use crate::vcpu::{MSRS_MAX, state_msrs};

/// Two TSC speeds count as the same up to this difference: KVM does not scale below it.
const TSC_TOLERANCE_PPM: u64 = 250;

/// Most CPUID tables that are read of an offer. [`compare`] refuses numbers that no machine has.
const TABLES_MAX: usize = 256;

/// Reads CPUID tables, in about as much memory as their bytes take.
fn cpuid_tables<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Vec<Vec<KernelStruct<kvm_cpuid_entry2>>>, D::Error> {
    let tables: Vec<AtMost<_, KVM_MAX_CPUID_ENTRIES>> = at_most::<TABLES_MAX, _, _>(deserializer)?;
    Ok(tables.into_iter().map(|table| table.0).collect())
}

/// What a machine is made of, as far as a destination must be able to make the same.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineOffer {
    /// [`MACHINE_VERSION`] of the source.
    pub version: u32,
    /// Bytes of RAM.
    pub ram_bytes: u64,
    /// The CPUID of every vCPU, as it was set.
    #[serde(deserialize_with = "cpuid_tables")]
    pub cpuid: Vec<Vec<KernelStruct<kvm_cpuid_entry2>>>,
    /// The MSRs whose values will come.
    #[serde(deserialize_with = "at_most::<MSRS_MAX, _, _>")]
    pub msrs: Vec<u32>,
    /// How fast the guest's TSC counts.
    pub tsc_khz: u32,
    /// What is on its PCI bus.
    #[serde(deserialize_with = "at_most::<DEVICES_MAX, _, _>")]
    pub devices: Vec<DeviceOffer>,
    /// For an SEV guest.
    pub sev: Option<SevOffer>,
}

/// What makes the machine an SEV guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SevOffer {
    /// What answers its SEV commands.
    pub platform: PlatformName,
    /// Its policy word.
    pub policy: u32,
    /// The number of its C-bit.
    pub c_bit: u8,
    /// What keeps the record of its shared pages. It stays the same at the destination.
    pub status: Design,
}

/// Which kind of platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlatformName {
    /// [`PlatformKind::Hardware`].
    Hardware,
    /// [`PlatformKind::Software`].
    Software,
}

impl From<&PlatformKind> for PlatformName {
    fn from(kind: &PlatformKind) -> Self {
        match kind {
            PlatformKind::Hardware { .. } => Self::Hardware,
            PlatformKind::Software { .. } => Self::Software,
        }
    }
}

impl Display for PlatformName {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str(match self {
            Self::Hardware => "hardware",
            Self::Software => "software",
        })
    }
}

impl MachineOffer {
    /// Where RAM is.
    ///
    /// # Errors
    /// [`BadRam`] if no machine has this much.
    pub fn ram(&self) -> Result<RamLayout, BadRam> {
        ram_layout(self.ram_bytes)
    }

    /// How many vCPUs.
    ///
    /// # Errors
    /// [`BadVcpuCount`] if no machine has so many.
    pub fn vcpus(&self) -> Result<VcpuCount, BadVcpuCount> {
        VcpuCount::new(self.cpuid.len() as u64)
    }

    /// The serial form, with names, so that fields can be added.
    ///
    /// # Errors
    /// [`EncodeError`] if there is no memory for it.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EncodeError> {
        rmp_serde::to_vec_named(self)
    }

    /// Reads the serial form. The bytes are not trusted, and [`compare`] has to check what they say.
    ///
    /// # Errors
    /// [`Undecodable`] unless they are an offer of this version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Undecodable> {
        decode(bytes)
    }

    /// The CPUID of every vCPU in KVM's form.
    ///
    /// # Errors
    /// [`CpuidError::TooMany`].
    pub(super) fn cpuids(&self) -> Result<Vec<CpuId>, CpuidError> {
        let table = |entries: &Vec<KernelStruct<_>>| {
            let raw: Vec<_> = entries.iter().map(|entry| entry.0).collect();
            CpuId::from_entries(&raw)
                .map_err(|_too_many| CpuidError::TooMany { entries: entries.len() })
        };
        self.cpuid.iter().map(table).collect()
    }
}

/// What this host can give to a machine that comes from elsewhere.
#[derive(Debug)]
pub struct HostOffer {
    /// `KVM_GET_SUPPORTED_CPUID`.
    pub supported: CpuId,
    /// Whether KVM emulates the LAPIC's TSC deadline mode.
    pub tsc_deadline: bool,
    /// The MSRs that a vCPU has here.
    pub msrs: Vec<u32>,
    /// How fast the TSC counts here.
    pub tsc_khz: u32,
    /// Whether KVM can make it count differently for a guest.
    pub tsc_scaling: bool,
    /// The platform that receives SEV guests, if one does.
    pub platform: Option<PlatformName>,
    /// How much memory this process may lock, in bytes; `None` is all of it. SEV hardware locks all
    /// of a guest's RAM.
    pub lockable_bytes: Option<u64>,
    /// The devices that a guest may have here.
    pub devices: Vec<DeviceHere>,
}

impl HostOffer {
    /// Asks this host's KVM; SEV guests would be received by `platform`, and have `devices`.
    ///
    /// # Errors
    /// [`MachineError::Host`].
    pub fn read(
        platform: Option<&PlatformKind>,
        devices: &[DeviceConfig],
    ) -> Result<Self, MachineError> {
        let host = Host::open()?;
        let vcpu = host.sample_vcpu()?;
        let msrs = state_msrs(&vcpu, &host.listed_msrs()?).map_err(MachineError::Msrs)?;
        Ok(Self {
            supported: host.supported_cpuid()?,
            tsc_deadline: host.has_tsc_deadline(),
            msrs,
            tsc_khz: vcpu.get_tsc_khz().map_err(MachineError::Msrs)?,
            tsc_scaling: host.has_tsc_scaling(),
            platform: platform.map(PlatformName::from),
            lockable_bytes: lockable_bytes(),
            devices: devices.iter().map(DeviceHere::look).collect(),
        })
    }

    /// The C-bit of an SEV guest here.
    pub(super) fn c_bit(&self) -> Option<u8> {
        match self.platform? {
            PlatformName::Hardware => hardware_c_bit(&self.supported),
            PlatformName::Software => software_c_bit(&self.supported),
        }
    }
}

/// Whether the machine of `offer` can run on `host`.
///
/// # Errors
/// [`Incompatible`] with every reason why not.
pub fn compare(offer: &MachineOffer, host: &HostOffer) -> Result<(), Incompatible> {
    if offer.version != MACHINE_VERSION {
        let version = Difference::Version { offered: offer.version };
        return Err(Incompatible { differences: vec![version] });
    }
    let mut differences = Vec::new();
    if let Err(cause) = offer.ram() {
        differences.push(Difference::Ram(cause));
    }
    if let Err(cause) = offer.vcpus() {
        differences.push(Difference::Vcpus(cause));
    } else {
        compare_cpuid(offer, host, &mut differences);
    }
    let missing: Vec<_> =
        offer.msrs.iter().copied().filter(|index| !host.msrs.contains(index)).collect();
    if !missing.is_empty() {
        differences.push(Difference::Msrs { missing });
    }
    compare_sev(offer.sev.as_ref(), host, &mut differences);
    let locks = offer.sev.is_some_and(|sev| sev.platform == PlatformName::Hardware);
    if locks && let Err(cause) = check_lockable(offer.ram_bytes, host.lockable_bytes) {
        differences.push(Difference::LockedMemory(cause));
    }
    let devices = matching(&offer.devices, &host.devices).err().unwrap_or_default();
    differences.extend(devices.into_iter().map(Difference::Device));
    if differences.is_empty() { Ok(()) } else { Err(Incompatible { differences }) }
}

fn compare_cpuid(offer: &MachineOffer, host: &HostOffer, differences: &mut Vec<Difference>) {
    let count = u8::try_from(offer.cpuid.len()).unwrap_or(u8::MAX);
    // If there is no platform here, that is reported below, and not its features.
    let c_bit = offer.sev.map(|sev| host.c_bit().unwrap_or(sev.c_bit));
    let mut invariant_tsc = false;
    for (index, offered) in (0_u8..).zip(&offer.cpuid) {
        let offered: Vec<_> = offered.iter().map(|entry| entry.0).collect();
        let cpu = GuestCpu { index, count, c_bit, tsc_deadline: host.tsc_deadline };
        match guest_cpuid(&host.supported, &cpu) {
            Ok(here) => {
                for shortfall in shortfalls(&offered, here.as_slice()) {
                    let difference = Difference::Cpuid(shortfall);
                    // vCPUs differ in their numbers only.
                    if !differences.contains(&difference) {
                        differences.push(difference);
                    }
                }
            }
            Err(cause) => {
                differences.push(Difference::CpuidHere(cause));
                break;
            }
        }
        invariant_tsc |=
            offered.iter().any(|leaf| leaf.function == 0x8000_0007 && leaf.edx >> 8 & 1 == 1);
    }
    let same = is_same_tsc(offer.tsc_khz, host.tsc_khz);
    // Without the invariant TSC guests keep time by kvmclock, which tells them the frequency.
    if invariant_tsc && !same && !host.tsc_scaling {
        differences.push(Difference::Tsc { offered: offer.tsc_khz, here: host.tsc_khz });
    }
}

fn compare_sev(offered: Option<&SevOffer>, host: &HostOffer, differences: &mut Vec<Difference>) {
    let Some(offered) = offered else { return };
    if let Err(cause) = Policy::new(offered.policy) {
        differences.push(Difference::Policy(cause));
    }
    match host.platform {
        Some(here) if here == offered.platform => {
            if host.c_bit() != Some(offered.c_bit) {
                let (offered, here) = (offered.c_bit, host.c_bit());
                differences.push(Difference::CBit { offered, here });
            }
        }
        here => differences.push(Difference::Platform { offered: offered.platform, here }),
    }
}

/// Whether two TSCs count at the same speed as far as KVM cares.
pub(super) fn is_same_tsc(one: u32, other: u32) -> bool {
    u64::from(one.abs_diff(other)) * 1_000_000 <= u64::from(one) * TSC_TOLERANCE_PPM
}

/// A machine cannot run here.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub struct Incompatible {
    /// Every reason.
    pub differences: Vec<Difference>,
}

impl Display for Incompatible {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str("this host cannot run the machine: ")?;
        for (index, difference) in self.differences.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{difference}")?;
        }
        Ok(())
    }
}

/// One reason why a machine cannot run here.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Difference {
    /// Another version of this program.
    #[error(
        "it is described in version {offered}, and this program knows version {MACHINE_VERSION}"
    )]
    Version {
        /// The source's version.
        offered: u32,
    },
    /// No machine has such RAM.
    #[error("it has {0}")]
    Ram(BadRam),
    /// No machine has so many vCPUs.
    #[error("it has {0}")]
    Vcpus(BadVcpuCount),
    /// The guest was told of something that is not here.
    #[error("{0}")]
    Cpuid(Shortfall),
    /// Such a guest cannot be made here at all.
    #[error("{0}")]
    CpuidHere(CpuidError),
    /// The guest has MSRs that do not exist here.
    #[error("KVM here has no MSR {missing:#x?}")]
    Msrs {
        /// Their numbers.
        missing: Vec<u32>,
    },
    /// The guest keeps time by a TSC of another speed.
    #[error(
        "its TSC counts at {offered} kHz, the one here at {here} kHz, and KVM here cannot scale it"
    )]
    Tsc {
        /// The source's, in kHz.
        offered: u32,
        /// This host's, in kHz.
        here: u32,
    },
    /// The guest's policy is not a valid one.
    #[error("its SEV policy is not valid: {0}")]
    Policy(BadPolicy),
    /// A guest of one platform cannot run on another.
    #[error(
        "it is a guest of the {offered} SEV platform, and {}",
        here.map_or("none receives guests here".to_owned(), |here| format!("{here} receives here"))
    )]
    Platform {
        /// The source's.
        offered: PlatformName,
        /// This host's.
        here: Option<PlatformName>,
    },
    /// The C-bit is at the same place in every page table of the guest.
    #[error(
        "its C-bit is bit {offered}, and here it is {}",
        here.map_or("none".to_owned(), |here| format!("bit {here}"))
    )]
    CBit {
        /// The guest's.
        offered: u8,
        /// This host's.
        here: Option<u8>,
    },
    /// A device that is not here, or is another one.
    #[error("{0}")]
    Device(DeviceDifference),
    /// SEV hardware pins all of a guest's RAM.
    #[error("{0}")]
    LockedMemory(NotLockable),
}

impl Difference {
    /// What it is about, in a word or two.
    #[must_use]
    pub fn subject(&self) -> &'static str {
        match self {
            Self::Version { .. } => "version",
            Self::Ram(_) => "memory",
            Self::Vcpus(_) => "vCPUs",
            Self::Cpuid(_) | Self::CpuidHere(_) => "CPUID",
            Self::Msrs { .. } => "MSRs",
            Self::Tsc { .. } => "TSC",
            Self::Policy(_) => "policy",
            Self::Platform { .. } => "platform",
            Self::CBit { .. } => "C-bit",
            Self::Device(_) => "devices",
            Self::LockedMemory(_) => "locked memory",
        }
    }
}
