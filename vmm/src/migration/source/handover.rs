//! The source's handover: carries out what `handover/source.rs` decides.

use std::collections::VecDeque;
use std::error::Error;
use std::sync::mpsc::Sender;
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use log::{info, warn};

use super::{Attempt, Guest, Options, SourceError};
use crate::machine::RunningMachine;
use crate::migration::chain_of;
use crate::migration::handover::journal::{Journal, forget};
use crate::migration::handover::{Resolution, Source, SourceInput, SourceOutput, SourceState};
use crate::migration::net::{Dialling, Due, Link, LinkError};
use crate::migration::progress::{Outcome, Phase, Summary};
use crate::migration::watch::{Sight, Watch, Wish};
use crate::migration::wire::{Abandoned, Message, NotRunning, Reason, Say, Secret, Word};
use crate::vcpu::{Stop, VcpuError};

/// How often a commit that is not answered is said again, and a connection tried.
const RETRY: Duration = Duration::from_secs(1);

/// What a destination may say for each word of ours, or before our first: it answers once, and may
/// not have heard that the guest was asked for twice.
const WORDS_MAX: u32 = 8;

/// How often waiting looks up.
const LOOK_UP: Duration = Duration::from_millis(50);

/// How an attempt ended.
#[derive(Debug)]
pub enum Ended {
    /// The guest runs at the destination, and nothing of it is left here.
    Moved(Box<Summary>),
    /// The guest runs here.
    Stayed {
        /// The guest; `None` if it ended by itself.
        machine: Option<Box<RunningMachine>>,
        /// What was done, and why it was not sent.
        summary: Box<Summary>,
        /// What the next offer of the guest says of this attempt.
        abandoned: Option<Abandoned>,
    },
}

/// Sends `machine`, as long as `watch` does not wish otherwise.
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
    let mut attempt = Attempt::new(machine, options);
    match attempt.send_all(watch) {
        Ok(secret) => hand_over(attempt, secret, journal, events, watch),
        Err(cause) => {
            let reason = chain_of(&cause);
            let machine = attempt.give_up(&reason, events)?.map(Box::new);
            let summary = attempt.summary(stayed(machine.is_some(), reason));
            Ok(Ended::Stayed { machine, summary, abandoned: attempt.abandoned() })
        }
    }
}

fn hand_over<E>(
    mut attempt: Attempt<'_>,
    secret: Secret,
    journal: &mut Journal,
    events: &Sender<E>,
    watch: &mut dyn Watch,
) -> Result<Ended, VcpuError>
where
    E: From<Stop> + Send + 'static,
{
    attempt.plan.account.enter(Phase::Handover);
    attempt.heard = Instant::now();
    let mut side = Source::new(attempt.options.transfer, secret);
    let mut inputs = VecDeque::new();
    let (mut since, mut running, mut why) = (Instant::now(), None, None);
    loop {
        let input = match inputs.pop_front() {
            Some(input) => input,
            None => match next_input(&mut attempt, &side, since, watch) {
                Some(input) => input,
                None => continue,
            },
        };
        why = reason_in(&input).or(why);
        since = Instant::now();
        let (next, outputs) = side.on(input);
        side = next;
        for output in outputs {
            match output {
                SourceOutput::ResumeGuest => running = attempt.back_to_running(events)?,
                SourceOutput::SendCancel => {} // Part of `back_to_running`.
                output @ (SourceOutput::WriteJournal(_)
                | SourceOutput::Send(_)
                | SourceOutput::Reconnect
                | SourceOutput::SendFinish
                | SourceOutput::TearDown
                | SourceOutput::Forget
                | SourceOutput::Refuse(_)) => {
                    inputs.extend(attempt.perform(output, &side, journal));
                }
            }
        }
        match side.state {
            _ if !inputs.is_empty() => {}
            SourceState::Resumed => {
                let reason = why.unwrap_or_default().to_string();
                let summary = attempt.summary(stayed(running.is_some(), reason));
                let (machine, abandoned) = (running.map(Box::new), attempt.abandoned());
                return Ok(Ended::Stayed { machine, summary, abandoned });
            }
            SourceState::Released(_) => {
                return Ok(Ended::Moved(attempt.summary(Outcome::Moved)));
            }
            SourceState::Waiting
            | SourceState::Committing { .. }
            | SourceState::InDoubt(_)
            | SourceState::Keeping(..) => {}
        }
    }
}

