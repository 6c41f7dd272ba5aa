//! A virtio device as a function on the PCI bus: configuration space, BAR, and the device behind it.
//!
//! BAR 0, 32 KiB, one page for each part:
//!
//! | at | what |
//! |---|---|
//! | 0x0000 | common configuration |
//! | 0x1000 | ISR |
//! | 0x2000 | the device's own configuration |
//! | 0x3000 | doorbells, four bytes for each queue |
//! | 0x4000 | MSI-X table |
//! | 0x5000 | MSI-X pending bits |

use std::io::Error as IoError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use log::{Level, debug, log};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use virtio_queue::Error as RingError;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::broken::Broken;
use super::function_core::{
    BELL_BYTES, BELLS, COMMON, Core, DEVICE, ISR, PAGE, PENDING, QUEUES_MAX, TABLE,
};
use super::queue::Ring;
use super::registers::Action;
use super::worker::{Work, Worker};
use super::{NotHeld, NotResized, Queues, VirtioDevice};
use crate::devices::pci::{COMMAND_MEMORY, Msix, PciFunction, PciLayout, Wires};
use crate::memory::DeviceMemory;

/// Why a device cannot be left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unquiet {
    /// So many requests are not finished.
    Busy(usize),
    /// What was written may not be on the storage, and its driver has not heard of that yet.
    Unflushed,
}

/// How things stand between a device and its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// The guest has no driver for it, or none that is ready.
    Unused,
    /// A driver uses it.
    Used,
    /// The driver has broken the rules, and has not reset it yet.
    Broken,
}

/// A device in its slot.
#[derive(Debug)]
pub struct VirtioFunction {
    /// Dropped first: it works on the rest.
    _worker: Worker,
    pub(super) shared: Arc<SharedFunction>,
}

#[derive(Debug)]
pub(super) struct SharedFunction {
    pub(super) slot: u8,
    pub(super) name: &'static str,
    layout: PciLayout,
    wires: Arc<dyn Wires>,
    pub(super) memory: Arc<DeviceMemory>,
    /// By queue.
    bells: Vec<EventFd>,
    /// How many descriptors wake the device.
    sources: usize,
    /// Whether something may have become readable while the device could not work.
    has_slept: AtomicBool,
    /// Where BAR 0 answers; [`NOWHERE`] if it does not.
    bar: AtomicU64,
    /// Held only by whoever waits for the next.
    turn: Mutex<()>,
    pub(super) core: Mutex<Core>,
    /// Told when the device has worked.
    worked: Condvar,
}

/// How often a device that is to become quiet is looked at, if it does not say so itself.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// No BAR.
const NOWHERE: u64 = u64::MAX;

impl VirtioFunction {
    /// `device` in `slot` of the bus at `layout`, with its thread; its BAR is where the layout says.
    ///
    /// # Errors
    /// [`NoFunction`].
    pub fn new(
        slot: u8,
        device: Box<dyn VirtioDevice>,
        layout: PciLayout,
        wires: &Arc<dyn Wires>,
        memory: &Arc<DeviceMemory>,
    ) -> Result<Self, NoFunction> {
        let sizes = device.queue_sizes();
        let name = device.kind().name;
        let host = |cause| NoFunction::Host { name, slot, cause };
        if sizes.len() > QUEUES_MAX {
            return Err(NoFunction::Queues { name, slot, count: sizes.len() });
        }
        let rings = sizes.iter().map(|size| Ring::new(*size)).collect::<Result<_, _>>();
        let rings = rings.map_err(|cause| NoFunction::Ring { name, slot, cause })?;
        let bell = || EventFd::new(EFD_NONBLOCK).map_err(host);
        let bells = sizes.iter().map(|_| bell()).collect::<Result<Vec<_>, _>>()?;
        let heard = bells.iter().map(EventFd::try_clone).collect::<Result<_, _>>().map_err(host)?;
        let vectors = u16::try_from(sizes.len() + 1).unwrap_or(u16::MAX);
        let msix = Msix::new(vectors, Arc::clone(wires)).map_err(host)?;
        let sources = device.sources();
        let core = Core::new(device, sizes, rings, msix, layout.bar_of(slot));
        let shared = Arc::new(SharedFunction {
            slot,
            name,
            layout,
            wires: Arc::clone(wires),
            memory: Arc::clone(memory),
            bells,
            sources: sources.len(),
            has_slept: AtomicBool::new(false),
            bar: AtomicU64::new(NOWHERE),
            turn: Mutex::new(()),
            core: Mutex::new(core),
            worked: Condvar::new(),
        });
        let work = Arc::clone(&shared) as Arc<dyn Work>;
        let worker =
            Worker::start(format!("{name}-{slot}"), heard, &sources, work).map_err(host)?;
        Ok(Self { _worker: worker, shared })
    }

