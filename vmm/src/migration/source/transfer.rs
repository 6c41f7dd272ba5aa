//! Sends the pages: rounds while the guest runs, then the last round and the machine's state while it is paused.

use std::time::Duration;

use log::warn;

use super::attempt::{Attempt, Movable, Peer};
use super::error::SourceError;
use super::handover::Handing;
use super::rounds::Rounds;
use super::sender::{PageSender, SenderError};
use super::stay::{GivenUp, Kept, Stay};
use crate::machine::{PausedMachine, RunningMachine, Unpaused};
use crate::migration::convergence::Decision;
use crate::migration::net::{Due, Link, LinkError};
use crate::migration::progress::Phase;
use crate::migration::wire::{Closing, Kind, Message, Say, Word};
use crate::sev::send::Sending;
use crate::text::chain_of;

/// How long a destination may take to say why it closed a page connection.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// What sends pages.
#[derive(Debug)]
pub(super) struct PageFlow {
    /// Seals private pages; `None` for a plain VM.
    pub(super) sending: Option<Sending>,
    pub(super) senders: Vec<PageSender>,
    pub(super) rounds: Rounds,
}

/// A guest that runs while its pages are sent.
pub(super) struct Transferring<'a> {
    pub(super) attempt: Attempt<'a>,
    pub(super) machine: RunningMachine,
    pub(super) peer: Peer,
    pub(super) flow: PageFlow,
}

impl<'a> Transferring<'a> {
    /// Sends all of RAM, then what changed meanwhile, until the rest fits into the downtime; then pauses the guest.
    pub(super) fn run(mut self) -> Result<LastRound<'a>, Box<GivenUp<'a>>> {
        let converged = self.send_rounds();
        let Self { mut attempt, machine, peer, flow } = self;
        let is_slowed = attempt.options.throttle;
        let stay = |guest, PageFlow { sending, rounds, .. }: PageFlow| Stay {
            guest,
            sending,
            rounds: Some(rounds),
            is_slowed,
        };
        if let Err(cause) = converged {
            let stay = stay(Kept::Running(machine), flow);
            return Err(GivenUp::with(attempt, stay, peer, cause));
        }
        attempt.plan.account.enter(Phase::LastRound);
        let (guest, cause) = match machine.pause() {
            Ok(machine) => return Ok(LastRound { attempt, machine, peer, flow }),
            Err(Unpaused::Busy(machine)) => (Kept::Running(*machine), SourceError::Busy),
            Err(Unpaused::NotQuiet(cause, machine)) => {
                (Kept::Running(*machine), SourceError::NotQuiet(cause))
            }
            Err(Unpaused::Stopped(_report)) => (Kept::Ended, SourceError::GuestEnded),
            Err(Unpaused::Lost(cause, _report)) => (Kept::Ended, SourceError::Vcpu(cause)),
        };
        let stay = stay(guest, flow);
        Err(GivenUp::with(attempt, stay, peer, cause))
    }

    fn send_rounds(&mut self) -> Result<(), SourceError> {
        loop {
            let Self { attempt, machine, peer, flow } = self;
            let elapsed = flow.send_round(attempt, machine, &mut peer.link)?;
            machine.migratable()?;
            flow.rounds.take_changes()?;
            let left = flow.rounds.left();
            match attempt.plan.end_round(&attempt.tally, elapsed, left) {
                Decision::PauseNow => return Ok(()),
                Decision::GiveUp(why) => return Err(why.into()),
                Decision::AnotherRound { throttle_percent } => self.slow_down(throttle_percent),
            }
        }
    }

    /// A host that cannot slow its guest down goes on without.
    fn slow_down(&mut self, percent: u32) {
        if !self.attempt.options.throttle {
            return;
        }
        match self.machine.throttle(percent) {
            Ok(()) => self.attempt.plan.account.throttled(percent),
            Err(cause) => warn!("slowing the guest down: {}", chain_of(&cause)),
        }
    }
}

