//! The machine: its parts assembled in order, run, and described.
//!
//! [`Machine::build`] is the boot sequence, top to bottom; [`Machine::run`] hands the vCPUs to their
//! threads. A reset is a new machine from the same [`Config`]: the memory of an SEV guest cannot
//! be launched twice.

pub mod config;
mod encrypted;
mod host;
mod probe;
mod report;
mod vcpus;

use std::io::{Error as IoError, Write};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use config::Config;
pub use encrypted::{EncryptedError, LaunchRecord, digest_of};
pub use host::{Host, HostError};
pub use probe::{ProbeError, probe};
pub use report::{PageReport, PageSummary, PageWatch, Report, SevReport};
pub use vcpus::VcpuSetupError;

use crate::boot::{BootError, load};
use crate::devices::{COM1_IRQ, Ports, SerialPort};
use crate::encryption::PageStatus;
use crate::memory::{Pages, RamError};
use crate::vcpu::cpuid::{CpuidError, GuestCpu, guest_cpuid};
use crate::vcpu::{Board, Stop, VcpuError, Vcpus};
use encrypted::{Encrypted, RunningGuest};

/// A machine that has not run yet.
#[derive(Debug)]
pub struct Machine {
    /// Dropped before the RAM that it uses.
    vm: Arc<VmFd>,
    vcpus: Vec<VcpuFd>,
    board: Arc<Board>,
    serial: Arc<SerialPort>,
    guest: Option<RunningGuest>,
}

impl Machine {
    /// Puts the machine together; its serial port writes to `output`.
    ///
    /// # Errors
    /// [`MachineError`] with the step that failed.
    pub fn build(config: &Config, output: Box<dyn Write + Send>) -> Result<Self, MachineError> {
        let host = Host::open()?;
        let supported = host.supported_cpuid()?;
        let vm = Arc::new(host.create_vm()?);
        let serial = serial_port(&vm, output).map_err(MachineError::Interrupt)?;
        if config.sev.is_some() {
            host.trap_page_status(&vm)?;
        }
        let (ram, encrypted) =
            Encrypted::prepare(config.sev.as_ref(), config.ram, &vm, &supported)?;
        ram.register(&vm)?;
        let c_bit = encrypted.as_ref().map(Encrypted::c_bit);
        let loaded = load(ram.host(), &config.boot(c_bit))?;
        let guest = encrypted.map(|guest| guest.launch(&ram, &loaded.pieces)).transpose()?;

        let (mut vcpus, count) = (Vec::new(), config.vcpus.get());
        for index in 0..count {
            let cpu = GuestCpu { index, count, c_bit, tsc_deadline: host.has_tsc_deadline() };
            let cpuid = guest_cpuid(&supported, &cpu)?;
            vcpus.push(vcpus::create(&vm, index, &cpuid, loaded.entry)?);
        }
        let pages = config.sev.as_ref().map(|sev| {
            let mut status = PageStatus::new(config.ram, sev.overflow);
            status.offer_migration();
            Mutex::new(Pages::new(status, Arc::clone(&ram)))
        });
        let board = Arc::new(Board { ram, ports: Ports::new(Arc::clone(&serial)), pages });
        Ok(Self { vm, vcpus, board, serial, guest })
    }

    /// What was launched; `None` for a plain VM.
    #[must_use]
    pub fn launch(&self) -> Option<&LaunchRecord> {
        self.guest.as_ref().map(|guest| &guest.record)
    }

    /// The serial port, to give it input.
    #[must_use]
    pub fn serial(&self) -> Arc<SerialPort> {
        Arc::clone(&self.serial)
    }

    /// Starts the vCPUs; what happens arrives on `events`.
    ///
    /// # Errors
    /// [`MachineError::Vcpu`] if the host has no threads to give.
    pub fn run<E>(self, events: &Sender<E>) -> Result<RunningMachine, MachineError>
    where
        E: From<Stop> + Send + 'static,
    {
        let count = self.vcpus.len();
        let vcpus = Vcpus::spawn(self.vcpus, &self.board, events)?;
        Ok(RunningMachine { vcpus, count, _vm: self.vm, board: self.board, guest: self.guest })
    }
}

/// A machine whose vCPUs run.
#[derive(Debug)]
pub struct RunningMachine {
    vcpus: Vcpus,
    count: usize,
    /// Dropped before the RAM that it uses.
    _vm: Arc<VmFd>,
    board: Arc<Board>,
    guest: Option<RunningGuest>,
}

impl RunningMachine {
    /// What the machine can say about itself now; the guest goes on meanwhile.
    pub fn report(&mut self) -> Report {
        describe(&self.board, self.guest.as_mut(), self.count)
    }

    /// Looks at the page status from any thread, for as long as it is kept; `None` for a plain VM.
    #[must_use]
    pub fn watch_pages(&self) -> Option<PageWatch> {
        PageWatch::new(&self.board)
    }

    /// Stops the vCPUs, then says how things stood at the end.
    pub fn stop(mut self) -> Report {
        self.vcpus.stop();
        describe(&self.board, self.guest.as_mut(), self.count)
    }
}

fn describe(board: &Board, guest: Option<&mut RunningGuest>, vcpus: usize) -> Report {
    let sev = guest.zip(board.pages.as_ref()).map(|(guest, pages)| {
        let pages = pages.lock().unwrap_or_else(PoisonError::into_inner);
        SevReport {
            launch: guest.record,
            guest: guest.status().ok(),
            pages: PageReport::new(pages.status()),
        }
    });
    Report { ram: board.ram.layout(), vcpus, sev }
}

/// COM1 with its interrupt.
fn serial_port(vm: &VmFd, output: Box<dyn Write + Send>) -> Result<Arc<SerialPort>, IoError> {
    let interrupt = EventFd::new(EFD_NONBLOCK)?;
    vm.register_irqfd(&interrupt, COM1_IRQ)
        .map_err(|cause| IoError::from_raw_os_error(cause.errno()))?;
    Ok(Arc::new(SerialPort::new(interrupt, output)))
}

/// Why a machine cannot be put together or started.
#[derive(Debug, Error)]
pub enum MachineError {
    /// KVM.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The serial port's interrupt.
    #[error("connecting the serial port's interrupt")]
    Interrupt(#[source] IoError),
    /// SEV.
    #[error(transparent)]
    Encrypted(#[from] EncryptedError),
    /// Guest RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The kernel and what comes with it.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// What the guest's CPUID would be.
    #[error(transparent)]
    Cpuid(#[from] CpuidError),
    /// A vCPU's first state.
    #[error("setting up a vCPU")]
    VcpuSetup(#[from] VcpuSetupError),
    /// A vCPU's thread.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
}