    /// What a destination has to know of the device.
    pub fn ask<T>(&self, question: impl FnOnce(&dyn VirtioDevice) -> T) -> T {
        question(&*self.shared.lock().device)
    }

    /// How things stand between it and its driver.
    #[must_use]
    pub fn condition(&self) -> Condition {
        let core = self.shared.lock();
        match (core.registers.is_broken(), core.registers.is_running()) {
            (true, _) => Condition::Broken,
            (false, true) => Condition::Used,
            (false, false) => Condition::Unused,
        }
    }

    /// Its slot.
    #[must_use]
    pub fn slot(&self) -> u8 {
        self.shared.slot
    }

    /// Its kind, for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.shared.name
    }

    /// Before the vCPUs are paused: the device begins nothing new, and finishes what it has begun, until
    /// `deadline`. [`VirtioFunction::resume`] undoes it.
    ///
    /// # Errors
    /// [`Unquiet`] if it could not, or what it has done is not where another host will look.
    pub fn quiesce(&self, deadline: Instant) -> Result<(), Unquiet> {
        let mut core = self.shared.lock();
        core.device.quiesce();
        loop {
            let is_working = core.registers.is_running();
            let left = core.device.in_flight(is_working);
            let patience = deadline.saturating_duration_since(Instant::now());
            match left {
                0 if core.device.has_lost_writes() => return Err(Unquiet::Unflushed),
                0 => return Ok(()),
                left if patience.is_zero() => return Err(Unquiet::Busy(left)),
                _ => {}
            }
            let waited = self.shared.worked.wait_timeout(core, patience.min(LOOK_EVERY));
            core = waited.unwrap_or_else(PoisonError::into_inner).0;
            // What was taken from the storage just now wakes nobody any more.
            self.shared.wake_all(&mut core);
        }
    }

    /// Takes what only one guest may have: before the guest runs here.
    ///
    /// # Errors
    /// [`NotHeld`].
    pub fn hold(&self) -> Result<(), NotHeld> {
        self.shared.lock().device.hold()
    }

    /// Lets go of that: the guest is to run elsewhere, or nowhere.
    pub fn let_go(&self) {
        self.shared.lock().device.let_go();
    }

    /// Gives what it stands on another size, or looks which it has, and tells the driver.
    ///
    /// # Errors
    /// [`NotResized`].
    pub fn resize(&self, bytes: Option<u64>) -> Result<(), NotResized> {
        let mut core = self.shared.lock();
        if core.device.resize(bytes)? {
            core.registers.count_generation();
            if core.registers.is_running() {
                core.interrupt_config();
            }
        }
        Ok(())
    }

    /// After the vCPUs are paused: the device writes no guest memory until it is resumed.
    pub fn pause(&self) {
        let mut core = self.shared.lock();
        if !core.is_paused {
            self.shared.work(&mut core, |device, queues| device.pause(queues));
            core.is_paused = true;
        }
    }

    /// Before the vCPUs go on. All queues are looked at: bells may have been rung elsewhere.
    pub fn resume(&self) {
        let mut core = self.shared.lock();
        core.is_paused = false;
        core.device.go_on_working();
        drop(core);
        self.shared.ring_all();
    }
}

