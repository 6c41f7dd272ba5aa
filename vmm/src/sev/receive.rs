//! Receiving an SEV guest from another platform, as consumed values.
//!
//! ```text
//! Initialised -- start_receive --> Receiving -- finish --> Launched
//!   register_region                 open, by several threads
//! ```
//!
//! The firmware checks that each packet was made for this session, and no more: whose session it is, and
//! where and when each page belongs, the caller must know. Dropping [`Receiving`] destroys the guest.

use thiserror::Error;
use zerocopy::IntoBytes;

use super::abi;
use super::command::{Command, CommandError, Vm, blob};
use super::launch::{GuestStatus, Initialised, Launched, StatusError, guest_status};
use super::packet::HEADER_LEN;
use super::send::SendSession;
use crate::page::PAGE_LEN;

impl Initialised {
    /// `RECEIVE_START`: takes the keys of a guest that is being sent to this platform.
    ///
    /// # Errors
    /// [`ReceiveError::Start`].
    pub fn start_receive(self, from: &SendSession) -> Result<Receiving, ReceiveError> {
        let (dh_uaddr, dh_len) = blob(from.source_pdh.as_bytes());
        let (session_uaddr, session_len) = blob(from.session.as_bytes());
        let mut start = abi::LaunchStart {
            policy: from.policy,
            dh_uaddr,
            dh_len,
            session_uaddr,
            session_len,
            ..abi::LaunchStart::default()
        };
        self.vm.issue(Command::RECEIVE_START, &mut start).map_err(ReceiveError::Start)?;
        Ok(Receiving { vm: self.vm })
    }
}

/// The guest's memory is arriving; it may not run yet.
#[derive(Debug)]
pub struct Receiving {
    vm: Vm,
}

impl Receiving {
    /// `RECEIVE_UPDATE_DATA`: decrypts a packet into the page at page-aligned host address `address`.
    /// Several threads may open at once, each its own page.
    ///
    /// # Errors
    /// [`ReceiveError::Open`].
    pub fn open(
        &self,
        address: u64,
        header: &[u8; HEADER_LEN],
        data: &[u8; PAGE_LEN],
    ) -> Result<(), ReceiveError> {
        let (hdr_uaddr, hdr_len) = blob(header);
        let (trans_uaddr, trans_len) = blob(data);
        let mut packet = abi::Packet {
            hdr_uaddr,
            hdr_len,
            guest_uaddr: address,
            guest_len: trans_len,
            trans_uaddr,
            trans_len,
            ..abi::Packet::default()
        };
        self.vm
            .issue(Command::RECEIVE_UPDATE_DATA, &mut packet)
            .map_err(|cause| ReceiveError::Open { address, cause })
    }

    /// `RECEIVE_FINISH`: no more pages; the guest may run when its owner says so.
    ///
    /// # Errors
    /// [`ReceiveError::Finish`].
    pub fn finish(self) -> Result<Launched, ReceiveError> {
        self.vm.issue_plain(Command::RECEIVE_FINISH).map_err(ReceiveError::Finish)?;
        Ok(Launched { vm: self.vm, measurement: None })
    }

    /// `GUEST_STATUS`.
    ///
    /// # Errors
    /// [`StatusError`].
    pub fn status(&self) -> Result<GuestStatus, StatusError> {
        guest_status(&self.vm)
    }
}

/// Which step of receiving failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ReceiveError {
    /// `RECEIVE_START`.
    #[error("taking the keys of the guest that is being sent")]
    Start(#[source] CommandError),
    /// `RECEIVE_UPDATE_DATA`.
    #[error("decrypting a packet into the guest's page at host address {address:#x}")]
    Open {
        /// Host address.
        address: u64,
        /// Why.
        #[source]
        cause: CommandError,
    },
    /// `RECEIVE_FINISH`.
    #[error("finishing the transfer at the firmware")]
    Finish(#[source] CommandError),
}
