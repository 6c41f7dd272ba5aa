//! The source's half of a handover.

use super::{Refusal, Resolution, Say, Step};
use crate::migration::message::{NotRunning, Reason, Transfer};

/// The source's half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Source {
    /// Which handover this is.
    pub transfer: Transfer,
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
    /// A person decided to keep the guest here; `kept` is being written.
    Keeping(Doubt),
    /// The guest runs here.
    Resumed,
    /// The guest is the destination's.
    Released,
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
    Prepared(Transfer),
    /// The destination said [`Say::Running`].
    Running(Transfer),
    /// The destination said [`Say::NotRunning`].
    NotRunning(Transfer, NotRunning),
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
    /// Somebody cancels, or a step failed at either side.
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
    /// Tell who asked.
    Refuse(Refusal),
}

impl Source {
    /// The guest is paused and all of it is sent.
    #[must_use]
    pub fn new(transfer: Transfer) -> Self {
        Self { transfer, state: SourceState::Waiting }
    }

    /// After a crash, which has lost the guest: what is left to do for a transfer whose last step
    /// in the journal is `last`. `None`: nothing.
    #[must_use]
    pub fn recovered(transfer: Transfer, last: Step) -> Option<Self> {
        let doubt = Doubt { connected: false, answer: None, guest_here: false };
        let state = SourceState::InDoubt(doubt);
        (last == Step::Committed).then_some(Self { transfer, state })
    }

    /// Whether only the destination's answer, or a person, can tell who owns the guest.
    #[must_use]
    pub fn is_in_doubt(&self) -> bool {
        matches!(self.state, SourceState::InDoubt(_) | SourceState::Keeping(_))
    }

    /// The next state, and what to do in this order.
    #[must_use]
    pub fn on(self, input: SourceInput) -> (Self, Vec<SourceOutput>) {
        let transfer = self.transfer;
        let (state, outputs) = match self.state {
            SourceState::Waiting => waiting(transfer, input),
            SourceState::Committing { connected } => committing(transfer, connected, &input),
            SourceState::InDoubt(doubt) => in_doubt(transfer, doubt, &input),
            SourceState::Keeping(doubt) => keeping(transfer, doubt, &input),
            SourceState::Resumed => (self.state, over(&input, "the guest runs here")),
            SourceState::Released => (self.state, over(&input, "the destination owns the guest")),
        };
        (Self { transfer, state }, outputs)
    }
}

type SourceStep = (SourceState, Vec<SourceOutput>);

fn waiting(transfer: Transfer, input: SourceInput) -> SourceStep {
    match input {
        SourceInput::Prepared(prepared) if prepared == transfer => {
            let committing = SourceState::Committing { connected: true };
            (committing, vec![SourceOutput::WriteJournal(Step::Committed)])
        }
        SourceInput::Abort(reason) => resume(transfer, reason),
        SourceInput::ConnectionLost => resume(transfer, Reason::new("the connection was lost")),
        SourceInput::Resolve(_) => {
            (SourceState::Waiting, vec![SourceOutput::Refuse(Refusal::NotInDoubt)])
        }
        // Of another attempt, or repeated.
        SourceInput::Prepared(_)
        | SourceInput::Running(_)
        | SourceInput::NotRunning(..)
        | SourceInput::Connected
        | SourceInput::Retry
        | SourceInput::JournalWritten
        | SourceInput::JournalFailed => (SourceState::Waiting, Vec::new()),
    }
}

/// Nothing is committed: the guest is ours. It runs first; telling the destination can fail.
fn resume(transfer: Transfer, reason: Reason) -> SourceStep {
    let outputs = vec![
        SourceOutput::SendCancel,
        SourceOutput::ResumeGuest,
        SourceOutput::Send(Say::Abandon(transfer, reason)),
    ];
    (SourceState::Resumed, outputs)
}

