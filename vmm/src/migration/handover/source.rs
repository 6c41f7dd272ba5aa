//! The source's half of a handover.

use super::step::{Refusal, Resolution, Step};
use crate::migration::wire::{NotRunning, Reason, Say, Secret, Transfer, Word};

/// The source's half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source {
    /// Which handover this is.
    pub transfer: Transfer,
    /// The key of the proofs of all words about it.
    pub secret: Secret,
    /// Where it stands.
    pub state: SourceState,
}

/// Where the source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceState {
    /// The guest is paused here; the destination has yet to say that it is prepared.
    Waiting,
    /// `committed` is being written.
    Committing {
        /// Whether a connection stands.
        connected: bool,
    },
    /// `committed` is on disk, and the destination has not said that it runs the guest.
    InDoubt(Doubt),
    /// The guest stays here; `kept` is being written.
    Keeping(Doubt, By),
    /// The guest runs here.
    Resumed,
    /// Nothing of the guest is left here; `released` is being written, or was.
    Released(By),
}

/// What ended the source's doubt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum By {
    /// The destination's answer.
    Destination,
    /// A person's decision. The destination may still ask.
    Person,
}

/// What a source in doubt knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Doubt {
    /// Whether a connection stands.
    pub connected: bool,
    /// What the destination last answered instead of running the guest.
    pub answer: Option<NotRunning>,
    /// Whether the guest is still here; not after a crash.
    pub guest_here: bool,
}

/// What happens to the source.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SourceInput {
    /// The destination said [`Say::Prepared`].
    Prepared,
    /// The destination said [`Say::Running`].
    Running,
    /// The destination said [`Say::NotRunning`].
    NotRunning(NotRunning),
    /// There is a new connection to the destination.
    Connected,
    /// The connection broke, or nothing came before its deadline.
    ConnectionLost,
    /// A while has passed without an answer.
    Retry,
    /// The last journal write is durable.
    JournalWritten,
    /// The last journal write failed, and the journal is as before.
    JournalFailed,
    /// The user cancels, or a step failed at either side.
    Abort(Reason),
    /// A person decides.
    Resolve(Resolution),
}

/// What the source must do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SourceOutput {
    /// Append to the journal, durably, and report [`SourceInput::JournalWritten`] or
    /// [`SourceInput::JournalFailed`].
    WriteJournal(Step),
    /// Tell the destination; a failure is [`SourceInput::ConnectionLost`].
    Send(Say),
    /// Connect again, then report [`SourceInput::Connected`].
    Reconnect,
    /// `SEND_CANCEL`.
    SendCancel,
    /// Run the guest here.
    ResumeGuest,
    /// `SEND_FINISH`.
    SendFinish,
    /// Free the guest.
    TearDown,
    /// Remove this transfer from the journal: the other side will not ask about it any more.
    Forget,
    /// Refuse a cancel or a decision.
    Refuse(Refusal),
}

impl Source {
    /// The guest is paused and all of it is sent.
    #[must_use]
    pub fn new(transfer: Transfer, secret: Secret) -> Self {
        Self { transfer, secret, state: SourceState::Waiting }
    }

    /// After a crash, in which the guest was lost. `last` is the last step of the transfer in the journal. `None` if
    /// nothing is left to do.
    #[must_use]
    pub fn recovered(transfer: Transfer, secret: Secret, last: Step) -> Option<Self> {
        let doubt = Doubt { connected: false, answer: None, guest_here: false };
        let state = SourceState::InDoubt(doubt);
        (last == Step::Committed).then_some(Self { transfer, secret, state })
    }

    /// The input that a word is. `None` unless the destination said it, on this transfer.
    #[must_use]
    pub fn hear(&self, word: &Word) -> Option<SourceInput> {
        if word.transfer != self.transfer || !word.is_proven(&self.secret) {
            return None;
        }
        match word.say {
            Say::Prepared => Some(SourceInput::Prepared),
            Say::Running => Some(SourceInput::Running),
            Say::NotRunning(because) => Some(SourceInput::NotRunning(because)),
            // Words of a source, sent back to us.
            Say::Commit { .. } | Say::Abandon(_) | Say::Released => None,
        }
    }

