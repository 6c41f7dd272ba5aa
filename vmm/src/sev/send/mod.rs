//! Sending a running SEV guest to another platform, as consumed values.
//!
//! ```text
//! Launched -- start_send --> Sending -- finish --> Sent       never runs here again
//!     ^                       | seal, by several threads
//!     +------- cancel --------+                               every packet sealed is worthless
//! ```
//!
//! The guest goes on running while it is being sent.

use kvm_bindings::kvm_enc_region;
use thiserror::Error;
use zerocopy::{FromZeros, IntoBytes};

use super::SevStatus;
use super::abi;
use super::certificate::Certificate;
use super::command::{Command, CommandError, Vm, address_of_mut, blob};
use super::launch::{GuestStatus, Launched, StatusError, guest_status};
use super::measurement::Measurement;
use super::packet::HEADER_LEN;
use super::session::{SESSION_LEN, Session};
use super::target::PlatformCertificates;
use crate::page::{PAGE_LEN, PAGE_SIZE};

/// What the target's firmware needs to take the guest; goes to `RECEIVE_START`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SendSession {
    /// The guest's policy word.
    pub policy: u32,
    /// The PDH certificate of the platform that sends.
    pub source_pdh: Certificate,
    /// The transport keys, wrapped for the target.
    pub session: Session,
}

impl Launched {
    /// `SEND_START`, after asking for the length of its output: agrees on keys with the platform `to`.
    ///
    /// What the firmware checks of `to` depends on the guest's policy; use
    /// [`verify_target`](super::target::verify_target) first. `source_pdh` is this platform's own PDH
    /// certificate, for the target.
    ///
    /// # Errors
    /// [`NotSending`], which gives the guest back, running as before.
    pub fn start_send(
        self,
        to: &PlatformCertificates,
        source_pdh: Certificate,
    ) -> Result<Sending, NotSending> {
        let Self { vm, measurement } = self;
        match start(&vm, to, source_pdh) {
            Ok(session) => Ok(Sending { vm, measurement, session }),
            Err(cause) => Err(NotSending { launched: Self { vm, measurement }, cause }),
        }
    }
}

/// A guest that could not be sent, and why.
#[derive(Debug)]
pub struct NotSending {
    /// The guest, which may run.
    pub launched: Launched,
    /// Why.
    pub cause: SendError,
}

/// `SEND_START`, and a query of the length of packet headers. Cancels if that is not the known length.
fn start(
    vm: &Vm,
    to: &PlatformCertificates,
    source_pdh: Certificate,
) -> Result<SendSession, SendError> {
    let mut query = abi::SendStart::default();
    vm.query(Command::SEND_START, &mut query).map_err(SendError::Start)?;
    if query.session_len as usize != SESSION_LEN {
        return Err(SendError::Length { what: "session", len: query.session_len });
    }
    let mut session = Session::new_zeroed();
    let vendor = to.vendor.to_bytes();
    let (pdh_uaddr, pdh_len) = blob(to.pdh.as_bytes());
    let (chain_uaddr, chain_len) = blob(to.chain.as_bytes());
    let (vendor_uaddr, vendor_len) = blob(&vendor);
    let mut start = abi::SendStart {
        pdh_uaddr,
        pdh_len,
        chain_uaddr,
        chain_len,
        vendor_uaddr,
        vendor_len,
        session_uaddr: address_of_mut(&mut session),
        session_len: query.session_len,
        ..abi::SendStart::default()
    };
    vm.issue(Command::SEND_START, &mut start).map_err(SendError::Start)?;
    if let Err(cause) = check_header_length(vm) {
        vm.issue_plain(Command::SEND_CANCEL).map_err(SendError::Cancel)?;
        return Err(cause);
    }
    Ok(SendSession { policy: start.policy, source_pdh, session })
}

fn check_header_length(vm: &Vm) -> Result<(), SendError> {
    let mut query = abi::Packet::default();
    vm.query(Command::SEND_UPDATE_DATA, &mut query).map_err(SendError::Query)?;
    match query.hdr_len {
        // This firmware fills in nothing. All known firmware has headers of this length.
        0 => Ok(()),
        len if len as usize == HEADER_LEN => Ok(()),
        len => Err(SendError::Length { what: "packet header", len }),
    }
}

/// The guest runs and is being sent.
#[derive(Debug)]
pub struct Sending {
    vm: Vm,
    measurement: Option<Measurement>,
    session: SendSession,
}

impl Sending {
    /// What the target needs before the first page.
    #[must_use]
    pub fn session(&self) -> &SendSession {
        &self.session
    }

    /// `SEND_UPDATE_DATA`: encrypts the page at page-aligned host address `address` into a packet:
    /// `header` gets flags, initial counter block and MAC, `data` the page, encrypted. Several
    /// threads may seal at once. The packet does not bind the page's address, nor when it was sealed.
    ///
    /// # Errors
    /// [`SendError::Seal`]; the packet is then worthless.
    pub fn seal(
        &self,
        address: u64,
        header: &mut [u8; HEADER_LEN],
        data: &mut [u8; PAGE_LEN],
    ) -> Result<(), SendError> {
        let len = abi::length(PAGE_LEN);
        let mut packet = abi::Packet {
            hdr_uaddr: address_of_mut(header),
            hdr_len: abi::length(HEADER_LEN),
            guest_uaddr: address,
            guest_len: len,
            trans_uaddr: address_of_mut(data),
            trans_len: len,
            ..abi::Packet::default()
        };
        self.vm
            .issue(Command::SEND_UPDATE_DATA, &mut packet)
            .map_err(|cause| SendError::Seal { address, cause })
    }

