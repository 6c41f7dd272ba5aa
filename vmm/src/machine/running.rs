//! A machine that runs, or is paused, and what it changes meanwhile.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use log::debug;
use thiserror::Error;

use super::compatibility::{MachineOffer, PlatformName, SevOffer};
use super::config::PlatformKind;
use super::device_report::DeviceWatch;
use super::devices::{Devices, NotQuiet, take_written};
use super::encrypted::{LaunchRecord, RunningGuest, vouch};
use super::report::{PageReport, PageWatch, Report, SevReport};
use super::state::{MachineState, SaveError};
use super::wire::MACHINE_VERSION;
use crate::devices::SerialPort;
use crate::devices::virtio::{NotHeld, NotResized};
use crate::encryption::{NotMigratable, PageStatus, ReportDoubt};
use crate::memory::{DeviceMemory, DirtyLog, GuestRam, Pages, RamError};
use crate::page::FrameSet;
use crate::saved::KernelStruct;
use crate::sev::endorsement::EndorsementError;
use crate::sev::launch::Launched;
use crate::sev::target::PlatformCertificates;
use crate::vcpu::{Board, PauseError, Stop, VcpuError, Vcpus};

/// What a machine has besides its vCPUs, whether it runs or not.
#[derive(Debug)]
pub(super) struct Assembly {
    /// Dropped before the RAM that it uses.
    pub(super) vm: Arc<VmFd>,
    /// Dropped before the RAM too: they keep the VM for their interrupts.
    pub(super) devices: Devices,
    pub(super) board: Arc<Board>,
    pub(super) serial: Arc<SerialPort>,
    pub(super) guest: Option<RunningGuest>,
    /// Of every vCPU, as it was set.
    pub(super) cpuid: Vec<CpuId>,
    /// Which MSRs are a vCPU's state.
    pub(super) msrs: Vec<u32>,
    /// How fast the guest's TSC counts.
    pub(super) tsc_khz: u32,
}

impl Assembly {
    pub(super) fn describe(&self) -> Report {
        let sev = self.guest.as_ref().zip(self.board.pages.as_ref()).map(|(guest, pages)| {
            let pages = lock(pages);
            SevReport {
                launch: guest.record,
                guest: guest.status(),
                pages: PageReport::new(pages.status()),
            }
        });
        let devices = self.devices.watch().devices();
        Report { ram: self.board.ram.layout(), vcpus: self.cpuid.len(), devices, sev }
    }

    /// What was launched; `None` for a plain VM.
    pub(super) fn launch(&self) -> Option<&LaunchRecord> {
        self.guest.as_ref().map(|guest| &guest.record)
    }

    /// The firmware's guest, unless it is being sent.
    pub(super) fn launched(&self) -> Option<&Launched> {
        self.guest.as_ref()?.launched.as_ref()
    }

    /// The record of page status, whole; `None` for a plain VM.
    pub(super) fn page_status(&self) -> Option<PageStatus> {
        self.board.pages.as_ref().map(|pages| lock(pages).status().sample())
    }

    fn offer(&self) -> MachineOffer {
        let table = |cpuid: &CpuId| cpuid.as_slice().iter().copied().map(KernelStruct).collect();
        MachineOffer {
            version: MACHINE_VERSION,
            ram_bytes: self.board.ram.layout().bytes(),
            cpuid: self.cpuid.iter().map(table).collect(),
            msrs: self.msrs.clone(),
            tsc_khz: self.tsc_khz,
            devices: self.devices.offers(),
            sev: self.guest.as_ref().map(|guest| SevOffer {
                platform: PlatformName::from(&guest.platform),
                policy: guest.record.policy.bits(),
                c_bit: guest.record.c_bit,
                status: guest.status,
            }),
        }
    }
}

/// A machine that has run, with its vCPUs as `V`.
#[derive(Debug)]
pub struct Started<V> {
    vcpus: V,
    assembly: Assembly,
}

/// A machine whose vCPUs run.
pub type RunningMachine = Started<Vcpus>;

/// A machine whose vCPUs are all outside the guest, with every exit finished.
pub type PausedMachine = Started<Vec<VcpuFd>>;

