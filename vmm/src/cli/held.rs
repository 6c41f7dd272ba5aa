//! A guest that waits before it runs, so that its owner can check its measurement and send it secrets.

use std::time::Instant;

use thiserror::Error;

use super::arguments::{Pause, ReportFormat};
use super::owner::Owner;
use super::{chain_of, report};
use crate::control::Event;
use crate::control::api::{InjectRequest, Request, Response};
use crate::machine::{Machine, MachineError, Report, RunningMachine};
use crate::page::Gpa;

/// What became of a guest that waited.
#[derive(Debug)]
pub(super) enum Held {
    /// It was let run.
    Runs(Box<RunningMachine>),
    /// It was ended, this being how things stood.
    Ended(Box<Report>),
}

/// Waits until somebody lets the guest of `machine` run, or ends it.
///
/// # Errors
/// [`NotContinued`].
pub(super) fn hold(
    mut machine: Machine,
    Pause(patience): Pause,
    owner: &Owner,
) -> Result<Held, NotContinued> {
    let deadline = patience.map(|patience| Instant::now() + patience);
    eprintln!("sevferry: paused; sevferry continue lets the guest run");
    owner.board.show_paused(machine.launch());
    loop {
        let Some(event) = owner.inbox.next_by(deadline) else {
            let seconds = patience.unwrap_or_default().as_secs();
            return Err(NotContinued::Late { seconds });
        };
        match event {
            // No vCPU runs yet.
            Event::Stopped(_) => {}
            Event::Quit => return Ok(Held::Ended(Box::new(machine.report()))),
            Event::Report => {
                let format = owner.options.report.unwrap_or(ReportFormat::Text);
                report::print(&machine.report(), format);
            }
            Event::Request(Request::Quit, answer) => {
                answer.give(Response::Accepted);
                return Ok(Held::Ended(Box::new(machine.report())));
            }
            Event::Request(Request::Continue, answer) => match machine.run(&owner.events) {
                Ok(running) => {
                    answer.give(Response::Accepted);
                    return Ok(Held::Runs(Box::new(running)));
                }
                Err(cause) => {
                    answer.give(Response::Error { message: chain_of(&cause) });
                    return Err(cause.into());
                }
            },
            Event::Request(request, answer) => {
                answer.give(response_to(&request, &mut machine, owner));
            }
        }
    }
}

/// The one response to a request that leaves the guest waiting.
fn response_to(request: &Request, machine: &mut Machine, owner: &Owner) -> Response {
    let refused = |reason: &str| Response::Refused { reason: reason.to_owned() };
    match request {
        Request::Status => owner.board.status(),
        Request::Cancel => owner.board.cancel(),
        Request::Report => Response::Report(report::as_json(&machine.report())),
        Request::InjectSecret(request) => match inject(request, machine) {
            Ok(()) => Response::Accepted,
            Err(reason) => Response::Refused { reason },
        },
        Request::Resolve(_) => refused("no handover is in doubt: the guest does not run yet"),
        Request::Audit
        | Request::Migrate(_)
        | Request::Check(_)
        | Request::Continue
        | Request::Quit => refused("the guest does not run yet; sevferry continue lets it run"),
    }
}

/// The reason, if the guest did not get the secret.
fn inject(request: &InjectRequest, machine: &Machine) -> Result<(), String> {
    let secret = request.packet().map_err(|cause| cause.to_string())?;
    machine.inject_secret(request.gpa.map(Gpa), &secret).map_err(|cause| chain_of(&cause))
}

/// The guest was not let run, or could not.
#[derive(Debug, Error)]
pub(super) enum NotContinued {
    /// Nobody came.
    #[error("nobody let the guest run within the {seconds} s of --paused")]
    Late {
        /// For how long it waited.
        seconds: u64,
    },
    /// The platform or the host.
    #[error(transparent)]
    Machine(#[from] MachineError),
}
