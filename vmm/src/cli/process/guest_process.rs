//! The parts of a guest's process that live longer than a machine: the console, the signals and the API socket.

use std::cell::{Cell, RefCell};
use std::io::{Error as IoError, stdin, stdout};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use getrandom::Error as RandomError;
use thiserror::Error;

use super::console::{Console, RawTerminal};
use super::inbox::Inbox;
use super::journals::finish_handovers;
use super::signals::forward_signals;
use crate::cli::arguments::ProcessOptions;
use crate::control::api::State;
use crate::control::{Event, Server, ServerError, StatusBoard};
use crate::devices::{SerialOutput, SerialPort};
use crate::machine::config::{PlatformKind, Serial};
use crate::migration::wire::{ABANDONED_MAX, Abandoned, Transfer, VmId};
use crate::stream::open_to_append;
use crate::vcpu::VcpuError;

/// Printed whenever the software platform is used.
const SOFTWARE_WARNING: &str = "the software SEV platform gives NO confidentiality: it is for \
     development and tests, and its keys live in this process";

/// A process that has a guest, or waits for one. One thread runs it. It waits for events and requests.
#[derive(Debug)]
pub(crate) struct GuestProcess {
    /// Dropped before the server, so that a client that still waits is told that there is no answer.
    pub(crate) inbox: Inbox,
    pub(crate) events: Sender<Event>,
    pub(crate) board: Arc<StatusBoard>,
    console: Console,
    terminal: Option<RawTerminal>,
    _server: Option<Server>,
    pub(crate) options: ProcessOptions,
    /// Whether a guest that resets boots again.
    pub(crate) reboots: bool,
    /// Where what the guest writes to its serial port goes.
    pub(crate) output: SerialOutput,
    /// The guest's identity, and the last attempt to move it.
    transfer: Cell<Transfer>,
    /// Attempts after which the guest ran on here, the latest last.
    abandoned: RefCell<Vec<Abandoned>>,
}

impl GuestProcess {
    /// Takes the serial port's output, the terminal, the signals and the API socket.
    ///
    /// # Errors
    /// [`ProcessError`] with what could not be had.
    pub(crate) fn prepare(
        serial: &Serial,
        options: ProcessOptions,
        state: State,
    ) -> Result<Self, ProcessError> {
        let output = serial_output(serial)?;
        let (events, happened) = channel();
        forward_signals(events.clone()).map_err(ProcessError::Signals)?;
        let board = Arc::new(StatusBoard::new(state));
        let serve = |path: &PathBuf| Server::start(path, Arc::clone(&board), events.clone());
        let server = options.api_socket.as_ref().map(serve).transpose()?;
        let (console, mut terminal) = (Console::default(), None);
        if *serial == Serial::Tty {
            terminal = RawTerminal::enter().map_err(ProcessError::Terminal)?;
            let keys = terminal.is_some();
            console.read_input(stdin(), events.clone(), keys).map_err(ProcessError::Terminal)?;
        }
        if terminal.is_some() {
            eprintln!("sevferry: Ctrl-A x ends the guest, Ctrl-A h helps");
        }
        finish_handovers(options.journal.as_deref());
        let inbox = Inbox::new(happened, Arc::clone(&board));
        let vm = VmId::random().map_err(ProcessError::Identity)?;
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
    pub(crate) fn next_transfer(&self) -> Transfer {
        let next = self.following_transfer();
        self.transfer.set(next);
        next
    }

    /// What [`GuestProcess::next_transfer`] will give.
    pub(crate) fn following_transfer(&self) -> Transfer {
        let Transfer { vm, epoch } = self.transfer.get();
        Transfer { vm, epoch: epoch.saturating_add(1) }
    }

    /// The earlier attempts that the next offer names: a copy that one of them has left at a host is useless.
    pub(crate) fn abandoned(&self) -> Vec<Abandoned> {
        self.abandoned.borrow().clone()
    }

    /// The guest runs on here after an attempt. If there are too many, the first are forgotten: a copy that one of
    /// those has left is for a person to discard.
    pub(crate) fn abandon(&self, attempt: Option<Abandoned>) {
        let mut all = self.abandoned.borrow_mut();
        all.extend(attempt);
        let too_many = all.len().saturating_sub(ABANDONED_MAX as usize);
        all.drain(..too_many);
    }

    /// The guest came with this transfer, and keeps its identity.
    pub(crate) fn adopt(&self, transfer: Transfer) {
        self.transfer.set(transfer);
    }

    /// Sets the terminal back to what it was before. Only sevferry prints to it from now on.
    pub(crate) fn leave_terminal(&mut self) {
        self.terminal = None;
    }

    /// The terminal is the console of the guest with this port from now on.
    pub(crate) fn attach_console(&self, port: Arc<SerialPort>) {
        self.console.attach(Some(port));
    }

    /// No guest takes what is typed from now on.
    pub(crate) fn detach_console(&self) {
        self.console.attach(None);
    }
}

/// Warns if `platform` keeps nothing secret.
pub(crate) fn warn_about(platform: Option<&PlatformKind>) {
    if let Some(PlatformKind::Software { .. }) = platform {
        eprintln!("sevferry: warning: {SOFTWARE_WARNING}");
    }
}

/// Where what the guest writes to its serial port goes: opened once, before there is a guest.
fn serial_output(serial: &Serial) -> Result<SerialOutput, ProcessError> {
    match serial {
        // Not through Rust's own buffer, which loses what a non-blocking stream does not take.
        Serial::Tty => {
            let descriptor = stdout().as_fd().try_clone_to_owned().map_err(ProcessError::Output)?;
            Ok(SerialOutput::to(descriptor))
        }
        Serial::Null => Ok(SerialOutput::nowhere()),
        Serial::File(path) => open_to_append(path)
            .map(SerialOutput::to)
            .map_err(|cause| ProcessError::SerialFile { path: path.clone(), cause }),
    }
}

/// Why a guest cannot be owned, or not any longer.
#[derive(Debug, Error)]
pub(crate) enum ProcessError {
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
