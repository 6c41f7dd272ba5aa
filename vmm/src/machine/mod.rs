//! The machine: its parts assembled in order, run, and described.
//!
//! ```text
//! Machine::build --run--> RunningMachine <--pause, resume--> PausedMachine --save--> MachineState
//!                                                                  ^
//! ReceivingMachine::build --(RAM is filled)-- finish(MachineState)-/
//! ```
//!
//! [`Machine::build`] is the boot sequence, top to bottom. A reset is a new machine from the same [`Config`]: the
//! memory of an SEV guest cannot be launched twice.

mod audit;
mod check;
mod clock;
pub mod compatibility;
#[cfg(test)]
mod compatibility_tests;
pub mod config;
pub mod device_offer;
mod device_report;
mod devices;
mod encrypted;
mod error;
mod finding;
mod hardware_check;
mod host;
mod measured;
mod pinned;
pub mod pinning;
mod probe;
mod prospect;
mod receiving;
mod report;
mod running;
mod state;
mod vcpus;
mod wire;

use std::io::Error as IoError;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex};

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use audit::{Audit, Unaudited, Unreadable};
pub use check::{HostCheck, NOT_PORTABLE};
pub use clock::SavedBetween;
pub use config::Config;
pub use device_report::{DeviceReport, DeviceWatch};
pub use devices::{BadDevices, DEVICES_MAX, DevicesError, NotQuiet};
pub use encrypted::{LaunchRecord, certificates_of, digest_of};
pub use error::{EncryptedError, MachineError, VcpuSetupError};
pub use finding::{Finding, Verdict};
pub use host::{Host, HostError, NotLockable};
pub use measured::SecretError;
pub use probe::{ProbeError, probe};
pub use prospect::{Prospect, SevProspect};
pub use receiving::{ArrivalError, ReceivingMachine};
pub use report::{PageReport, PageSummary, PageWatch, REGIONS_MAX, Report, SevReport};
#[cfg(test)]
pub(crate) use running::take_in_order;
pub use running::{ChangeLog, PausedMachine, RunningMachine, Unpaused};
pub use state::{MachineState, RestoreError, SaveError};
pub use wire::{MACHINE_BYTES_MAX, MACHINE_VERSION, Undecodable};

use crate::boot::{Entry, load};
use crate::devices::{COM1_IRQ, Ports, SerialOutput, SerialPort};
use crate::encryption::PageStatus;
use crate::memory::Pages;
use crate::sev::launch::Measured;
use crate::vcpu::cpuid::{CpuidError, GuestCpu, guest_cpuid, require_rdrand};
use crate::vcpu::{Board, Stop};
use devices::{Devices, in_slots};
use encrypted::Encrypted;
use pinned::PinCallback;
use running::Assembly;

/// A machine that has not run yet. An SEV guest is measured, and takes its owner's secrets.
#[derive(Debug)]
pub struct Machine {
    vcpus: Vec<VcpuFd>,
    assembly: Assembly,
    /// `None` for a plain VM.
    measured: Option<Measured>,
}

impl Machine {
    /// Puts the machine together; its serial port writes to `output`.
    ///
    /// # Errors
    /// [`MachineError`] with the step that failed.
    pub fn build(config: &Config, output: SerialOutput) -> Result<Self, MachineError> {
        Self::build_watched(config, output, &mut |_pinned| false)
    }

