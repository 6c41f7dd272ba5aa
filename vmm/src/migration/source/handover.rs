//! The source's handover: carries out what `handover/source.rs` decides.

use std::error::Error;
use std::sync::mpsc::Sender;
use std::thread::{Builder, park_timeout};
use std::time::{Duration, Instant};

use log::{debug, info, warn};

use super::attempt::{Attempt, Peer};
use super::error::SourceError;
use super::stay::{Ended, Stay, stayed};
use crate::machine::RunningMachine;
use crate::migration::handover::journal::{Journal, forget};
use crate::migration::handover::{
    Refusal, Resolution, Source, SourceInput, SourceOutput, SourceState, Step, advance,
};
use crate::migration::net::{Dialling, Due, Link, LinkError};
use crate::migration::progress::{Outcome, Phase};
use crate::migration::watch::{Sight, Wish};
use crate::migration::wire::{Abandoned, Message, NotRunning, Reason, Say, Secret, Word};
use crate::text::chain_of;
use crate::vcpu::{Stop, VcpuError};

/// How often to repeat a commit that is not answered, and to try a new connection.
const RETRY: Duration = Duration::from_secs(1);

/// Most words of a destination for each word of ours, and before our first. It answers each word once, and an
/// answer to an earlier word may still be on its way.
const WORDS_MAX: u32 = 8;

/// How often a wait calls the watch.
const LOOK_UP: Duration = Duration::from_millis(50);

/// A guest that is paused here and was sent completely.
pub(super) struct Handing<'a> {
    attempt: Attempt<'a>,
    secret: Secret,
    /// The guest as it was paused. `None` once it runs here again, or is gone.
    copy: Option<Stay>,
    /// The guest, once it runs here again.
    running: Option<RunningMachine>,
    link: Option<Link>,
    /// When the destination last said something, or was connected to.
    heard: Instant,
    /// When the last new connection was begun.
    dialled: Option<Instant>,
    /// That connection, until it is made or has failed.
    dialling: Option<Dialling>,
    /// Words of the destination since our last.
    words: u32,
    /// When the last input was.
    since: Instant,
    /// Why the last wish was refused.
    refused: Option<Refusal>,
    /// Why the guest stays here, if it does.
    why: Option<Reason>,
}

impl<'a> Handing<'a> {
    pub(super) fn new(attempt: Attempt<'a>, copy: Stay, peer: Peer) -> Self {
        let now = Instant::now();
        Self {
            attempt,
            secret: peer.secret,
            copy: Some(copy),
            running: None,
            link: Some(peer.link),
            heard: now,
            dialled: None,
            dialling: None,
            words: 0,
            since: now,
            refused: None,
            why: None,
        }
    }

    /// Runs until it is known who owns the guest.
    ///
    /// # Errors
    /// [`VcpuError`] if the guest stays and could not be resumed: it is lost.
    pub(super) fn run<E>(
        mut self,
        journal: &mut Journal,
        events: &Sender<E>,
    ) -> Result<Ended, VcpuError>
    where
        E: From<Stop> + Send + 'static,
    {
        self.attempt.plan.account.enter(Phase::Handover);
        let transfer = self.attempt.options.transfer;
        let mut half = Source::new(transfer, self.secret);
        loop {
            let Some(input) = self.next_input(&half) else { continue };
            self.note(&half, &input);
            advance(&mut half, input, &mut |half, output| {
                let input = self.perform(output, half, journal, events)?;
                if let Some(input) = &input {
                    self.note(half, input);
                }
                Ok::<_, VcpuError>(input)
            })?;
            match half.state {
                SourceState::Resumed => {
                    let reason = self.why.unwrap_or_default().to_string();
                    let abandoned = Some(Abandoned::new(&self.secret, transfer));
                    return Ok(stayed(self.attempt, self.running, reason, abandoned));
                }
                SourceState::Released(_) => {
                    return Ok(Ended::Moved(self.attempt.summary(Outcome::Moved)));
                }
                SourceState::Waiting
                | SourceState::Committing { .. }
                | SourceState::InDoubt(_)
                | SourceState::Keeping(..) => {}
            }
        }
    }

    /// Handles one input, and all that follows from it.
    fn note(&mut self, half: &Source, input: &SourceInput) {
        self.since = Instant::now();
        // A failure after the end, such as telling a destination that is gone, does not explain the outcome.
        let is_over = matches!(half.state, SourceState::Resumed | SourceState::Released(_));
        if let Some(why) = reason_in(input).filter(|_| !is_over) {
            self.why = Some(why);
        }
    }

