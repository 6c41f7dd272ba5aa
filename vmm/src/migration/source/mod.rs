//! The outgoing half: a list of phases, and one way out when any of them fails.
//!
//! offer -> verify the destination -> `SEND_START` -> rounds -> pause -> last round -> state, then
//! the handover in `handover.rs`.

mod asking;
mod error;
mod handover;
mod offer;
mod options;
mod plan;
pub(crate) mod rounds;
pub(crate) mod sender;

pub use error::SourceError;
pub use handover::{Ended, send};
pub(crate) use offer::{connect, described};
pub use options::Options;

use std::mem::replace;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use log::warn;

use self::asking::reason_to_end;
use self::plan::Plan;
use self::rounds::Rounds;
use self::sender::{PageSender, SenderError};
use crate::encryption::NotMigratable;
use crate::machine::{PausedMachine, RunningMachine, Unpaused};
use crate::migration::account::Tally;
use crate::migration::chain_of;
use crate::migration::convergence::Decision;
use crate::migration::handover::Refusal;
use crate::migration::net::{Dialling, Due, Link, LinkError};
use crate::migration::progress::{Outcome, Phase, Summary};
use crate::migration::watch::Watch;
use crate::migration::wire::{Abandoned, Closing, Kind, Message, Reason, Say, Secret, Word};
use crate::sev::launch::Launched;
use crate::sev::send::Sending;
use crate::vcpu::{Stop, VcpuError};

/// How long a destination that has closed a page connection may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Where the guest is, at any moment of an attempt.
#[derive(Debug)]
pub(crate) enum Guest {
    Running(RunningMachine),
    Paused(PausedMachine),
    /// On its way between the two, or lost; never seen from outside.
    Nowhere,
}

impl Guest {
    /// Whether caches are to be written back before its last pages are sent.
    fn wants_write_back(&self) -> bool {
        match self {
            Self::Paused(machine) => machine.wants_write_back(),
            Self::Running(_) | Self::Nowhere => false,
        }
    }

    /// Whether it allows a migration now.
    pub(crate) fn migratable(&self) -> Result<(), NotMigratable> {
        match self {
            Self::Running(machine) => machine.migratable(),
            Self::Paused(machine) => machine.migratable(),
            Self::Nowhere => Ok(()),
        }
    }
}

/// One attempt to send a guest.
#[derive(Debug)]
pub(crate) struct Attempt<'a> {
    pub(crate) guest: Guest,
    pub(crate) sending: Option<Sending>,
    pub(crate) link: Option<Link>,
    pub(crate) senders: Vec<PageSender>,
    rounds: Option<Rounds>,
    pub(crate) options: &'a Options,
    pub(crate) plan: Plan,
    pub(crate) tally: Tally,
    pub(crate) session: u64,
    /// Once the destination has accepted.
    pub(crate) secret: Option<Secret>,
    /// When the destination was last heard, or connected to, in the handover.
    pub(crate) heard: Instant,
    /// When it was last connected to again.
    pub(crate) dialled: Option<Instant>,
    /// Until that has an outcome.
    pub(crate) dialling: Option<Dialling>,
    /// What the destination has said since it was last asked in the handover.
    pub(crate) words: u32,
    /// Why the user's last wish in the handover is not granted.
    pub(crate) refused: Option<Refusal>,
}

impl<'a> Attempt<'a> {
    pub(crate) fn new(machine: RunningMachine, options: &'a Options) -> Self {
        Self {
            guest: Guest::Running(machine),
            sending: None,
            link: None,
            senders: Vec::new(),
            rounds: None,
            options,
            plan: Plan::new(options),
            tally: Tally::default(),
            session: 0,
            secret: None,
            heard: Instant::now(),
            dialled: None,
            dialling: None,
            words: 0,
            refused: None,
        }
    }

