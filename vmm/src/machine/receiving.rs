//! A machine that is filled with a guest from another host, instead of being booted.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;

use super::clock::SavedBetween;
use super::compatibility::{MachineOffer, SevOffer};
use super::config::{DeviceConfig, PlatformKind};
use super::device_offer::{DeviceHere, matching};
use super::devices::Devices;
use super::encrypted::{Encrypted, LaunchRecord, RunningGuest, vouch};
use super::error::MachineError;
use super::host::Host;
use super::pinned::PinCallback;
use super::running::{Assembly, PausedMachine};
use super::state::{MachineState, RestoreError};
use super::{serial_port, vcpus};
use crate::devices::pci::PciBus;
use crate::devices::{Ports, SerialOutput, SerialPort};
use crate::encryption::PageStatus;
use crate::memory::{GuestRam, Pages, RamError};
use crate::sev::endorsement::EndorsementError;
use crate::sev::launch::{Initialised, Launched};
use crate::sev::target::PlatformCertificates;
use crate::sev::{BadPolicy, Policy, SevDevice};
use crate::vcpu::Board;

/// A machine with RAM, vCPUs and devices, and nothing in them yet.
#[derive(Debug)]
pub struct ReceivingMachine {
    /// Dropped before the RAM that it uses.
    vm: Arc<VmFd>,
    vcpus: Vec<VcpuFd>,
    devices: Devices,
    bus: PciBus,
    ram: Arc<GuestRam>,
    serial: Arc<SerialPort>,
    cpuid: Vec<CpuId>,
    msrs: Vec<u32>,
    tsc_khz: u32,
    sev: Option<ReceivingGuest>,
}

/// The SEV side of a guest that has not arrived yet.
#[derive(Debug)]
struct ReceivingGuest {
    offer: SevOffer,
    platform: PlatformKind,
    device: Box<dyn SevDevice>,
    /// `None` once it is taken out to receive the guest.
    initialised: Option<Initialised>,
}

impl ReceivingMachine {
    /// Makes the machine that `offer` describes. [`compare`](super::compatibility::compare) must have found nothing
    /// against it. `platform` receives SEV guests, the guest's devices are made from `devices`, the serial port writes
    /// to `output`, and `watch` is told how much of an SEV guest's memory is pinned.
    ///
    /// # Errors
    /// [`MachineError`] with the step that failed.
    pub fn build(
        offer: &MachineOffer,
        platform: Option<&PlatformKind>,
        devices: &[DeviceConfig],
        output: SerialOutput,
        watch: &mut PinCallback<'_>,
    ) -> Result<Self, MachineError> {
        let layout = offer.ram().map_err(MachineError::OfferedRam)?;
        offer.vcpus().map_err(MachineError::OfferedVcpus)?;
        let host = Host::open()?;
        let platform = offer.sev.and(platform);
        let vm_type = host.vm_type(platform);
        // Older than the VM, and so dropped after it whatever fails.
        let _ram_outlives_vm;
        let vm = Arc::new(host.create_bare_vm(vm_type)?);
        if offer.sev.is_some() {
            host.trap_page_status(&vm)?;
        }
        let supported = host.supported_cpuid()?;
        let (ram, encrypted) =
            Encrypted::prepare(platform, layout, (&vm, vm_type), &supported, watch)?;
        _ram_outlives_vm = Arc::clone(&ram);
        ram.register(&vm)?;
        Host::add_interrupts(&vm)?;
        let serial = serial_port(&vm, output).map_err(MachineError::Interrupt)?;
        let here: Vec<_> = devices.iter().map(DeviceHere::look).collect();
        let matching = matching(&offer.devices, &here).map_err(MachineError::offered_devices)?;
        let (devices, bus) = Devices::build(&matching, &vm, &ram)?;
        let cpuid = offer.cpuids()?;
        let created = (0..).zip(&cpuid).map(|(index, cpuid)| {
            let vcpu = vcpus::create(&vm, index, cpuid)?;
            vcpus::set_tsc_speed(&vcpu, index, offer.tsc_khz)?;
            Ok(vcpu)
        });
        let vcpus = created.collect::<Result<_, MachineError>>()?;
        let sev = offer.sev.zip(encrypted).map(
            |(offer, Encrypted { platform, device, initialised, .. })| ReceivingGuest {
                offer,
                platform,
                device,
                initialised: Some(initialised),
            },
        );
        let (msrs, tsc_khz) = (offer.msrs.clone(), offer.tsc_khz);
        Ok(Self { vm, vcpus, devices, bus, ram, serial, cpuid, msrs, tsc_khz, sev })
    }

    /// Guest RAM, to be filled.
    #[must_use]
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    /// The serial port.
    #[must_use]
    pub fn serial(&self) -> Arc<SerialPort> {
        Arc::clone(&self.serial)
    }