    /// `say` with its proof, ready to be sent to the destination.
    #[must_use]
    pub fn word(&self, say: Say) -> Word {
        Word::new(&self.secret, self.transfer, say)
    }

    /// Whether only the destination's answer, or a person, can tell who owns the guest.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        matches!(self.state, SourceState::InDoubt(_) | SourceState::Keeping(..))
    }

    /// The next state, and what to do in this order.
    #[must_use]
    pub fn on(self, input: SourceInput) -> (Self, Vec<SourceOutput>) {
        let (state, outputs) = match self.state {
            SourceState::Waiting => waiting(input),
            SourceState::Committing { connected } => committing(connected, &input),
            SourceState::InDoubt(doubt) => in_doubt(doubt, &input),
            SourceState::Keeping(doubt, by) => keeping(doubt, by, &input),
            SourceState::Resumed => (self.state, over(&input, "the guest runs here")),
            SourceState::Released(by) => (self.state, released(by, &input)),
        };
        (Self { state, ..self }, outputs)
    }
}

type SourceStep = (SourceState, Vec<SourceOutput>);

fn waiting(input: SourceInput) -> SourceStep {
    match input {
        SourceInput::Prepared => {
            let committing = SourceState::Committing { connected: true };
            (committing, vec![SourceOutput::WriteJournal(Step::Committed)])
        }
        SourceInput::Abort(reason) => resume(reason),
        SourceInput::ConnectionLost => resume(Reason::new("the connection was lost")),
        SourceInput::Resolve(_) => {
            (SourceState::Waiting, vec![SourceOutput::Refuse(Refusal::NotInDoubt)])
        }
        SourceInput::Running
        | SourceInput::NotRunning(_)
        | SourceInput::Connected
        | SourceInput::Retry
        | SourceInput::JournalWritten
        | SourceInput::JournalFailed => (SourceState::Waiting, Vec::new()),
    }
}

/// The guest stays here. It is resumed first, because telling the destination can fail.
fn resume(reason: Reason) -> SourceStep {
    let outputs = vec![
        SourceOutput::SendCancel,
        SourceOutput::ResumeGuest,
        SourceOutput::Send(Say::Abandon(reason)),
    ];
    (SourceState::Resumed, outputs)
}

fn committing(connected: bool, input: &SourceInput) -> SourceStep {
    let stay = |connected| SourceState::Committing { connected };
    match input {
        SourceInput::JournalWritten => {
            let doubt = Doubt { connected, answer: None, guest_here: true };
            let next = if connected { commit(doubt) } else { SourceOutput::Reconnect };
            (SourceState::InDoubt(doubt), vec![next])
        }
        SourceInput::JournalFailed => resume(Reason::new("the source could not write its journal")),
        SourceInput::ConnectionLost => (stay(false), Vec::new()),
        SourceInput::Connected => (stay(true), Vec::new()),
        SourceInput::Abort(_) => (stay(connected), vec![SourceOutput::Refuse(Refusal::Committed)]),
        SourceInput::Resolve(_) => {
            (stay(connected), vec![SourceOutput::Refuse(Refusal::NotInDoubt)])
        }
        SourceInput::Prepared
        | SourceInput::Running
        | SourceInput::NotRunning(_)
        | SourceInput::Retry => (stay(connected), Vec::new()),
    }
}

fn commit(doubt: Doubt) -> SourceOutput {
    SourceOutput::Send(Say::Commit { is_last: !doubt.guest_here })
}

fn in_doubt(doubt: Doubt, input: &SourceInput) -> SourceStep {
    let stay = |doubt, outputs| (SourceState::InDoubt(doubt), outputs);
    match input {
        SourceInput::Running => release(doubt, By::Destination),
        SourceInput::NotRunning(because) => answered(doubt, *because),
        SourceInput::Connected => stay(Doubt { connected: true, ..doubt }, vec![commit(doubt)]),
        SourceInput::Retry if doubt.connected => stay(doubt, vec![commit(doubt)]),
        SourceInput::ConnectionLost => {
            stay(Doubt { connected: false, ..doubt }, vec![SourceOutput::Reconnect])
        }
        SourceInput::Abort(_) => stay(doubt, vec![SourceOutput::Refuse(Refusal::Committed)]),
        SourceInput::Resolve(Resolution::Keep) if doubt.guest_here => keep(doubt, By::Person),
        SourceInput::Resolve(Resolution::Keep) => {
            stay(doubt, vec![SourceOutput::Refuse(Refusal::GuestGone)])
        }
        SourceInput::Resolve(Resolution::Discard) => release(doubt, By::Person),
        SourceInput::Prepared
        | SourceInput::Retry
        | SourceInput::JournalWritten
        | SourceInput::JournalFailed => stay(doubt, Vec::new()),
    }
}