    /// Everything up to the handover, for which it has the secret. What fails leaves the guest to
    /// [`Attempt::give_up`].
    pub(crate) fn send_all(&mut self, watch: &mut dyn Watch) -> Result<Secret, SourceError> {
        self.plan.account.enter(Phase::Offer);
        self.offer(watch)?;
        self.join(watch)?;
        self.plan.account.enter(Phase::Rounds);
        self.send_rounds(watch)?;
        self.plan.account.enter(Phase::LastRound);
        self.pause()?;
        self.send_last_round(watch)?;
        self.plan.account.enter(Phase::State);
        self.send_state(watch)?;
        self.secret.ok_or(SourceError::Gone)
    }

    /// Sends all of RAM, then what changed meanwhile, until the rest fits into the downtime.
    fn send_rounds(&mut self, watch: &mut dyn Watch) -> Result<(), SourceError> {
        let machine = self.running()?;
        let rounds = Rounds::start(machine.ram().clone(), machine.log_changes()?)?;
        self.rounds = Some(rounds);
        loop {
            let elapsed = self.send_round(watch)?;
            let machine = self.running()?;
            machine.migratable()?;
            let rounds = self.rounds.as_mut().ok_or(SourceError::Gone)?;
            rounds.take_changes()?;
            let left = rounds.left();
            match self.plan.end_round(&self.tally, elapsed, left) {
                Decision::PauseNow => return Ok(()),
                Decision::GiveUp(why) => return Err(why.into()),
                Decision::AnotherRound { throttle_percent } => self.slow_down(throttle_percent),
            }
        }
    }

    /// A host that cannot slow its guest down goes on without.
    fn slow_down(&mut self, percent: u32) {
        let Guest::Running(machine) = &mut self.guest else { return };
        if !self.options.throttle {
            return;
        }
        match machine.throttle(percent) {
            Ok(()) => self.plan.account.throttled(percent),
            Err(cause) => warn!("slowing the guest down: {}", chain_of(&cause)),
        }
    }

    /// One round on all connections, and the destination's word that it arrived whole.
    fn send_round(&mut self, watch: &mut dyn Watch) -> Result<Duration, SourceError> {
        self.on_link(watch, |link, stop| link.nothing_said(stop))?;
        let rounds = self.rounds.as_mut().ok_or(SourceError::Gone)?;
        self.plan.account.begin_round(rounds.left(), &self.tally);
        let (mut ended, plan, tally) = (None, &mut self.plan, &self.tally);
        let guest = &self.guest;
        let mut look_up = || {
            ended = ended.take().or_else(|| reason_to_end(guest, plan, tally, watch));
            ended.is_some()
        };
        let sent = rounds.send(&mut self.senders, self.sending.as_ref(), tally, &mut look_up);
        if let Some(cause) = ended {
            return Err(cause);
        }
        let elapsed = sent.map_err(|cause| self.explain(cause))?;
        let number = self.rounds.as_ref().map_or(0, Rounds::number);
        self.until_taken(watch)?;
        if self.answer(Due::ROUND_OK, watch)? == (Message::RoundOk { round: number }) {
            return Ok(elapsed);
        }
        Err(LinkError::unexpected("the end of this round").into())
    }

    /// A destination that refuses closes its connections after it has said why.
    fn explain(&mut self, cause: SenderError) -> SourceError {
        let said = self.link.as_mut().map(|link| link.hear(Due::REFUSAL, LAST_WORDS));
        match said {
            Some(Ok(Some(
                Message::Refuse { reason } | Message::Word(Word { say: Say::Abandon(reason), .. }),
            ))) => LinkError::Refused(reason).into(),
            _ => cause.into(),
        }
    }

    fn pause(&mut self) -> Result<(), SourceError> {
        let Guest::Running(machine) = replace(&mut self.guest, Guest::Nowhere) else {
            return Err(SourceError::Gone);
        };
        match machine.pause() {
            Ok(paused) => {
                self.guest = Guest::Paused(paused);
                Ok(())
            }
            Err(Unpaused::Busy(machine)) => {
                self.guest = Guest::Running(*machine);
                Err(SourceError::Busy)
            }
            Err(Unpaused::Stopped(_report)) => Err(SourceError::GuestEnded),
            Err(Unpaused::Lost(cause, _report)) => Err(SourceError::Vcpu(cause)),
        }
    }

