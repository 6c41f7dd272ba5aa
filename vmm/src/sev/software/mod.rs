//! SEV without hardware: the kernel's checks and the firmware's work, in software, at the same ABI.
//!
//! For developing and testing only. The keys live in this process, so it gives **no confidentiality**,
//! and its certificates chain to a root of its own that no hardware trusts.
//!
//! | file | stands for |
//! |---|---|
//! | `host` | one machine: what its kernel and its secure processor share |
//! | `vm` | `KVM_MEMORY_ENCRYPT_OP` in KVM: checks and errno in its order |
//! | `device` | `/dev/sev` in the ccp driver |
//! | `firmware` | the firmware on the secure processor: guests, states, status codes |
//! | `guest` | one guest context in the firmware |
//! | `page_cipher` | the keys of a guest that is being sent or received |
//! | `identity` | the platform's keys and certificates |
//! | `model` | which kernel answers, how many guests the host can have, how long things take |
//! | `failure`, `failing` | hardware that fails, at a chosen command |
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
//! - A launch without a session gets random keys, so its measurement cannot be checked.

mod device;
mod failing;
mod failure;
mod firmware;
#[cfg(test)]
pub(crate) mod fixture;
mod guest;
mod host;
mod identity;
mod mailbox;
mod model;
mod page_cipher;
mod root;
mod user_memory;
mod vm;

pub use device::SoftwareDevice;
pub use failure::{BadFailure, Failure};
pub use host::SoftwareHost;
pub use identity::{Identity, IdentityError};
pub use model::{BadKernel, KernelVersion, Model};
pub use root::vendor_chain;
pub use vm::SoftwarePlatform;