/// The destination does not run the guest.
fn answered(doubt: Doubt, because: NotRunning) -> SourceStep {
    let doubt = Doubt { answer: Some(because), ..doubt };
    match because {
        // The destination has no copy and never ran it. Ours is the last copy, and none is newer.
        NotRunning::GivenBack | NotRunning::Discarded if doubt.guest_here => {
            keep(doubt, By::Destination)
        }
        // There is no copy anywhere.
        NotRunning::GivenBack | NotRunning::Discarded => release(doubt, By::Destination),
        NotRunning::Crashed if !doubt.guest_here => release(doubt, By::Destination),
        // The guest ran there, so our copy is older. Only a person may accept that loss.
        NotRunning::Crashed | NotRunning::JournalFailed => {
            (SourceState::InDoubt(doubt), Vec::new())
        }
    }
}

fn keep(doubt: Doubt, by: By) -> SourceStep {
    (SourceState::Keeping(doubt, by), vec![SourceOutput::WriteJournal(Step::Kept)])
}

/// The guest is not ours any more. The journal comes last: when it says `released`, nothing must be left here that
/// could run. If a crash comes before that line, the commit is only said once more.
fn release(doubt: Doubt, by: By) -> SourceStep {
    let mut outputs = Vec::new();
    if doubt.guest_here {
        outputs.extend([SourceOutput::SendFinish, SourceOutput::TearDown]);
    }
    outputs.push(SourceOutput::WriteJournal(Step::Released));
    (SourceState::Released(by), outputs)
}

fn keeping(doubt: Doubt, by: By, input: &SourceInput) -> SourceStep {
    let stay = |doubt| (SourceState::Keeping(doubt, by), Vec::new());
    match input {
        SourceInput::JournalWritten => {
            let (resumed, mut outputs) = resume(Reason::new("the source keeps the guest"));
            outputs.push(SourceOutput::Forget);
            (resumed, outputs)
        }
        SourceInput::JournalFailed => {
            (SourceState::InDoubt(doubt), vec![SourceOutput::Refuse(Refusal::Journal)])
        }
        // The guest runs there after all, and has not been resumed here yet.
        SourceInput::Running => {
            let (state, mut outputs) = release(doubt, By::Destination);
            let over = "the destination owns the guest";
            outputs.push(SourceOutput::Refuse(Refusal::Over { over }));
            (state, outputs)
        }
        SourceInput::Connected => stay(Doubt { connected: true, ..doubt }),
        SourceInput::ConnectionLost => stay(Doubt { connected: false, ..doubt }),
        SourceInput::Abort(_) | SourceInput::Resolve(_) => {
            (SourceState::Keeping(doubt, by), vec![SourceOutput::Refuse(Refusal::Committed)])
        }
        SourceInput::NotRunning(_) | SourceInput::Prepared | SourceInput::Retry => stay(doubt),
    }
}

/// If a person has decided, the destination is not told now: it is answered from our journal when it asks.
fn released(by: By, input: &SourceInput) -> Vec<SourceOutput> {
    match (input, by) {
        (SourceInput::JournalWritten, By::Destination) => {
            vec![SourceOutput::Send(Say::Released), SourceOutput::Forget]
        }
        _ => over(input, "the destination owns the guest"),
    }
}

fn over(input: &SourceInput, over: &'static str) -> Vec<SourceOutput> {
    let is_asked = matches!(input, SourceInput::Abort(_) | SourceInput::Resolve(_));
    is_asked.then_some(SourceOutput::Refuse(Refusal::Over { over })).into_iter().collect()
}