/// A guest that was not sent runs here, or ended while it was being sent.
fn stayed(runs: bool, reason: String) -> Outcome {
    if runs { Outcome::Kept(reason) } else { Outcome::Failed(reason) }
}

/// Why the guest stays here, if this is what makes it stay.
fn reason_in(input: &SourceInput) -> Option<Reason> {
    match input {
        SourceInput::Abort(reason) => Some(reason.clone()),
        SourceInput::ConnectionLost => Some(Reason::new("the connection was lost")),
        SourceInput::JournalFailed => Some(Reason::new("the journal could not be written")),
        SourceInput::Resolve(Resolution::Keep) => Some(Reason::new("a person decided so")),
        SourceInput::NotRunning(because) => Some(Reason::new(&because.to_string())),
        SourceInput::Resolve(Resolution::Discard)
        | SourceInput::Prepared
        | SourceInput::Running
        | SourceInput::Connected
        | SourceInput::Retry
        | SourceInput::JournalWritten => None,
    }
}

/// What the destination or the user says next, or that a while has passed.
fn next_input(
    attempt: &mut Attempt<'_>,
    side: &Source,
    since: Instant,
    watch: &mut dyn Watch,
) -> Option<SourceInput> {
    let (in_doubt, refused) = (side.is_in_doubt(), attempt.refused.take());
    let progress = attempt.plan.account.progress(&attempt.tally);
    match watch.look(&Sight { progress, in_doubt, refused }) {
        Some(Wish::Cancel(reason)) => return Some(abort(&SourceError::Cancelled(reason))),
        Some(Wish::Resolve(resolution)) => return Some(SourceInput::Resolve(resolution)),
        None => {}
    }
    let is_silent = attempt.heard.elapsed() > attempt.options.silence;
    // One that has begun to say something has the link's deadlines.
    let is_speaking = attempt.link.as_ref().is_some_and(Link::is_in_a_message);
    if !in_doubt && is_silent && !is_speaking {
        let reason = "the destination did not get ready in time";
        return Some(SourceInput::Abort(Reason::new(reason)));
    }
    let Some(link) = &mut attempt.link else {
        return attempt.await_connection(since);
    };
    let message = match link.hear(Due::VERDICT, LOOK_UP) {
        Ok(Some(message)) => {
            attempt.words = attempt.words.saturating_add(1);
            Some(message)
        }
        Ok(None) => None,
        Err(cause) if !in_doubt => return Some(abort(&cause)),
        Err(cause) => {
            warn!("{}", chain_of(&cause));
            return Some(SourceInput::ConnectionLost);
        }
    };
    match message {
        Some(_) if attempt.words > WORDS_MAX => {
            warn!("the destination says more than it was asked");
            Some(SourceInput::ConnectionLost)
        }
        Some(Message::Refuse { reason }) if in_doubt => {
            info!("who answers at {} says: {reason}", attempt.options.to);
            None
        }
        Some(
            Message::Refuse { reason } | Message::Word(Word { say: Say::Abandon(reason), .. }),
        ) if !in_doubt => Some(abort(&LinkError::Refused(reason))),
        Some(Message::Word(word)) => attempt.heard(side, &word),
        Some(other) => {
            warn!("the destination sent {:?} during the handover", other.kind());
            Some(SourceInput::ConnectionLost)
        }
        // A connection can be stuck for ever: another may get through.
        None if in_doubt && is_silent && !is_speaking => Some(SourceInput::ConnectionLost),
        None if in_doubt && since.elapsed() > RETRY => Some(SourceInput::Retry),
        None => None,
    }
}

/// The guest stays, for this reason.
fn abort(cause: &dyn Error) -> SourceInput {
    SourceInput::Abort(Reason::new(&chain_of(cause)))
}

/// Why a word is none that a destination may say before it is given the guest.
fn early(side: &Source, word: &Word) -> Option<String> {
    match word.say {
        Say::Prepared if word.transfer != side.transfer => {
            Some(format!("the destination got ready for another migration: {}", word.transfer))
        }
        Say::Running | Say::NotRunning(_) => Some(
            "the destination speaks of the guest's end before it was given the guest".to_owned(),
        ),
        Say::Prepared | Say::Commit { .. } | Say::Abandon(_) | Say::Released => {
            let is_heard = side.hear(word).is_some();
            (!is_heard).then(|| "the destination cannot prove that it is ready".to_owned())
        }
    }
}

