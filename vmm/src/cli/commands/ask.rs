//! `sevferry status`, `report`, `inject-secret`, `continue`, `cancel`, `resolve` and `quit`: one request,
//! one answer.

use serde_json::Error as JsonError;
use thiserror::Error;

use crate::cli::arguments::AskOptions;
use crate::cli::show::status_text;
use crate::control::api::{AuditReply, Request, Resolution, Response};
use crate::control::{ClientError, ask as ask_process};

/// Asks the process that has the guest and prints what it answers.
///
/// # Errors
/// [`AskError`].
pub(crate) fn ask(options: &AskOptions) -> Result<(), AskError> {
    match ask_process(&options.api_socket, &options.request)? {
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
        Request::ResizeDisk { .. } => "the guest is told how large its disk is",
        Request::Status
        | Request::Report
        | Request::Audit
        | Request::Migrate(_)
        | Request::Check(_) => "accepted",
    }
}

/// Why there is no answer, or not the one hoped for.
#[derive(Debug, Error)]
pub(crate) enum AskError {
    /// The guest's process does not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Not now.
    #[error("refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// The guest's reports and its page tables do not agree.
    #[error("the guest's page tables contradict its reports: {contradiction}")]
    Contradicted {
        /// Which pages.
        contradiction: String,
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
    /// A status that cannot be printed.
    #[error("printing the answer")]
    Json(#[from] JsonError),
}
