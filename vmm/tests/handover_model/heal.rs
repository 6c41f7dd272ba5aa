//! How a handover ends when faults end: a fair schedule, followed to its end.

use sevferry::migration::handover::{
    Destination, DestinationInput, DestinationState, Resolution, Source, SourceInput, SourceState,
};
use sevferry::migration::wire::{Say, Word};

use crate::flaws::Flaw;
use crate::world::{Guest, World};

/// More than any handover takes.
const STEPS_MAX: usize = 200;

/// Whether exactly one host runs the guest in the end, with a person's help if need be; or none,
/// because a crash took the guest from the host that owned it.
pub(crate) fn heals(flaw: Flaw, mut world: World) -> bool {
    let is_over = run_on(flaw, &mut world, true);
    is_over && (world.runners() == 1 || world.runners() == 0 && world.is_lost)
}

/// Whether that needs nobody's help, unless somebody has interfered; and no source is left in doubt
/// about a guest that runs.
pub(crate) fn heals_alone(flaw: Flaw, mut world: World) -> bool {
    if !run_on(flaw, &mut world, false) {
        return false;
    }
    let is_in_doubt = world.source.machine.is_some_and(|source| source.is_in_doubt());
    match world.runners() {
        1 => !(is_in_doubt && world.destination.guest == Guest::Running),
        0 => world.is_lost || world.is_decided,
        _ => false,
    }
}

/// Runs the world to its end without another fault; whether it came to one.
fn run_on(flaw: Flaw, world: &mut World, with_person: bool) -> bool {
    // What is on its way is lost; only what is said from now on arrives.
    world.said.clear();
    let mut is_asked = false;
    for _ in 0..STEPS_MAX {
        let before = world.clone();
        if !protocol_step(flaw, world, &mut is_asked) && with_person {
            decide(flaw, world);
        }
        if *world == before {
            return true;
        }
    }
    false
}

/// The next thing that happens by itself; whether there was one.
fn protocol_step(flaw: Flaw, world: &mut World, is_asked: &mut bool) -> bool {
    if !world.source.is_up {
        world.restart_source(flaw);
    } else if !world.destination.is_up {
        world.destination.is_up = true;
    } else if world.source.is_busy() {
        world.source_does(flaw, false);
    } else if world.destination.is_busy() {
        world.destination_does(flaw, false);
    } else if let Some(word) = world.said.pop_first() {
        deliver(flaw, world, &word);
    } else if world.waiting().is_some() {
        finish_attempt(flaw, world);
    } else {
        return ask_again(flaw, world, is_asked);
    }
    true
}

fn deliver(flaw: Flaw, world: &mut World, word: &Word) {
    match word.say {
        Say::Prepared | Say::Running | Say::NotRunning(_) => world.source_hears(flaw, word),
        Say::Commit { .. } | Say::Abandon(_) | Say::Released => {
            world.destination_hears(flaw, word);
        }
    }
}

/// The source waits for `prepared`: the destination loads, says so, or is lost to it.
fn finish_attempt(flaw: Flaw, world: &mut World) {
    let Some(epoch) = world.waiting() else { return };
    let loaded = world.destination.machine.filter(|_| world.destination.guest != Guest::Gone);
    match loaded {
        Some(Destination { transfer: of, .. }) if of.epoch < epoch => {
            world.offer_again(flaw);
            if world.destination.is_idle() {
                world.source_on(flaw, SourceInput::ConnectionLost);
            }
        }
        Some(machine @ Destination { state: DestinationState::Prepared, .. }) => {
            world.source_hears(flaw, &machine.word(Say::Prepared));
        }
        None if world.can_load() => world.load(flaw),
        _ => world.source_on(flaw, SourceInput::ConnectionLost),
    }
}

/// A source in doubt connects anew and says so again, once.
fn ask_again(flaw: Flaw, world: &mut World, is_asked: &mut bool) -> bool {
    let Some(Source { state: SourceState::InDoubt(doubt), .. }) = world.source.machine else {
        return false;
    };
    if *is_asked {
        return false;
    }
    if doubt.connected {
        world.source_on(flaw, SourceInput::ConnectionLost);
    } else {
        world.source_on(flaw, SourceInput::Connected);
        *is_asked = true;
    }
    true
}

/// A person looks at both sides, and decides if that is needed.
fn decide(flaw: Flaw, world: &mut World) {
    if world.runners() > 0 {
        return;
    }
    if world.may_resolve_source(Resolution::Keep) {
        world.source_on(flaw, SourceInput::Resolve(Resolution::Keep));
    } else if world.may_resolve_destination(Resolution::Keep) {
        world.destination_on(flaw, DestinationInput::Resolve(Resolution::Keep));
    }
}
