//! The outgoing half: a list of phases, and one way out when any of them fails.
//!
//! offer -> verify the destination -> `SEND_START` -> rounds -> pause -> last round -> state, then
//! the handover in `handing_over.rs`.

use std::io::Error as IoError;
use std::mem::replace;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant};

use log::warn;
use rmp_serde::encode::Error as EncodeError;
use thiserror::Error;

use super::account::Account;
use super::asking::reason_to_end;
use super::certificates::CertificatesError;
use super::closing::Closing;
use super::convergence::{Decision, GaveUp, Goal};
use super::dialling::Dialling;
use super::endpoint::Endpoint;
use super::frame::Kind;
use super::handover::Refusal;
use super::link::{Due, Link, LinkError};
use super::malformed::Malformed;
use super::message::{Abandoned, Message, Reason, Transfer};
use super::progress::{Outcome, Phase, Summary};
use super::rounds::{Rounds, RoundsError};
use super::sender::{PageSender, SenderError, Sent};
use super::watch::Watch;
use super::word::{Say, Secret, Word};
use crate::encryption::NotMigratable;
use crate::machine::{PausedMachine, RunningMachine, SaveError, Unpaused};
use crate::memory::RamError;
use crate::sev::BadPolicy;
use crate::sev::launch::Launched;
use crate::sev::send::{SendError, Sending};
use crate::sev::target::RefusedTarget;
use crate::vcpu::{Stop, VcpuError};

/// How long a destination that has closed a page connection may take to say why.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How to send.
#[derive(Debug)]
pub struct Options {
    /// Where to.
    pub to: Endpoint,
    /// Page connections.
    pub connections: u16,
    /// When to pause the guest.
    pub goal: Goal,
    /// Whether to slow the guest down if it writes faster than its pages can be sent.
    pub throttle: bool,
    /// How long the destination may be silent.
    pub silence: Duration,
    /// Which guest, and which attempt.
    pub transfer: Transfer,
    /// Earlier attempts, whose destinations may have a copy of the guest still.
    pub abandoned: Vec<Abandoned>,
    /// Send also a guest whose policy lets the firmware send it to any destination.
    pub allow_unchecked: bool,
}

/// Where the guest is, at any moment of an attempt.
#[derive(Debug)]
pub(super) enum Guest {
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
    pub(super) fn migratable(&self) -> Result<(), NotMigratable> {
        match self {
            Self::Running(machine) => machine.migratable(),
            Self::Paused(machine) => machine.migratable(),
            Self::Nowhere => Ok(()),
        }
    }
}

/// One attempt to send a guest.
#[derive(Debug)]
pub(super) struct Attempt<'a> {
    pub(super) guest: Guest,
    pub(super) sending: Option<Sending>,
    pub(super) link: Option<Link>,
    pub(super) senders: Vec<PageSender>,
    rounds: Option<Rounds>,
    pub(super) options: &'a Options,
    pub(super) account: Account,
    pub(super) sent: Sent,
    pub(super) session: u64,
    /// Once the destination has accepted.
    pub(super) secret: Option<Secret>,
    /// When the destination was last heard, or connected to, in the handover.
    pub(super) heard: Instant,
    /// When it was last connected to again.
    pub(super) dialled: Option<Instant>,
    /// Until that has an outcome.
    pub(super) dialling: Option<Dialling>,
    /// What the destination has said since it was last asked in the handover.
    pub(super) words: u32,
    /// Why the user's last wish in the handover is not granted.
    pub(super) refused: Option<Refusal>,
}