/// The destination was told `commit` and does not run the guest. It is asked again and again, and
/// may answer the same each time.
fn note(side: &Source, because: NotRunning) {
    let SourceState::InDoubt(doubt) = side.state else { return };
    if doubt.answer != Some(because) {
        warn!("{because}");
    }
}

impl Attempt<'_> {
    /// What a word on the handover comes to.
    fn heard(&mut self, side: &Source, word: &Word) -> Option<SourceInput> {
        if !side.is_in_doubt() {
            let early = early(side, word).map(|reason| SourceInput::Abort(Reason::new(&reason)));
            return early.or_else(|| side.hear(word));
        }
        let Some(input) = side.hear(word) else {
            warn!("who answers at {} cannot prove to be the destination", self.options.to);
            return None;
        };
        // Only the destination's own word keeps a connection.
        self.heard = Instant::now();
        if let SourceInput::NotRunning(because) = input {
            note(side, because);
        }
        Some(input)
    }

    /// Carries out one output; what comes of it is the next input.
    fn perform(
        &mut self,
        output: SourceOutput,
        side: &Source,
        journal: &mut Journal,
    ) -> Option<SourceInput> {
        let transfer = side.transfer;
        match output {
            SourceOutput::WriteJournal(step) => {
                let peer = self.options.to.to_string();
                match journal.append(transfer, side.secret, step, &peer) {
                    Ok(()) => Some(SourceInput::JournalWritten),
                    Err(cause) => {
                        warn!("{}", chain_of(&cause));
                        Some(SourceInput::JournalFailed)
                    }
                }
            }
            SourceOutput::Send(say) => {
                self.words = 0;
                let word = side.word(say);
                let sent = self.link.as_mut().map(|link| link.say(&word.into()));
                (!matches!(sent, Some(Ok(())))).then_some(SourceInput::ConnectionLost)
            }
            SourceOutput::Reconnect => self.reconnect(),
            SourceOutput::SendFinish => {
                if let Some(Err(cause)) = self.sending.take().map(|sending| sending.finish()) {
                    let cause = chain_of(&cause);
                    warn!("{cause}; the guest is the destination's all the same");
                }
                None
            }
            SourceOutput::TearDown => {
                self.guest = Guest::Nowhere;
                None
            }
            SourceOutput::Forget => {
                forget(journal, transfer);
                None
            }
            SourceOutput::Refuse(refusal) => {
                warn!("{refusal}");
                self.refused = Some(refusal);
                None
            }
            SourceOutput::SendCancel | SourceOutput::ResumeGuest => None,
        }
    }

    /// One try; the next comes when this one's failure is reported. A destination that accepts and
    /// hangs up at once is tried no more often than one that is not there.
    fn reconnect(&mut self) -> Option<SourceInput> {
        self.link = None;
        let is_early = self.dialled.is_some_and(|dialled| dialled.elapsed() < RETRY);
        if is_early || self.dialling.is_some() {
            return None;
        }
        self.dialled = Some(Instant::now());
        match Dialling::start(&self.options.to, self.options.silence) {
            Ok(dialling) => self.dialling = Some(dialling),
            Err(cause) => warn!("connecting to {} again: {cause}", self.options.to),
        }
        None
    }

    /// The connection that is being made, if it is there after a moment.
    fn await_connection(&mut self, since: Instant) -> Option<SourceInput> {
        let Some(dialling) = &self.dialling else {
            park_timeout(LOOK_UP);
            return (since.elapsed() > RETRY).then_some(SourceInput::ConnectionLost);
        };
        let outcome = dialling.outcome(LOOK_UP)?;
        self.dialling = None;
        match outcome {
            Ok(stream) => {
                info!("connected to {} again", self.options.to);
                self.link = Some(Link::new(stream, self.options.silence));
                self.heard = Instant::now();
                Some(SourceInput::Connected)
            }
            Err(cause) => {
                warn!("connecting to {} again: {cause}", self.options.to);
                None
            }
        }
    }
}
