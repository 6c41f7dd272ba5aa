//! The devices on a machine's PCI bus: opened, put in their slots, paused and moved with it.

#[cfg(test)]
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kvm_ioctls::VmFd;
use log::warn;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::config::DeviceConfig;
use super::device_offer::DeviceOffer;
use super::device_report::DeviceWatch;
use crate::boot::layout::PCI;
use crate::devices::pci::{KvmWires, PciBus, PciFunction, SLOTS, Wires};
#[cfg(test)]
use crate::devices::virtio::Driver;
use crate::devices::virtio::{
    Block, Disk, FunctionState, Net, NoDisk, NoFunction, NoSource, NoTap, NotHeld, NotResized,
    NotRestored, Rng, Unquiet, VirtioDevice, VirtioFunction,
};
use crate::memory::{DeviceMemory, GuestRam, RamError};
use crate::page::FrameSet;

/// Most devices of a machine: slot 0 is the host bridge's.
pub const DEVICES_MAX: usize = SLOTS as usize - 1;

/// How long devices may take to finish what they have begun, before the machine is paused. The guest
/// runs meanwhile, without them.
const QUIET_MAX: Duration = Duration::from_secs(5);

/// The devices of a machine, by slot.
#[derive(Debug, Default)]
pub(super) struct Devices {
    functions: Vec<Arc<VirtioFunction>>,
    /// RAM as they see it; `None` without devices.
    memory: Option<Arc<DeviceMemory>>,
}

impl DeviceConfig {
    /// virtio's number of its kind.
    pub(super) fn kind(&self) -> u16 {
        match self {
            Self::Rng { .. } => Rng::KIND.id,
            Self::Net { .. } => Net::KIND.id,
            Self::Disk(_) => Block::KIND.id,
        }
    }

    /// Opens what it stands on.
    ///
    /// # Errors
    /// [`DevicesError`] if this host has no such thing.
    pub(super) fn open(&self) -> Result<Box<dyn VirtioDevice>, DevicesError> {
        match self {
            Self::Rng { source } => Ok(Box::new(Rng::open(source)?)),
            Self::Net { tap, mac, queues, limit } => {
                Ok(Box::new(Net::open(tap, *mac, *queues, *limit)?))
            }
            Self::Disk(options) => Ok(Box::new(Block::new(Disk::open(options.clone())?)?)),
        }
    }
}

/// The slots of a new machine's devices: slot 0 is the host bridge's.
pub(super) fn in_slots(configs: &[DeviceConfig]) -> Vec<(u8, &DeviceConfig)> {
    (1..=u8::MAX).zip(configs).collect()
}

impl Devices {
    /// Opens the devices of `configs` and puts each in its slot of a new bus of `vm`.
    ///
    /// # Errors
    /// [`DevicesError`].
    pub(super) fn build(
        configs: &[(u8, &DeviceConfig)],
        vm: &Arc<VmFd>,
        ram: &Arc<GuestRam>,
    ) -> Result<(Self, PciBus), DevicesError> {
        let wires: Arc<dyn Wires> = Arc::new(KvmWires::new(Arc::clone(vm)));
        let mut new = Self::default();
        for &(slot, config) in configs {
            if slot == 0 || slot >= SLOTS || new.functions.len() >= DEVICES_MAX {
                return Err(DevicesError::TooMany);
            }
            let memory = match &new.memory {
                Some(memory) => Arc::clone(memory),
                None => Arc::new(DeviceMemory::new(Arc::clone(ram))?),
            };
            let function = VirtioFunction::new(slot, config.open()?, PCI, &wires, &memory)?;
            new.functions.push(Arc::new(function));
            new.memory = Some(memory);
        }
        let on_bus = new
            .functions
            .iter()
            .map(|function| (function.slot(), Arc::clone(function) as Arc<dyn PciFunction>));
        let bus = PciBus::new(PCI, on_bus.collect());
        Ok((new, bus))
    }

    /// What a destination must be able to make.
    pub(super) fn offers(&self) -> Vec<DeviceOffer> {
        let offer = |function: &Arc<VirtioFunction>| {
            function.ask(|device| DeviceOffer::new(function.slot(), device))
        };
        self.functions.iter().map(offer).collect()
    }

    /// Takes what only one guest may have. The guest must not run before.
    pub(super) fn hold(&self) -> Result<(), NotHeld> {
        self.functions
            .iter()
            .try_for_each(|function| function.hold())
            .inspect_err(|_| self.let_go())
    }

    /// Lets go of that.
    pub(super) fn let_go(&self) {
        self.functions.iter().for_each(|function| function.let_go());
    }

    /// After the vCPUs have ended for good: lets go of all once nothing is on its way any more. What the
    /// storage does late must not meet a guest that is started anew.
    pub(super) fn end(&self) {
        let deadline = Instant::now() + QUIET_MAX;
        for function in &self.functions {
            match function.quiesce(deadline).map_err(|why| NotQuiet::new(function, why)) {
                Ok(()) => function.let_go(),
                Err(cause @ NotQuiet::Unflushed { .. }) => {
                    warn!("{cause}");
                    function.let_go();
                }
                Err(cause @ NotQuiet::Busy { .. }) => {
                    warn!("{cause}; it stays locked until this process ends");
                }
            }
        }
    }

