//! A machine that is filled from elsewhere instead of being booted.

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
use super::pinned::Watch;
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

/// An SEV guest to be.
#[derive(Debug)]
struct ReceivingGuest {
    offer: SevOffer,
    platform: PlatformKind,
    device: Box<dyn SevDevice>,
    /// Until it is taken to be received.
    initialised: Option<Initialised>,
}

impl ReceivingMachine {
    /// Makes what `offer` describes, after [`compare`](super::compatibility::compare) has found
    /// nothing against it. SEV guests are received by `platform`; the guest's devices stand on those
    /// of `devices`, and the serial port writes to `output`; `watch` is told how much of an SEV
    /// guest's memory is pinned.
    ///
    /// # Errors
    /// [`MachineError`] with the step that failed.
    pub fn build(
        offer: &MachineOffer,
        platform: Option<&PlatformKind>,
        devices: &[DeviceConfig],
        output: SerialOutput,
        watch: &mut Watch<'_>,
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

    /// What vouches for the platform that the guest is to be on; `None` for a plain VM.
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

    /// Makes it the machine that was paused elsewhere, paused here, its clocks going on: its RAM is
    /// filled, `pages` is its page status and `guest` what the firmware has received; `state` was
    /// saved then.
    ///
    /// # Errors
    /// [`ReceiveError`]; there is no machine then.
    pub fn finish(
        self,
        (state, saved): (&MachineState, SavedBetween),
        pages: Option<PageStatus>,
        guest: Option<Launched>,
    ) -> Result<PausedMachine, ReceiveError> {
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
            _ => return Err(ReceiveError::Parts),
        };
        if let Some(pages) = &pages {
            if *pages.layout() != ram.layout() {
                return Err(ReceiveError::Parts);
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

    /// Whether `state` is of a machine like this.
    fn check(&self, state: &MachineState) -> Result<(), ReceiveError> {
        let (came, here) = (state.vcpus.len(), self.vcpus.len());
        if came != here {
            return Err(ReceiveError::Vcpus { came, here });
        }
        let offered: BTreeSet<_> = self.msrs.iter().copied().collect();
        for index in state.vcpus.iter().flat_map(|vcpu| vcpu.msrs()) {
            if !offered.contains(&index) {
                return Err(ReceiveError::Msr { index });
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
    ) -> Result<RunningGuest, ReceiveError> {
        let (came, offered) = (record.policy.bits(), self.offer.policy);
        if came != offered || record.c_bit != self.offer.c_bit {
            return Err(ReceiveError::Record { came, offered });
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

/// What came is not the machine that was offered, or could not be put in place.
#[derive(Debug, Error)]
pub enum ReceiveError {
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
    /// No policy.
    #[error("the launch record")]
    Policy(#[from] BadPolicy),
    /// The guest's view of RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// KVM did not take it.
    #[error(transparent)]
    Restore(#[from] RestoreError),
}
