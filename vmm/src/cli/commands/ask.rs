//! `sevferry status`, `report`, `inject-secret`, `continue`, `cancel`, `resolve` and `quit`: one request,
//! one answer.

use serde_json::Error as JsonError;
use thiserror::Error;

use crate::cli::arguments::AskOptions;
use crate::control::api::{
    AuditReply, LaunchReply, PagesReply, Request, Resolution, Response, State, StatusReply,
};
use crate::control::{ClientError, ask as ask_owner};
use crate::migration::progress::Phase;

/// Asks the process that owns the guest and prints what it answers.
///
/// # Errors
/// [`AskError`].
pub(crate) fn ask(options: &AskOptions) -> Result<(), AskError> {
    match ask_owner(&options.api_socket, &options.request)? {
        Response::Status(status) if options.json => {
            println!("{}", serde_json::to_string(&status)?);
        }
        Response::Status(status) => println!("{}", status_text(&status)),
        Response::Report(report) => println!("{report}"),
        Response::Audited(AuditReply { contradiction: Some(contradiction), .. }) => {
            return Err(AskError::Contradicted { contradiction });
        }
        Response::Audited(AuditReply { tables, .. }) => {
            println!("the guest's {tables} page tables are as it has reported");
        }
        Response::Accepted => eprintln!("sevferry: {}", accepted(&options.request)),
        Response::Refused { reason } => return Err(AskError::Refused { reason }),
        Response::Error { message } => return Err(AskError::Failed { message }),
        Response::Ended(_) | Response::Checked(_) => return Err(AskError::AnotherAnswer),
    }
    Ok(())
}

/// What an accepted request means.
fn accepted(request: &Request) -> &'static str {
    match request {
        Request::Cancel => "cancelled; the guest runs on where it is",
        Request::Resolve(Resolution::Keep) => "the guest runs here",
        Request::Resolve(Resolution::Discard) => "the guest is gone from here",
        Request::Quit => "the guest is being ended",
        Request::InjectSecret(_) => {
            "the secret is in the guest's memory; sevferry continue lets the guest run"
        }
        Request::Continue => "the guest runs",
        Request::Status
        | Request::Report
        | Request::Audit
        | Request::Migrate(_)
        | Request::Check(_) => "accepted",
    }
}

/// A status for people.
pub(crate) fn status_text(status: &StatusReply) -> String {
    let mut out = format!("guest: {} (process {})", name_of(status.state), status.process);
    if let Some(launch) = &status.launch {
        out.push_str(&launch_text(launch));
    }
    if let Some(pages) = &status.pages {
        out.push_str(&pages_text(pages));
    }
    if let Some(migration) = &status.migration {
        let which = if migration.phase == Phase::Done { "last migration" } else { "migration" };
        out.push_str(&format!("\n{which}: {migration}"));
    }
    out
}

fn launch_text(launch: &LaunchReply) -> String {
    let LaunchReply { policy, c_bit, api_major, api_minor, build_id, .. } = launch;
    let LaunchReply { launch_digest, launch_measurement, .. } = launch;
    let verified =
        if launch.measurement_verified { "verified" } else { "for the guest owner to verify" };
    format!(
        "\nlaunch: policy {policy:#x}, C-bit {c_bit}, firmware API {api_major}.{api_minor} build \
         {build_id}\nlaunch digest: {launch_digest}\n\
         launch measurement: {launch_measurement} ({verified})"
    )
}

fn pages_text(pages: &PagesReply) -> String {
    let counts = match (pages.shared, pages.private) {
        (Some(shared), Some(private)) => format!("{shared} shared, {private} private"),
        _ => "status unknown".to_owned(),
    };
    let readiness = match &pages.not_migratable {
        None => "can be migrated".to_owned(),
        Some(reason) => format!("cannot be migrated now: {reason}"),
    };
    let record = format!("{}, {} bytes", pages.record, pages.record_bytes);
    let mut text = format!("\npages: {counts}; {readiness}\nrecord: {record}");
    for doubt in &pages.doubts {
        text.push_str(&format!("\ndoubtful: {doubt}"));
    }
    text
}

/// A state for people.
fn name_of(state: State) -> &'static str {
    match state {
        State::Starting => "starting or ending",
        State::Paused => "paused before it runs (sevferry continue lets it run)",
        State::Running => "running",
        State::Migrating => "migrating to another host",
        State::Waiting => "none yet; waiting for one",
        State::Receiving => "arriving from another host",
        State::InDoubt => "stopped; the other host may run it (sevferry resolve decides)",
        State::Moved => "moved to another host",
    }
}

/// Why there is no answer, or not the one hoped for.
#[derive(Debug, Error)]
pub(crate) enum AskError {
    /// Nobody answers.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Not now.
    #[error("refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The guest has not told the truth.
    #[error("the guest's page tables contradict its reports: {contradiction}")]
    Contradicted {
        /// Which pages.
        contradiction: String,
    },
    /// The owner could not.
    #[error("the guest's process answers: {message}")]
    Failed {
        /// What it says.
        message: String,
    },
    /// An answer to another question.
    #[error("the guest's process gives an answer to something else; is it the same sevferry?")]
    AnotherAnswer,
    /// A status that cannot be printed.
    #[error("printing the answer")]
    Json(#[from] JsonError),
}
