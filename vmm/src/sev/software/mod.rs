//! SEV without hardware: the kernel's checks and the firmware's work, in software, at the same ABI.
//!
//! For developing and testing only. The keys live in this process, so it gives **no confidentiality**,
//! and its certificates chain to a root of its own that no hardware trusts.
//!
//! | file | stands for |
//! |---|---|
//! | `vm` | `KVM_MEMORY_ENCRYPT_OP` in KVM (Linux 6.1): checks and errno in its order |
//! | `device` | `/dev/sev` in the ccp driver |
//! | `firmware` | the firmware on the secure processor: guests, states, status codes |
//! | `guest` | one guest context in the firmware |
//! | `identity` | the platform's keys and certificates |
//! | `user_memory` | `copy_from_user` and `copy_to_user` |
//!
//! What differs from hardware, on purpose:
//! - Commands that need an encrypted guest to be sent or received (`KVM_SEV_SEND_*`,
//!   `KVM_SEV_RECEIVE_*`) and `KVM_SEV_INIT2` are unknown: -EINVAL, as from a kernel without them.
//! - `KVM_SEV_ES_INIT` is refused with -ENOTTY, as where `kvm_amd.sev_es` is off.
//! - Only guest RAM can be pinned; other user memory gives -ENOMEM.
//! - Memory is physically contiguous within a page and no further: a secret across pages is -EINVAL.
//! - `RLIMIT_MEMLOCK` is not counted.
//! - A launch without a session gets random keys, so nobody can check its measurement.

mod device;
mod firmware;
#[cfg(test)]
pub(crate) mod fixture;
mod guest;
mod identity;
mod user_memory;
mod vm;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Error as IoError;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::memory::GuestView;

use super::Errno;
use firmware::Firmware;

pub use device::SoftwareDevice;
pub use identity::{Identity, IdentityError};
pub use vm::SoftwarePlatform;

/// How many guests may run at once: ASIDs 1 to this.
const ASID_MAX: u32 = 509;

/// One machine's kernel and secure processor, shared by all its VMs and device descriptors.
#[derive(Debug, Clone)]
pub struct SoftwareHost {
    state: Arc<Mutex<HostState>>,
}

/// What the kernel and the firmware know.
#[derive(Debug)]
struct HostState {
    firmware: Firmware,
    free_asids: BTreeSet<u32>,
    /// Numbers of the descriptors that are this machine's `/dev/sev`.
    devices: BTreeSet<i32>,
}

impl SoftwareHost {
    /// A machine with this identity and no guest.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        let state = HostState {
            firmware: Firmware::new(identity),
            free_asids: (1..=ASID_MAX).collect(),
            devices: BTreeSet::new(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
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

    fn lock(&self) -> MutexGuard<'_, HostState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl HostState {
    /// The firmware, if `fd` is this machine's `/dev/sev`.
    fn firmware(&mut self, fd: i32) -> Result<&mut Firmware, Errno> {
        if self.devices.contains(&fd) { Ok(&mut self.firmware) } else { Err(Errno::EBADF) }
    }
}
