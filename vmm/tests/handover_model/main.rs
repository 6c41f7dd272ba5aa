//! Every order of losses, repeats, crashes and decisions in a handover: never do two hosts run the
//! guest, and none does only while in doubt, or after a crash of the host that owned it.
//!
//! The model drives the very functions of `migration::handover`. What was said once may arrive at
//! any time, in any order, again and again, or never; somebody who knows everything but the secret
//! says anything to both; a process may die between any two actions, within a journal write too, and
//! comes back with nothing but its journal; journal writes fail; after an aborted attempt there is a
//! second, while words of the first are still on their way.
#![expect(clippy::unwrap_used, reason = "a model that cannot be built fails the test")]
#![expect(clippy::wildcard_enum_match_arm, reason = "flaws touch single cases")]
#![expect(clippy::indexing_slicing, reason = "epochs are small by construction")]

mod flaws;
mod heal;
mod world;

use std::time::{Duration, Instant};

use sevferry::migration::handover::{
    DestinationInput, DestinationState, Resolution, SourceInput, SourceState,
};
use sevferry::migration::wire::{NotRunning, Reason};
use sevferry::migration::wire::{Say, Word};
use stateright::{Checker, HasDiscoveries, Model, Property};

use flaws::Flaw;
use world::{Guest, World};

/// What can happen next.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Event {
    SourceDoes { fails: bool },
    DestinationDoes { fails: bool },
    SourceHears(Word),
    DestinationHears(Word),
    Load,
    OfferAgain,
    TryAgain,
    ConnectionLost,
    Connected,
    Cancel,
    CrashSource,
    CrashDestination,
    RestartSource,
    RestartDestination,
    ResolveSource(Resolution),
    ResolveDestination(Resolution),
}

struct Handover(Flaw);

const RESOLUTIONS: [Resolution; 2] = [Resolution::Keep, Resolution::Discard];

fn source_events(flaw: Flaw, world: &World, events: &mut Vec<Event>) {
    if !world.source.is_up {
        events.push(Event::RestartSource);
        return;
    }
    events.push(Event::CrashSource);
    if world.source.is_busy() {
        events.push(Event::SourceDoes { fails: false });
        if world.source_writes_next() {
            events.push(Event::SourceDoes { fails: true });
        }
        return;
    }
    if world.source.machine.is_none() {
        return;
    }
    let said = world.said.iter().cloned().chain(world::lies());
    events.extend(said.map(Event::SourceHears));
    events.extend([Event::ConnectionLost, Event::Connected, Event::Cancel]);
    if world.can_try_again() {
        events.push(Event::TryAgain);
    }
    for resolution in RESOLUTIONS {
        let is_blind = flaw.is_blind_at_source(resolution) && world.source.guest == Guest::Paused;
        if is_blind || world.may_resolve_source(resolution) {
            events.push(Event::ResolveSource(resolution));
        }
    }
}

fn destination_events(flaw: Flaw, world: &World, events: &mut Vec<Event>) {
    if !world.destination.is_up {
        events.push(Event::RestartDestination);
        return;
    }
    events.push(Event::CrashDestination);
    if world.destination.is_busy() {
        events.push(Event::DestinationDoes { fails: false });
        if world.destination_writes_next() {
            events.push(Event::DestinationDoes { fails: true });
        }
        return;
    }
    let said = world.said.iter().cloned().chain(world::lies());
    events.extend(said.map(Event::DestinationHears));
    if world.can_load() {
        events.push(Event::Load);
    }
    let is_other = |epoch| world.destination.machine.is_some_and(|m| m.transfer.epoch < epoch);
    if world.waiting().is_some_and(is_other) {
        events.push(Event::OfferAgain);
    }
    for resolution in RESOLUTIONS {
        let is_blind = flaw.is_blind_at_destination(resolution);
        if is_blind || world.may_resolve_destination(resolution) {
            events.push(Event::ResolveDestination(resolution));
        }
    }
}