    /// The same; `watch` is told how much of an SEV guest's memory is pinned.
    ///
    /// # Errors
    /// [`MachineError`] with the step that failed.
    pub fn build_watched(
        config: &Config,
        output: SerialOutput,
        watch: &mut PinCallback<'_>,
    ) -> Result<Self, MachineError> {
        let host = Host::open()?;
        let supported = host.supported_cpuid()?;
        let platform = config.sev.as_ref().map(|sev| &sev.platform);
        let vm_type = host.vm_type(platform);
        // Older than the VM, and so dropped after it whatever fails.
        let _ram_outlives_vm;
        let vm = Arc::new(host.create_bare_vm(vm_type)?);
        if config.sev.is_some() {
            host.trap_page_status(&vm)?;
        }
        let (ram, encrypted) =
            Encrypted::prepare(platform, config.ram, (&vm, vm_type), &supported, watch)?;
        _ram_outlives_vm = Arc::clone(&ram);
        ram.register(&vm)?;
        Host::add_interrupts(&vm)?;
        let serial = serial_port(&vm, output).map_err(MachineError::Interrupt)?;
        let c_bit = encrypted.as_ref().map(Encrypted::c_bit);
        // Before the launch, which takes long: a guest without a device or CPUID must not get that far.
        let (devices, bus) = Devices::build(&in_slots(&config.devices), &vm, &ram)?;
        devices.hold().map_err(DevicesError::from)?;
        let cpuids = guest_cpuids(&host, &supported, config.vcpus.get(), c_bit)?;
        let loaded = load(ram.host(), &config.boot(c_bit))?;
        if c_bit.is_some() && matches!(loaded.entry, Entry::Linux64 { .. }) {
            require_rdrand(&supported)?;
        }
        let guest = encrypted.zip(config.sev.as_ref());
        let launch = |(guest, sev): (Encrypted, _)| guest.launch(sev, &ram, &loaded.pieces);
        let (guest, measured) = guest.map(launch).transpose()?.unzip();

        let mut vcpus = Vec::new();
        for (index, cpuid) in (0..).zip(&cpuids) {
            let vcpu = vcpus::create(&vm, index, cpuid)?;
            vcpus::start_at(&vcpu, index, loaded.entry)?;
            vcpus.push(vcpu);
        }
        let pages = config.sev.as_ref().map(|sev| {
            let mut status = PageStatus::new(config.ram, sev.status);
            status.offer_migration();
            Mutex::new(Pages::new(status, Arc::clone(&ram)))
        });
        let ports = Ports::new(Arc::clone(&serial));
        let board = Arc::new(Board { bus, ram, ports, pages });
        let (msrs, tsc_khz) = vcpus::facts(&host, &vcpus)?;
        let assembly = Assembly { vm, board, serial, devices, guest, cpuid: cpuids, msrs, tsc_khz };
        Ok(Self { vcpus, assembly, measured })
    }

    /// What was launched; `None` for a plain VM.
    #[must_use]
    pub fn launch(&self) -> Option<&LaunchRecord> {
        self.assembly.guest.as_ref().map(|guest| &guest.record)
    }

    /// The serial port, to give it input.
    #[must_use]
    pub fn serial(&self) -> Arc<SerialPort> {
        Arc::clone(&self.assembly.serial)
    }

    /// Ends the launch and starts the vCPUs; what happens arrives on `events`.
    ///
    /// # Errors
    /// [`MachineError::Encrypted`] if the platform does not let the guest run, [`MachineError::Vcpu`]
    /// if the host has no threads to give.
    pub fn run<E>(mut self, events: &Sender<E>) -> Result<RunningMachine, MachineError>
    where
        E: From<Stop> + Send + 'static,
    {
        if let Some((guest, measured)) = self.assembly.guest.as_mut().zip(self.measured) {
            guest.launched = Some(measured.finish().map_err(EncryptedError::from)?);
        }
        Ok(RunningMachine::start(self.vcpus, self.assembly, events)?)
    }
}

/// The CPUID of each vCPU of a guest that is started here.
fn guest_cpuids(
    host: &Host,
    supported: &CpuId,
    count: u8,
    c_bit: Option<u8>,
) -> Result<Vec<CpuId>, CpuidError> {
    let tsc_deadline = host.has_tsc_deadline();
    let table = |index| guest_cpuid(supported, &GuestCpu { index, count, c_bit, tsc_deadline });
    (0..count).map(table).collect()
}

/// COM1 with its interrupt.
fn serial_port(vm: &VmFd, output: SerialOutput) -> Result<Arc<SerialPort>, IoError> {
    let interrupt = EventFd::new(EFD_NONBLOCK)?;
    vm.register_irqfd(&interrupt, COM1_IRQ)
        .map_err(|cause| IoError::from_raw_os_error(cause.errno()))?;
    Ok(Arc::new(SerialPort::new(interrupt, output)?))
}