impl PageFlow {
    /// One round on all connections, and the destination's word that it arrived whole.
    fn send_round(
        &mut self,
        attempt: &mut Attempt<'_>,
        guest: &dyn Movable,
        link: &mut Link,
    ) -> Result<Duration, SourceError> {
        attempt.unless_ended(guest, |_, stop| Ok(link.nothing_said(stop)?))?;
        let Self { sending, senders, rounds } = self;
        attempt.plan.account.begin_round(rounds.left(), &attempt.tally);
        let elapsed = attempt.unless_ended(guest, |tally, stop| {
            let sent = rounds.send(senders, sending.as_ref(), tally, stop);
            sent.map_err(|cause| if stop() { cause.into() } else { explained(cause, link) })
        })?;
        let others = || senders.iter().map(PageSender::not_taken).sum();
        attempt.until_taken(guest, link, &others)?;
        let round = rounds.number();
        if attempt.answer(guest, link, Due::ROUND_OK)? == (Message::RoundOk { round }) {
            return Ok(elapsed);
        }
        Err(LinkError::unexpected("the end of this round").into())
    }
}

/// A destination that refuses says why and then closes its connections. This host may notice that in the other order.
fn explained(cause: SenderError, link: &mut Link) -> SourceError {
    match link.hear(Due::REFUSAL, LAST_WORDS) {
        Ok(Some(
            Message::Refuse { reason } | Message::Word(Word { say: Say::Abandon(reason), .. }),
        )) => LinkError::Refused(reason).into(),
        _ => cause.into(),
    }
}

/// The next phase: the guest is paused, and the rest of it is sent.
pub(super) struct LastRound<'a> {
    attempt: Attempt<'a>,
    machine: PausedMachine,
    peer: Peer,
    flow: PageFlow,
}

impl<'a> LastRound<'a> {
    /// The changes since the round before, exact because nothing runs; then the region list, and what the machine
    /// is beside its memory.
    pub(super) fn run(mut self) -> Result<Handing<'a>, Box<GivenUp<'a>>> {
        let sent = self.send_last_round().and_then(|()| self.send_state());
        let Self { attempt, machine, peer, flow } = self;
        let stay = Stay {
            guest: Kept::Paused(machine),
            sending: flow.sending,
            rounds: Some(flow.rounds),
            is_slowed: attempt.options.throttle,
        };
        match sent {
            Ok(()) => Ok(Handing::new(attempt, stay, peer)),
            Err(cause) => Err(GivenUp::with(attempt, stay, peer, cause)),
        }
    }

    fn send_last_round(&mut self) -> Result<(), SourceError> {
        let Self { attempt, machine, peer, flow } = self;
        // The guest may have withdrawn its readiness after the last round. From now on it cannot.
        machine.migratable()?;
        flow.rounds.take_changes()?;
        // No vCPU runs that could make a cache dirty again.
        if let Some(sending) = flow.sending.as_ref().filter(|_| machine.wants_write_back()) {
            sending.write_back_caches().map_err(SourceError::Send)?;
        }
        flow.send_round(attempt, machine, &mut peer.link)?;
        // The destination's threads wait for the next round, or for this; the guest stands still.
        flow.senders.clear();
        Ok(())
    }

    fn send_state(&mut self) -> Result<(), SourceError> {
        let Self { attempt, machine, peer, flow } = self;
        attempt.plan.account.enter(Phase::State);
        let state = machine.save()?.to_bytes()?;
        let status = machine.page_status().map(|status| status.to_bytes());
        let (session, round) = (peer.session, flow.rounds.number());
        let closing = |kind, bytes| Closing::new(kind, session, round, bytes);
        let list = status.map(|list| Message::StatusList(closing(Kind::StatusList, list)));
        let state = Message::State(closing(Kind::State, state));
        let link = &mut peer.link;
        attempt.unless_ended(machine, |_, stop| {
            link.nothing_said(stop)?;
            let mut messages = list.iter().chain([&state]);
            Ok(messages.try_for_each(|message| link.send(message, stop))?)
        })?;
        attempt.until_taken(machine, link, &|| 0)
    }
}