impl Event {
    fn happens(self, flaw: Flaw, world: &mut World) {
        match self {
            Self::SourceDoes { fails } => world.source_does(flaw, fails),
            Self::DestinationDoes { fails } => world.destination_does(flaw, fails),
            Self::SourceHears(word) => world.source_hears(flaw, &word),
            Self::DestinationHears(word) => world.destination_hears(flaw, &word),
            Self::Load => world.load(flaw),
            Self::OfferAgain => world.offer_again(flaw),
            Self::TryAgain => world.try_again(),
            Self::ConnectionLost => world.source_on(flaw, SourceInput::ConnectionLost),
            Self::Connected => world.source_on(flaw, SourceInput::Connected),
            Self::Cancel => world.source_on(flaw, SourceInput::Abort(Reason::default())),
            Self::CrashSource => world.crash_source(),
            Self::CrashDestination => world.crash_destination(),
            Self::RestartSource => world.restart_source(flaw),
            Self::RestartDestination => world.destination.is_up = true,
            Self::ResolveSource(resolution) => {
                world.is_decided = true;
                world.source_on(flaw, SourceInput::Resolve(resolution));
            }
            Self::ResolveDestination(resolution) => {
                world.is_decided = true;
                world.destination_on(flaw, DestinationInput::Resolve(resolution));
            }
        }
    }
}

const NEVER_TWO: &str = "never do two run the guest";
const NEVER_STALE: &str = "what runs is never older than what has run";
const POSSIBLE: &str = "no side does what cannot be done";
const KEPT: &str = "the last copy is never freed";
const HEALS: &str = "once faults end one runs, unless a crash took the guest from its owner";
const HEALS_ALONE: &str = "nobody is needed for that";

impl Model for Handover {
    type State = World;
    type Action = Event;

    fn init_states(&self) -> Vec<World> {
        vec![World::new()]
    }

    fn actions(&self, world: &World, events: &mut Vec<Event>) {
        source_events(self.0, world, events);
        destination_events(self.0, world, events);
    }

    fn next_state(&self, world: &World, event: Event) -> Option<World> {
        let mut next = world.clone();
        event.happens(self.0, &mut next);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(NEVER_TWO, |_, world: &World| world.runners() < 2),
            Property::always(NEVER_STALE, |_, world: &World| {
                let source = world.source.is_stale && world.source.guest == Guest::Running;
                let destination =
                    world.destination.is_stale && world.destination.guest == Guest::Running;
                !source && !destination
            }),
            Property::always(POSSIBLE, |_, world: &World| !world.is_broken),
            Property::always(KEPT, |_, world: &World| {
                let is_gone = [world.source.guest, world.destination.guest] == [Guest::Gone; 2];
                !is_gone || world.is_lost
            }),
            Property::always(HEALS, |model: &Self, world: &World| {
                heal::heals(model.0, world.clone())
            }),
            Property::always(HEALS_ALONE, |model: &Self, world: &World| {
                heal::heals_alone(model.0, world.clone())
            }),
            Property::sometimes("handed over at the first attempt", |_, world: &World| {
                is_handed_over(world) && world.loaded == 1
            }),
            Property::sometimes("handed over at the second attempt", |_, world: &World| {
                is_handed_over(world) && world.loaded == 2
            }),
            Property::sometimes("a crashed source's guest runs", |_, world: &World| {
                world.source.has_crashed && world.destination.guest == Guest::Running
            }),
            Property::sometimes("a destination gives the guest back", |_, world: &World| {
                let given_back = DestinationState::Dropped(NotRunning::GivenBack);
                let is_given_back = world.destination_state() == Some(given_back);
                let is_committed =
                    world.said.iter().any(|word| matches!(word.say, Say::Commit { .. }));
                let is_resumed = world.source_state() == Some(SourceState::Resumed);
                is_given_back && is_committed && is_resumed && !world.is_decided
            }),
            Property::sometimes("both journals are forgotten", |_, world: &World| {
                let disks = [&world.source.disk, &world.destination.disk];
                is_handed_over(world) && disks.iter().all(|disk| disk.is_empty())
            }),
            Property::sometimes(
                "a person gives the guest back to the source",
                |_, world: &World| {
                    world.is_decided && world.source_state() == Some(SourceState::Resumed)
                },
            ),
            Property::sometimes(
                "a person runs the guest at the destination",
                |_, world: &World| {
                    let is_uncommitted =
                        !world.said.iter().any(|word| matches!(word.say, Say::Commit { .. }));
                    is_uncommitted && world.destination.guest == Guest::Running
                },
            ),
        ]
    }
}

