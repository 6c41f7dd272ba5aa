//! The outgoing half: a list of phases, and one way back ([`stay`]) when any of them fails.

mod attempt;
mod error;
mod handover;
mod offer;
mod options;
mod plan;
pub(crate) mod rounds;
pub(crate) mod sender;
mod stay;
mod transfer;

pub use error::SourceError;
pub(crate) use offer::{connect, described};
pub use options::Options;
pub use stay::Ended;

use std::sync::mpsc::Sender;

use self::attempt::Attempt;
use self::handover::Handing;
use self::offer::Offering;
use self::transfer::{LastRound, Transferring};
use crate::machine::RunningMachine;
use crate::migration::handover::journal::Journal;
use crate::migration::watch::Watch;
use crate::vcpu::{Stop, VcpuError};

/// Sends `machine`, unless `watch` cancels it.
///
/// # Errors
/// [`VcpuError`] if the guest could not be resumed: it is lost.
pub fn send<E>(
    machine: RunningMachine,
    options: &Options,
    journal: &mut Journal,
    events: &Sender<E>,
    watch: &mut dyn Watch,
) -> Result<Ended, VcpuError>
where
    E: From<Stop> + Send + 'static,
{
    let attempt = Attempt::new(options, watch);
    let sent =
        Offering { attempt, machine }.run().and_then(Transferring::run).and_then(LastRound::run);
    match sent {
        Ok(handing) => Handing::run(handing, journal, events),
        Err(given_up) => given_up.end(events),
    }
}
