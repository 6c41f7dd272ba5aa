//! The handover step by step: the good case, and what each side does at each fault.

use super::*;
use crate::migration::message::VmId;

const TRANSFER: Transfer = Transfer { vm: VmId([7; 16]), epoch: 3 };
const EARLIER: Transfer = Transfer { vm: VmId([7; 16]), epoch: 2 };
const LATER: Transfer = Transfer { vm: VmId([7; 16]), epoch: 4 };

/// Feeds the inputs and returns where it ends, and what the last input made it do.
fn source(inputs: &[SourceInput]) -> (Source, Vec<SourceOutput>) {
    let start = (Source::new(TRANSFER), Vec::new());
    inputs.iter().cloned().fold(start, |(source, _), input| source.on(input))
}

fn destination(inputs: &[DestinationInput]) -> (Destination, Vec<DestinationOutput>) {
    inputs.iter().fold(Destination::new(TRANSFER), |(destination, _), input| destination.on(*input))
}

const IN_DOUBT: [SourceInput; 2] = [SourceInput::Prepared(TRANSFER), SourceInput::JournalWritten];

fn in_doubt_and(inputs: &[SourceInput]) -> (Source, Vec<SourceOutput>) {
    source(&[&IN_DOUBT, inputs].concat())
}

fn resumed(outputs: &[SourceOutput]) -> bool {
    outputs.starts_with(&[SourceOutput::SendCancel, SourceOutput::ResumeGuest])
}

/// The commit is written before it is said, and the guest is given up only when it runs there.
#[test]
fn the_source_journals_before_it_commits() {
    let (_, outputs) = source(&IN_DOUBT[..1]);
    assert_eq!(outputs, [SourceOutput::WriteJournal(Step::Committed)]);
    let (waiting, outputs) = source(&IN_DOUBT);
    assert_eq!(outputs, [SourceOutput::Send(Say::Commit(TRANSFER))]);
    assert!(waiting.is_in_doubt());
    let (released, outputs) = in_doubt_and(&[SourceInput::Running(TRANSFER)]);
    let released_here = [SourceOutput::SendFinish, SourceOutput::TearDown];
    assert_eq!(outputs[..2], released_here);
    assert_eq!(outputs[2..], [SourceOutput::WriteJournal(Step::Released)]);
    assert_eq!(released.state, SourceState::Released);
}

/// The destination runs nothing before its journal says so.
#[test]
fn the_destination_journals_before_it_runs() {
    let (_, outputs) = destination(&[]);
    assert_eq!(outputs, [DestinationOutput::Send(Say::Prepared(TRANSFER))]);
    let commit = DestinationInput::Commit(TRANSFER);
    let (_, outputs) = destination(&[commit]);
    assert_eq!(outputs, [DestinationOutput::WriteJournal(Step::Owner)]);
    let (owner, outputs) = destination(&[commit, DestinationInput::JournalWritten]);
    let running = DestinationOutput::Send(Say::Running(TRANSFER));
    assert_eq!(outputs, [DestinationOutput::RunGuest, running.clone()]);
    assert_eq!(owner.on(commit), (owner, vec![running]), "a repeated commit is only answered");
}

/// Before the commit every fault gives the guest back to the source.
#[test]
fn before_the_commit_the_source_resumes() {
    let no = SourceInput::Abort(Reason::new("no"));
    for fault in [no.clone(), SourceInput::ConnectionLost] {
        let (source, outputs) = source(std::slice::from_ref(&fault));
        assert!(resumed(&outputs), "{fault:?}");
        assert!(matches!(outputs[2], SourceOutput::Send(Say::Abandon(TRANSFER, _))));
        assert_eq!(source.state, SourceState::Resumed);
    }
    let (_, outputs) = source(&[SourceInput::Prepared(TRANSFER), SourceInput::JournalFailed]);
    assert!(resumed(&outputs), "a journal that cannot be written gives the guest back");
    let (_, outputs) = source(&[SourceInput::Prepared(EARLIER)]);
    assert!(outputs.is_empty(), "prepared in another attempt");
}

