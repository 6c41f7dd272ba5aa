//! A guest that runs, until it ends or has moved: its process does what it is asked to.

use super::audit::audit_guest;
use super::guest_process::{GuestProcess, ProcessError};
use super::outgoing::{Sent, check_guest, send_guest};
use crate::cli::arguments::ReportFormat;
use crate::cli::exit::Ending;
use crate::cli::show::{print_report, report_json};
use crate::control::Event;
use crate::control::api::{Request, Response, State};
use crate::control::policy::NOT_NOW;
use crate::machine::{Report, RunningMachine};
use crate::text::chain_of;
use crate::vcpu::Stop;

/// How a guest ended, and what could be said about it last; nothing if it is gone.
pub(crate) type Ended = (Ending, Option<Report>);

/// Runs `machine`'s guest until it ends, is ended, or has moved to another host.
///
/// # Errors
/// [`ProcessError::Vcpu`] if KVM could not go on.
pub(crate) fn run_until_end(
    process: &GuestProcess,
    mut machine: RunningMachine,
) -> Result<Ended, ProcessError> {
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
                    Sent::Stayed(running) => machine = *running,
                    Sent::Ended => return ended(process),
                    Sent::Moved => {
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

/// The guest has ended of its own, while it was not with us.
fn ended(process: &GuestProcess) -> Result<Ended, ProcessError> {
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
