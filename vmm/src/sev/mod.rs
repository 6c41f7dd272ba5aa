//! SEV: the commands that make, measure and describe an encrypted guest.
//!
//! The seam is the kernel's ABI: [`Platform`] takes `struct kvm_sev_cmd` and [`SevDevice`] takes
//! `struct sev_issue_cmd`, holding user addresses. [`hardware`] hands them to the kernel, [`software`]
//! does the kernel's and the firmware's work. Everything above is written once: [`launch`], [`send`] and
//! [`receive`] for the order of the commands, [`command`] for their encoding and errors, [`device`] for
//! `/dev/sev`, [`target`] for where a guest may go. [`session`], [`packet`], [`measurement`],
//! [`certificate`] and [`vendor`] are the formats and the cryptography, shared by the guest owner's side
//! and the software firmware.

pub mod abi;
#[cfg(test)]
mod abi_headers;
pub mod certificate;
pub mod command;
mod debug;
pub mod device;
pub mod endorsement;
mod errno;
pub mod hardware;
pub mod launch;
pub mod measurement;
pub mod packet;
mod policy;
pub mod receive;
mod rsa;
mod secret;
pub mod send;
pub mod session;
pub mod software;
mod status;
pub mod target;
#[cfg(test)]
mod vectors;
pub mod vendor;

use std::fmt::Debug;

use kvm_bindings::{kvm_enc_region, kvm_sev_cmd};

use abi::SevIssueCmd;

pub use errno::Errno;
pub use policy::{BadPolicy, Policy};
pub use rsa::WrongSignature;
pub use status::SevStatus;

/// KVM's SEV ioctls on one VM; several threads may call at once.
///
/// Addresses inside a command must come from borrows held across the call (or, in a test, be bad on
/// purpose): the callee reads and writes them.
pub trait Platform: Debug + Send + Sync {
    /// `KVM_MEMORY_ENCRYPT_OP`. Writes `command.error` only if the firmware was called.
    ///
    /// # Errors
    /// The kernel's errno; [`Errno::EIO`] with `command.error` set when the firmware refused.
    fn memory_encrypt_op(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno>;

    /// `KVM_MEMORY_ENCRYPT_REG_REGION`: pins user memory so that its pages keep their place.
    ///
    /// # Errors
    /// The kernel's errno.
    fn register_region(&self, region: &kvm_enc_region) -> Result<(), Errno>;

    /// `KVM_MEMORY_ENCRYPT_UNREG_REGION`: undoes exactly one earlier registration.
    ///
    /// # Errors
    /// The kernel's errno.
    fn unregister_region(&self, region: &kvm_enc_region) -> Result<(), Errno>;
}

/// An open `/dev/sev`. Keep it open as long as a VM launched with it lives.
pub trait SevDevice: Debug + Send + Sync {
    /// `SEV_ISSUE_CMD`. The same rule for addresses as [`Platform`].
    ///
    /// # Errors
    /// The kernel's errno; [`Errno::EIO`] with `command.error` set when the firmware refused.
    fn issue(&self, command: &mut SevIssueCmd) -> Result<(), Errno>;

    /// The descriptor's number, as `kvm_sev_cmd.sev_fd` takes it.
    fn fd(&self) -> i32;
}
