//! The owner of a guest: one thread that waits for what happens, and for what is asked.

use std::cell::{Cell, RefCell};
use std::io::{Error as IoError, stdin, stdout};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::Builder;

use getrandom::Error as RandomError;
use libc::{SIGPWR, SIGRTMAX, SIGRTMIN, SIGSTKFLT};
use log::debug;
use signal_hook::consts::{SIGALRM, SIGHUP, SIGINT, SIGIO, SIGPROF, SIGQUIT, SIGTERM};
use signal_hook::consts::{SIGUSR1, SIGUSR2, SIGVTALRM, SIGXCPU, SIGXFSZ};
use signal_hook::iterator::Signals;
use thiserror::Error;

use super::arguments::{OwnerOptions, ReportFormat};
use super::audit::audit_guest;
use super::exit::Ending;
use super::inbox::Inbox;
use super::journals::finish_handovers;
use super::outgoing::{Sent, check_guest, send_guest};
use super::report;
use super::terminal::{Console, RawTerminal};
use crate::control::api::{Request, Response, State};
use crate::control::{Event, Server, ServerError, StatusBoard};
use crate::devices::{SerialOutput, SerialPort};
use crate::machine::config::{PlatformKind, Serial};
use crate::machine::{Report, RunningMachine};
use crate::migration::frame::ABANDONED_MAX;
use crate::migration::message::{Abandoned, Transfer, VmId};
use crate::stream::open_to_append;
use crate::vcpu::{Stop, VcpuError};

/// Printed whenever the software platform is used.
const SOFTWARE_WARNING: &str = "the software SEV platform gives NO confidentiality: it is for \
     development and tests, and its keys live in this process";

/// What outlives a machine: its console, its signals and its API socket.
#[derive(Debug)]
pub(super) struct Owner {
    /// Dropped before the server, so that whoever still waits is told that there is no answer.
    pub(super) inbox: Inbox,
    pub(super) events: Sender<Event>,
    pub(super) board: Arc<StatusBoard>,
    console: Console,
    terminal: Option<RawTerminal>,
    _server: Option<Server>,
    pub(super) options: OwnerOptions,
    /// Whether a guest that resets boots again.
    pub(super) reboots: bool,
    /// Where what the guest writes to its serial port goes.
    pub(super) output: SerialOutput,
    /// The guest's identity, and the last attempt to move it.
    transfer: Cell<Transfer>,
    /// Attempts after which the guest ran on here, the last ones last.
    abandoned: RefCell<Vec<Abandoned>>,
}

/// How a guest ended, and what could be said about it last; nothing if it is gone.
pub(super) type Ended = (Ending, Option<Report>);

impl Owner {
    /// Takes the serial port's output, the terminal, the signals and the API socket.
    ///
    /// # Errors
    /// [`OwnerError`] with what could not be had.
    pub(super) fn prepare(
        serial: &Serial,
        options: OwnerOptions,
        state: State,
    ) -> Result<Self, OwnerError> {
        let output = serial_output(serial)?;
        let (events, happened) = channel();
        forward_signals(events.clone()).map_err(OwnerError::Signals)?;
        let board = Arc::new(StatusBoard::new(state));
        let serve = |path: &PathBuf| Server::start(path, Arc::clone(&board), events.clone());
        let server = options.api_socket.as_ref().map(serve).transpose()?;
        let (console, mut terminal) = (Console::default(), None);
        if *serial == Serial::Tty {
            terminal = RawTerminal::enter().map_err(OwnerError::Terminal)?;
            let keys = terminal.is_some();
            console.read_input(stdin(), events.clone(), keys).map_err(OwnerError::Terminal)?;
        }
        if terminal.is_some() {
            eprintln!("sevferry: Ctrl-A x ends the guest, Ctrl-A h helps");
        }
        finish_handovers(options.journal.as_deref());
        let inbox = Inbox::new(happened);
        let vm = VmId::random().map_err(OwnerError::Identity)?;
        Ok(Self {
            inbox,
            events,
            board,
            console,
            terminal,
            _server: server,
            options,
            reboots: false,
            output,
            transfer: Cell::new(Transfer { vm, epoch: 0 }),
            abandoned: RefCell::default(),
        })
    }

