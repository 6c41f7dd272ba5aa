//! `sevferry check --to`: why a guest would not be moved to another host, before anything moves.

use std::io::{Error as IoError, stdout};
use std::path::Path;

use getrandom::Error as RandomError;
use serde_json::json;
use thiserror::Error;

use super::migrate::{BadDirectory, as_the_process_sees};
use crate::cli::arguments::{PreflightGuest, PreflightOptions};
use crate::cli::exit::Exit;
use crate::cli::process::options_of;
use crate::control::api::{Hindrance, MigrateRequest, Request, Response};
use crate::control::{Client, ClientError, PATIENCE};
use crate::machine::MachineError;
use crate::migration::preflight::{Candidate, Side};
use crate::migration::wire::{Transfer, VmId};
use crate::migration::{Endpoint, LOOK_UP_MAX};
use crate::stream::write_all;

/// Prints every reason; [`Exit::Unusable`] if there is one.
///
/// # Errors
/// [`PreflightError`] if the guest's process did not answer, or the guest could not be started.
pub(crate) fn preflight(options: &PreflightOptions) -> Result<Exit, PreflightError> {
    let hindrances = match &options.guest {
        PreflightGuest::Running(api_socket) => ask_process(api_socket, &options.request)?,
        PreflightGuest::New(prospect) => {
            let vm = VmId::random().map_err(PreflightError::Identity)?;
            let asked = options_of(&options.request, Transfer { vm, epoch: 1 }, Vec::new());
            Candidate::new_guest(prospect)?.hindrances(&asked, &mut || false)
        }
    };
    let to = &options.request.to;
    let text = if options.json { json_line(to, &hindrances) } else { screen(to, &hindrances) };
    write_all(stdout(), text.as_bytes()).map_err(PreflightError::Print)?;
    Ok(if hindrances.is_empty() { Exit::Success } else { Exit::Unusable })
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

fn json_line(to: &Endpoint, hindrances: &[Hindrance]) -> String {
    let would_move = hindrances.is_empty();
    let whole = json!({ "version": 1, "to": to, "would_move": would_move, "reasons": hindrances });
    format!("{whole}\n")
}

fn screen(to: &Endpoint, hindrances: &[Hindrance]) -> String {
    let mut text = String::new();
    for (side, title) in
        [(Side::Source, "This side refuses"), (Side::Destination, "The destination refuses")]
    {
        let of_side = hindrances.iter().filter(|hindrance| hindrance.by == side);
        let lines: Vec<_> = of_side
            .map(|Hindrance { subject, reason, .. }| {
                format!("  {:<16} {reason}\n", subject.as_str())
            })
            .collect();
        if !lines.is_empty() {
            text.push_str(&format!("{title}\n{}", lines.concat()));
        }
    }
    text.push_str(&match hindrances.len() {
        0 => format!(
            "Nothing speaks against moving the guest to {to}. (The firmware itself is asked only \
             when it is moved.)\n"
        ),
        1 => format!("The guest would NOT be moved to {to}, for this reason.\n"),
        count => format!("The guest would NOT be moved to {to}, for these {count} reasons.\n"),
    });
    text
}

/// Why it is not known.
#[derive(Debug, Error)]
pub(crate) enum PreflightError {
    /// Nobody answers.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::BadEndpoint;

    fn found() -> Vec<Hindrance> {
        let because = |by, subject| Hindrance::new(by, subject, &BadEndpoint::Path);
        vec![because(Side::Source, "policy"), because(Side::Destination, "TSC")]
    }

    /// People read which side refuses, and every reason, or that nothing speaks against it.
    #[test]
    fn a_screen_has_every_reason() {
        let to = "tcp:b:4444".parse().unwrap();
        let text = screen(&to, &found());
        for part in ["This side refuses\n  policy  ", "destination refuses\n  TSC  ", "2 reasons"] {
            assert!(text.contains(part), "'{part}' in {text}");
        }
        assert!(screen(&to, &[]).starts_with("Nothing speaks against"), "{}", screen(&to, &[]));
    }

    /// A program reads the same.
    #[test]
    fn json_has_the_same() {
        let to = "tcp:b:4444".parse().unwrap();
        let value: serde_json::Value = serde_json::from_str(&json_line(&to, &found())).unwrap();
        assert_eq!(value.pointer("/would_move"), Some(&json!(false)));
        assert_eq!(value.pointer("/reasons/1/by"), Some(&json!("destination")));
        assert_eq!(value.pointer("/reasons/0/subject"), Some(&json!("policy")));
        assert!(json_line(&to, &[]).contains("\"would_move\":true"));
    }
}
