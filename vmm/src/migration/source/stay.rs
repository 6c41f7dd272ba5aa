//! The way back from every phase: cancels the transfer at the firmware, resumes the guest, and tells the destination.

use std::sync::mpsc::Sender;

use log::warn;

use super::attempt::{Attempt, Peer};
use super::error::SourceError;
use super::rounds::Rounds;
use crate::devices::virtio::NotHeld;
use crate::machine::{PausedMachine, RunningMachine};
use crate::migration::net::Link;
use crate::migration::progress::{Outcome, Summary};
use crate::migration::wire::{Abandoned, Message, Reason, Say, Secret, Word};
use crate::sev::launch::Launched;
use crate::sev::send::Sending;
use crate::text::chain_of;
use crate::vcpu::{Stop, VcpuError};

/// How an attempt ended.
#[derive(Debug)]
pub enum Ended {
    /// The guest runs at the destination, and nothing of it is left here.
    Moved(Box<Summary>),
    /// The guest runs here.
    Stayed {
        /// The guest; `None` if it ended by itself.
        machine: Option<Box<RunningMachine>>,
        /// What was done, and why it was not moved.
        summary: Box<Summary>,
        /// What the next offer of the guest says about this attempt.
        abandoned: Option<Abandoned>,
    },
}

/// A guest at the source, in the state in which an attempt has left it.
#[derive(Debug)]
pub(super) enum Kept {
    Running(RunningMachine),
    Paused(PausedMachine),
    /// It ended by itself.
    Ended,
}

/// A guest, and what must be undone before it runs on as if nothing had been tried.
#[derive(Debug)]
pub(super) struct Stay {
    pub(super) guest: Kept,
    /// The firmware's transfer, if it has begun.
    pub(super) sending: Option<Sending>,
    /// The log of what the guest writes, if it has begun.
    pub(super) rounds: Option<Rounds>,
    /// Whether the guest may have been slowed down.
    pub(super) is_slowed: bool,
}

impl Stay {
    /// For a guest to which nothing was done yet.
    pub(super) fn running(machine: RunningMachine) -> Self {
        let guest = Kept::Running(machine);
        Self { guest, sending: None, rounds: None, is_slowed: false }
    }

    /// Stops the log, cancels at the firmware (`SEND_CANCEL`), gives the guest its full speed, and resumes it. `None`
    /// if the guest has ended.
    ///
    /// # Errors
    /// [`VcpuError`] if it could not be resumed: it is lost.
    pub(super) fn resume<E>(self, events: &Sender<E>) -> Result<Option<RunningMachine>, VcpuError>
    where
        E: From<Stop> + Send + 'static,
    {
        let Self { guest, sending, rounds, is_slowed } = self;
        if let Some(Err(cause)) = rounds.map(Rounds::stop) {
            warn!("stopping to log the guest's writes: {cause}");
        }
        let launched = sending.and_then(cancelled);
        let mut machine = match guest {
            Kept::Running(mut machine) => {
                if is_slowed && let Err(cause) = machine.throttle(0) {
                    warn!("giving the guest its full speed back: {}", chain_of(&cause));
                }
                machine
            }
            Kept::Paused(paused) => paused.resume(events)?,
            Kept::Ended => return Ok(None),
        };
        if let Some(launched) = launched {
            machine.put_launched_back(launched);
        }
        Ok(Some(machine))
    }

    /// Takes what only one guest may have, as the locks of its disks: it is to run on here.
    ///
    /// # Errors
    /// [`NotHeld`] if somebody else has it.
    pub(super) fn hold(&self) -> Result<(), NotHeld> {
        match &self.guest {
            Kept::Paused(paused) => paused.hold(),
            Kept::Running(_) | Kept::Ended => Ok(()),
        }
    }

    /// Lets go of that: it may run elsewhere.
    pub(super) fn let_go(&self) {
        if let Kept::Paused(paused) = &self.guest {
            paused.let_go();
        }
    }

    /// `SEND_FINISH`. From now on the guest is the destination's, even if the firmware fails.
    pub(super) fn finish_sending(&mut self) {
        if let Some(Err(cause)) = self.sending.take().map(Sending::finish) {
            let cause = chain_of(&cause);
            warn!("{cause}; the guest is the destination's all the same");
        }
    }
}

/// `SEND_CANCEL`, twice if the first fails: firmware that fails once may not fail again.
fn cancelled(sending: Sending) -> Option<Launched> {
    let again = match sending.cancel() {
        Ok(launched) => return Some(launched),
        Err(refused) if refused.cause.is_unknown_command() => Err(refused),
        Err(refused) => {
            warn!("{}; trying once more", chain_of(&refused.cause));
            refused.sending.cancel()
        }
    };
    again
        .inspect_err(|refused| {
            let cause = chain_of(&refused.cause);
            warn!("{cause}; the guest runs on, but cannot be sent again");
        })
        .ok()
}

/// The peer that must be told that the attempt is over.
#[derive(Debug)]
pub(super) enum Told {
    /// There is no connection.
    Nobody,
    /// A destination that has not accepted the guest.
    Asked(Link),
    /// A destination that has accepted it.
    Accepted(Link, Secret),
}

/// An attempt that has failed before the handover.
pub(super) struct GivenUp<'a> {
    attempt: Attempt<'a>,
    stay: Stay,
    told: Told,
    cause: SourceError,
}

impl<'a> GivenUp<'a> {
    pub(super) fn new(
        attempt: Attempt<'a>,
        stay: Stay,
        told: Told,
        cause: SourceError,
    ) -> Box<Self> {
        Box::new(Self { attempt, stay, told, cause })
    }

    /// After the destination has accepted.
    pub(super) fn with(
        attempt: Attempt<'a>,
        stay: Stay,
        peer: Peer,
        cause: SourceError,
    ) -> Box<Self> {
        Self::new(attempt, stay, Told::Accepted(peer.link, peer.secret), cause)
    }

    /// The guest is resumed first, because telling the destination can fail.
    ///
    /// # Errors
    /// As [`Stay::resume`].
    pub(super) fn end<E>(self, events: &Sender<E>) -> Result<Ended, VcpuError>
    where
        E: From<Stop> + Send + 'static,
    {
        let Self { attempt, stay, told, cause } = self;
        let transfer = attempt.options.transfer;
        let reason = chain_of(&cause);
        let machine = stay.resume(events)?;
        let for_people = Reason::new(&reason);
        // It may be gone. Then it gives up by itself.
        let abandoned = match told {
            Told::Nobody => None,
            Told::Asked(mut link) => {
                link.say(&Message::Refuse { reason: for_people }).unwrap_or_default();
                None
            }
            Told::Accepted(mut link, secret) => {
                let word = Word::new(&secret, transfer, Say::Abandon(for_people));
                link.say(&word.into()).unwrap_or_default();
                Some(Abandoned::new(&secret, transfer))
            }
        };
        Ok(stayed(attempt, machine, reason, abandoned))
    }
}

/// A guest that was not sent runs here, or ended while it was being sent.
pub(super) fn stayed(
    attempt: Attempt<'_>,
    machine: Option<RunningMachine>,
    reason: String,
    abandoned: Option<Abandoned>,
) -> Ended {
    let outcome = if machine.is_some() { Outcome::Kept(reason) } else { Outcome::Failed(reason) };
    Ended::Stayed { machine: machine.map(Box::new), summary: attempt.summary(outcome), abandoned }
}