impl<V> Started<V> {
    /// What the machine can say about itself now.
    pub fn report(&self) -> Report {
        self.assembly.describe()
    }

    /// What a destination must be able to make.
    #[must_use]
    pub fn offer(&self) -> MachineOffer {
        self.assembly.offer()
    }

    /// What was launched; `None` for a plain VM.
    #[must_use]
    pub fn launch(&self) -> Option<&LaunchRecord> {
        self.assembly.launch()
    }

    /// Guest RAM.
    #[must_use]
    pub fn ram(&self) -> &Arc<GuestRam> {
        &self.assembly.board.ram
    }

    /// The serial port.
    #[must_use]
    pub fn serial(&self) -> Arc<SerialPort> {
        Arc::clone(&self.assembly.serial)
    }

    /// Whether page status allows a migration now; a plain VM always does.
    ///
    /// # Errors
    /// [`NotMigratable`] with the reason.
    pub fn migratable(&self) -> Result<(), NotMigratable> {
        let pages = self.assembly.board.pages.as_ref();
        pages.map_or(Ok(()), |pages| lock(pages).status().migratable())
    }

    /// What makes the guest's reports doubtful.
    #[must_use]
    pub fn doubts(&self) -> Vec<ReportDoubt> {
        let pages = self.assembly.board.pages.as_ref();
        pages.map_or_else(Vec::new, |pages| lock(pages).status().doubts().collect())
    }

    /// Every reason why the guest cannot be migrated now, whatever the destination.
    #[must_use]
    pub fn obstacles(&self) -> Vec<NotMigratable> {
        let pages = self.assembly.board.pages.as_ref();
        pages.map(|pages| lock(pages).status().obstacles().collect()).unwrap_or_default()
    }

    /// Whether the firmware's guest is here to be sent: not after a `SEND_CANCEL` that failed.
    #[must_use]
    pub fn can_be_sent(&self) -> bool {
        self.assembly.guest.as_ref().is_none_or(|guest| guest.launched.is_some())
    }

    /// The record of page status, whole; `None` for a plain VM.
    #[must_use]
    pub fn page_status(&self) -> Option<PageStatus> {
        self.assembly.page_status()
    }

    /// The endorsement of the platform that the guest is on; `None` for a plain VM.
    ///
    /// # Errors
    /// [`EndorsementError`].
    pub fn platform_certificates(&self) -> Result<Option<PlatformCertificates>, EndorsementError> {
        let guest = self.assembly.guest.as_ref();
        guest.map(|guest| vouch(&guest.platform, guest.device.as_ref())).transpose()
    }

    /// Takes the firmware's guest out, to send it.
    pub fn take_launched(&mut self) -> Option<Launched> {
        self.assembly.guest.as_mut()?.launched.take()
    }

    /// Puts the firmware's guest back, when it is not sent after all.
    pub fn put_launched_back(&mut self, launched: Launched) {
        if let Some(guest) = &mut self.assembly.guest {
            guest.launched = Some(launched);
        }
    }
}

impl RunningMachine {
    /// A handle that reads the page status from any thread; `None` for a plain VM.
    #[must_use]
    pub fn watch_pages(&self) -> Option<PageWatch> {
        PageWatch::new(&self.assembly.board)
    }

    /// Looks at the devices from any thread, for as long as it is kept.
    #[must_use]
    pub fn watch_devices(&self) -> DeviceWatch {
        self.assembly.devices.watch()
    }

    /// Starts the vCPUs.
    pub(super) fn start<E>(
        vcpus: Vec<VcpuFd>,
        assembly: Assembly,
        events: &Sender<E>,
    ) -> Result<Self, VcpuError>
    where
        E: From<Stop> + Send + 'static,
    {
        assembly.devices.resume();
        let vcpus = Vcpus::spawn(vcpus, &assembly.board, events)?;
        Ok(Self { vcpus, assembly })
    }

    /// Stops the vCPUs, and returns a last report.
    pub fn stop(self) -> Report {
        self.vcpus.stop();
        self.assembly.devices.end();
        self.assembly.describe()
    }