/// After the commit nothing but a person makes the source resume.
#[test]
fn after_the_commit_the_source_waits_for_an_answer() {
    let (lost, outputs) = in_doubt_and(&[SourceInput::ConnectionLost]);
    assert_eq!(outputs, [SourceOutput::Reconnect]);
    assert_eq!(lost.on(SourceInput::Retry).1, [], "there is nobody to ask");
    let (connected, outputs) = lost.on(SourceInput::Connected);
    assert_eq!(outputs, [SourceOutput::Send(Say::Commit(TRANSFER))]);
    let (_, outputs) = connected.on(SourceInput::Retry);
    assert_eq!(outputs, [SourceOutput::Send(Say::Commit(TRANSFER))]);
    let (_, outputs) = connected.on(SourceInput::Abort(Reason::new("no")));
    assert_eq!(outputs, [SourceOutput::Refuse(Refusal::Committed)]);
    assert_eq!(connected.on(SourceInput::Running(EARLIER)), (connected, Vec::new()));
    let because = NotRunning::JournalFailed;
    let (answered, outputs) = connected.on(SourceInput::NotRunning(TRANSFER, because));
    assert!(answered.is_in_doubt() && outputs.is_empty());
    let SourceState::InDoubt(doubt) = answered.state else { panic!("{answered:?}") };
    assert_eq!(doubt.answer, Some(because));
}

/// A connection that broke while `committed` was being written is made again.
#[test]
fn a_source_that_commits_unconnected_connects_first() {
    let inputs =
        [SourceInput::Prepared(TRANSFER), SourceInput::ConnectionLost, SourceInput::JournalWritten];
    let (committed, outputs) = source(&inputs);
    assert_eq!(outputs, [SourceOutput::Reconnect]);
    let (_, outputs) = committed.on(SourceInput::Connected);
    assert_eq!(outputs, [SourceOutput::Send(Say::Commit(TRANSFER))]);
}

/// A person ends the source's doubt, and the journal knows before the guest runs.
#[test]
fn a_person_decides_at_the_source() {
    let keep = SourceInput::Resolve(Resolution::Keep);
    let (keeping, outputs) = in_doubt_and(std::slice::from_ref(&keep));
    assert_eq!(outputs, [SourceOutput::WriteJournal(Step::Kept)]);
    let (kept, outputs) = keeping.on(SourceInput::JournalWritten);
    assert_eq!(outputs, [SourceOutput::SendCancel, SourceOutput::ResumeGuest]);
    assert_eq!(kept.state, SourceState::Resumed);
    let (failed, outputs) = keeping.on(SourceInput::JournalFailed);
    assert_eq!(outputs, [SourceOutput::Refuse(Refusal::Journal)]);
    assert!(failed.is_in_doubt());
    let (late, _) = keeping.on(SourceInput::Running(TRANSFER));
    assert_eq!(late.state, SourceState::Released);
    assert_eq!(late.on(SourceInput::JournalWritten), (late, Vec::new()), "it runs there");
    let (dropped, outputs) = in_doubt_and(&[SourceInput::Resolve(Resolution::Discard)]);
    assert_eq!(outputs[0], SourceOutput::SendFinish);
    assert_eq!(dropped.state, SourceState::Released);
    for early in [&[][..], &IN_DOUBT[..1]] {
        let (_, outputs) = source(&[early, std::slice::from_ref(&keep)].concat());
        assert_eq!(outputs, [SourceOutput::Refuse(Refusal::NotInDoubt)]);
    }
    let (_, outputs) = kept.on(keep);
    assert!(matches!(outputs[..], [SourceOutput::Refuse(Refusal::Over { .. })]));
}

/// After a crash the source has no guest, but it still says that it was committed.
#[test]
fn a_crashed_source_still_commits() {
    let recovered = Source::recovered(TRANSFER, Step::Committed).unwrap();
    let (connected, outputs) = recovered.on(SourceInput::Connected);
    assert_eq!(outputs, [SourceOutput::Send(Say::Commit(TRANSFER))]);
    let (_, outputs) = connected.on(SourceInput::Resolve(Resolution::Keep));
    assert_eq!(outputs, [SourceOutput::Refuse(Refusal::GuestGone)]);
    let (_, outputs) = connected.on(SourceInput::Running(TRANSFER));
    assert_eq!(outputs, [SourceOutput::WriteJournal(Step::Released)], "there is nothing to free");
    for over in [Step::Kept, Step::Released, Step::Owner, Step::Discarded] {
        assert_eq!(Source::recovered(TRANSFER, over), None);
    }
}