impl SharedFunction {
    /// Whoever waits has the turn before a worker that has just let go: a mutex alone is whose is quickest.
    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the device do something on its queues, if it works at all, and tells the driver.
    fn work(
        &self,
        core: &mut Core,
        work: impl FnOnce(&mut dyn VirtioDevice, &mut Queues<'_>) -> Result<(), Broken>,
    ) {
        if !core.registers.is_running() || core.is_paused || !core.is_master() {
            return;
        }
        let memory = self.memory.view();
        let features = core.registers.features();
        core.rings.iter_mut().for_each(Ring::begin_turn);
        let mut queues = Queues { rings: &mut core.rings, memory, features, config_changed: false };
        let mut worked = work(&mut *core.device, &mut queues);
        if queues.config_changed {
            core.registers.count_generation();
            core.interrupt_config();
        }
        for index in 0..core.rings.len() {
            let Some(ring) = core.rings.get_mut(index) else { break };
            if ring.wants_another_turn() {
                self.ring_bell(index);
            }
            match ring.in_memory(memory).wants_interrupt() {
                Ok(true) => core.interrupt_queue(index),
                Ok(false) => {}
                Err(cause) => worked = worked.and(Err(cause)),
            }
        }
        if let Err(cause) = worked {
            self.set_broken(core, &cause);
        }
        self.worked.notify_all();
    }

    /// Lets the device look at each of its sources.
    fn wake_all(&self, core: &mut Core) {
        for source in 0..self.sources {
            self.work(core, |device, queues| device.wake(source, queues));
        }
    }

    fn set_broken(&self, core: &mut Core, cause: &Broken) {
        // A guest that breaks it again and again must not fill the log.
        let level = if core.has_complained { Level::Debug } else { Level::Warn };
        core.has_complained = true;
        let (name, slot) = (self.name, self.slot);
        log!(level, "the guest has broken its {name} in slot {slot}, until it resets it: {cause}");
        core.registers.set_broken();
        core.interrupt_config();
    }

    /// The device can work again: it looks at everything, since what was rung or became readable
    /// meanwhile is not said twice.
    fn ring_all(&self) {
        self.has_slept.store(true, Ordering::Release);
        (0..self.bells.len()).for_each(|index| self.ring_bell(index));
    }

    /// The device will look at this queue.
    fn ring_bell(&self, index: usize) {
        if let Some(Err(cause)) = self.bells.get(index).map(|bell| bell.write(1)) {
            debug!("a bell is already rung: {cause}");
        }
    }

    /// Answers at the BAR where configuration space says, or does not answer.
    pub(super) fn place_bar(&self, core: &Core) {
        let base = core.config.bar();
        let answers = core.config.command() & COMMAND_MEMORY != 0 && self.layout.forwards(base);
        let wanted = if answers { base } else { NOWHERE };
        let before = self.bar.swap(wanted, Ordering::AcqRel);
        if before == wanted {
            return;
        }
        for (index, bell) in (0_u64..).zip(&self.bells) {
            let offset = BELLS + index * BELL_BYTES;
            // Where KVM has no bell a write comes to this process, and rings it here.
            if before != NOWHERE
                && let Err(cause) = self.wires.detach(bell, before + offset)
            {
                debug!("detaching a doorbell: {cause}");
            }
            if wanted != NOWHERE
                && let Err(cause) = self.wires.attach(bell, wanted + offset)
            {
                debug!("attaching a doorbell: {cause}");
            }
        }
    }

    fn read_part(&self, core: &mut Core, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let inside = offset % PAGE;
        match offset - inside {
            COMMON => core.registers.read(inside, data),
            ISR => {
                if let (0, Some(byte)) = (inside, data.first_mut()) {
                    *byte = std::mem::take(&mut core.isr);
                }
            }
            DEVICE => core.device.read_config(inside, data),
            TABLE => core.msix.read_table(inside, data),
            PENDING => core.msix.read_pending(inside, data),
            _ => {}
        }
    }

    fn write_part(&self, core: &mut Core, offset: u64, data: &[u8]) {
        let inside = offset % PAGE;
        match offset - inside {
            COMMON => {
                let action = core.registers.write(inside, data);
                self.follow(core, action);
            }
            DEVICE => core.device.write_config(inside, data),
            BELLS => {
                self.ring_bell(usize::try_from(inside / BELL_BYTES).unwrap_or(usize::MAX));
            }
            TABLE => core.msix.write_table(inside, data),
            _ => {}
        }
    }

    fn follow(&self, core: &mut Core, action: Action) {
        match action {
            Action::None => {}
            Action::Reset => core.reset(),
            Action::Enable(index, setup) => {
                let event_index = core.registers.event_index();
                let memory = self.memory.view();
                let ring = core.rings.get_mut(usize::from(index));
                let enabled = ring.map(|ring| ring.enable(setup, event_index, memory));
                if let Some(Err(cause)) = enabled {
                    self.set_broken(core, &Broken::Setup { index, cause });
                }
            }
            Action::Start => {
                self.work(core, |device, queues| device.start(queues));
                self.ring_all();
            }
            Action::Break(cause) => self.set_broken(core, &cause),
        }
    }
}

impl Work for SharedFunction {
    fn rung(&self, queue: u16) {
        if self.has_slept.swap(false, Ordering::AcqRel) {
            (0..self.sources).for_each(|source| self.ready(source));
        }
        self.work(&mut self.lock(), |device, queues| device.process(queue, queues));
    }