impl<'a> Attempt<'a> {
    pub(super) fn new(machine: RunningMachine, options: &'a Options) -> Self {
        Self {
            guest: Guest::Running(machine),
            sending: None,
            link: None,
            senders: Vec::new(),
            rounds: None,
            options,
            account: Account::new(options),
            sent: Sent::default(),
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
    pub(super) fn send_all(&mut self, watch: &mut dyn Watch) -> Result<Secret, SourceError> {
        self.account.enter(Phase::Offer);
        self.offer(watch)?;
        self.join(watch)?;
        self.account.enter(Phase::Rounds);
        self.send_rounds(watch)?;
        self.account.enter(Phase::LastRound);
        self.pause()?;
        self.send_last_round(watch)?;
        self.account.enter(Phase::State);
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
            match self.account.end_round(&self.sent, elapsed, left) {
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
            Ok(()) => self.account.throttled(percent),
            Err(cause) => warn!("slowing the guest down: {}", super::chain_of(&cause)),
        }
    }

    /// One round on all connections, and the destination's word that it arrived whole.
    fn send_round(&mut self, watch: &mut dyn Watch) -> Result<Duration, SourceError> {
        self.on_link(watch, |link, stop| link.nothing_said(stop))?;
        let rounds = self.rounds.as_mut().ok_or(SourceError::Gone)?;
        self.account.begin_round(rounds.left());
        let (mut ended, account, counters) = (None, &mut self.account, &self.sent);
        let guest = &self.guest;
        let mut look_up = || {
            ended = ended.take().or_else(|| reason_to_end(guest, account, counters, watch));
            ended.is_some()
        };
        let sent = rounds.send(&mut self.senders, self.sending.as_ref(), counters, &mut look_up);
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
    pub(super) fn give_up<E>(
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
    pub(super) fn abandoned(&self) -> Option<Abandoned> {
        self.secret.as_ref().map(|secret| Abandoned::new(secret, self.options.transfer))
    }

    /// It is over.
    pub(super) fn summary(&mut self, outcome: Outcome) -> Box<Summary> {
        Box::new(self.account.summary(&self.sent, outcome))
    }

    /// `SEND_CANCEL`, no more dirty log, and the vCPUs run.
    pub(super) fn back_to_running<E>(
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

    pub(super) fn running(&mut self) -> Result<&mut RunningMachine, SourceError> {
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
            warn!("{}; trying once more", super::chain_of(&refused.cause));
            refused.sending.cancel()
        }
    };
    again
        .inspect_err(|refused| {
            let cause = super::chain_of(&refused.cause);
            warn!("{cause}; the guest runs on, but cannot be sent again");
        })
        .ok()
}

/// Why a guest was not sent.
#[derive(Debug, Error)]
pub enum SourceError {
    /// The guest does not allow it.
    #[error(transparent)]
    NotMigratable(#[from] NotMigratable),
    /// Nobody there.
    #[error("connecting to {to}; is `sevferry receive` running there?")]
    Connect {
        /// Where.
        to: Endpoint,
        /// Why.
        #[source]
        cause: IoError,
    },
    /// The control connection.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// A message of ours beyond its cap.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The offer or the state as bytes.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// No randomness.
    #[error("choosing a session number")]
    Random(#[source] getrandom::Error),
    /// A plain VM's destination.
    #[error("the destination has no SEV platform; start it with --platform")]
    NoPlatform,
    /// Certificates for a guest that has no use for them.
    #[error("the destination sent an SEV platform's certificates for a guest without SEV")]
    Unasked,
    /// Certificates.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// A destination that this guest must not be sent to.
    #[error("the destination was refused before anything was sent")]
    Refused(#[from] RefusedTarget),
    /// The guest's policy has bits that mean nothing.
    #[error(transparent)]
    Policy(#[from] BadPolicy),
    /// The firmware.
    #[error(transparent)]
    Send(SendError),
    /// Pages.
    #[error(transparent)]
    Pages(#[from] SenderError),
    /// What changed.
    #[error(transparent)]
    Rounds(#[from] RoundsError),
    /// The dirty log.
    #[error("recording which pages the guest writes")]
    Log(#[from] RamError),
    /// It would take too long.
    #[error(transparent)]
    Plan(#[from] GaveUp),
    /// The user wants no more.
    #[error("cancelled: {0}")]
    Cancelled(Reason),
    /// A vCPU does not come out of the guest.
    #[error("pausing the guest: a vCPU does not stop")]
    Busy,
    /// The guest ended by itself.
    #[error("the guest ended during the migration")]
    GuestEnded,
    /// vCPUs.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
    /// The machine's state.
    #[error(transparent)]
    Save(#[from] SaveError),
    /// `SEND_CANCEL` failed earlier.
    #[error("the firmware could not cancel an earlier attempt: this guest can only run on here")]
    NotCancelled,
    /// A phase out of order: a bug.
    #[error("the guest is not where this phase needs it; please report this")]
    Gone,
}
