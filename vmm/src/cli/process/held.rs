//! A guest that waits before it runs, so that its owner can check its measurement and send it secrets.

use std::time::Instant;

use thiserror::Error;

use super::guest_process::GuestProcess;
use crate::cli::arguments::{Pause, ReportFormat};
use crate::cli::show::{print_report, report_json};
use crate::control::Event;
use crate::control::api::{InjectRequest, Request, Response};
use crate::control::policy::NOT_NOW;
use crate::machine::{Machine, MachineError, Report, RunningMachine};
use crate::page::Gpa;
use crate::text::chain_of;

/// What became of a guest that waited.
#[derive(Debug)]
pub(crate) enum Held {
    /// It runs now.
    Runs(Box<RunningMachine>),
    /// It was ended. With a last report.
    Ended(Box<Report>),
}

/// Waits for the request that lets the guest of `machine` run, or ends it.
///
/// # Errors
/// [`NotContinued`].
pub(crate) fn hold(
    mut machine: Machine,
    Pause(patience): Pause,
    process: &GuestProcess,
) -> Result<Held, NotContinued> {
    let deadline = patience.map(|patience| Instant::now() + patience);
    eprintln!("sevferry: paused; sevferry continue lets the guest run");
    process.board.show_paused(machine.launch());
    loop {
        let Some(event) = process.inbox.next_by(deadline) else {
            let seconds = patience.unwrap_or_default().as_secs();
            return Err(NotContinued::Late { seconds });
        };
        match event {
            // No vCPU runs yet.
            Event::Stopped(_) => {}
            Event::Quit => return Ok(Held::Ended(Box::new(machine.report()))),
            Event::Report => {
                let format = process.options.report.unwrap_or(ReportFormat::Text);
                print_report(&machine.report(), format);
            }
            Event::Request(Request::Continue, answer) => match machine.run(&process.events) {
                Ok(running) => {
                    answer.give(Response::Accepted);
                    return Ok(Held::Runs(Box::new(running)));
                }
                Err(cause) => {
                    answer.give(Response::Error { message: chain_of(&cause) });
                    return Err(cause.into());
                }
            },
            Event::Request(Request::InjectSecret(request), answer) => {
                match inject(&request, &machine) {
                    Ok(()) => answer.give(Response::Accepted),
                    Err(reason) => answer.refuse(reason),
                }
            }
            Event::Request(Request::Report, answer) => {
                answer.give(Response::Report(report_json(&machine.report())));
            }
            Event::Request(_, answer) => answer.refuse(NOT_NOW),
        }
    }
}

/// The reason, if the guest did not get the secret.
fn inject(request: &InjectRequest, machine: &Machine) -> Result<(), String> {
    let secret = request.packet().map_err(|cause| cause.to_string())?;
    machine.inject_secret(request.gpa.map(Gpa), &secret).map_err(|cause| chain_of(&cause))
}

/// The guest was not let run, or could not.
#[derive(Debug, Error)]
pub(crate) enum NotContinued {
    /// No request came in time.
    #[error("nobody let the guest run within the {seconds} s of --paused")]
    Late {
        /// For how long it waited.
        seconds: u64,
    },
    /// The platform or the host.
    #[error(transparent)]
    Machine(#[from] MachineError),
}
