//! `sevferry receive`: waits for a guest from another host, then is its console until it ends.

use std::io::Error as IoError;

use thiserror::Error;

use super::exit::Ending;
use super::incoming::receive_guest;
use super::journals::{NoJournal, open_journal};
use super::migration_arguments::ReceiveOptions;
use super::owner::{Owner, OwnerError, warn_about};
use super::report;
use crate::control::api::State;
use crate::migration::destination::keep_answering;
use crate::migration::journal::Side;
use crate::migration::{Endpoint, Listener, NoSocket};
use crate::vcpu::VcpuError;

/// Waits for a guest and stays until it or the user ends it, or it has moved away.
///
/// # Errors
/// [`ReceiveError`].
pub(super) fn receive(options: &ReceiveOptions) -> Result<Ending, ReceiveError> {
    warn_about(options.platform.as_ref().map(|platform| &platform.kind));
    let listen = |cause| ReceiveError::Listen { endpoint: options.listen.clone(), cause };
    let mut listener = Listener::bind(&options.listen).map_err(listen)?;
    let mut owner = Owner::prepare(&options.serial, options.owner.clone(), State::Waiting)?;
    eprintln!("sevferry: waiting for a guest at {}", options.listen);
    let Some((machine, answering)) = receive_guest(&listener, options, &owner)? else {
        return Ok(Ending::Quit);
    };
    // The source may not have heard that its guest runs here. The next guest is another process's.
    let _removed_in_the_end = listener.take_file();
    let directory = options.owner.journal.clone();
    let journal =
        move |vm| open_journal(directory.as_deref(), vm, Side::Destination).map_err(IoError::other);
    keep_answering(listener, answering, journal).map_err(ReceiveError::Thread)?;
    owner.attach_console(machine.serial());
    let ended = owner.wait(machine);
    // Before anything else is printed, and whatever the ending.
    owner.leave_terminal();
    let (ending, last) = ended?;
    if let Some((format, last)) = options.owner.report.zip(last) {
        report::print(&last, format);
    }
    if ending == Ending::Reset {
        eprintln!("sevferry: the guest asked for a reset; only `sevferry run` can boot it again");
    }
    Ok(ending)
}

/// Why `sevferry receive` failed.
#[derive(Debug, Error)]
pub(super) enum ReceiveError {
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
    Owner(#[from] OwnerError),
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