    fn ready(&self, source: usize) {
        self.work(&mut self.lock(), |device, queues| device.wake(source, queues));
    }
}

impl PciFunction for VirtioFunction {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        let mut core = self.shared.lock();
        core.config.read(offset, data);
        if let Some((bar_offset, len)) = core.windowed(offset, data.len())
            && let Some(data) = data.get_mut(..len)
        {
            self.shared.read_part(&mut core, bar_offset, data);
        }
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        let mut guard = self.shared.lock();
        let core = &mut *guard;
        let was_master = core.is_master();
        core.config.write(offset, data);
        let mut control = [0; 2];
        core.config.read(core.msix_control, &mut control);
        core.msix.set_control(u16::from_le_bytes(control));
        self.shared.place_bar(core);
        if core.is_master() && !was_master {
            self.shared.ring_all();
        }
        if let Some((bar_offset, len)) = core.windowed(offset, data.len())
            && let Some(data) = data.get(..len)
        {
            self.shared.write_part(core, bar_offset, data);
        }
    }

    fn bar(&self) -> Option<u64> {
        Some(self.shared.bar.load(Ordering::Acquire)).filter(|bar| *bar != NOWHERE)
    }

    fn read_bar(&self, offset: u64, data: &mut [u8]) {
        self.shared.read_part(&mut self.shared.lock(), offset, data);
    }

    fn write_bar(&self, offset: u64, data: &[u8]) {
        self.shared.write_part(&mut self.shared.lock(), offset, data);
    }
}

/// A device that cannot be put on the bus.
#[derive(Debug, Error)]
pub enum NoFunction {
    /// Eventfd, irqfd or thread.
    #[error("connecting the {name} in slot {slot}")]
    Host {
        /// What kind.
        name: &'static str,
        /// Which slot.
        slot: u8,
        /// Why not.
        #[source]
        cause: IoError,
    },
    /// Too many queues.
    #[error("the {name} in slot {slot} has {count} queues; there can be {QUEUES_MAX}")]
    Queues {
        /// What kind.
        name: &'static str,
        /// Which slot.
        slot: u8,
        /// How many.
        count: usize,
    },
    /// A queue of no size.
    #[error("the {name} in slot {slot} has a queue with {cause}")]
    Ring {
        /// What kind.
        name: &'static str,
        /// Which slot.
        slot: u8,
        /// What is wrong.
        cause: RingError,
    },
}
