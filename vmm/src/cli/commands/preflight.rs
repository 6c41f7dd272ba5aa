//! `sevferry check --to`: why a guest would not be moved to another host, before anything moves.

use std::io::{Error as IoError, stdout};
use std::path::Path;

use getrandom::Error as RandomError;
use thiserror::Error;

use super::migrate::{BadDirectory, as_the_process_sees};
use crate::cli::arguments::{PreflightGuest, PreflightOptions};
use crate::cli::exit::ExitStatus;
use crate::cli::process::options_of;
use crate::cli::show::{hindrances_json, hindrances_text};
use crate::control::api::{Hindrance, MigrateRequest, Request, Response};
use crate::control::{Client, ClientError, PATIENCE};
use crate::machine::MachineError;
use crate::migration::LOOK_UP_MAX;
use crate::migration::preflight::Candidate;
use crate::migration::wire::{Transfer, VmId};
use crate::stream::write_all;

/// Prints every reason; [`ExitStatus::Unusable`] if there is one.
///
/// # Errors
/// [`PreflightError`] if the guest's process did not answer, or the guest could not be started.
pub(crate) fn preflight(options: &PreflightOptions) -> Result<ExitStatus, PreflightError> {
    let hindrances = match &options.guest {
        PreflightGuest::Running(api_socket) => ask_process(api_socket, &options.request)?,
        PreflightGuest::New(prospect) => {
            let vm = VmId::random().map_err(PreflightError::Identity)?;
            let asked = options_of(&options.request, Transfer { vm, epoch: 1 }, Vec::new());
            Candidate::new_guest(prospect)?.hindrances(&asked, &mut || false)
        }
    };
    let to = &options.request.to;
    let show = if options.json { hindrances_json } else { hindrances_text };
    let text = show(to, &hindrances);
    write_all(stdout(), text.as_bytes()).map_err(PreflightError::Print)?;
    Ok(if hindrances.is_empty() { ExitStatus::Success } else { ExitStatus::Unusable })
}

/// What the process of a guest that runs says.
fn ask_process(
    api_socket: &Path,
    request: &MigrateRequest,
) -> Result<Vec<Hindrance>, PreflightError> {
    let request = MigrateRequest { to: as_the_process_sees(&request.to)?, ..request.clone() };
    // The destination has as long to be found, to accept the connection and to answer; the guest's
    // process has the rest.
    let destination = LOOK_UP_MAX.saturating_add(request.silence().saturating_mul(3));
    let patience = PATIENCE.saturating_add(destination);
    let client = Client::ask(api_socket, &Request::Check(request))?;
    match client.responses().next(Some(patience))? {
        Response::Checked(hindrances) => Ok(hindrances),
        Response::Refused { reason } => Err(PreflightError::Refused { reason }),
        Response::Error { message } => Err(PreflightError::Failed { message }),
        Response::Accepted
        | Response::Status(_)
        | Response::Report(_)
        | Response::Audited(_)
        | Response::Ended(_) => Err(PreflightError::AnotherAnswer),
    }
}

/// Why it is not known.
#[derive(Debug, Error)]
pub(crate) enum PreflightError {
    /// The guest's process does not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Not now.
    #[error("refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The guest's process could not.
    #[error("the guest's process answers: {message}")]
    Failed {
        /// What it says.
        message: String,
    },
    /// An answer to another question.
    #[error("the guest's process gives an answer to something else; is it the same sevferry?")]
    AnotherAnswer,
    /// No randomness.
    #[error("choosing an identity for the guest")]
    Identity(#[source] RandomError),
    /// There could be no such guest here.
    #[error("no such guest can be started here; see `sevferry check`")]
    Machine(#[from] MachineError),
    /// Where the destination's socket is.
    #[error(transparent)]
    Directory(#[from] BadDirectory),
    /// The answer is there, and cannot be printed.
    #[error("printing the answer")]
    Print(#[source] IoError),
}