    /// Has the devices finish what they have begun, then pauses the vCPUs, then the devices;
    /// [`PausedMachine::resume`] undoes it, and the guest cannot tell.
    ///
    /// # Errors
    /// [`Unpaused`].
    pub fn pause(mut self) -> Result<PausedMachine, Unpaused> {
        if let Err(cause) = self.assembly.devices.quiesce() {
            return Err(Unpaused::NotQuiet(cause, Box::new(self)));
        }
        match self.vcpus.pause() {
            Ok(vcpus) => {
                self.assembly.devices.pause();
                Ok(Started { vcpus, assembly: self.assembly })
            }
            Err(PauseError::Busy) => {
                self.assembly.devices.resume();
                Err(Unpaused::Busy(Box::new(self)))
            }
            Err(PauseError::Stopped) => {
                // It may boot anew, with the same devices.
                self.assembly.devices.end();
                Err(Unpaused::Stopped(Box::new(self.assembly.describe())))
            }
            Err(PauseError::Resume(cause)) => {
                self.assembly.devices.end();
                Err(Unpaused::Lost(cause, Box::new(self.assembly.describe())))
            }
        }
    }

    /// Pauses the vCPUs for as long as `look` takes. The guest does not notice.
    ///
    /// # Errors
    /// [`PauseError`]. Except after [`PauseError::Busy`], the guest does not run any more.
    pub(super) fn while_paused<R>(
        &mut self,
        look: impl FnOnce(&Assembly, &[VcpuFd]) -> R,
    ) -> Result<R, PauseError> {
        let vcpus = self.vcpus.pause()?;
        let seen = look(&self.assembly, &vcpus);
        tell_of_the_pause(&vcpus);
        self.vcpus.resume(vcpus).map_err(PauseError::Resume)?;
        Ok(seen)
    }

    /// Slows the guest down by `percent` of its time, until it is paused or this is called again. 0 is full speed.
    ///
    /// # Errors
    /// [`VcpuError::Thread`] if the host has no thread to give.
    pub fn throttle(&mut self, percent: u32) -> Result<(), VcpuError> {
        self.vcpus.throttle(percent)
    }

    /// Makes the disk with this name so many bytes, or looks how large it is, and tells the guest.
    ///
    /// # Errors
    /// [`NotResized`]; it is as it was.
    pub fn resize_disk(&self, id: &str, bytes: Option<u64>) -> Result<(), NotResized> {
        self.assembly.devices.resize(id, bytes)
    }

    /// Starts to log which frames the guest changes.
    ///
    /// # Errors
    /// [`RamError::Register`] with KVM's errno.
    pub fn log_changes(&self) -> Result<ChangeLog, RamError> {
        let Assembly { vm, board, devices, .. } = &self.assembly;
        if let Some(pages) = &board.pages {
            lock(pages).track_flips();
        }
        devices.forget_written();
        let written = devices.memory().map(Arc::clone);
        let dirty = DirtyLog::start(Arc::clone(vm), Arc::clone(&board.ram))?;
        Ok(ChangeLog { dirty, written, board: Arc::clone(board) })
    }
}

impl PausedMachine {
    pub(super) fn new(vcpus: Vec<VcpuFd>, assembly: Assembly) -> Self {
        Self { vcpus, assembly }
    }

    /// Lets the guest go on. Its clocks have gone on meanwhile. Its kernel is told that it was paused, so that it does
    /// not report hanging CPUs.
    ///
    /// # Errors
    /// [`VcpuError::Thread`] if the host has no threads to give; the guest is lost then.
    pub fn resume<E>(self, events: &Sender<E>) -> Result<RunningMachine, VcpuError>
    where
        E: From<Stop> + Send + 'static,
    {
        tell_of_the_pause(&self.vcpus);
        RunningMachine::start(self.vcpus, self.assembly, events)
    }

    /// Whether its user wants all caches written back before its last pages are sent.
    #[must_use]
    pub fn wants_write_back(&self) -> bool {
        self.assembly.guest.as_ref().is_some_and(|guest| {
            matches!(guest.platform, PlatformKind::Hardware { write_back: true, .. })
        })
    }