    /// The next input: a word of the destination, a person's decision, or that a while has passed.
    fn next_input(&mut self, half: &Source) -> Option<SourceInput> {
        let (in_doubt, refused) = (half.is_in_doubt(), self.refused.take());
        let Attempt { plan, tally, watch, .. } = &mut self.attempt;
        let progress = plan.account.progress(tally);
        match watch.look(&Sight { progress, in_doubt, refused }) {
            Some(Wish::Cancel(reason)) => return Some(abort(&SourceError::Cancelled(reason))),
            Some(Wish::Resolve(resolution)) => return Some(SourceInput::Resolve(resolution)),
            None => {}
        }
        let is_silent = self.heard.elapsed() > self.attempt.options.silence;
        // A destination that has begun a message has the link's deadlines.
        let is_speaking = self.link.as_ref().is_some_and(Link::is_in_a_message);
        if !in_doubt && is_silent && !is_speaking {
            let reason = "the destination did not get ready in time";
            return Some(SourceInput::Abort(Reason::new(reason)));
        }
        let Some(link) = &mut self.link else {
            return self.await_connection();
        };
        let message = match link.hear(Due::VERDICT, LOOK_UP) {
            Ok(Some(message)) => {
                self.words = self.words.saturating_add(1);
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
            Some(_) if self.words > WORDS_MAX => {
                warn!("the destination says more than it was asked");
                Some(SourceInput::ConnectionLost)
            }
            Some(Message::Refuse { reason }) if in_doubt => {
                info!("who answers at {} says: {reason}", self.attempt.options.to);
                None
            }
            Some(
                Message::Refuse { reason } | Message::Word(Word { say: Say::Abandon(reason), .. }),
            ) if !in_doubt => Some(abort(&LinkError::Refused(reason))),
            Some(Message::Word(word)) => self.heard_word(half, &word),
            Some(other) => {
                warn!("the destination sent {:?} during the handover", other.kind());
                Some(SourceInput::ConnectionLost)
            }
            // A connection can be stuck for ever. A new one may work.
            None if in_doubt && is_silent && !is_speaking => Some(SourceInput::ConnectionLost),
            None if in_doubt && self.since.elapsed() > RETRY => Some(SourceInput::Retry),
            None => None,
        }
    }

    /// The input that a word is.
    fn heard_word(&mut self, half: &Source, word: &Word) -> Option<SourceInput> {
        if !half.is_in_doubt() {
            let early = early(half, word).map(|reason| SourceInput::Abort(Reason::new(&reason)));
            return early.or_else(|| half.hear(word));
        }
        let Some(input) = half.hear(word) else {
            warn!("who answers at {} cannot prove to be the destination", self.attempt.options.to);
            return None;
        };
        // A connection is kept only for words that are proven to be the destination's.
        self.heard = Instant::now();
        if let SourceInput::NotRunning(because) = input {
            note_answer(half, because);
        }
        Some(input)
    }

    /// Carries out one output. Its result is the next input, if there is one.
    fn perform<E>(
        &mut self,
        output: SourceOutput,
        half: &Source,
        journal: &mut Journal,
        events: &Sender<E>,
    ) -> Result<Option<SourceInput>, VcpuError>
    where
        E: From<Stop> + Send + 'static,
    {
        let transfer = half.transfer;
        Ok(match output {
            SourceOutput::WriteJournal(step) => {
                if step == Step::Kept && !self.holds() {
                    return Ok(Some(SourceInput::JournalFailed));
                }
                let peer = self.attempt.options.to.to_string();
                match journal.append(transfer, half.secret, step, &peer) {
                    Ok(()) => Some(SourceInput::JournalWritten),
                    Err(cause) => {
                        warn!("{}", chain_of(&cause));
                        Some(SourceInput::JournalFailed)
                    }
                }
            }
            SourceOutput::Send(say) => {
                if matches!(say, Say::Commit { .. }) {
                    self.copy.iter().for_each(Stay::let_go);
                }
                self.words = 0;
                let word = half.word(say);
                let sent = self.link.as_mut().map(|link| link.say(&word.into()));
                (!matches!(sent, Some(Ok(())))).then_some(SourceInput::ConnectionLost)
            }
            SourceOutput::Reconnect => self.reconnect(),
            SourceOutput::SendFinish => {
                self.copy.iter_mut().for_each(Stay::finish_sending);
                None
            }
            SourceOutput::TearDown => {
                if let Some(copy) = self.copy.take() {
                    tear_down(copy);
                }
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
            SourceOutput::ResumeGuest => {
                let resumed = self.copy.take().map(|copy| copy.resume(events)).transpose()?;
                self.running = resumed.flatten();
                None
            }
            // Part of resuming.
            SourceOutput::SendCancel => None,
        })
    }

    /// Whether what only one guest may have is here again: a destination that gave the guest back has let
    /// go of it.
    fn holds(&self) -> bool {
        match self.copy.as_ref().map(Stay::hold) {
            Some(Err(cause)) => {
                warn!("the guest cannot go on here: {}", chain_of(&cause));
                false
            }
            Some(Ok(())) | None => true,
        }
    }

    /// Begins one try to connect. The next begins when this one has failed. A destination that accepts and closes at
    /// once is tried no more often than one that is not there.
    fn reconnect(&mut self) -> Option<SourceInput> {
        self.link = None;
        let is_early = self.dialled.is_some_and(|dialled| dialled.elapsed() < RETRY);
        if is_early || self.dialling.is_some() {
            return None;
        }
        self.dialled = Some(Instant::now());
        match Dialling::start(&self.attempt.options.to, self.attempt.options.silence) {
            Ok(dialling) => self.dialling = Some(dialling),
            Err(cause) => warn!("connecting to {} again: {cause}", self.attempt.options.to),
        }
        None
    }

    /// The new connection, if it is made within a moment.
    fn await_connection(&mut self) -> Option<SourceInput> {
        let Some(dialling) = &self.dialling else {
            park_timeout(LOOK_UP);
            return (self.since.elapsed() > RETRY).then_some(SourceInput::ConnectionLost);
        };
        let outcome = dialling.outcome(LOOK_UP)?;
        self.dialling = None;
        match outcome {
            Ok(stream) => {
                info!("connected to {} again", self.attempt.options.to);
                self.link = Some(Link::new(stream, self.attempt.options.silence));
                self.heard = Instant::now();
                Some(SourceInput::Connected)
            }
            Err(cause) => {
                warn!("connecting to {} again: {cause}", self.attempt.options.to);
                None
            }
        }
    }
}

/// Drops what is left of a guest that runs elsewhere, on a thread of its own: giving its memory back takes the kernel
/// longer than the guest was paused. If the process ends meanwhile, the memory is given back all the same.
fn tear_down(copy: Stay) {
    let spawned = Builder::new().name("tear-down".to_owned()).spawn(move || drop(copy));
    // Without a thread it is dropped by now.
    if let Err(cause) = spawned {
        debug!("no thread to tear a guest down: {cause}");
    }
}

/// The reason why the guest stays here, if this input makes it stay.
fn reason_in(input: &SourceInput) -> Option<Reason> {
    match input {
        SourceInput::Abort(reason) => Some(reason.clone()),
        SourceInput::ConnectionLost => Some(Reason::new("the connection was lost")),
        SourceInput::JournalFailed => {
            Some(Reason::new("the journal could not be written, or a disk not be locked"))
        }
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

/// The input that makes the guest stay, for this reason.
fn abort(cause: &dyn Error) -> SourceInput {
    SourceInput::Abort(Reason::new(&chain_of(cause)))
}

/// The error for a word that a destination must not say before it is given the guest.
fn early(half: &Source, word: &Word) -> Option<String> {
    match word.say {
        Say::Prepared if word.transfer != half.transfer => {
            Some(format!("the destination got ready for another migration: {}", word.transfer))
        }
        Say::Running | Say::NotRunning(_) => Some(
            "the destination speaks of the guest's end before it was given the guest".to_owned(),
        ),
        Say::Prepared | Say::Commit { .. } | Say::Abandon(_) | Say::Released => {
            let is_heard = half.hear(word).is_some();
            (!is_heard).then(|| "the destination cannot prove that it is ready".to_owned())
        }
    }
}

/// Logs that the destination was told `commit` and does not run the guest. It is asked again and again and may give
/// the same answer each time, so that is said once.
fn note_answer(half: &Source, because: NotRunning) {
    let SourceState::InDoubt(doubt) = half.state else { return };
    if doubt.answer != Some(because) {
        warn!("{because}");
    }
}
