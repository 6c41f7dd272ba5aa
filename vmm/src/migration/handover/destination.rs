//! The destination's half of a handover.

use super::step::{Refusal, Resolution, Step};
use crate::migration::wire::{NotRunning, Say, Secret, Transfer, Word};

/// The destination's half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Which handover this is.
    pub transfer: Transfer,
    /// What proves that a word is about it.
    pub secret: Secret,
    /// Whether the copy here is known to be the last. Then it cannot be given back.
    pub is_last: bool,
    /// Where it stands.
    pub state: DestinationState,
}

/// Where the destination stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationState {
    /// The guest is loaded, checked and paused; it stays so until the source commits.
    Prepared,
    /// `owner` is being written.
    Owning {
        /// Whether the source told us to, and not a person.
        commanded: bool,
    },
    /// The guest runs here.
    Running,
    /// A person decided to drop the guest; `discarded` is being written.
    Discarding,
    /// The guest is dropped.
    Dropped(NotRunning),
}

/// What happens to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DestinationInput {
    /// The source said [`Say::Commit`].
    Commit {
        /// As in the commit.
        is_last: bool,
    },
    /// The source said [`Say::Abandon`], by itself or with its next offer of the guest.
    Abandon,
    /// The source said [`Say::Released`].
    Released,
    /// The last journal write is durable.
    JournalWritten,
    /// The last journal write failed, and the journal is as before.
    JournalFailed,
    /// A person decides.
    Resolve(Resolution),
}

/// What the destination must do.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DestinationOutput {
    /// Append to the journal, durably, and report [`DestinationInput::JournalWritten`] or
    /// [`DestinationInput::JournalFailed`].
    WriteJournal(Step),
    /// Tell the source; a failure needs no report, since the source will ask again.
    Send(Say),
    /// Run the guest here.
    RunGuest,
    /// Free the guest.
    TearDown,
    /// Remove this transfer from the journal: the other side will not ask about it any more.
    Forget,
    /// Refuse a decision.
    Refuse(Refusal),
}

type DestinationStep = (DestinationState, Vec<DestinationOutput>);

impl Destination {
    /// The guest is loaded and checked, `RECEIVE_FINISH` is done, and the journal says `accepted`.
    #[must_use]
    pub fn new(transfer: Transfer, secret: Secret) -> (Self, Vec<DestinationOutput>) {
        let state = DestinationState::Prepared;
        let prepared = DestinationOutput::Send(Say::Prepared);
        (Self { transfer, secret, is_last: false, state }, vec![prepared])
    }

    /// Without the guest, after a crash or after it was given back: answers the source's questions. `last` is the
    /// last step of the transfer in the journal. `None` if that is not a destination's step.
    #[must_use]
    pub fn recovered(transfer: Transfer, secret: Secret, last: Step) -> Option<Self> {
        let because = match last {
            Step::Accepted => NotRunning::GivenBack,
            Step::Owner => NotRunning::Crashed,
            Step::Discarded => NotRunning::Discarded,
            Step::Committed | Step::Kept | Step::Released => return None,
        };
        let state = DestinationState::Dropped(because);
        Some(Self { transfer, secret, is_last: false, state })
    }

    /// The input that a word is. `None` unless the source said it, on this transfer.
    #[must_use]
    pub fn hear(&self, word: &Word) -> Option<DestinationInput> {
        if word.transfer != self.transfer || !word.is_proven(&self.secret) {
            return None;
        }
        match word.say {
            Say::Commit { is_last } => Some(DestinationInput::Commit { is_last }),
            Say::Abandon(_) => Some(DestinationInput::Abandon),
            Say::Released => Some(DestinationInput::Released),
            // Words of a destination, sent back to us.
            Say::Prepared | Say::Running | Say::NotRunning(_) => None,
        }
    }

    /// `say` with its proof, ready to be sent to the source.
    #[must_use]
    pub fn word(&self, say: Say) -> Word {
        Word::new(&self.secret, self.transfer, say)
    }

    /// The next state, and what to do in this order.
    #[must_use]
    pub fn on(self, input: DestinationInput) -> (Self, Vec<DestinationOutput>) {
        let is_last = self.is_last || says_last(input);
        let (state, outputs) = match self.state {
            DestinationState::Prepared => prepared(input),
            DestinationState::Owning { commanded } => owning(commanded, is_last, input),
            DestinationState::Discarding => discarding(input),
            DestinationState::Running => {
                (self.state, answered(input, Say::Running, "the guest runs here"))
            }
            DestinationState::Dropped(because) => {
                let answer = Say::NotRunning(because);
                (self.state, answered(input, answer, "the guest is not here any more"))
            }
        };
        (Self { is_last, state, ..self }, outputs)
    }
}

