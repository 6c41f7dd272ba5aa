//! What travels of a function, and how it is put in place elsewhere.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::broken::BadRing;
use super::function::VirtioFunction;
use super::queue::{Ring, RingState};
use super::registers::RegistersState;
use super::{BadState, DeviceState};
use crate::devices::pci::{BadMsix, MsixState};

/// Version of [`FunctionState`].
const VERSION: u32 = 1;

impl VirtioFunction {
    /// What travels. The device is paused.
    #[must_use]
    pub fn state(&self) -> FunctionState {
        let core = self.shared.lock();
        FunctionState {
            version: VERSION,
            slot: self.shared.slot,
            command: core.config.command(),
            bar: core.config.bar(),
            interrupt_line: core.interrupt_line(),
            isr: core.isr,
            msix: core.msix.state(),
            registers: core.registers.state(),
            rings: core.rings.iter().map(Ring::state).collect(),
            device: core.device.state(),
        }
    }

    /// Goes on where `state` was, paused. Its driver is told to look at every queue: an interrupt may
    /// have been on its way when the state was taken.
    ///
    /// # Errors
    /// [`NotRestored`]; the function is of no use then.
    pub fn restore(&self, state: &FunctionState) -> Result<(), NotRestored> {
        let (name, slot) = (self.shared.name, self.shared.slot);
        let refused = |why| NotRestored { name, slot, why };
        if state.version != VERSION {
            return Err(refused(Mismatch::Version { version: state.version }));
        }
        let mut guard = self.shared.lock();
        let core = &mut *guard;
        core.is_paused = true;
        let memory = self.shared.memory.view();
        if state.slot != slot || !core.registers.restore(&state.registers) {
            return Err(refused(Mismatch::Other));
        }
        if state.rings.len() != core.rings.len() {
            return Err(refused(Mismatch::Other));
        }
        for (ring, state) in core.rings.iter_mut().zip(&state.rings) {
            ring.restore(state, memory).map_err(|cause| refused(Mismatch::Ring(cause)))?;
        }
        core.device.restore(&state.device, memory).map_err(|why| refused(Mismatch::Device(why)))?;
        core.config.write(0x04, &state.command.to_le_bytes());
        core.config.write(0x10, &state.bar.to_le_bytes());
        core.config.write(0x3c, &[state.interrupt_line]);
        core.isr = state.isr;
        core.msix.restore(&state.msix).map_err(|cause| refused(Mismatch::Msix(cause)))?;
        let control = core.msix.control().to_le_bytes();
        core.config.write(core.msix_control, &control);
        self.shared.place_bar(core);
        if core.registers.is_running() {
            for queue in 0..core.rings.len() {
                core.interrupt_queue(queue);
            }
        }
        Ok(())
    }
}

/// The state of a [`VirtioFunction`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FunctionState {
    version: u32,
    slot: u8,
    command: u16,
    bar: u64,
    interrupt_line: u8,
    isr: u8,
    msix: MsixState,
    registers: RegistersState,
    rings: Vec<RingState>,
    device: DeviceState,
}

impl FunctionState {
    /// The serial form by itself.
    #[must_use]
    pub fn to_bytes(&self) -> Option<Vec<u8>> {
        rmp_serde::to_vec_named(self).ok()
    }

    /// Reads the serial form, `MessagePack` with names, by itself. The bytes are not trusted.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        rmp_serde::from_slice(bytes).ok()
    }
}

/// A state that is none of this function.
#[derive(Debug, Error)]
#[error("restoring the {name} in slot {slot}: {why}")]
pub struct NotRestored {
    /// What kind.
    pub name: &'static str,
    /// Which slot.
    pub slot: u8,
    /// What is wrong.
    pub why: Mismatch,
}

/// What is wrong with a state.
#[derive(Debug, Error)]
pub enum Mismatch {
    /// Another version.
    #[error("its state is in version {version}; this program reads version {VERSION}")]
    Version {
        /// The version in it.
        version: u32,
    },
    /// Another slot, other features, other queues.
    #[error("what came is another device")]
    Other,
    /// Interrupts.
    #[error(transparent)]
    Msix(BadMsix),
    /// A queue.
    #[error(transparent)]
    Ring(BadRing),
    /// The device itself.
    #[error(transparent)]
    Device(BadState),
}
