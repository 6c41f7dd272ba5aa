//! virtio 1.2 over PCI, modern only: what a device is, and all that devices have in common.
//!
//! A device is a [`VirtioDevice`]: it knows what it offers and how to answer requests. Everything
//! else is [`VirtioFunction`]: configuration space, registers, rings, interrupts, and a thread that
//! wakes the device when there is work. `docs/devices.md` says how to add one.
//!
//! ```text
//! vCPU: registers -----------\                          /--> MSI-X -> irqfd
//! vCPU: doorbell -> ioeventfd --> worker: VirtioDevice -+--> rings and buffers, in guest RAM
//! host: tap, socket, timer ---/                          \-> the record of written pages
//! ```
//!
//! One lock per device: the worker holds it while the device works, a vCPU while it reads or writes
//! a register. So a device must never block in a call.

mod block;
mod broken;
mod chain;
mod device_state;
mod driver;
mod function;
mod function_core;
mod function_state;
mod net;
mod queue;
mod registers;
mod rng;
#[cfg(test)]
mod tests;
mod worker;

use std::error::Error;
use std::fmt::Debug;
use std::os::fd::RawFd;

use thiserror::Error;

pub use block::{Block, Disk, DiskOptions, NoDisk, NotResized, QUEUES_MAX as DISK_QUEUES_MAX};
pub use broken::{BadRing, Broken, CHAIN_MAX};
pub use chain::{DescriptorChain, PendingRequest, Segment};
pub use device_state::{BadState, DeviceState};
pub use driver::{DRIVER_LAYOUT, DRIVER_SLOT, Driver, DriverError, DriverQueue, Returned};
pub use function::{Condition, NoFunction, Unquiet, VirtioFunction};
pub use function_state::{FunctionState, Mismatch, NotRestored};
pub use net::{BadMac, Mac, Net, NoTap, PAIRS_MAX, Port, RateLimit, TapSource};
pub use queue::{Ring, RingState, Virtqueue};
pub use rng::{NoSource, Rng};

use crate::memory::DeviceView;

/// The value of something in [`VirtioDevice::alike`] that may be anything here.
pub const ANY: &str = "*";

/// What kind of device, for the guest to find its driver by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceKind {
    /// virtio's number of it.
    pub id: u16,
    /// For people.
    pub name: &'static str,
    /// PCI class, subclass and programming interface.
    pub class: [u8; 3],
}

/// A device model.
///
/// The calls come one at a time, from the device's own thread or from a vCPU's. None may block. What
/// a driver sends is not trusted: what breaks the rules is [`Broken`].
pub trait VirtioDevice: Debug + Send {
    /// What kind of device it is.
    fn kind(&self) -> DeviceKind;

    /// The features that it offers, beside those that every device does.
    fn features(&self) -> u64 {
        0
    }

    /// The most entries of each of its queues: powers of two.
    fn queue_sizes(&self) -> Vec<u16>;

    /// What of its configuration must be alike where a guest is moved to, by name; [`ANY`] is like
    /// anything.
    fn alike(&self) -> Vec<(&'static str, String)> {
        Vec::new()
    }

    /// Descriptors that wake it when they become readable, for as long as it lives. They are
    /// edge-triggered: [`VirtioDevice::wake`] must read them dry.
    fn sources(&self) -> Vec<RawFd> {
        Vec::new()
    }

    /// The driver reads the device's own configuration; what is not filled in reads as zeros.
    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    /// The driver writes the device's own configuration.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// The driver is ready, and has accepted [`Queues::features`].
    ///
    /// # Errors
    /// [`Broken`] if they make no sense together.
    fn start(&mut self, _queues: &mut Queues<'_>) -> Result<(), Broken> {
        Ok(())
    }

    /// The driver has added to a queue, or may have.
    ///
    /// # Errors
    /// [`Broken`].
    fn process(&mut self, index: u16, queues: &mut Queues<'_>) -> Result<(), Broken>;

    /// One of [`VirtioDevice::sources`], by its place, is readable.
    ///
    /// # Errors
    /// [`Broken`].
    fn wake(&mut self, _source: usize, _queues: &mut Queues<'_>) -> Result<(), Broken> {
        Ok(())
    }

    /// Its name, if it has one that people ask for it by.
    fn id(&self) -> Option<&str> {
        None
    }

    /// Gives what it stands on so many bytes, or looks how many it has; returns whether the configuration
    /// is another now.
    ///
    /// # Errors
    /// [`NotResized`]; it is as it was.
    fn resize(&mut self, _bytes: Option<u64>) -> Result<bool, NotResized> {
        Err(NotResized::NoDisk)
    }

    /// The machine is about to be paused, its vCPUs run still: nothing new is begun.
    fn quiesce(&mut self) {}

    /// How many requests it has begun and not finished; looks what has ended. Whether it is working, and
    /// so can give requests back to its driver.
    fn in_flight(&mut self, _is_working: bool) -> usize {
        0
    }

    /// Whether something that its driver has written may not be where another host will look for it, which the
    /// driver has not heard yet.
    fn has_lost_writes(&self) -> bool {
        false
    }

    /// Undoes [`VirtioDevice::quiesce`].
    fn go_on_working(&mut self) {}

    /// The guest is to run here: takes what only one guest may have.
    ///
    /// # Errors
    /// [`NotHeld`] if another has it; the guest must not run here then.
    fn hold(&mut self) -> Result<(), NotHeld> {
        Ok(())
    }

    /// The guest is to run elsewhere: lets go of that. The device is paused.
    fn let_go(&mut self) {}

    /// The vCPUs are paused: after this call the device writes no guest memory until
    /// [`VirtioDevice::process`] is called again for each queue. What is in flight is finished, or is
    /// in [`VirtioDevice::state`].
    ///
    /// # Errors
    /// [`Broken`].
    fn pause(&mut self, _queues: &mut Queues<'_>) -> Result<(), Broken> {
        Ok(())
    }

    /// The driver, or a reset of the machine, ends all that it was doing: nothing is in flight
    /// after this call.
    fn reset(&mut self);

    /// What travels of it.
    fn state(&self) -> DeviceState;

    /// Goes on where `state` was, which may be another device's or damaged. Requests in it are in
    /// guest RAM, `memory`, or it is refused.
    ///
    /// # Errors
    /// [`BadState`].
    fn restore(&mut self, state: &DeviceState, memory: &DeviceView) -> Result<(), BadState>;
}

/// A device cannot have what only one guest may have.
#[derive(Debug, Error)]
#[error(transparent)]
pub struct NotHeld(#[from] pub Box<dyn Error + Send + Sync>);

/// The queues of a device at work.
#[derive(Debug)]
pub struct Queues<'a> {
    rings: &'a mut [Ring],
    memory: &'a DeviceView,
    features: u64,
    config_changed: bool,
}

impl<'a> Queues<'a> {
    /// What the driver has accepted of what was offered.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// One of them; `None` if the device has no such queue. One that the driver has not enabled is
    /// empty.
    pub fn get(&mut self, index: u16) -> Option<Virtqueue<'_, 'a>> {
        let memory = self.memory;
        self.rings.get_mut(usize::from(index)).map(|ring| ring.in_memory(memory))
    }

    /// The memory that they are in.
    #[must_use]
    pub fn memory(&self) -> &'a DeviceView {
        self.memory
    }

    /// The device's own configuration has changed: the driver is told.
    pub fn config_changed(&mut self) {
        self.config_changed = true;
    }
}
