//! The handover step by step: the good case, and what each side does at each fault.

use super::*;
use crate::migration::wire::{NotRunning, Reason, Say, Secret, Transfer, VmId, Word};

const TRANSFER: Transfer = Transfer { vm: VmId([7; 16]), epoch: 3 };
const EARLIER: Transfer = Transfer { vm: VmId([7; 16]), epoch: 2 };
const SECRET: Secret = Secret([1; 16]);

/// Feeds the inputs and returns where it ends, and what the last input made it do.
fn source(inputs: &[SourceInput]) -> (Source, Vec<SourceOutput>) {
    let start = (Source::new(TRANSFER, SECRET), Vec::new());
    inputs.iter().cloned().fold(start, |(source, _), input| source.on(input))
}

fn destination(inputs: &[DestinationInput]) -> (Destination, Vec<DestinationOutput>) {
    let new = Destination::new(TRANSFER, SECRET);
    inputs.iter().fold(new, |(destination, _), input| destination.on(*input))
}

const IN_DOUBT: [SourceInput; 2] = [SourceInput::Prepared, SourceInput::JournalWritten];
const COMMIT: DestinationInput = DestinationInput::Commit { is_last: false };
const LAST_COMMIT: DestinationInput = DestinationInput::Commit { is_last: true };

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
    assert_eq!(outputs, [SourceOutput::Send(Say::Commit { is_last: false })]);
    assert!(waiting.is_in_doubt());
    let (released, outputs) = in_doubt_and(&[SourceInput::Running]);
    let released_here = [SourceOutput::SendFinish, SourceOutput::TearDown];
    assert_eq!(outputs[..2], released_here);
    assert_eq!(outputs[2..], [SourceOutput::WriteJournal(Step::Released)]);
    assert_eq!(released.state, SourceState::Released(By::Destination));
    let (_, outputs) = released.on(SourceInput::JournalWritten);
    assert_eq!(outputs, [SourceOutput::Send(Say::Released), SourceOutput::Forget]);
    assert_eq!(released.on(SourceInput::JournalFailed).1, [], "it asks again at the next start");
}

/// The destination runs nothing before its journal says so.
#[test]
fn the_destination_journals_before_it_runs() {
    let (_, outputs) = destination(&[]);
    assert_eq!(outputs, [DestinationOutput::Send(Say::Prepared)]);
    let (_, outputs) = destination(&[COMMIT]);
    assert_eq!(outputs, [DestinationOutput::WriteJournal(Step::Owner)]);
    let (owner, outputs) = destination(&[COMMIT, DestinationInput::JournalWritten]);
    let running = DestinationOutput::Send(Say::Running);
    assert_eq!(outputs, [DestinationOutput::RunGuest, running.clone()]);
    assert_eq!(owner.on(COMMIT), (owner, vec![running]), "a repeated commit is only answered");
    assert_eq!(owner.on(DestinationInput::Released).1, [DestinationOutput::Forget]);
}

/// Before the commit every fault gives the guest back to the source.
#[test]
fn before_the_commit_the_source_resumes() {
    let no = SourceInput::Abort(Reason::new("no"));
    for fault in [no.clone(), SourceInput::ConnectionLost] {
        let (source, outputs) = source(std::slice::from_ref(&fault));
        assert!(resumed(&outputs), "{fault:?}");
        assert!(matches!(outputs[2], SourceOutput::Send(Say::Abandon(_))));
        assert_eq!(source.state, SourceState::Resumed);
    }
    let (_, outputs) = source(&[SourceInput::Prepared, SourceInput::JournalFailed]);
    assert!(resumed(&outputs), "a journal that cannot be written gives the guest back");
}

/// After the commit nothing makes the source resume but a person, or the destination's word that it
/// has no copy and never ran it.
#[test]
fn after_the_commit_the_source_waits_for_an_answer() {
    let (lost, outputs) = in_doubt_and(&[SourceInput::ConnectionLost]);
    assert_eq!(outputs, [SourceOutput::Reconnect]);
    assert_eq!(lost.on(SourceInput::Retry).1, [], "there is nobody to ask");
    let (connected, outputs) = lost.on(SourceInput::Connected);
    assert_eq!(outputs, [SourceOutput::Send(Say::Commit { is_last: false })]);
    let (_, outputs) = connected.on(SourceInput::Retry);
    assert_eq!(outputs, [SourceOutput::Send(Say::Commit { is_last: false })]);
    let (_, outputs) = connected.on(SourceInput::Abort(Reason::new("no")));
    assert_eq!(outputs, [SourceOutput::Refuse(Refusal::Committed)]);
    for because in [NotRunning::JournalFailed, NotRunning::Crashed] {
        let (answered, outputs) = connected.on(SourceInput::NotRunning(because));
        assert!(outputs.is_empty());
        let SourceState::InDoubt(doubt) = answered.state else { panic!("{answered:?}") };
        assert_eq!(doubt.answer, Some(because));
    }
}