    /// The next attempt to move the guest.
    pub(super) fn next_transfer(&self) -> Transfer {
        let next = self.following_transfer();
        self.transfer.set(next);
        next
    }

    /// What [`Owner::next_transfer`] will give.
    pub(super) fn following_transfer(&self) -> Transfer {
        let Transfer { vm, epoch } = self.transfer.get();
        Transfer { vm, epoch: epoch.saturating_add(1) }
    }

    /// What the next offer says of earlier ones: wherever a copy has stayed, it is of no use.
    pub(super) fn abandoned(&self) -> Vec<Abandoned> {
        self.abandoned.borrow().clone()
    }

    /// The guest runs on here after an attempt. Of very many, the first are forgotten: if a copy has
    /// stayed of one of those, a person discards it there.
    pub(super) fn abandon(&self, attempt: Option<Abandoned>) {
        let mut all = self.abandoned.borrow_mut();
        all.extend(attempt);
        let too_many = all.len().saturating_sub(ABANDONED_MAX as usize);
        all.drain(..too_many);
    }

    /// The guest came with this transfer, and keeps its identity.
    pub(super) fn adopt(&self, transfer: Transfer) {
        self.transfer.set(transfer);
    }

    /// The terminal is as it was before: what is printed from now on is ours.
    pub(super) fn leave_terminal(&mut self) {
        self.terminal = None;
    }

    /// The terminal is the console of the guest with this port from now on.
    pub(super) fn attach_console(&self, port: Arc<SerialPort>) {
        self.console.attach(Some(port));
    }

    /// Runs `machine`'s guest until it ends, is ended, or has moved to another host.
    ///
    /// # Errors
    /// [`OwnerError::Vcpu`] if KVM could not go on.
    pub(super) fn wait(&self, mut machine: RunningMachine) -> Result<Ended, OwnerError> {
        self.board.show_launch(machine.launch());
        self.board.show_running(machine.watch_pages());
        let outcome = loop {
            match self.inbox.next() {
                Event::Stopped(stop) => break ending_of(stop),
                Event::Quit => break Ok(Ending::Quit),
                Event::Report => {
                    let format = self.options.report.unwrap_or(ReportFormat::Text);
                    report::print(&machine.report(), format);
                }
                Event::Request(Request::Quit, answer) => {
                    answer.give(Response::Accepted);
                    break Ok(Ending::Quit);
                }
                Event::Request(Request::Migrate(request), answer) => {
                    match send_guest(machine, &request, &answer, self)? {
                        Sent::Stayed(running) => machine = *running,
                        Sent::Ended => return self.ended(),
                        Sent::Moved => {
                            self.board.show(State::Moved);
                            self.console.attach(None);
                            return Ok((Ending::Moved, None));
                        }
                    }
                    self.board.show_running(machine.watch_pages());
                }
                Event::Request(Request::Check(request), answer) => {
                    match check_guest(machine, &request, &answer, self)? {
                        Sent::Stayed(running) => machine = *running,
                        Sent::Ended | Sent::Moved => return self.ended(),
                    }
                }
                Event::Request(Request::Audit, answer) => {
                    match audit_guest(machine, &answer, self)? {
                        Sent::Stayed(running) => machine = *running,
                        Sent::Ended | Sent::Moved => return self.ended(),
                    }
                }
                Event::Request(request, answer) => {
                    answer.give(self.response_to(&request, &mut machine));
                }
            }
        };
        self.board.show(State::Starting);
        self.console.attach(None);
        let last = machine.stop();
        outcome.map(|ending| (ending, Some(last)))
    }

    /// The guest has ended of its own, while it was not with us.
    fn ended(&self) -> Result<Ended, OwnerError> {
        self.console.attach(None);
        let ending = self.inbox.stopped().map_or(Ok(Ending::Quit), ending_of);
        ending.map(|ending| (ending, None))
    }