/// A person keeps the guest here only if the source does not have it any more.
fn says_last(input: DestinationInput) -> bool {
    matches!(
        input,
        DestinationInput::Commit { is_last: true } | DestinationInput::Resolve(Resolution::Keep)
    )
}

fn prepared(input: DestinationInput) -> DestinationStep {
    let own = |commanded| {
        let outputs = vec![DestinationOutput::WriteJournal(Step::Owner)];
        (DestinationState::Owning { commanded }, outputs)
    };
    match input {
        DestinationInput::Commit { .. } => own(true),
        DestinationInput::Resolve(Resolution::Keep) => own(false),
        DestinationInput::Resolve(Resolution::Discard) => {
            let outputs = vec![DestinationOutput::WriteJournal(Step::Discarded)];
            (DestinationState::Discarding, outputs)
        }
        // The source keeps the guest, so it will never ask about it here.
        DestinationInput::Abandon => {
            let state = DestinationState::Dropped(NotRunning::GivenBack);
            (state, vec![DestinationOutput::TearDown, DestinationOutput::Forget])
        }
        DestinationInput::Released
        | DestinationInput::JournalWritten
        | DestinationInput::JournalFailed => (DestinationState::Prepared, Vec::new()),
    }
}

fn owning(commanded: bool, is_last: bool, input: DestinationInput) -> DestinationStep {
    match input {
        DestinationInput::JournalWritten => {
            let running = DestinationOutput::Send(Say::Running);
            (DestinationState::Running, vec![DestinationOutput::RunGuest, running])
        }
        DestinationInput::JournalFailed if is_last => {
            let told = if commanded {
                DestinationOutput::Send(Say::NotRunning(NotRunning::JournalFailed))
            } else {
                DestinationOutput::Refuse(Refusal::Journal)
            };
            (DestinationState::Prepared, vec![told])
        }
        DestinationInput::JournalFailed => give_back(),
        DestinationInput::Resolve(_) => {
            let over = Refusal::Over { over: "the guest is about to run here" };
            (DestinationState::Owning { commanded }, vec![DestinationOutput::Refuse(over)])
        }
        DestinationInput::Commit { .. } => {
            (DestinationState::Owning { commanded: true }, Vec::new())
        }
        DestinationInput::Abandon | DestinationInput::Released => {
            (DestinationState::Owning { commanded }, Vec::new())
        }
    }
}

/// The copy is freed first, because the source runs the guest when it hears that it is given back. The journal
/// still says `accepted`, which gives the same answer to a source that asks once more.
fn give_back() -> DestinationStep {
    let because = NotRunning::GivenBack;
    let said = DestinationOutput::Send(Say::NotRunning(because));
    (DestinationState::Dropped(because), vec![DestinationOutput::TearDown, said])
}

fn discarding(input: DestinationInput) -> DestinationStep {
    match input {
        DestinationInput::JournalWritten => {
            let state = DestinationState::Dropped(NotRunning::Discarded);
            (state, vec![DestinationOutput::TearDown])
        }
        DestinationInput::JournalFailed => {
            (DestinationState::Prepared, vec![DestinationOutput::Refuse(Refusal::Journal)])
        }
        DestinationInput::Resolve(_) => {
            let over = Refusal::Over { over: "the guest is about to be discarded" };
            (DestinationState::Discarding, vec![DestinationOutput::Refuse(over)])
        }
        // The source will say it again, and is answered then.
        DestinationInput::Commit { .. }
        | DestinationInput::Abandon
        | DestinationInput::Released => (DestinationState::Discarding, Vec::new()),
    }
}

/// In a final state: a commit is answered, a decision is refused, and when the source has no more to ask the
/// transfer is removed from the journal.
fn answered(input: DestinationInput, answer: Say, over: &'static str) -> Vec<DestinationOutput> {
    match input {
        DestinationInput::Commit { .. } => vec![DestinationOutput::Send(answer)],
        DestinationInput::Abandon if answer == Say::Running => Vec::new(),
        DestinationInput::Abandon | DestinationInput::Released => vec![DestinationOutput::Forget],
        DestinationInput::Resolve(_) => {
            vec![DestinationOutput::Refuse(Refusal::Over { over })]
        }
        DestinationInput::JournalWritten | DestinationInput::JournalFailed => Vec::new(),
    }
}