/// What is given back is kept: the journal knows before the guest runs, and the destination after it,
/// so that both can forget. A journal that cannot be written leaves the doubt, and all is said again.
#[test]
fn a_guest_that_is_given_back_resumes() {
    for because in [NotRunning::GivenBack, NotRunning::Discarded] {
        let (keeping, outputs) = in_doubt_and(&[SourceInput::NotRunning(because)]);
        assert_eq!(outputs, [SourceOutput::WriteJournal(Step::Kept)]);
        let (kept, outputs) = keeping.on(SourceInput::JournalWritten);
        assert!(resumed(&outputs));
        assert!(matches!(outputs[2], SourceOutput::Send(Say::Abandon(_))));
        assert_eq!(outputs[3..], [SourceOutput::Forget]);
        assert_eq!(kept.state, SourceState::Resumed);
        let (doubt, _) = keeping.on(SourceInput::JournalFailed);
        let (_, outputs) = doubt.on(SourceInput::Retry);
        assert_eq!(outputs, [SourceOutput::Send(Say::Commit { is_last: false })]);
    }
}

/// Neither side hears a word that is not the other's on this very transfer.
#[test]
fn only_proven_words_are_heard() {
    let (source, _) = source(&IN_DOUBT);
    let (destination, _) = destination(&[]);
    let at_source = [Say::Prepared, Say::Running, Say::NotRunning(NotRunning::GivenBack)];
    let at_destination =
        [Say::Commit { is_last: true }, Say::Abandon(Reason::default()), Say::Released];
    for (number, say) in at_source.into_iter().chain(at_destination).enumerate() {
        let word = |secret, transfer| Word::new(secret, transfer, say.clone());
        let proven = word(&SECRET, TRANSFER);
        // What a side says itself is nothing to it when it is thrown back.
        assert_eq!(source.hear(&proven).is_some(), number < 3, "{say:?}");
        assert_eq!(destination.hear(&proven).is_some(), number >= 3, "{say:?}");
        for other in [word(&Secret([2; 16]), TRANSFER), word(&SECRET, EARLIER)] {
            assert_eq!(source.hear(&other), None, "{say:?}");
            assert_eq!(destination.hear(&other), None, "{say:?}");
        }
    }
    assert_eq!(source.word(Say::Running), destination.word(Say::Running));
}

/// A connection that broke while `committed` was being written is made again.
#[test]
fn a_source_that_commits_unconnected_connects_first() {
    let inputs = [SourceInput::Prepared, SourceInput::ConnectionLost, SourceInput::JournalWritten];
    let (committed, outputs) = source(&inputs);
    assert_eq!(outputs, [SourceOutput::Reconnect]);
    let (_, outputs) = committed.on(SourceInput::Connected);
    assert_eq!(outputs, [SourceOutput::Send(Say::Commit { is_last: false })]);
}

/// A person ends the source's doubt, and the journal knows before the guest runs.
#[test]
fn a_person_decides_at_the_source() {
    let keep = SourceInput::Resolve(Resolution::Keep);
    let (keeping, outputs) = in_doubt_and(std::slice::from_ref(&keep));
    assert_eq!(outputs, [SourceOutput::WriteJournal(Step::Kept)]);
    let (kept, outputs) = keeping.on(SourceInput::JournalWritten);
    assert!(resumed(&outputs));
    assert_eq!(kept.state, SourceState::Resumed);
    let (failed, outputs) = keeping.on(SourceInput::JournalFailed);
    assert_eq!(outputs, [SourceOutput::Refuse(Refusal::Journal)]);
    assert!(failed.is_in_doubt());
    let (late, _) = keeping.on(SourceInput::Running);
    assert_eq!(late.state, SourceState::Released(By::Destination));
    let (dropped, outputs) = in_doubt_and(&[SourceInput::Resolve(Resolution::Discard)]);
    assert_eq!(outputs[0], SourceOutput::SendFinish);
    assert_eq!(dropped.state, SourceState::Released(By::Person));
    let (_, outputs) = dropped.on(SourceInput::JournalWritten);
    assert_eq!(outputs, [], "the journal stays, for a person who decides there");
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
    let recovered = Source::recovered(TRANSFER, SECRET, Step::Committed).unwrap();
    let (connected, outputs) = recovered.on(SourceInput::Connected);
    assert_eq!(outputs, [SourceOutput::Send(Say::Commit { is_last: true })]);
    let (_, outputs) = connected.on(SourceInput::Resolve(Resolution::Keep));
    assert_eq!(outputs, [SourceOutput::Refuse(Refusal::GuestGone)]);
    let (_, outputs) = connected.on(SourceInput::Running);
    assert_eq!(outputs, [SourceOutput::WriteJournal(Step::Released)], "there is nothing to free");
    for gone in [NotRunning::GivenBack, NotRunning::Discarded, NotRunning::Crashed] {
        let (_, outputs) = connected.on(SourceInput::NotRunning(gone));
        assert_eq!(outputs, [SourceOutput::WriteJournal(Step::Released)], "there is no copy");
    }
    let (waiting, _) = connected.on(SourceInput::NotRunning(NotRunning::JournalFailed));
    assert!(waiting.is_in_doubt());
    for over in [Step::Kept, Step::Released, Step::Accepted, Step::Owner, Step::Discarded] {
        assert_eq!(Source::recovered(TRANSFER, SECRET, over), None);
    }
}