/// A destination whose journal fails does not run, says so, and can be committed again.
#[test]
fn a_destination_without_journal_stays_paused() {
    let commit = DestinationInput::Commit(TRANSFER);
    let (paused, outputs) = destination(&[commit, DestinationInput::JournalFailed]);
    let refusal = Say::NotRunning(TRANSFER, NotRunning::JournalFailed);
    assert_eq!(outputs, [DestinationOutput::Send(refusal)]);
    assert_eq!(paused.state, DestinationState::Prepared);
    assert_eq!(paused.on(commit).1, [DestinationOutput::WriteJournal(Step::Owner)]);
}

/// Only the source's word, of this very attempt or of a later one, frees a prepared guest.
#[test]
fn a_prepared_destination_believes_only_its_own_source() {
    let dropped = DestinationState::Dropped(NotRunning::Discarded);
    for word in [DestinationInput::Abandon(TRANSFER), DestinationInput::Offered(LATER)] {
        let (destination, outputs) = destination(&[word]);
        assert_eq!((destination.state, outputs), (dropped, vec![DestinationOutput::TearDown]));
    }
    let other = Transfer { vm: VmId([8; 16]), epoch: 9 };
    for word in [
        DestinationInput::Abandon(EARLIER),
        DestinationInput::Abandon(other),
        DestinationInput::Offered(TRANSFER),
        DestinationInput::Offered(other),
    ] {
        let (destination, outputs) = destination(&[word]);
        assert_eq!((destination.state, outputs), (DestinationState::Prepared, Vec::new()));
    }
    let (same, outputs) = destination(&[DestinationInput::Commit(EARLIER)]);
    let unknown = Say::NotRunning(EARLIER, NotRunning::Unknown);
    assert_eq!(outputs, [DestinationOutput::Send(unknown)]);
    assert_eq!(same.state, DestinationState::Prepared);
}

/// From the commit on an abandon changes nothing.
#[test]
fn a_committed_destination_ignores_an_abandon() {
    let abandon = DestinationInput::Abandon(TRANSFER);
    let commit = DestinationInput::Commit(TRANSFER);
    let (owning, outputs) = destination(&[commit, abandon]);
    assert_eq!(owning.state, DestinationState::Owning { commanded: true });
    assert!(outputs.is_empty());
    let (running, outputs) = owning.on(DestinationInput::JournalWritten).0.on(abandon);
    assert_eq!(running.state, DestinationState::Running);
    assert!(outputs.is_empty());
}

/// A person ends the destination's doubt, and the journal knows first.
#[test]
fn a_person_decides_at_the_destination() {
    let keep = DestinationInput::Resolve(Resolution::Keep);
    let discard = DestinationInput::Resolve(Resolution::Discard);
    let commit = DestinationInput::Commit(TRANSFER);
    assert_eq!(destination(&[keep]).1, [DestinationOutput::WriteJournal(Step::Owner)]);
    let (_, outputs) = destination(&[keep, DestinationInput::JournalWritten]);
    assert_eq!(outputs[0], DestinationOutput::RunGuest);
    let (_, outputs) = destination(&[keep, DestinationInput::JournalFailed]);
    assert_eq!(outputs, [DestinationOutput::Refuse(Refusal::Journal)]);
    let (discarding, outputs) = destination(&[discard]);
    assert_eq!(outputs, [DestinationOutput::WriteJournal(Step::Discarded)]);
    assert_eq!(discarding.on(commit), (discarding, Vec::new()));
    let (paused, _) = discarding.on(DestinationInput::JournalFailed);
    assert_eq!(paused.state, DestinationState::Prepared);
    let (dropped, outputs) = discarding.on(DestinationInput::JournalWritten);
    assert_eq!(outputs, [DestinationOutput::TearDown]);
    let (_, outputs) = dropped.on(commit);
    let discarded = Say::NotRunning(TRANSFER, NotRunning::Discarded);
    assert_eq!(outputs, [DestinationOutput::Send(discarded)], "a commit comes too late");
    assert!(matches!(dropped.on(keep).1[..], [DestinationOutput::Refuse(Refusal::Over { .. })]));
}

/// After a crash the destination has no guest and says what it knows.
#[test]
fn a_crashed_destination_answers_from_its_journal() {
    for (last, because) in [
        (None, NotRunning::Unknown),
        (Some(Step::Owner), NotRunning::Crashed),
        (Some(Step::Discarded), NotRunning::Discarded),
    ] {
        let recovered = Destination::recovered(TRANSFER, last);
        let answer = vec![DestinationOutput::Send(Say::NotRunning(TRANSFER, because))];
        assert_eq!(recovered.on(DestinationInput::Commit(TRANSFER)), (recovered, answer));
    }
}
