//! Why a guest was not sent.

use std::io::Error as IoError;

use rmp_serde::encode::Error as EncodeError;
use thiserror::Error;

use super::rounds::RoundsError;
use super::sender::SenderError;
use crate::encryption::NotMigratable;
use crate::machine::{NotQuiet, SaveError};
use crate::memory::RamError;
use crate::migration::convergence::GaveUp;
use crate::migration::net::{Endpoint, LinkError};
use crate::migration::wire::{CertificatesError, Malformed, Reason};
use crate::sev::BadPolicy;
use crate::sev::send::SendError;
use crate::sev::target::RefusedTarget;
use crate::vcpu::VcpuError;

/// Why a guest was not sent.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The guest does not allow it.
    #[error(transparent)]
    NotMigratable(#[from] NotMigratable),
    /// The destination cannot be reached.
    #[error("connecting to {to}; is `sevferry receive` running there?")]
    Connect {
        /// Where.
        to: Endpoint,
        /// Why.
        #[source]
        cause: IoError,
    },
    /// The control connection.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A message of this host is longer than its cap.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The offer or the state could not be encoded.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// No randomness.
    #[error("choosing a session number")]
    Random(#[source] getrandom::Error),
    /// A plain VM's destination.
    #[error("the destination has no SEV platform; start it with --platform")]
    NoPlatform,
    /// Certificates for a guest without SEV.
    #[error("the destination sent an SEV platform's certificates for a guest without SEV")]
    Unasked,
    /// Certificates.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// The guest must not be sent to this destination.
    #[error("the destination was refused before anything was sent")]
    Refused(#[from] RefusedTarget),
    /// The guest's policy has unknown bits.
    #[error(transparent)]
    Policy(#[from] BadPolicy),
    /// The firmware.
    #[error(transparent)]
    Send(SendError),
    /// Pages.
    #[error(transparent)]
    Pages(#[from] SenderError),
    /// The log of changes.
    #[error(transparent)]
    Rounds(#[from] RoundsError),
    /// The dirty log.
    #[error("recording which pages the guest writes")]
    Log(#[from] RamError),
    /// It would take too long.
    #[error(transparent)]
    Plan(#[from] GaveUp),
    /// The user cancelled it.
    #[error("cancelled: {0}")]
    Cancelled(Reason),
    /// A vCPU does not leave the guest.
    #[error("pausing the guest: a vCPU does not stop")]
    Busy,
    /// A device is still at work.
    #[error("pausing the guest")]
    NotQuiet(#[source] NotQuiet),
    /// The guest ended by itself.
    #[error("the guest ended during the migration")]
    GuestEnded,
    /// vCPUs.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The machine's state.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// `SEND_CANCEL` failed earlier.
    #[error("the firmware could not cancel an earlier attempt: this guest can only run on here")]
    NotCancelled,
}