    /// The changes since the round before: exact, because nothing runs.
    fn send_last_round(&mut self, watch: &mut dyn Watch) -> Result<(), SourceError> {
        // It may have withdrawn after the last round; from now on it cannot.
        self.guest.migratable()?;
        let rounds = self.rounds.as_mut().ok_or(SourceError::Gone)?;
        rounds.take_changes()?;
        // Nothing runs that could make a cache dirty again.
        if let Some(sending) = self.sending.as_ref().filter(|_| self.guest.wants_write_back()) {
            sending.write_back_caches().map_err(SourceError::Send)?;
        }
        self.send_round(watch)?;
        // The destination's threads wait for the next round, or for this; the guest stands still.
        self.senders.clear();
        Ok(())
    }

    /// The region list, and what the machine is beside its memory.
    fn send_state(&mut self, watch: &mut dyn Watch) -> Result<(), SourceError> {
        let Guest::Paused(machine) = &self.guest else { return Err(SourceError::Gone) };
        let state = machine.save()?.to_bytes()?;
        let status = machine.page_status().map(|status| status.to_bytes());
        let (session, round) = (self.session, self.rounds.as_ref().map_or(0, Rounds::number));
        let closing = |kind, bytes| Closing::new(kind, session, round, bytes);
        let list = status.map(|list| Message::StatusList(closing(Kind::StatusList, list)));
        let state = Message::State(closing(Kind::State, state));
        self.on_link(watch, |link, stop| {
            link.nothing_said(stop)?;
            list.iter().chain([&state]).try_for_each(|message| link.send(message, stop))
        })?;
        self.until_taken(watch)
    }

    /// The one way out before the handover: the guest runs on here, and the firmware and the
    /// destination know. `None` if there is no guest any more.
    pub(crate) fn give_up<E>(
        &mut self,
        reason: &str,
        events: &Sender<E>,
    ) -> Result<Option<RunningMachine>, VcpuError>
    where
        E: From<Stop> + Send + 'static,
    {
        let machine = self.back_to_running(events)?;
        if let Some(link) = &mut self.link {
            let (transfer, reason) = (self.options.transfer, Reason::new(reason));
            let last_word = match &self.secret {
                Some(secret) => Word::new(secret, transfer, Say::Abandon(reason)).into(),
                None => Message::Refuse { reason },
            };
            // It may be gone: then it gives up by itself.
            link.say(&last_word).unwrap_or_default();
        }
        Ok(machine)
    }

    /// What the next offer of the guest says of this attempt.
    pub(crate) fn abandoned(&self) -> Option<Abandoned> {
        self.secret.as_ref().map(|secret| Abandoned::new(secret, self.options.transfer))
    }

    /// It is over.
    pub(crate) fn summary(&mut self, outcome: Outcome) -> Box<Summary> {
        self.plan.account.progress(&self.tally);
        Box::new(self.plan.account.clone().summary(outcome))
    }

    /// `SEND_CANCEL`, no more dirty log, and the vCPUs run.
    pub(crate) fn back_to_running<E>(
        &mut self,
        events: &Sender<E>,
    ) -> Result<Option<RunningMachine>, VcpuError>
    where
        E: From<Stop> + Send + 'static,
    {
        if let Some(rounds) = self.rounds.take()
            && let Err(cause) = rounds.stop()
        {
            warn!("stopping to log the guest's writes: {cause}");
        }
        let launched = self.sending.take().and_then(cancelled);
        self.slow_down(0);
        let mut machine = match replace(&mut self.guest, Guest::Nowhere) {
            Guest::Running(machine) => machine,
            Guest::Paused(paused) => paused.resume(events)?,
            Guest::Nowhere => return Ok(None),
        };
        if let Some(launched) = launched {
            machine.put_launched_back(launched);
        }
        Ok(Some(machine))
    }

    pub(crate) fn running(&mut self) -> Result<&mut RunningMachine, SourceError> {
        match &mut self.guest {
            Guest::Running(machine) => Ok(machine),
            Guest::Paused(_) | Guest::Nowhere => Err(SourceError::Gone),
        }
    }
}

/// `SEND_CANCEL`; firmware that fails once may not fail again.
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