    /// The one response to a request that leaves the guest as it is.
    fn response_to(&self, request: &Request, machine: &mut RunningMachine) -> Response {
        let refused = |reason: &str| Response::Refused { reason: reason.to_owned() };
        match request {
            Request::Status => self.board.status(),
            Request::Cancel => self.board.cancel(),
            Request::Report => Response::Report(report::as_json(&machine.report())),
            Request::Resolve(_) => refused("no handover is in doubt: the guest runs here"),
            Request::Continue => refused("the guest runs already"),
            Request::InjectSecret(_) => refused(
                "the guest runs already: it takes secrets only before, so start it with --paused",
            ),
            Request::Audit | Request::Migrate(_) | Request::Check(_) | Request::Quit => {
                refused("the guest is busy")
            }
        }
    }
}

fn ending_of(stop: Stop) -> Result<Ending, OwnerError> {
    match stop {
        Stop::PowerOff => Ok(Ending::PowerOff),
        Stop::Reset => Ok(Ending::Reset),
        Stop::TripleFault => {
            eprintln!("sevferry: the guest crashed (triple fault)");
            Ok(Ending::TripleFault)
        }
        Stop::Failed(cause) => Err(OwnerError::Vcpu(cause)),
    }
}

/// Warns if `platform` keeps nothing secret.
pub(super) fn warn_about(platform: Option<&PlatformKind>) {
    if let Some(PlatformKind::Software { .. }) = platform {
        eprintln!("sevferry: warning: {SOFTWARE_WARNING}");
    }
}

/// Where what the guest writes to its serial port goes: opened once, before there is a guest.
fn serial_output(serial: &Serial) -> Result<SerialOutput, OwnerError> {
    match serial {
        // Not through Rust's own buffer, which loses what a non-blocking stream does not take.
        Serial::Tty => {
            let descriptor = stdout().as_fd().try_clone_to_owned().map_err(OwnerError::Output)?;
            Ok(SerialOutput::to(descriptor))
        }
        Serial::Null => Ok(SerialOutput::nowhere()),
        Serial::File(path) => open_to_append(path)
            .map(SerialOutput::to)
            .map_err(|cause| OwnerError::SerialFile { path: path.clone(), cause }),
    }
}

/// Signals that would end the process at once, and leave the terminal raw and the sockets behind: they
/// end the guest in order. Those of a program that has gone wrong (SIGSEGV and its like) are not among
/// them. SIGPWR and SIGSTKFLT have no names in `signal_hook`.
const ENDING: [i32; 12] = [
    SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR2, SIGALRM, SIGVTALRM, SIGPROF, SIGIO, SIGXCPU, SIGPWR,
    SIGSTKFLT,
];

/// [`ENDING`] and the real-time signals end the guest; but the first of these brings vCPUs out of the
/// guest. SIGUSR1 asks for a report. SIGXFSZ would end it too: a file that may not grow any more fails
/// its writer and nobody else.
fn forward_signals(events: Sender<Event>) -> Result<(), IoError> {
    let real_time = SIGRTMIN() + 1..=SIGRTMAX();
    let mut signals = Signals::new(ENDING.into_iter().chain(real_time).chain([SIGUSR1, SIGXFSZ]))?;
    let forward = move || {
        for signal in signals.forever() {
            debug!("signal {signal}");
            let event = match signal {
                SIGXFSZ => continue,
                SIGUSR1 => Event::Report,
                _ => Event::Quit,
            };
            if events.send(event).is_err() {
                return;
            }
        }
    };
    Builder::new().name("signals".to_owned()).spawn(forward).map(|_detached| ())
}

/// Why a guest cannot be owned, or not any longer.
#[derive(Debug, Error)]
pub(super) enum OwnerError {
    /// No signal handlers.
    #[error("preparing for signals")]
    Signals(#[source] IoError),
    /// The terminal.
    #[error("using standard input as the guest's serial console; try --serial null")]
    Terminal(#[source] IoError),
    /// Standard output, for the guest.
    #[error("using standard output for the guest's serial console; try --serial null")]
    Output(#[source] IoError),
    /// The file of `--serial file=`.
    #[error("opening {} for the guest's serial output", path.display())]
    SerialFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: IoError,
    },
    /// The API socket.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// No randomness.
    #[error("choosing an identity for the guest")]
    Identity(#[source] RandomError),
    /// A vCPU.
    #[error(transparent)]
    Vcpu(VcpuError),
}
