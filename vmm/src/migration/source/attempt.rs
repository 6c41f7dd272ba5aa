//! What all phases of an attempt share: the watch, the account, and the deadlines.

use super::error::SourceError;
use super::options::Options;
use super::plan::Plan;
use crate::encryption::NotMigratable;
use crate::machine::{PausedMachine, RunningMachine};
use crate::migration::account::Tally;
use crate::migration::net::{Due, Link, LinkError, Overdue};
use crate::migration::progress::{Outcome, Summary};
use crate::migration::watch::{Watch, cancelled};
use crate::migration::wire::{Message, Secret};

/// A guest that is being moved, running or paused.
pub(super) trait Movable {
    /// Whether the guest allows a migration now.
    fn allows(&self) -> Result<(), NotMigratable>;
}

impl Movable for RunningMachine {
    fn allows(&self) -> Result<(), NotMigratable> {
        self.migratable()
    }
}

impl Movable for PausedMachine {
    fn allows(&self) -> Result<(), NotMigratable> {
        self.migratable()
    }
}

/// One attempt to send a guest, in whatever phase.
pub(super) struct Attempt<'a> {
    pub(super) options: &'a Options,
    pub(super) watch: &'a mut dyn Watch,
    pub(super) plan: Plan,
    pub(super) tally: Tally,
}

/// A destination that has accepted the guest.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) link: Link,
    /// As in the offer.
    pub(super) session: u64,
    /// The key of the proofs of all words about this transfer.
    pub(super) secret: Secret,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(options: &'a Options, watch: &'a mut dyn Watch) -> Self {
        Self { options, watch, plan: Plan::new(options), tally: Tally::default() }
    }

    /// Runs `act`, which waits for the destination. If the attempt is to end meanwhile, `act` is told to stop, and
    /// the error is the reason.
    pub(super) fn unless_ended<T>(
        &mut self,
        guest: &dyn Movable,
        act: impl FnOnce(&Tally, &mut dyn FnMut() -> bool) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        let Self { watch, plan, tally, .. } = self;
        let mut ended = None;
        let mut stop = || {
            ended = ended.take().or_else(|| reason_to_end(guest, plan, tally, *watch));
            ended.is_some()
        };
        let done = act(tally, &mut stop);
        ended.map_or(done, Err)
    }

    /// Sends a message that has an answer.
    pub(super) fn ask(
        &mut self,
        guest: &dyn Movable,
        link: &mut Link,
        message: &Message,
    ) -> Result<(), SourceError> {
        self.unless_ended(guest, |_, stop| Ok(link.ask(message, stop)?))
    }

    /// The destination's next message.
    pub(super) fn answer(
        &mut self,
        guest: &dyn Movable,
        link: &mut Link,
        due: Due,
    ) -> Result<Message, SourceError> {
        let silence = self.options.silence;
        self.unless_ended(guest, |_, stop| {
            let answer = link.answer_unless(due, silence, stop)?;
            Ok(answer.ok_or(LinkError::Lost(Overdue::Unwanted.into()))?)
        })
    }

    /// Waits until the destination has taken all that was sent; `others` gives the bytes on other connections. Only
    /// then its silence begins to count.
    pub(super) fn until_taken(
        &mut self,
        guest: &dyn Movable,
        link: &mut Link,
        others: &dyn Fn() -> usize,
    ) -> Result<(), SourceError> {
        self.unless_ended(guest, |_, stop| Ok(link.until_taken(others, stop)?))
    }

    /// It is over.
    pub(super) fn summary(self, outcome: Outcome) -> Box<Summary> {
        let Self { mut plan, tally, .. } = self;
        plan.account.progress(&tally);
        Box::new(plan.account.summary(outcome))
    }
}

/// The reason to end the attempt, if there is one: a wish, the time, or the guest.
fn reason_to_end(
    guest: &dyn Movable,
    plan: &mut Plan,
    tally: &Tally,
    watch: &mut dyn Watch,
) -> Option<SourceError> {
    if let Some(reason) = cancelled(watch, plan.account.progress(tally)) {
        return Some(SourceError::Cancelled(reason));
    }
    let late = plan.check().err().map(SourceError::from);
    late.or_else(|| guest.allows().err().map(SourceError::from))
}
