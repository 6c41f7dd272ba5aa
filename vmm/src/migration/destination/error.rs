//! Why a guest could not be received.

use std::io::Error as IoError;

use getrandom::Error as RandomError;
use thiserror::Error;

use super::arrivals::BadArrival;
use super::intake::IntakeError;
use crate::encryption::{MalformedStatus, NotMigratable};
use crate::machine::compatibility::Incompatible;
use crate::machine::{ArrivalError, MachineError, Undecodable};
use crate::migration::net::LinkError;
use crate::migration::wire::{CertificatesError, Transfer};
use crate::sev::certificate::BadCertificate;
use crate::sev::receive::ReceiveError;

/// Why a guest could not be received.
#[derive(Debug, Error)]
pub enum DestinationError {
    /// The control connection.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The offer or the state cannot be decoded.
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
    /// This host cannot run it.
    #[error(transparent)]
    Incompatible(#[from] Incompatible),
    /// This host's KVM.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The journal.
    #[error("a guest cannot be owned here without its journal")]
    Journal(#[source] IoError),
    /// No secret could be made.
    #[error("making the secret of a transfer")]
    Random(#[source] RandomError),
    /// The same attempt once more.
    #[error("{transfer} was here before: its source would offer it with the next epoch")]
    Again {
        /// Which.
        transfer: Transfer,
    },
    /// A word about a guest that may come from anyone: it has no proof that counts.
    #[error("somebody has a word on {transfer}, without a proof that counts here")]
    Unproven {
        /// Which.
        transfer: Transfer,
    },
    /// Listening.
    #[error("accepting connections")]
    Accept(#[from] IoError),
    /// Certificates.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// The source's certificate.
    #[error("the source's PDH certificate")]
    Pdh(#[from] BadCertificate),
    /// The source's session.
    #[error("the source sent a session of {len} bytes; 128 are due")]
    Session {
        /// Bytes.
        len: usize,
    },
    /// What the source sent does not fit its offer.
    #[error("what the source sent is not what it offered: SEV or not, and with which policy")]
    Platform,
    /// The guest is too large to keep count of.
    #[error("this host has no memory to count the pages of the guest: offer it to a larger one")]
    Memory,
    /// Page connections are missing.
    #[error("not all of the source's {wanted} page connections came")]
    Connections {
        /// How many were offered.
        wanted: u16,
    },
    /// Pages.
    #[error(transparent)]
    Intake(#[from] IntakeError),
    /// The region list.
    #[error("the source's region list")]
    Status(#[from] MalformedStatus),
    /// The list is that of a guest that must not be moved.
    #[error("the guest should not have been sent")]
    NotMigratable(#[from] NotMigratable),
    /// What arrived.
    #[error(transparent)]
    Arrivals(#[from] BadArrival),
    /// The firmware.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// The machine.
    #[error(transparent)]
    Finish(#[from] ArrivalError),
}

impl DestinationError {
    /// Whether the source has only given up, and said so: nothing is wrong here.
    #[must_use]
    pub fn is_the_sources_wish(&self) -> bool {
        matches!(
            self,
            Self::Link(LinkError::Refused(_)) | Self::Intake(IntakeError::Abandoned { .. })
        )
    }
}
