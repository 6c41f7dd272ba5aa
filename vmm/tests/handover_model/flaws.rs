//! The handover as it is, and broken in one way each: a model that lets these pass proves nothing.

use sevferry::migration::handover::{
    Destination, DestinationInput, DestinationOutput, DestinationState, Resolution, Source,
    SourceInput, SourceOutput, SourceState, Step,
};
use sevferry::migration::wire::{NotRunning, Transfer};
use sevferry::migration::wire::{Say, Word};

use crate::world::secret;

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
    /// The destination says that it gives the guest back, and runs it when told once more.
    DestinationGivesBackAndKeepsACopy,
    /// The destination gives the guest back to a source that has lost it.
    DestinationGivesTheLastCopyBack,
    /// The destination forgets its journal once it runs the guest.
    DestinationForgetsBeforeItsSourceKnows,
    /// The source needs no proof.
    SourceBelievesAnybody,
    /// The destination needs no proof.
    DestinationBelievesAnybody,
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
        let recovered = Source::recovered(transfer, secret(transfer), last);
        recovered.filter(|_| self != Self::SourceForgetsItsCommitInACrash)
    }

    pub(crate) fn source_hears(self, source: &Source, word: &Word) -> Option<SourceInput> {
        source.hear(&self.forged(word, source.transfer, Self::SourceBelievesAnybody))
    }

    pub(crate) fn destination_hears(
        self,
        destination: &Destination,
        word: &Word,
    ) -> Option<DestinationInput> {
        destination.hear(&self.forged(word, destination.transfer, Self::DestinationBelievesAnybody))
    }

    /// The word with the proof that a side which does not look would see.
    fn forged(self, word: &Word, transfer: Transfer, believer: Self) -> Word {
        if self == Self::BothIgnoreTheEpoch && word.is_proven(&secret(word.transfer)) {
            Word::new(&secret(transfer), transfer, word.say.clone())
        } else if self == believer {
            Word::new(&secret(word.transfer), word.transfer, word.say.clone())
        } else {
            word.clone()
        }
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
            (Self::SourceFreesTheGuestOnAnyAnswer, SourceInput::NotRunning(_)) => {
                return source.on(SourceInput::Running);
            }
            (Self::SourceCommitsOnlyOnce, SourceInput::Connected)
                if matches!(was, SourceState::InDoubt(_)) =>
            {
                let (source, _) = source.on(input);
                return (source, Vec::new());
            }
            _ => {}
        }
        let (source, mut outputs) = source.on(input);
        let is_commit =
            |output: &SourceOutput| matches!(output, SourceOutput::Send(Say::Commit { .. }));
        match self {
            Self::SourceCommitsBeforeItsJournal
                if was == SourceState::Waiting && source.state != was =>
            {
                outputs.insert(0, SourceOutput::Send(Say::Commit { is_last: false }));
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
        let (mut destination, mut outputs) = Destination::new(transfer, secret(transfer));
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
        let run = vec![DestinationOutput::RunGuest, DestinationOutput::Send(Say::Running)];
        let running = Destination { state: DestinationState::Running, ..destination };
        let is_commit = matches!(input, DestinationInput::Commit { .. });
        match (self, destination.state) {
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
            (Self::DestinationGivesTheLastCopyBack, DestinationState::Owning { .. }) => {
                let (next, outputs) = Destination { is_last: false, ..destination }.on(input);
                return (Destination { is_last: destination.is_last, ..next }, outputs);
            }
            _ => {}
        }
        let was = destination.state;
        let (mut next, mut outputs) = destination.on(input);
        match (self, next.state) {
            (
                Self::DestinationGivesBackAndKeepsACopy,
                DestinationState::Dropped(NotRunning::GivenBack),
            ) if matches!(was, DestinationState::Owning { .. }) => {
                next.state = DestinationState::Prepared;
                outputs.retain(|output| *output != DestinationOutput::TearDown);
            }
            (Self::DestinationForgetsBeforeItsSourceKnows, DestinationState::Running)
                if was != next.state =>
            {
                outputs.push(DestinationOutput::Forget);
            }
            _ => {}
        }
        (next, outputs)
    }
}
