//! SEV without hardware: the kernel's checks and the firmware's work, in software, at the same ABI.
//!
//! For developing and testing only. The keys live in this process, so it gives **no confidentiality**,
//! and its certificates chain to a root of its own that no hardware trusts.
//!
//! | file | stands for |
//! |---|---|
//! | `vm` | `KVM_MEMORY_ENCRYPT_OP` in KVM: checks and errno in its order |
//! | `device` | `/dev/sev` in the ccp driver |
//! | `firmware` | the firmware on the secure processor: guests, states, status codes |
//! | `guest` | one guest context in the firmware |
//! | `transfer` | the keys of a guest that is being sent or received |
//! | `identity` | the platform's keys and certificates |
//! | `model` | which kernel answers, how much the host has to give, how long things take |
//! | `failure` | hardware that fails, where it is told to |
//! | `mailbox` | the time that the secure processor takes, if any |
//! | `root` | the ARK and ASK of all software platforms |
//! | `user_memory` | `copy_from_user` and `copy_to_user` |
//!
//! What differs from hardware, on purpose:
//! - `KVM_SEV_INIT2` is -EINVAL: no VM here is of KVM's type for SEV guests.
//! - KVM runs one command per VM at a time and the secure processor one at all. Here page commands of a
//!   transfer run side by side; all others still run alone on their VM.
//! - The exported CEK is already signed.
//! - Page commands give -EFAULT only where nothing is mapped; a buffer that is mapped but may not be
//!   accessed would end the process.
//! - `KVM_SEV_ES_INIT` is refused with -ENOTTY, as where `kvm_amd.sev_es` is off.
//! - Only guest RAM can be in commands; other user memory gives -ENOMEM.
//! - Memory is physically contiguous within a page and no further: a secret across pages is -EINVAL.
//! - The process's own `RLIMIT_MEMLOCK` does not count; that of the `model` does, as KVM counts it: for each
//!   VM, what is registered and what the command pins besides.
//! - A launch without a session gets random keys, so nobody can check its measurement.

mod device;
mod failure;
mod firmware;
#[cfg(test)]
pub(crate) mod fixture;
mod guest;
mod identity;
mod mailbox;
mod model;
mod root;
mod transfer;
mod user_memory;
mod vm;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Error as IoError;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::memory::GuestView;

use super::{Errno, Platform, Status};
use failure::FailingPlatform;
use firmware::Firmware;
use mailbox::Mailbox;

pub use device::SoftwareDevice;
pub use failure::{BadFailure, Failure};
pub use identity::{Identity, IdentityError};
pub use model::{BadKernel, Kernel, Model};
pub use root::vendor_chain;
pub use vm::SoftwarePlatform;

/// How many guests may run at once, unless the model says otherwise: ASIDs 1 to this.
const ASID_MAX: u32 = 509;

/// One machine's kernel and secure processor, shared by all its VMs and device descriptors.
#[derive(Debug, Clone)]
pub struct SoftwareHost {
    state: Arc<Mutex<HostState>>,
    mailbox: Arc<Mailbox>,
    model: Model,
}

/// What the kernel and the firmware know.
#[derive(Debug)]
struct HostState {
    firmware: Firmware,
    free_asids: BTreeSet<u32>,
    /// Numbers of the descriptors that are this machine's `/dev/sev`.
    devices: BTreeSet<i32>,
    /// Whether the platform is initialised.
    is_initialised: bool,
    /// Whether the secure processor has stopped answering; then the kernel asks it nothing more.
    is_dead: bool,
}

impl SoftwareHost {
    /// A machine with this identity and no guest.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self::modelled(identity, Model::default())
    }

    /// The same, of another kind.
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

    /// Opens this machine's `/dev/sev`.
    ///
    /// # Errors
    /// If the process has no descriptor left: one is held so that its number is nobody else's.
    pub fn open_device(&self) -> Result<SoftwareDevice, IoError> {
        let placeholder = File::open("/dev/null")?;
        self.lock().devices.insert(placeholder.as_raw_fd());
        Ok(SoftwareDevice::new(self.clone(), placeholder))
    }

    /// The SEV side of a new VM whose private memory is `ram`.
    #[must_use]
    pub fn new_vm(&self, ram: GuestView) -> SoftwarePlatform {
        SoftwarePlatform::new(self.clone(), ram)
    }

    /// The same as launches take it, with what is to fail.
    pub(crate) fn new_platform(&self, ram: GuestView) -> Box<dyn Platform> {
        let platform = Box::new(self.new_vm(ram));
        match self.model.failure {
            Some(failure) => Box::new(FailingPlatform::new(platform, failure, self.clone())),
            None => platform,
        }
    }

    /// The secure processor answers nothing any more.
    fn stop_answering(&self) {
        self.lock().is_dead = true;
    }

    /// Calls the firmware through `/dev/sev` descriptor `sev_fd`; only then is `error` written.
    fn call<R>(
        &self,
        sev_fd: i32,
        error: &mut u32,
        command: impl FnOnce(&mut Firmware) -> Result<R, Status>,
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

    fn lock(&self) -> MutexGuard<'_, HostState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reports the firmware's refusal.
fn refuse(error: &mut u32, status: Status) -> Errno {
    *error = status.0;
    Errno::EIO
}

impl HostState {
    /// The firmware, if `fd` is this machine's `/dev/sev` and its processor answers.
    fn firmware(&mut self, fd: i32) -> Result<&mut Firmware, Errno> {
        if !self.devices.contains(&fd) {
            return Err(Errno::EBADF);
        }
        if self.is_dead { Err(Errno::EBUSY) } else { Ok(&mut self.firmware) }
    }
}
