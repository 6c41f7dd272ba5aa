//! The destination's half of a handover.

use super::{Refusal, Resolution, Say, Step};
use crate::migration::message::{NotRunning, Transfer};

/// The destination's half.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Destination {
    /// Which handover this is.
    pub transfer: Transfer,
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
    Commit(Transfer),
    /// The source said [`Say::Abandon`].
    Abandon(Transfer),
    /// The source offers the guest anew: so it has kept it.
    Offered(Transfer),
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
    /// Tell who asked.
    Refuse(Refusal),
}

type DestinationStep = (DestinationState, Vec<DestinationOutput>);

impl Destination {
    /// All is loaded and checked, `RECEIVE_FINISH` included.
    #[must_use]
    pub fn new(transfer: Transfer) -> (Self, Vec<DestinationOutput>) {
        let prepared = DestinationOutput::Send(Say::Prepared(transfer));
        (Self { transfer, state: DestinationState::Prepared }, vec![prepared])
    }

    /// After a crash, which has lost the guest: what to answer about a transfer whose last step in
    /// the journal is `last`.
    #[must_use]
    pub fn recovered(transfer: Transfer, last: Option<Step>) -> Self {
        let because = match last {
            Some(Step::Owner) => NotRunning::Crashed,
            Some(Step::Discarded) => NotRunning::Discarded,
            Some(Step::Committed | Step::Kept | Step::Released) | None => NotRunning::Unknown,
        };
        Self { transfer, state: DestinationState::Dropped(because) }
    }

    /// The next state, and what to do in this order.
    #[must_use]
    pub fn on(self, input: DestinationInput) -> (Self, Vec<DestinationOutput>) {
        let transfer = self.transfer;
        if let DestinationInput::Commit(named) = input
            && named != transfer
        {
            let answer = Say::NotRunning(named, NotRunning::Unknown);
            return (self, vec![DestinationOutput::Send(answer)]);
        }
        let (state, outputs) = match self.state {
            DestinationState::Prepared => prepared(transfer, &input),
            DestinationState::Owning { commanded } => owning(transfer, commanded, &input),
            DestinationState::Discarding => discarding(&input),
            DestinationState::Running => {
                let answer = Say::Running(transfer);
                (self.state, answered(&input, answer, "the guest runs here"))
            }
            DestinationState::Dropped(because) => {
                let answer = Say::NotRunning(transfer, because);
                (self.state, answered(&input, answer, "the guest is not here any more"))
            }
        };
        (Self { transfer, state }, outputs)
    }
}

fn prepared(transfer: Transfer, input: &DestinationInput) -> DestinationStep {
    let own = |commanded| {
        let outputs = vec![DestinationOutput::WriteJournal(Step::Owner)];
        (DestinationState::Owning { commanded }, outputs)
    };
    let drop_guest = || {
        let state = DestinationState::Dropped(NotRunning::Discarded);
        (state, vec![DestinationOutput::TearDown])
    };
    match *input {
        DestinationInput::Commit(_) => own(true),
        DestinationInput::Resolve(Resolution::Keep) => own(false),
        DestinationInput::Resolve(Resolution::Discard) => {
            let outputs = vec![DestinationOutput::WriteJournal(Step::Discarded)];
            (DestinationState::Discarding, outputs)
        }
        // The source says that the guest is its own. It does so only of what it never committed.
        DestinationInput::Abandon(named) if named == transfer => drop_guest(),
        DestinationInput::Offered(anew) if anew.vm == transfer.vm && anew > transfer => {
            drop_guest()
        }
        DestinationInput::Abandon(_)
        | DestinationInput::Offered(_)
        | DestinationInput::JournalWritten
        | DestinationInput::JournalFailed => (DestinationState::Prepared, Vec::new()),
    }
}

fn owning(transfer: Transfer, commanded: bool, input: &DestinationInput) -> DestinationStep {
    match input {
        DestinationInput::JournalWritten => {
            let running = DestinationOutput::Send(Say::Running(transfer));
            (DestinationState::Running, vec![DestinationOutput::RunGuest, running])
        }
        DestinationInput::JournalFailed => {
            let told = if commanded {
                let answer = Say::NotRunning(transfer, NotRunning::JournalFailed);
                DestinationOutput::Send(answer)
            } else {
                DestinationOutput::Refuse(Refusal::Journal)
            };
            (DestinationState::Prepared, vec![told])
        }
        DestinationInput::Resolve(_) => {
            let over = Refusal::Over { over: "the guest is about to run here" };
            (DestinationState::Owning { commanded }, vec![DestinationOutput::Refuse(over)])
        }
        DestinationInput::Commit(_) => (DestinationState::Owning { commanded: true }, Vec::new()),
        DestinationInput::Abandon(_) | DestinationInput::Offered(_) => {
            (DestinationState::Owning { commanded }, Vec::new())
        }
    }
}

fn discarding(input: &DestinationInput) -> DestinationStep {
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
        // The source says it again, and is answered then.
        DestinationInput::Commit(_)
        | DestinationInput::Abandon(_)
        | DestinationInput::Offered(_) => (DestinationState::Discarding, Vec::new()),
    }
}

/// In a state that nothing leaves: a commit is answered, a decision refused.
fn answered(input: &DestinationInput, answer: Say, over: &'static str) -> Vec<DestinationOutput> {
    match input {
        DestinationInput::Commit(_) => vec![DestinationOutput::Send(answer)],
        DestinationInput::Resolve(_) => {
            vec![DestinationOutput::Refuse(Refusal::Over { over })]
        }
        DestinationInput::Abandon(_)
        | DestinationInput::Offered(_)
        | DestinationInput::JournalWritten
        | DestinationInput::JournalFailed => Vec::new(),
    }
}
