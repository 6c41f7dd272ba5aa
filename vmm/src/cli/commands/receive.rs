//! `sevferry receive`: waits for a guest from another host, then is its console until it ends.

use std::io::Error as IoError;

use thiserror::Error;

use crate::cli::arguments::ReceiveOptions;
use crate::cli::exit::Ending;
use crate::cli::process::{
    GuestProcess, NoJournal, ProcessError, open_journal, receive_guest, run_until_end, warn_about,
};
use crate::cli::show::print_report;
use crate::control::api::State;
use crate::migration::destination::keep_answering;
use crate::migration::journal::Side;
use crate::migration::{Endpoint, Listener};
use crate::socket_file::NoSocket;
use crate::vcpu::VcpuError;

/// Waits for a guest and stays until it or the user ends it, or it has moved away.
///
/// # Errors
/// [`ReceiveCommandError`].
pub(crate) fn receive(options: &ReceiveOptions) -> Result<Ending, ReceiveCommandError> {
    warn_about(options.platform.as_ref().map(|platform| &platform.kind));
    let listen = |cause| ReceiveCommandError::Listen { endpoint: options.listen.clone(), cause };
    let mut listener = Listener::bind(&options.listen).map_err(listen)?;
    let mut process =
        GuestProcess::prepare(&options.serial, options.process.clone(), State::Waiting)?;
    eprintln!("sevferry: waiting for a guest at {}", options.listen);
    let Some((machine, answering)) =
        receive_guest(&listener, options, &process).map_err(ReceiveCommandError::Vcpu)?
    else {
        return Ok(Ending::Quit);
    };
    // The source may not have heard that its guest runs here. The next guest is another process's.
    let _removed_in_the_end = listener.take_file();
    let directory = options.process.journal.clone();
    let journal =
        move |vm| open_journal(directory.as_deref(), vm, Side::Destination).map_err(IoError::other);
    keep_answering(listener, answering, journal).map_err(ReceiveCommandError::Thread)?;
    process.attach_console(machine.serial());
    let ended = run_until_end(&process, machine);
    // Before anything else is printed, and whatever the ending.
    process.leave_terminal();
    let (ending, last) = ended?;
    if let Some((format, last)) = options.process.report.zip(last) {
        print_report(&last, format);
    }
    if ending == Ending::Reset {
        eprintln!("sevferry: the guest asked for a reset; only `sevferry run` can boot it again");
    }
    Ok(ending)
}

/// Why `sevferry receive` failed.
#[derive(Debug, Error)]
pub(crate) enum ReceiveCommandError {
    /// No guest can reach us.
    #[error("listening at {endpoint}")]
    Listen {
        /// Where.
        endpoint: Endpoint,
        /// Why not.
        #[source]
        cause: NoSocket,
    },
    /// The console, the signals, the API socket, or a vCPU.
    #[error(transparent)]
    Process(#[from] ProcessError),
    /// The host has no thread to give.
    #[error("starting a thread that answers the source")]
    Thread(#[source] IoError),
    /// No journal.
    #[error(transparent)]
    Journal(#[from] NoJournal),
    /// The guest that came cannot run.
    #[error(transparent)]
    Vcpu(VcpuError),
}