fn is_handed_over(world: &World) -> bool {
    let is_released = matches!(world.source_state(), Some(SourceState::Released(_)));
    is_released && world.destination.guest == Guest::Running
}

/// The handover keeps its promises in every state that can be reached.
#[test]
fn exactly_one_runs_whatever_breaks() {
    let started = Instant::now();
    let checker = Handover(Flaw::None).checker().threads(2).spawn_bfs().join();
    println!(
        "{} states, {} distinct, {} steps deep, {:.1?}",
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        started.elapsed()
    );
    checker.assert_properties();
    assert!(checker.is_done());
    assert!(checker.unique_state_count() > 10_000, "the model has become trivial");
}

/// Every way to break the handover, and the promise that it must be seen to break.
const FLAWS: [(Flaw, &str); 22] = [
    (Flaw::SourceResumesWhenTheReplyIsLost, NEVER_TWO),
    (Flaw::SourceAcceptsCancelAfterCommit, NEVER_TWO),
    (Flaw::SourceCommitsBeforeItsJournal, NEVER_TWO),
    (Flaw::SourceForgetsItsCommitInACrash, HEALS_ALONE),
    (Flaw::SourceFreesTheGuestTooEarly, KEPT),
    (Flaw::SourceFreesTheGuestOnAnyAnswer, KEPT),
    (Flaw::SourceResumesWithoutSendCancel, POSSIBLE),
    (Flaw::SourceCommitsOnlyOnce, HEALS_ALONE),
    (Flaw::BothIgnoreTheEpoch, NEVER_STALE),
    (Flaw::DestinationRunsBeforeCommit, NEVER_TWO),
    (Flaw::DestinationJournalsAfterRunning, NEVER_STALE),
    (Flaw::DestinationRunsWithoutItsJournal, NEVER_STALE),
    (Flaw::DestinationRunsWhatItDiscarded, NEVER_TWO),
    (Flaw::DestinationRunsAgainOnARepeatedCommit, POSSIBLE),
    (Flaw::DestinationAnswersOnlyOnce, HEALS_ALONE),
    (Flaw::DestinationGivesBackAndKeepsACopy, NEVER_TWO),
    (Flaw::DestinationGivesTheLastCopyBack, KEPT),
    (Flaw::DestinationForgetsBeforeItsSourceKnows, NEVER_STALE),
    (Flaw::SourceBelievesAnybody, KEPT),
    (Flaw::DestinationBelievesAnybody, NEVER_TWO),
    (Flaw::PersonKeepsAtTheSourceBlindly, NEVER_TWO),
    (Flaw::PersonKeepsAtTheDestinationBlindly, NEVER_TWO),
];

/// Every broken variant is seen to break its promise: the model can tell.
#[test]
fn every_flaw_is_caught() {
    for (flaw, promise) in FLAWS {
        let checker = Handover(flaw)
            .checker()
            .threads(2)
            .finish_when(HasDiscoveries::AnyOf([promise].into()))
            .timeout(Duration::from_secs(120))
            .spawn_bfs()
            .join();
        let states = checker.unique_state_count();
        let Some(path) = checker.discovery(promise) else {
            panic!("{flaw:?} keeps the promise `{promise}` in {states} states");
        };
        let steps = path.into_actions().len();
        println!("{flaw:?}: `{promise}` broken in {steps} steps, after {states} states");
    }
}