    /// What the machine is, beside its memory and page status.
    ///
    /// # Errors
    /// [`SaveError`] with what KVM did not give.
    pub fn save(&self) -> Result<MachineState, SaveError> {
        let Assembly { vm, board, serial, devices, msrs, .. } = &self.assembly;
        let devices = devices.state(&board.bus);
        MachineState::save(vm, &self.vcpus, msrs, (serial, devices), self.launch())
    }

    /// Takes what only one guest may have, as the locks of its disks.
    ///
    /// # Errors
    /// [`NotHeld`]; the guest must not go on here then.
    pub fn hold(&self) -> Result<(), NotHeld> {
        self.assembly.devices.hold()
    }

    /// Lets go of that: the guest may go on elsewhere from now on.
    pub fn let_go(&self) {
        self.assembly.devices.let_go();
    }

    /// Gives the machine up, and returns a last report.
    pub fn stop(self) -> Report {
        self.assembly.devices.end();
        self.assembly.describe()
    }
}

/// Tells the guest's kernel that it was paused, so that it does not report hanging CPUs. A guest without kvmclock
/// cannot be told.
fn tell_of_the_pause(vcpus: &[VcpuFd]) {
    for vcpu in vcpus {
        if let Err(cause) = vcpu.kvmclock_ctrl() {
            debug!("telling the guest that it was paused: {cause}");
        }
    }
}

/// Which frames a guest changes, between the start and the stop of this log. It goes on over pauses.
#[derive(Debug)]
pub struct ChangeLog {
    dirty: DirtyLog,
    /// What devices write, which KVM does not see.
    written: Option<Arc<DeviceMemory>>,
    board: Arc<Board>,
}

impl ChangeLog {
    /// Adds the frames that changed since the last call to `into`: those that the guest, KVM or a device wrote, and
    /// those whose status flipped. Returns the page status, which is sampled after the writes. A page that flips
    /// between the two is in the next call's frames.
    ///
    /// # Errors
    /// [`RamError::DirtyLog`]. The frames taken so far are in `into`, which must not get lost.
    pub fn take(&mut self, into: &mut FrameSet) -> Result<Option<PageStatus>, RamError> {
        let Self { dirty, written, board } = self;
        let take = |into: &mut FrameSet| {
            dirty.take(into)?;
            take_written(written.as_ref(), into);
            Ok(())
        };
        take_in_order(take, board.pages.as_ref(), into)
    }

    /// Stops to log.
    ///
    /// # Errors
    /// [`RamError::Register`] with KVM's errno.
    pub fn stop(self) -> Result<(), RamError> {
        if let Some(pages) = &self.board.pages {
            lock(pages).forget_flips();
        }
        self.dirty.stop()
    }
}

/// What [`ChangeLog::take`] does, with `written` as the source of the writes: the writes first, then the flips and the
/// status, both at one moment.
///
/// In this order no page stays sent from the wrong view: a flip that is not in this status yet is in the next call's
/// frames, however long ago the page was written.
pub(crate) fn take_in_order(
    written: impl FnOnce(&mut FrameSet) -> Result<(), RamError>,
    pages: Option<&Mutex<Pages>>,
    into: &mut FrameSet,
) -> Result<Option<PageStatus>, RamError> {
    written(into)?;
    Ok(pages.map(|pages| lock(pages).take_flipped(into)))
}

/// A machine could not be paused.
#[derive(Debug, Error)]
pub enum Unpaused {
    /// A vCPU does not return from a device. The guest runs on.
    #[error("a vCPU did not pause: is the output of the guest's serial port blocked?")]
    Busy(Box<RunningMachine>),
    /// A device is still at work; the guest runs on.
    #[error("a device did not become quiet")]
    NotQuiet(#[source] NotQuiet, Box<RunningMachine>),
    /// The guest had stopped by itself, and an event says how. With a last report.
    #[error("the guest stopped by itself")]
    Stopped(Box<Report>),
    /// The guest was lost while it was being paused. With a last report.
    #[error("a vCPU did not pause, and the others could not go on")]
    Lost(#[source] VcpuError, Box<Report>),
}

fn lock(pages: &Mutex<Pages>) -> MutexGuard<'_, Pages> {
    pages.lock().unwrap_or_else(PoisonError::into_inner)
}