fn committing(transfer: Transfer, connected: bool, input: &SourceInput) -> SourceStep {
    let stay = |connected| SourceState::Committing { connected };
    match input {
        SourceInput::JournalWritten => {
            let doubt = Doubt { connected, answer: None, guest_here: true };
            let next = if connected {
                SourceOutput::Send(Say::Commit(transfer))
            } else {
                SourceOutput::Reconnect
            };
            (SourceState::InDoubt(doubt), vec![next])
        }
        SourceInput::JournalFailed => {
            resume(transfer, Reason::new("the source could not write its journal"))
        }
        SourceInput::ConnectionLost => (stay(false), Vec::new()),
        SourceInput::Connected => (stay(true), Vec::new()),
        SourceInput::Abort(_) => (stay(connected), vec![SourceOutput::Refuse(Refusal::Committed)]),
        SourceInput::Resolve(_) => {
            (stay(connected), vec![SourceOutput::Refuse(Refusal::NotInDoubt)])
        }
        SourceInput::Prepared(_)
        | SourceInput::Running(_)
        | SourceInput::NotRunning(..)
        | SourceInput::Retry => (stay(connected), Vec::new()),
    }
}

fn in_doubt(transfer: Transfer, doubt: Doubt, input: &SourceInput) -> SourceStep {
    let stay = |doubt, outputs| (SourceState::InDoubt(doubt), outputs);
    let commit = || vec![SourceOutput::Send(Say::Commit(transfer))];
    match input {
        SourceInput::Running(running) if *running == transfer => release(doubt),
        SourceInput::NotRunning(named, because) if *named == transfer => {
            stay(Doubt { answer: Some(*because), ..doubt }, Vec::new())
        }
        SourceInput::Connected => stay(Doubt { connected: true, ..doubt }, commit()),
        SourceInput::Retry if doubt.connected => stay(doubt, commit()),
        SourceInput::ConnectionLost => {
            stay(Doubt { connected: false, ..doubt }, vec![SourceOutput::Reconnect])
        }
        SourceInput::Abort(_) => stay(doubt, vec![SourceOutput::Refuse(Refusal::Committed)]),
        SourceInput::Resolve(Resolution::Keep) if doubt.guest_here => {
            (SourceState::Keeping(doubt), vec![SourceOutput::WriteJournal(Step::Kept)])
        }
        SourceInput::Resolve(Resolution::Keep) => {
            stay(doubt, vec![SourceOutput::Refuse(Refusal::GuestGone)])
        }
        SourceInput::Resolve(Resolution::Discard) => release(doubt),
        SourceInput::Running(_)
        | SourceInput::NotRunning(..)
        | SourceInput::Prepared(_)
        | SourceInput::Retry
        | SourceInput::JournalWritten
        | SourceInput::JournalFailed => stay(doubt, Vec::new()),
    }
}

/// The guest is the destination's. The journal comes last: who reads `released` must find that
/// nothing can run here any more, and without it the commit is only said once more.
fn release(doubt: Doubt) -> SourceStep {
    let mut outputs = Vec::new();
    if doubt.guest_here {
        outputs.extend([SourceOutput::SendFinish, SourceOutput::TearDown]);
    }
    outputs.push(SourceOutput::WriteJournal(Step::Released));
    (SourceState::Released, outputs)
}

fn keeping(transfer: Transfer, doubt: Doubt, input: &SourceInput) -> SourceStep {
    let stay = |doubt| (SourceState::Keeping(doubt), Vec::new());
    match input {
        SourceInput::JournalWritten => {
            (SourceState::Resumed, vec![SourceOutput::SendCancel, SourceOutput::ResumeGuest])
        }
        SourceInput::JournalFailed => {
            (SourceState::InDoubt(doubt), vec![SourceOutput::Refuse(Refusal::Journal)])
        }
        // It runs there after all, and the guest has not been resumed here yet.
        SourceInput::Running(running) if *running == transfer => {
            let (state, mut outputs) = release(doubt);
            let over = "the destination owns the guest";
            outputs.push(SourceOutput::Refuse(Refusal::Over { over }));
            (state, outputs)
        }
        SourceInput::Connected => stay(Doubt { connected: true, ..doubt }),
        SourceInput::ConnectionLost => stay(Doubt { connected: false, ..doubt }),
        SourceInput::Abort(_) | SourceInput::Resolve(_) => {
            (SourceState::Keeping(doubt), vec![SourceOutput::Refuse(Refusal::Committed)])
        }
        SourceInput::Running(_)
        | SourceInput::NotRunning(..)
        | SourceInput::Prepared(_)
        | SourceInput::Retry => stay(doubt),
    }
}

fn over(input: &SourceInput, over: &'static str) -> Vec<SourceOutput> {
    let is_asked = matches!(input, SourceInput::Abort(_) | SourceInput::Resolve(_));
    is_asked.then_some(SourceOutput::Refuse(Refusal::Over { over })).into_iter().collect()
}
