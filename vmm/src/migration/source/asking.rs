//! What the source says to the destination and hears from it before the handover: for as long as the
//! user, the clock and the guest let it.

use std::mem::take;

use super::plan::Plan;
use super::sender::PageSender;
use super::{Attempt, Guest, Options, SourceError};
use crate::migration::account::Tally;
use crate::migration::net::{Due, Link, LinkError};
use crate::migration::watch::{Watch, cancelled};
use crate::migration::wire::Message;

impl Attempt<'_> {
    /// The destination's next word, unless the user wants no more or the time is over meanwhile.
    pub(crate) fn answer(
        &mut self,
        due: Due,
        watch: &mut dyn Watch,
    ) -> Result<Message, SourceError> {
        let silence = self.options.silence;
        let answer = self.on_link(watch, |link, stop| link.answer_unless(due, silence, stop))?;
        answer.ok_or(SourceError::Gone)
    }

    /// Says what has an answer, likewise.
    pub(crate) fn ask(
        &mut self,
        message: &Message,
        watch: &mut dyn Watch,
    ) -> Result<(), SourceError> {
        self.on_link(watch, |link, stop| link.ask(message, stop))
    }

    /// Waits until the destination has taken what was sent; from then on it may be silent for so long.
    pub(crate) fn until_taken(&mut self, watch: &mut dyn Watch) -> Result<(), SourceError> {
        let senders = take(&mut self.senders);
        let others = || senders.iter().map(PageSender::not_taken).sum();
        let taken = self.on_link(watch, |link, stop| link.until_taken(&others, stop));
        self.senders = senders;
        taken
    }

    pub(crate) fn on_link<T>(
        &mut self,
        watch: &mut dyn Watch,
        act: impl FnOnce(&mut Link, &mut dyn FnMut() -> bool) -> Result<T, LinkError>,
    ) -> Result<T, SourceError> {
        self.unless_ended(watch, |link, _, stop| {
            Ok(act(link.as_mut().ok_or(SourceError::Gone)?, stop)?)
        })
    }

    /// Does what waits for the destination; why the attempt is to end, if it is by then.
    pub(crate) fn unless_ended<T>(
        &mut self,
        watch: &mut dyn Watch,
        act: impl FnOnce(
            &mut Option<Link>,
            &Options,
            &mut dyn FnMut() -> bool,
        ) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        let (mut ended, plan, tally) = (None, &mut self.plan, &self.tally);
        let guest = &self.guest;
        let mut stop = || {
            ended = ended.take().or_else(|| reason_to_end(guest, plan, tally, watch));
            ended.is_some()
        };
        let done = act(&mut self.link, self.options, &mut stop);
        ended.map_or(done, Err)
    }
}

/// What the user wants, the time, or what the guest says, if that ends the attempt.
pub(crate) fn reason_to_end(
    guest: &Guest,
    plan: &mut Plan,
    tally: &Tally,
    watch: &mut dyn Watch,
) -> Option<SourceError> {
    if let Some(reason) = cancelled(watch, plan.account.progress(tally)) {
        return Some(SourceError::Cancelled(reason));
    }
    let late = plan.check().err().map(SourceError::from);
    late.or_else(|| guest.migratable().err().map(SourceError::from))
}
