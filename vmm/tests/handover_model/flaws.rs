//! The handover as it is, and broken in one way each: a model that lets these pass proves nothing.

use sevferry::migration::handover::{
    Destination, DestinationInput, DestinationOutput, DestinationState, Resolution, Say, Source,
    SourceInput, SourceOutput, SourceState, Step,
};
use sevferry::migration::message::{NotRunning, Transfer};

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Flaw {
    /// Nothing.
    None,
    /// The source resumes when the connection breaks after the commit.
    SourceResumesWhenTheReplyIsLost,
    /// The source accepts a cancel after the commit.
    SourceAcceptsCancelAfterCommit,
    /// The source says commit before its journal does.
    SourceCommitsBeforeItsJournal,
    /// The source does not read its journal after a crash.
    SourceForgetsItsCommitInACrash,
    /// The source frees the guest when it has said commit.
    SourceFreesTheGuestTooEarly,
    /// The source frees the guest on whatever the destination answers.
    SourceFreesTheGuestOnAnyAnswer,
    /// The source resumes without `SEND_CANCEL`.
    SourceResumesWithoutSendCancel,
    /// The source does not say commit again on a new connection.
    SourceCommitsOnlyOnce,
    /// Both take what was said in another attempt for their own.
    BothIgnoreTheEpoch,
    /// The destination runs the guest when it is prepared.
    DestinationRunsBeforeCommit,
    /// The destination writes its journal after it has run the guest.
    DestinationJournalsAfterRunning,
    /// The destination runs the guest although its journal could not be written.
    DestinationRunsWithoutItsJournal,
    /// The destination runs what it has discarded when the commit arrives again.
    DestinationRunsWhatItDiscarded,
    /// The destination runs the guest again when the commit arrives again.
    DestinationRunsAgainOnARepeatedCommit,
    /// The destination does not answer a repeated commit.
    DestinationAnswersOnlyOnce,
    /// A person keeps the guest at the source without a look at the destination.
    PersonKeepsAtTheSourceBlindly,
    /// A person keeps the guest at the destination without a look at the source.
    PersonKeepsAtTheDestinationBlindly,
}

impl Flaw {
    /// Whether a person does this at the source without a look.
    pub(crate) fn is_blind_at_source(self, resolution: Resolution) -> bool {
        self == Self::PersonKeepsAtTheSourceBlindly && resolution == Resolution::Keep
    }

    /// Whether a person does this at the destination without a look.
    pub(crate) fn is_blind_at_destination(self, resolution: Resolution) -> bool {
        self == Self::PersonKeepsAtTheDestinationBlindly && resolution == Resolution::Keep
    }

    pub(crate) fn source_recovered(self, transfer: Transfer, last: Step) -> Option<Source> {
        Source::recovered(transfer, last).filter(|_| self != Self::SourceForgetsItsCommitInACrash)
    }

    pub(crate) fn source_on(
        self,
        source: Source,
        input: SourceInput,
    ) -> (Source, Vec<SourceOutput>) {
        let was = source.state;
        let is_in_doubt = matches!(was, SourceState::InDoubt(doubt) if doubt.guest_here);
        let resumed = || {
            let resumed = Source { state: SourceState::Resumed, ..source };
            (resumed, vec![SourceOutput::SendCancel, SourceOutput::ResumeGuest])
        };
        match (self, &input) {
            (Self::SourceResumesWhenTheReplyIsLost, SourceInput::ConnectionLost)
            | (Self::SourceAcceptsCancelAfterCommit, SourceInput::Abort(_))
                if is_in_doubt =>
            {
                return resumed();
            }
            (Self::SourceFreesTheGuestOnAnyAnswer, SourceInput::NotRunning(transfer, _)) => {
                return source.on(SourceInput::Running(*transfer));
            }
            (Self::SourceCommitsOnlyOnce, SourceInput::Connected)
                if matches!(was, SourceState::InDoubt(_)) =>
            {
                let (source, _) = source.on(input);
                return (source, Vec::new());
            }
            (Self::BothIgnoreTheEpoch, SourceInput::Prepared(_)) => {
                return source.on(SourceInput::Prepared(source.transfer));
            }
            _ => {}
        }
        let (source, mut outputs) = source.on(input);
        let is_commit =
            |output: &SourceOutput| matches!(output, SourceOutput::Send(Say::Commit(_)));
        match self {
            Self::SourceCommitsBeforeItsJournal
                if was == SourceState::Waiting && source.state != was =>
            {
                outputs.insert(0, SourceOutput::Send(Say::Commit(source.transfer)));
            }
            Self::SourceFreesTheGuestTooEarly => {
                let is_first = matches!(was, SourceState::Committing { .. });
                if is_first && outputs.iter().any(is_commit) {
                    outputs.extend([SourceOutput::SendFinish, SourceOutput::TearDown]);
                }
            }
            Self::SourceResumesWithoutSendCancel => {
                outputs.retain(|output| *output != SourceOutput::SendCancel);
            }
            _ => {}
        }
        (source, outputs)
    }

    pub(crate) fn destination_new(
        self,
        transfer: Transfer,
    ) -> (Destination, Vec<DestinationOutput>) {
        let (mut destination, mut outputs) = Destination::new(transfer);
        if self == Self::DestinationRunsBeforeCommit {
            destination.state = DestinationState::Running;
            outputs.push(DestinationOutput::RunGuest);
        }
        (destination, outputs)
    }

    pub(crate) fn destination_on(
        self,
        destination: Destination,
        input: DestinationInput,
    ) -> (Destination, Vec<DestinationOutput>) {
        let transfer = destination.transfer;
        let run =
            vec![DestinationOutput::RunGuest, DestinationOutput::Send(Say::Running(transfer))];
        let running = Destination { transfer, state: DestinationState::Running };
        let is_commit = input == DestinationInput::Commit(transfer);
        match (self, destination.state) {
            (Self::BothIgnoreTheEpoch, _) => {
                if let DestinationInput::Commit(_) = input {
                    return destination.on(DestinationInput::Commit(transfer));
                }
            }
            (Self::DestinationJournalsAfterRunning, DestinationState::Prepared) if is_commit => {
                let journal = DestinationOutput::WriteJournal(Step::Owner);
                return (running, [run, vec![journal]].concat());
            }
            (Self::DestinationRunsWithoutItsJournal, DestinationState::Owning { .. })
                if input == DestinationInput::JournalFailed =>
            {
                return (running, run);
            }
            (
                Self::DestinationRunsWhatItDiscarded,
                DestinationState::Dropped(NotRunning::Discarded),
            )
            | (Self::DestinationRunsAgainOnARepeatedCommit, DestinationState::Running)
                if is_commit =>
            {
                return (running, run);
            }
            (Self::DestinationAnswersOnlyOnce, DestinationState::Running) => {
                return (destination, Vec::new());
            }
            _ => {}
        }
        destination.on(input)
    }
}
