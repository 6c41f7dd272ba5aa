//! The loop of a guest that runs: its process handles events and requests until the guest ends or has moved.

use super::audit::audit_guest;
use super::guest_process::{GuestProcess, ProcessError};
use super::outgoing::{Departure, check_guest, send_guest};
use crate::cli::arguments::ReportFormat;
use crate::cli::exit::Ending;
use crate::cli::show::{print_report, report_json};
use crate::control::Event;
use crate::control::api::{Request, Response, State};
use crate::control::policy::NOT_NOW;
use crate::machine::{Report, RunningMachine};
use crate::text::chain_of;
use crate::vcpu::Stop;

/// How a guest ended, and the last report about it; no report if it is not here any more.
pub(crate) type GuestEnd = (Ending, Option<Report>);

/// Runs `machine`'s guest until it ends, is ended, or has moved to another host.
///
/// # Errors
/// [`ProcessError::Vcpu`] if KVM could not go on.
pub(crate) fn run_until_end(
    process: &GuestProcess,
    mut machine: RunningMachine,
) -> Result<GuestEnd, ProcessError> {
    process.board.show_launch(machine.launch());
    process.board.show_devices(machine.watch_devices());
    process.board.show_running(machine.watch_pages());
    let outcome = loop {
        match process.inbox.next() {
            Event::Stopped(stop) => break ending_of(stop),
            Event::Quit => break Ok(Ending::Quit),
            Event::Report => {
                let format = process.options.report.unwrap_or(ReportFormat::Text);
                print_report(&machine.report(), format);
            }
            Event::Request(Request::Migrate(request), answer) => {
                match send_guest(machine, &request, &answer, process)? {
                    Departure::Stayed(running) => machine = *running,
                    Departure::Ended => return ended(process),
                    Departure::Moved => {
                        process.board.show(State::Moved);
                        process.detach_console();
                        return Ok((Ending::Moved, None));
                    }
                }
                process.board.show_running(machine.watch_pages());
            }
            Event::Request(Request::Check(request), answer) => {
                check_guest(&mut machine, &request, &answer, process)?;
            }
            Event::Request(Request::ResizeDisk { id, size }, answer) => {
                answer.give(match machine.resize_disk(&id, size) {
                    Ok(()) => Response::Accepted,
                    Err(cause) => Response::Error { message: chain_of(&cause) },
                });
            }
            Event::Request(Request::Audit, answer) => audit_guest(&mut machine, &answer)?,
            Event::Request(Request::Report, answer) => {
                answer.give(Response::Report(report_json(&machine.report())));
            }
            Event::Request(_, answer) => answer.refuse(NOT_NOW),
        }
    };
    process.board.show(State::Starting);
    process.detach_console();
    let last = machine.stop();
    outcome.map(|ending| (ending, Some(last)))
}

/// The guest has ended by itself, while a migration had it.
fn ended(process: &GuestProcess) -> Result<GuestEnd, ProcessError> {
    // What it shows of the guest's devices would keep them.
    process.board.show(State::Starting);
    process.detach_console();
    let ending = process.inbox.stopped().map_or(Ok(Ending::Quit), ending_of);
    ending.map(|ending| (ending, None))
}

fn ending_of(stop: Stop) -> Result<Ending, ProcessError> {
    match stop {
        Stop::PowerOff => Ok(Ending::PowerOff),
        Stop::Reset => Ok(Ending::Reset),
        Stop::TripleFault => {
            eprintln!("sevferry: the guest crashed (triple fault)");
            Ok(Ending::TripleFault)
        }
        Stop::Failed(cause) => Err(ProcessError::Vcpu(cause)),
    }
}