    /// Makes the kernel write back the caches of all CPUs that may have run the guest: it does so when
    /// memory that was pinned for a guest is unpinned, so this pins a page of its own for a moment.
    ///
    /// `SEND_UPDATE_DATA` is the one command that reads guest memory for which the kernel flushes
    /// nothing, and before Milan caches are not coherent between the views of a page.
    ///
    /// # Errors
    /// [`SendError::WriteBack`].
    pub fn write_back_caches(&self) -> Result<(), SendError> {
        let mut spare = vec![0_u8; 2 * PAGE_LEN];
        let address = address_of_mut(spare.as_mut_slice()).next_multiple_of(PAGE_SIZE);
        let region = kvm_enc_region { addr: address, size: PAGE_SIZE };
        let refused =
            |command, errno| SendError::WriteBack(CommandError { command, errno, status: None });
        let platform = self.vm.platform.as_ref();
        platform
            .register_region(&region)
            .map_err(|errno| refused("KVM_MEMORY_ENCRYPT_REG_REGION", errno))?;
        platform
            .unregister_region(&region)
            .map_err(|errno| refused("KVM_MEMORY_ENCRYPT_UNREG_REGION", errno))
    }

    /// `SEND_CANCEL`: the guest is as before `SEND_START`, and the target can open nothing more.
    ///
    /// # Errors
    /// [`NotCancelled`], which gives the guest back: it may run on, and cancelling may be tried again.
    pub fn cancel(self) -> Result<Launched, NotCancelled> {
        match self.vm.issue_plain(Command::SEND_CANCEL) {
            Ok(()) => Ok(Launched { vm: self.vm, measurement: self.measurement }),
            Err(cause) => {
                let cause = SendError::Cancel(cause);
                Err(NotCancelled { sending: Box::new(self), cause })
            }
        }
    }

    /// `SEND_FINISH`: the point of no return. The guest must not run here again, whatever happens.
    ///
    /// # Errors
    /// [`SendError::Finish`]; the guest is then destroyed, as it is after success.
    pub fn finish(self) -> Result<Sent, SendError> {
        self.vm.issue_plain(Command::SEND_FINISH).map_err(SendError::Finish)?;
        Ok(Sent { vm: self.vm })
    }

    /// `GUEST_STATUS`.
    ///
    /// # Errors
    /// [`StatusError`].
    pub fn status(&self) -> Result<GuestStatus, StatusError> {
        guest_status(&self.vm)
    }
}

impl SendError {
    /// Whether the firmware does not know the command. Then another try fails too.
    #[must_use]
    pub fn is_unknown_command(&self) -> bool {
        let (Self::Start(cause)
        | Self::Query(cause)
        | Self::Seal { cause, .. }
        | Self::WriteBack(cause)
        | Self::Cancel(cause)
        | Self::Finish(cause)) = self
        else {
            return false;
        };
        cause.status() == Some(SevStatus::INVALID_COMMAND)
    }
}

/// A guest whose sending could not be cancelled, and why.
#[derive(Debug)]
pub struct NotCancelled {
    /// The guest, which may run.
    pub sending: Box<Sending>,
    /// Why.
    pub cause: SendError,
}

/// Proof that the guest was sent. Dropping it destroys what is left of the guest.
#[derive(Debug)]
pub struct Sent {
    vm: Vm,
}

impl Sent {
    /// `GUEST_STATUS`.
    ///
    /// # Errors
    /// [`StatusError`].
    pub fn status(&self) -> Result<GuestStatus, StatusError> {
        guest_status(&self.vm)
    }
}

/// Which step of sending failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    /// `SEND_START`.
    #[error("agreeing with the destination's platform on keys")]
    Start(#[source] CommandError),
    /// The query of `SEND_UPDATE_DATA`.
    #[error("asking the firmware for the length of packet headers")]
    Query(#[source] CommandError),
    /// The firmware uses a format that is not known here.
    #[error("the firmware's {what} has {len} bytes, which is unknown; update this program")]
    Length {
        /// What has that length.
        what: &'static str,
        /// The length it asked for.
        len: u32,
    },
    /// `SEND_UPDATE_DATA`.
    #[error("encrypting the guest's page at host address {address:#x} for its destination")]
    Seal {
        /// Host address.
        address: u64,
        /// Why.
        #[source]
        cause: CommandError,
    },
    /// Pinning and unpinning a page to make the kernel write back caches.
    #[error("writing back the caches of all CPUs")]
    WriteBack(#[source] CommandError),
    /// `SEND_CANCEL`.
    #[error("cancelling the transfer at the firmware")]
    Cancel(#[source] CommandError),
    /// `SEND_FINISH`.
    #[error("finishing the transfer at the firmware")]
    Finish(#[source] CommandError),
}

#[cfg(test)]
mod tests;
