//! A guest that is not started yet: what it would be on this host.

use super::compatibility::{HostOffer, MachineOffer, PlatformName, SevOffer};
use super::config::{DeviceConfig, PlatformKind, VcpuCount};
use super::device_offer::DeviceOffer;
use super::devices::in_slots;
use super::error::{EncryptedError, MachineError};
use super::host::check_lockable;
use super::wire::MACHINE_VERSION;
use crate::encryption::Design;
use crate::page::RamLayout;
use crate::saved::KernelStruct;
use crate::sev::Policy;
use crate::vcpu::cpuid::{GuestCpu, guest_cpuid};

/// What such a guest would have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prospect {
    /// Where its RAM would be.
    pub ram: RamLayout,
    /// How many vCPUs.
    pub vcpus: VcpuCount,
    /// What would be on its PCI bus, from slot 1 on.
    pub devices: Vec<DeviceConfig>,
    /// `None` for a plain VM.
    pub sev: Option<SevProspect>,
}

/// What would make it an SEV guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SevProspect {
    /// What would answer its commands.
    pub platform: PlatformKind,
    /// Its policy.
    pub policy: Policy,
    /// What would keep the record of its shared pages.
    pub status: Design,
}

impl Prospect {
    /// What a destination would have to be able to make.
    ///
    /// # Errors
    /// [`MachineError`] if this host could not start the guest.
    pub fn offer(&self) -> Result<MachineOffer, MachineError> {
        let here = HostOffer::read(self.sev.as_ref().map(|sev| &sev.platform), &[])?;
        let c_bit = match &self.sev {
            Some(_) => Some(here.c_bit().ok_or(EncryptedError::CBit)?),
            None => None,
        };
        if matches!(&self.sev, Some(sev) if matches!(sev.platform, PlatformKind::Hardware { .. })) {
            check_lockable(self.ram.bytes(), here.lockable_bytes).map_err(EncryptedError::from)?;
        }
        let count = self.vcpus.get();
        let table = |index| {
            let cpu = GuestCpu { index, count, c_bit, tsc_deadline: here.tsc_deadline };
            let cpuid = guest_cpuid(&here.supported, &cpu)?;
            Ok(cpuid.as_slice().iter().copied().map(KernelStruct).collect())
        };
        let device =
            |(slot, config): (u8, &DeviceConfig)| Ok(DeviceOffer::new(slot, &*config.open()?));
        let devices = in_slots(&self.devices).into_iter().map(device);
        let devices = devices.collect::<Result<_, MachineError>>()?;
        Ok(MachineOffer {
            version: MACHINE_VERSION,
            ram_bytes: self.ram.bytes(),
            cpuid: (0..count).map(table).collect::<Result<_, MachineError>>()?,
            msrs: here.msrs.clone(),
            tsc_khz: here.tsc_khz,
            devices,
            sev: self.sev.as_ref().zip(c_bit).map(|(sev, c_bit)| SevOffer {
                platform: PlatformName::from(&sev.platform),
                policy: sev.policy.bits(),
                c_bit,
                status: sev.status,
            }),
        })
    }
}