    /// Gives the device with this name another size, or looks which it has.
    pub(super) fn resize(&self, id: &str, bytes: Option<u64>) -> Result<(), NotResized> {
        let is_named = |function: &&Arc<VirtioFunction>| {
            function.ask(|device| device.id().is_some_and(|own| own == id))
        };
        let found = self.functions.iter().find(is_named);
        let found = found.ok_or_else(|| NotResized::Nobody { id: id.to_owned() })?;
        found.resize(bytes)
    }

    /// Before the vCPUs are paused: what devices have begun is finished. If it takes too long, or another host
    /// would not find what was written, they work on.
    pub(super) fn quiesce(&self) -> Result<(), NotQuiet> {
        let deadline = Instant::now() + QUIET_MAX;
        for function in &self.functions {
            if let Err(why) = function.quiesce(deadline) {
                self.resume();
                return Err(NotQuiet::new(function, why));
            }
        }
        Ok(())
    }

    /// Looks at them from any thread.
    pub(super) fn watch(&self) -> DeviceWatch {
        DeviceWatch::new(self.functions.clone())
    }

    /// After the vCPUs: no device writes to RAM any more.
    pub(super) fn pause(&self) {
        self.functions.iter().for_each(|function| function.pause());
    }

    /// Before the vCPUs.
    pub(super) fn resume(&self) {
        self.functions.iter().for_each(|function| function.resume());
    }

    /// What travels; all are paused.
    pub(super) fn state(&self, bus: &PciBus) -> DevicesState {
        let functions = self.functions.iter().map(|function| function.state()).collect();
        DevicesState { address: bus.address(), functions }
    }

    /// All go on where `state` was, paused. Interrupts that waited are sent: the interrupt
    /// controllers come before it.
    pub(super) fn restore(&self, bus: &PciBus, state: &DevicesState) -> Result<(), BadDevices> {
        let (came, here) = (state.functions.len(), self.functions.len());
        if came != here {
            return Err(BadDevices::Count { came, here });
        }
        bus.set_address(state.address);
        for (function, state) in self.functions.iter().zip(&state.functions) {
            function.restore(state)?;
        }
        Ok(())
    }

    /// What devices write from now on is new.
    pub(super) fn forget_written(&self) {
        if let Some(memory) = &self.memory {
            memory.forget_written();
        }
    }

    /// RAM as they see it, with the record of what they write.
    pub(super) fn memory(&self) -> Option<&Arc<DeviceMemory>> {
        self.memory.as_ref()
    }
}

/// Adds the frames that devices have written to `into`.
pub(super) fn take_written(memory: Option<&Arc<DeviceMemory>>, into: &mut FrameSet) {
    if let Some(memory) = memory {
        memory.take_written(into);
    }
}

/// The state of a machine's PCI bus.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DevicesState {
    /// The bus's address register.
    address: u32,
    functions: Vec<FunctionState>,
}

#[cfg(test)]
impl DevicesState {
    /// Of one device, which has been used.
    pub(super) fn of_test() -> Self {
        let rng = Rng::open(Path::new("/dev/urandom")).unwrap();
        let mut driver = Driver::new(Box::new(rng), 4 << 20, 4096).unwrap();
        driver.start(u64::MAX).unwrap();
        driver.add(0, &[], &[16]).unwrap();
        driver.ring(0);
        driver.wait(0).unwrap();
        driver.function().pause();
        Self { address: 0x8000_0800, functions: vec![driver.function().state()] }
    }
}

/// Why a machine cannot have its devices.
#[derive(Debug, Error)]
pub enum DevicesError {
    /// No slot is left.
    #[error("more devices than the {DEVICES_MAX} slots of the PCI bus")]
    TooMany,
    /// RAM as they would see it.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// No bells, wires or thread.
    #[error(transparent)]
    Function(#[from] NoFunction),
    /// No random numbers.
    #[error(transparent)]
    Source(#[from] NoSource),
    /// No network.
    #[error(transparent)]
    Tap(#[from] NoTap),
    /// No disk.
    #[error(transparent)]
    Disk(#[from] NoDisk),
    /// Another guest has it.
    #[error(transparent)]
    Held(#[from] NotHeld),
}

/// A device that cannot be left as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum NotQuiet {
    /// Its storage does not answer.
    #[error(
        "the {name} in slot {slot} has {left} requests that its storage did not finish in {} s",
        QUIET_MAX.as_secs()
    )]
    Busy {
        /// Its kind.
        name: &'static str,
        /// Its slot.
        slot: u8,
        /// How many requests.
        left: usize,
    },
    /// Its storage has failed.
    #[error(
        "the {name} in slot {slot} could not be flushed: what the guest has written may be lost, which its \
         own next flush will tell it"
    )]
    Unflushed {
        /// Its kind.
        name: &'static str,
        /// Its slot.
        slot: u8,
    },
}

impl NotQuiet {
    fn new(function: &VirtioFunction, why: Unquiet) -> Self {
        let (name, slot) = (function.name(), function.slot());
        match why {
            Unquiet::Busy(left) => Self::Busy { name, slot, left },
            Unquiet::Unflushed => Self::Unflushed { name, slot },
        }
    }
}

/// Devices that cannot go on here.
#[derive(Debug, Error)]
pub enum BadDevices {
    /// Another number of them.
    #[error("the state of {came} devices came for a machine that was offered with {here}")]
    Count {
        /// In the state.
        came: usize,
        /// In the machine.
        here: usize,
    },
    /// One of them.
    #[error(transparent)]
    Function(#[from] NotRestored),
}