    /// The endorsement of the platform that the guest will be on; `None` for a plain VM.
    ///
    /// # Errors
    /// [`EndorsementError`].
    pub fn platform_certificates(&self) -> Result<Option<PlatformCertificates>, EndorsementError> {
        let guest = self.sev.as_ref();
        guest.map(|guest| vouch(&guest.platform, guest.device.as_ref())).transpose()
    }

    /// Takes the SEV side of the VM out, to receive the guest with it. `None` for a plain VM.
    pub fn take_initialised(&mut self) -> Option<Initialised> {
        self.sev.as_mut()?.initialised.take()
    }

    /// Makes it the machine that was paused at the other host, paused here, with its clocks going on. Its RAM must be
    /// filled. `pages` is its page status, `guest` is what the firmware has received, and `state` was saved at the
    /// moment that `saved` describes.
    ///
    /// # Errors
    /// [`ArrivalError`]; there is no machine then.
    pub fn finish(
        self,
        (state, saved): (&MachineState, SavedBetween),
        pages: Option<PageStatus>,
        guest: Option<Launched>,
    ) -> Result<PausedMachine, ArrivalError> {
        self.check(state)?;
        // What is named last is dropped first, whatever fails: the VM before its RAM, and so before it
        // also the devices, which have both.
        let Self { ram, serial, cpuid, msrs, tsc_khz, sev, devices, bus, vcpus, vm } = self;
        let record = state.launch()?;
        let (guest, pages) = match (sev, record, pages, guest) {
            (None, None, None, None) => (None, None),
            (Some(sev), Some(record), Some(pages), Some(launched)) => {
                (Some(sev.finish(record, launched)?), Some(pages))
            }
            _ => return Err(ArrivalError::Parts),
        };
        if let Some(pages) = &pages {
            if *pages.layout() != ram.layout() {
                return Err(ArrivalError::Parts);
            }
            ram.show_restored(pages)?;
        }
        state.restore(&vm, &vcpus, (&serial, &devices, &bus), saved)?;
        let pages = pages.map(|status| Mutex::new(Pages::arrived(status, Arc::clone(&ram))));
        let ports = Ports::new(Arc::clone(&serial));
        let board = Arc::new(Board { bus, ram, ports, pages });
        let assembly = Assembly { vm, board, serial, devices, guest, cpuid, msrs, tsc_khz };
        Ok(PausedMachine::new(vcpus, assembly))
    }

    /// Checks that `state` is the state of a machine like this one.
    fn check(&self, state: &MachineState) -> Result<(), ArrivalError> {
        let (came, here) = (state.vcpus.len(), self.vcpus.len());
        if came != here {
            return Err(ArrivalError::Vcpus { came, here });
        }
        let offered: BTreeSet<_> = self.msrs.iter().copied().collect();
        for index in state.vcpus.iter().flat_map(|vcpu| vcpu.msrs()) {
            if !offered.contains(&index) {
                return Err(ArrivalError::Msr { index });
            }
        }
        Ok(())
    }
}

impl ReceivingGuest {
    fn finish(
        self,
        record: LaunchRecord,
        launched: Launched,
    ) -> Result<RunningGuest, ArrivalError> {
        let (came, offered) = (record.policy.bits(), self.offer.policy);
        if came != offered || record.c_bit != self.offer.c_bit {
            return Err(ArrivalError::Record { came, offered });
        }
        Ok(RunningGuest {
            record,
            platform: self.platform,
            status: self.offer.status,
            launched: Some(launched),
            device: self.device,
        })
    }
}

/// What arrived is not the machine that was offered, or could not be put in place.
#[derive(Debug, Error)]
pub enum ArrivalError {
    /// Not as many vCPUs.
    #[error("the state of {came} vCPUs came for a machine that was offered with {here}")]
    Vcpus {
        /// In the state.
        came: usize,
        /// In the offer.
        here: usize,
    },
    /// A register that was not in the offer.
    #[error("the state has MSR {index:#x}, which was not offered")]
    Msr {
        /// Its number.
        index: u32,
    },
    /// SEV parts for a plain VM, or too few for an SEV guest.
    #[error("page status, launch record and firmware state do not belong to one machine")]
    Parts,
    /// Another guest's record.
    #[error(
        "the launch record has policy {} or a C-bit other than offered ({})",
        Policy::describe(*came),
        Policy::describe(*offered)
    )]
    Record {
        /// In the record.
        came: u32,
        /// In the offer.
        offered: u32,
    },
    /// A policy that is not a valid one.
    #[error("the launch record")]
    Policy(#[from] BadPolicy),
    /// The guest's view of RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// KVM did not take it.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}