/// A destination whose journal fails does not run the guest: its copy goes, then it says so, and
/// whatever is said then is answered the same.
#[test]
fn a_destination_without_journal_gives_the_guest_back() {
    let (gone, outputs) = destination(&[COMMIT, DestinationInput::JournalFailed]);
    let given_back = DestinationOutput::Send(Say::NotRunning(NotRunning::GivenBack));
    assert_eq!(outputs, [DestinationOutput::TearDown, given_back.clone()]);
    assert_eq!(gone.on(COMMIT).1, [given_back]);
    assert_eq!(gone.on(DestinationInput::Abandon).1, [DestinationOutput::Forget]);
}

/// A copy that is known to be the last is kept, however often the journal fails, and whatever an
/// earlier word says that arrives late.
#[test]
fn the_last_copy_is_not_given_back() {
    let failed = DestinationInput::JournalFailed;
    let keep = DestinationInput::Resolve(Resolution::Keep);
    for inputs in [
        [LAST_COMMIT, failed, LAST_COMMIT, failed],
        [LAST_COMMIT, failed, COMMIT, failed],
        [COMMIT, LAST_COMMIT, failed, COMMIT],
        [keep, failed, COMMIT, failed],
    ] {
        let (paused, outputs) = destination(&inputs);
        if inputs[3] == failed {
            let answer = Say::NotRunning(NotRunning::JournalFailed);
            assert_eq!(outputs, [DestinationOutput::Send(answer)]);
            assert_eq!(paused.state, DestinationState::Prepared);
        }
        assert!(paused.is_last);
    }
}

/// A source that says that it has kept the guest frees what is prepared.
#[test]
fn an_abandoned_copy_is_dropped() {
    let (dropped, outputs) = destination(&[DestinationInput::Abandon]);
    assert_eq!(outputs, [DestinationOutput::TearDown, DestinationOutput::Forget]);
    assert_eq!(dropped.state, DestinationState::Dropped(NotRunning::GivenBack));
    assert_eq!(destination(&[DestinationInput::Released]).1, []);
}

/// From the commit on an abandon changes nothing.
#[test]
fn a_committed_destination_ignores_an_abandon() {
    let abandon = DestinationInput::Abandon;
    let (owning, outputs) = destination(&[COMMIT, abandon]);
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
    assert_eq!(destination(&[keep]).1, [DestinationOutput::WriteJournal(Step::Owner)]);
    let (_, outputs) = destination(&[keep, DestinationInput::JournalWritten]);
    assert_eq!(outputs[0], DestinationOutput::RunGuest);
    let (_, outputs) = destination(&[keep, DestinationInput::JournalFailed]);
    assert_eq!(outputs, [DestinationOutput::Refuse(Refusal::Journal)]);
    let (discarding, outputs) = destination(&[discard]);
    assert_eq!(outputs, [DestinationOutput::WriteJournal(Step::Discarded)]);
    assert_eq!(discarding.on(COMMIT), (discarding, Vec::new()));
    let (paused, _) = discarding.on(DestinationInput::JournalFailed);
    assert_eq!(paused.state, DestinationState::Prepared);
    let (dropped, outputs) = discarding.on(DestinationInput::JournalWritten);
    assert_eq!(outputs, [DestinationOutput::TearDown]);
    let (_, outputs) = dropped.on(COMMIT);
    let discarded = Say::NotRunning(NotRunning::Discarded);
    assert_eq!(outputs, [DestinationOutput::Send(discarded)], "a commit comes too late");
    assert!(matches!(dropped.on(keep).1[..], [DestinationOutput::Refuse(Refusal::Over { .. })]));
}

/// After a crash the destination has no guest and says what it knows.
#[test]
fn a_crashed_destination_answers_from_its_journal() {
    for (last, because) in [
        (Step::Accepted, NotRunning::GivenBack),
        (Step::Owner, NotRunning::Crashed),
        (Step::Discarded, NotRunning::Discarded),
    ] {
        let recovered = Destination::recovered(TRANSFER, SECRET, last).unwrap();
        let answer = vec![DestinationOutput::Send(Say::NotRunning(because))];
        assert_eq!(recovered.on(COMMIT), (recovered, answer));
        assert_eq!(recovered.on(DestinationInput::Released).1, [DestinationOutput::Forget]);
    }
    for step in [Step::Committed, Step::Kept, Step::Released] {
        assert_eq!(Destination::recovered(TRANSFER, SECRET, step), None);
    }
}
