//! One machine: the state of its kernel and its secure processor, shared by all VMs and descriptors.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::sev::{Errno, SevStatus};

use super::firmware::Firmware;
use super::identity::Identity;
use super::mailbox::Mailbox;
use super::model::Model;

/// One machine's kernel and secure processor, shared by all its VMs and device descriptors.
#[derive(Debug, Clone)]
pub struct SoftwareHost {
    pub(super) state: Arc<Mutex<HostState>>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) model: Model,
}

/// What the kernel and the firmware know.
#[derive(Debug)]
pub(super) struct HostState {
    pub(super) firmware: Firmware,
    pub(super) free_asids: BTreeSet<u32>,
    /// Numbers of the descriptors that are this machine's `/dev/sev`.
    pub(super) devices: BTreeSet<i32>,
    /// Whether the platform is initialised.
    pub(super) is_initialised: bool,
    /// Whether the secure processor has stopped answering. Then the kernel sends it no more commands.
    pub(super) is_dead: bool,
}

impl SoftwareHost {
    /// A machine with this identity and no guest.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self::modelled(identity, Model::default())
    }

    /// The same, for the host that `model` describes.
    #[must_use]
    pub fn modelled(identity: Identity, model: Model) -> Self {
        let state = HostState {
            firmware: Firmware::new(identity),
            free_asids: (1..=model.asids).collect(),
            devices: BTreeSet::new(),
            is_initialised: model.is_initialised,
            is_dead: false,
        };
        let mailbox = Arc::new(Mailbox::new(model.command_cost));
        Self { state: Arc::new(Mutex::new(state)), mailbox, model }
    }

    /// The secure processor answers nothing any more.
    pub(super) fn stop_answering(&self) {
        self.lock().is_dead = true;
    }

    /// Calls the firmware through `/dev/sev` descriptor `sev_fd`; only then is `error` written.
    pub(super) fn call<R>(
        &self,
        sev_fd: i32,
        error: &mut u32,
        command: impl FnOnce(&mut Firmware) -> Result<R, SevStatus>,
    ) -> Result<R, Errno> {
        self.mailbox.wait();
        let mut state = self.lock();
        match command(state.firmware(sev_fd)?) {
            Ok(answer) => {
                *error = 0;
                Ok(answer)
            }
            Err(status) => Err(refuse(error, status)),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, HostState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reports the firmware's refusal.
pub(super) fn refuse(error: &mut u32, status: SevStatus) -> Errno {
    *error = status.0;
    Errno::EIO
}

impl HostState {
    /// The firmware, if `fd` is this machine's `/dev/sev` and its processor answers.
    pub(super) fn firmware(&mut self, fd: i32) -> Result<&mut Firmware, Errno> {
        if !self.devices.contains(&fd) {
            return Err(Errno::EBADF);
        }
        if self.is_dead { Err(Errno::EBUSY) } else { Ok(&mut self.firmware) }
    }
}
