//! Two processes, their disks, and everything that was ever said between them.

use std::collections::{BTreeSet, VecDeque};

use sevferry::migration::handover::{
    Destination, DestinationInput, DestinationOutput, DestinationState, Resolution, Source,
    SourceInput, SourceOutput, SourceState, Step,
};
use sevferry::migration::wire::{NotRunning, Reason, Transfer, VmId};
use sevferry::migration::wire::{Say, Secret, Word};

use crate::flaws::Flaw;

/// Attempts to move the guest; the second begins after the first was aborted.
pub(crate) const ATTEMPTS: u64 = 2;

pub(crate) fn transfer(epoch: u64) -> Transfer {
    Transfer { vm: VmId([1; 16]), epoch }
}

/// Each attempt has a secret of its own.
pub(crate) fn secret(transfer: Transfer) -> Secret {
    Secret([u8::try_from(transfer.epoch).unwrap(); 16])
}

/// Everything that somebody can say who knows the guest and its attempts, but no secret.
pub(crate) fn lies() -> impl Iterator<Item = Word> {
    let says = [
        Say::Prepared,
        Say::Commit { is_last: false },
        Say::Commit { is_last: true },
        Say::Running,
        Say::NotRunning(NotRunning::GivenBack),
        Say::NotRunning(NotRunning::Crashed),
        Say::Abandon(Reason::default()),
        Say::Released,
    ];
    let nobodys = Secret([0xff; 16]);
    let said = move |say: Say| {
        (1..=ATTEMPTS).map(move |epoch| Word::new(&nobodys, transfer(epoch), say.clone()))
    };
    says.into_iter().flat_map(said)
}

/// The last step of each attempt, as the disk has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Disk([Option<Step>; 3]);

impl Disk {
    pub(crate) fn last(&self, transfer: Transfer) -> Option<Step> {
        self.0[usize::try_from(transfer.epoch).unwrap()]
    }

    fn append(&mut self, transfer: Transfer, step: Step) {
        self.0[usize::try_from(transfer.epoch).unwrap()] = Some(step);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    fn forget(&mut self, transfer: Transfer) {
        self.0[usize::try_from(transfer.epoch).unwrap()] = None;
    }
}

/// What a host has of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Guest {
    Gone,
    Paused,
    Running,
}

/// One side: a process and its disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Host<Machine, Output> {
    pub(crate) is_up: bool,
    pub(crate) machine: Option<Machine>,
    pub(crate) guest: Guest,
    /// Whether the guest's memory is older than what has run elsewhere.
    pub(crate) is_stale: bool,
    pub(crate) disk: Disk,
    /// What it has yet to do, in order.
    pub(crate) to_do: VecDeque<Output>,
    /// The result of the last journal write, and of which transfer, not reported yet.
    written: Option<bool>,
    pub(crate) has_crashed: bool,
}

impl<Machine, Output> Host<Machine, Output> {
    fn new(machine: Option<Machine>, guest: Guest) -> Self {
        Self {
            is_up: true,
            machine,
            guest,
            is_stale: false,
            disk: Disk::default(),
            to_do: VecDeque::new(),
            written: None,
            has_crashed: false,
        }
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.is_up && self.to_do.is_empty() && self.written.is_none()
    }

    pub(crate) fn is_settled(&self) -> bool {
        !self.is_up || self.is_idle()
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.is_up && !self.is_idle()
    }

    fn stop(&mut self) {
        self.is_up = false;
        self.machine = None;
        self.guest = Guest::Gone;
        self.to_do.clear();
        self.written = None;
        self.has_crashed = true;
    }
}

fn source(epoch: u64) -> Source {
    Source::new(transfer(epoch), secret(transfer(epoch)))
}

/// Everything.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "they are what the promises speak of")]
pub(crate) struct World {
    pub(crate) source: Host<Source, SourceOutput>,
    pub(crate) destination: Host<Destination, DestinationOutput>,
    /// Everything that was ever said: each may arrive at any time, in any order, many times, never.
    pub(crate) said: BTreeSet<Word>,
    /// The last attempt that was loaded at the destination.
    pub(crate) loaded: u64,
    /// Whether the source's firmware is between `SEND_START` and `SEND_CANCEL`.
    is_sending: bool,
    /// Whether a person has decided anything.
    pub(crate) is_decided: bool,
    /// Whether a crash took the guest from the only host that was entitled to it.
    pub(crate) is_lost: bool,
    /// Whether a side did what cannot be done: run what is not there, resume without `SEND_CANCEL`.
    pub(crate) is_broken: bool,
}

impl World {
    /// The guest is paused at the source and everything is sent.
    pub(crate) fn new() -> Self {
        Self {
            source: Host::new(Some(source(1)), Guest::Paused),
            destination: Host::new(None, Guest::Gone),
            said: BTreeSet::new(),
            loaded: 0,
            is_sending: true,
            is_decided: false,
            is_lost: false,
            is_broken: false,
        }
    }

    pub(crate) fn runners(&self) -> usize {
        let runs = |guest| usize::from(guest == Guest::Running);
        runs(self.source.guest) + runs(self.destination.guest)
    }

    /// The source's state, if it has anything to do with a handover.
    pub(crate) fn source_state(&self) -> Option<SourceState> {
        self.source.machine.map(|machine| machine.state)
    }

    fn say(&mut self, mut word: Word) {
        // Its reason does not matter, and more of them would only be more states.
        if let Say::Abandon(reason) = &mut word.say {
            *reason = Reason::default();
        }
        self.said.insert(word);
    }

    /// The source hears a word, of its destination or of anybody.
    pub(crate) fn source_hears(&mut self, flaw: Flaw, word: &Word) {
        let heard = self.source.machine.and_then(|machine| flaw.source_hears(&machine, word));
        if let Some(input) = heard {
            self.source_on(flaw, input);
        }
    }

    /// The destination hears a word. A process without a guest answers from its disk.
    pub(crate) fn destination_hears(&mut self, flaw: Flaw, word: &Word) {
        if let Some(machine) = self.destination.machine {
            if let Some(input) = flaw.destination_hears(&machine, word) {
                self.destination_on(flaw, input);
            }
            return;
        }
        let Some(last) = self.destination.disk.last(word.transfer) else { return };
        let secret = secret(word.transfer);
        let Some(machine) = Destination::recovered(word.transfer, secret, last) else { return };
        let Some(input) = flaw.destination_hears(&machine, word) else { return };
        let (_, outputs) = flaw.destination_on(machine, input);
        for output in outputs {
            match output {
                DestinationOutput::Send(say) => self.say(machine.word(say)),
                DestinationOutput::Forget => self.destination.disk.forget(word.transfer),
                _ => self.is_broken = true,
            }
        }
    }

    /// Feeds the source.
    pub(crate) fn source_on(&mut self, flaw: Flaw, input: SourceInput) {
        if let Some(machine) = self.source.machine {
            let (next, outputs) = flaw.source_on(machine, input);
            self.source.machine = Some(next);
            self.source.to_do.extend(outputs);
        }
    }

    /// Feeds the destination.
    pub(crate) fn destination_on(&mut self, flaw: Flaw, input: DestinationInput) {
        if let Some(machine) = self.destination.machine {
            let (next, outputs) = flaw.destination_on(machine, input);
            self.destination.machine = Some(next);
            self.destination.to_do.extend(outputs);
        }
    }

    /// The source's next action; a journal write fails if `fails`.
    pub(crate) fn source_does(&mut self, flaw: Flaw, fails: bool) {
        if let Some(is_written) = self.source.written.take() {
            let input =
                if is_written { SourceInput::JournalWritten } else { SourceInput::JournalFailed };
            // The result comes before the rest of what there was to do.
            let rest = std::mem::take(&mut self.source.to_do);
            self.source_on(flaw, input);
            self.source.to_do.extend(rest);
            return;
        }
        let Some(output) = self.source.to_do.pop_front() else { return };
        match output {
            SourceOutput::WriteJournal(step) => {
                if let Some(machine) = self.source.machine.filter(|_| !fails) {
                    self.source.disk.append(machine.transfer, step);
                }
                self.source.written = Some(!fails);
            }
            SourceOutput::Send(say) => {
                let said = self.source.machine.map(|machine| machine.word(say));
                said.into_iter().for_each(|word| self.say(word));
            }
            SourceOutput::Forget => {
                let transfer = self.source.machine.map(|machine| machine.transfer);
                transfer.into_iter().for_each(|transfer| self.source.disk.forget(transfer));
            }
            SourceOutput::SendCancel => {
                self.is_broken |= !self.is_sending;
                self.is_sending = false;
            }
            SourceOutput::SendFinish => {
                self.is_broken |= !self.is_sending;
                self.is_sending = false;
            }
            SourceOutput::ResumeGuest => {
                self.is_broken |= self.is_sending || self.source.guest != Guest::Paused;
                self.source.guest = Guest::Running;
                self.destination.is_stale = true;
            }
            SourceOutput::TearDown => self.source.guest = Guest::Gone,
            SourceOutput::Reconnect | SourceOutput::Refuse(_) => {}
        }
    }

    /// The destination's next action; a journal write fails if `fails`.
    pub(crate) fn destination_does(&mut self, flaw: Flaw, fails: bool) {
        if let Some(is_written) = self.destination.written.take() {
            let input = if is_written {
                DestinationInput::JournalWritten
            } else {
                DestinationInput::JournalFailed
            };
            let rest = std::mem::take(&mut self.destination.to_do);
            self.destination_on(flaw, input);
            self.destination.to_do.extend(rest);
            return;
        }
        let Some(output) = self.destination.to_do.pop_front() else { return };
        match output {
            DestinationOutput::WriteJournal(step) => {
                if let Some(machine) = self.destination.machine.filter(|_| !fails) {
                    self.destination.disk.append(machine.transfer, step);
                }
                self.destination.written = Some(!fails);
            }
            DestinationOutput::Send(say) => {
                let said = self.destination.machine.map(|machine| machine.word(say));
                said.into_iter().for_each(|word| self.say(word));
            }
            DestinationOutput::Forget => {
                let transfer = self.destination.machine.map(|machine| machine.transfer);
                transfer.into_iter().for_each(|transfer| self.destination.disk.forget(transfer));
            }
            DestinationOutput::RunGuest => {
                self.is_broken |= self.destination.guest != Guest::Paused;
                self.destination.guest = Guest::Running;
                self.source.is_stale = true;
            }
            DestinationOutput::TearDown => {
                // Given back to a source that has crashed, which nobody could know here.
                let said = Some(&DestinationOutput::Send(Say::NotRunning(NotRunning::GivenBack)));
                let is_given_back = self.destination.to_do.front() == said;
                let is_known = self.destination.machine.is_some_and(|machine| machine.is_last);
                self.is_lost |= is_given_back && !is_known && self.source.guest == Guest::Gone;
                self.destination.guest = Guest::Gone;
            }
            DestinationOutput::Refuse(_) => {}
        }
    }

    /// Whether the next action of a side is a journal write, which may fail.
    pub(crate) fn source_writes_next(&self) -> bool {
        let next = self.source.to_do.front();
        self.source.written.is_none() && matches!(next, Some(SourceOutput::WriteJournal(_)))
    }

    pub(crate) fn destination_writes_next(&self) -> bool {
        let next = self.destination.to_do.front();
        let is_write = matches!(next, Some(DestinationOutput::WriteJournal(_)));
        self.destination.written.is_none() && is_write
    }

    /// The source's process dies, and the guest in it.
    pub(crate) fn crash_source(&mut self) {
        if let Some(machine) = self.source.machine
            && self.source.guest != Guest::Gone
        {
            let last = self.source.disk.last(machine.transfer);
            let is_given_away = matches!(last, Some(Step::Committed | Step::Released));
            // And the destination is not about to drop it.
            let is_there = matches!(
                self.destination_state(),
                Some(
                    DestinationState::Prepared
                        | DestinationState::Owning { .. }
                        | DestinationState::Running
                )
            );
            self.is_lost |= !(is_given_away && is_there);
        }
        self.source.stop();
        self.is_sending = false;
    }

    /// The destination's process dies, and the guest in it.
    pub(crate) fn crash_destination(&mut self) {
        if let Some(machine) = self.destination.machine
            && self.destination.guest != Guest::Gone
        {
            let is_only_copy = matches!(self.source_state(), Some(SourceState::Released(_)))
                || self.source.has_crashed && self.source.guest == Guest::Gone;
            let is_owner = self.destination.disk.last(machine.transfer) == Some(Step::Owner);
            self.is_lost |= is_owner || is_only_copy;
        }
        self.destination.stop();
    }

    pub(crate) fn restart_source(&mut self, flaw: Flaw) {
        self.source.is_up = true;
        let recovered = (1..=ATTEMPTS)
            .rev()
            .map(transfer)
            .find_map(|transfer| flaw.source_recovered(transfer, self.source.disk.last(transfer)?));
        self.source.machine = recovered;
    }

    pub(crate) fn destination_state(&self) -> Option<DestinationState> {
        self.destination.machine.map(|machine| machine.state)
    }

    /// Which attempt the source waits to be prepared.
    pub(crate) fn waiting(&self) -> Option<u64> {
        let machine = self.source.machine.filter(|_| self.source.is_idle())?;
        (machine.state == SourceState::Waiting).then_some(machine.transfer.epoch)
    }

    /// Whether the destination could load the attempt that the source waits for.
    pub(crate) fn can_load(&self) -> bool {
        let is_free = self.destination.is_idle() && self.destination.guest == Guest::Gone;
        is_free && self.waiting().is_some_and(|epoch| epoch > self.loaded)
    }

    /// The destination loads and checks all of the guest.
    pub(crate) fn load(&mut self, flaw: Flaw) {
        let Some(epoch) = self.waiting() else { return };
        let (machine, outputs) = flaw.destination_new(transfer(epoch));
        self.destination.machine = Some(machine);
        self.destination.to_do.extend(outputs);
        self.destination.disk.append(transfer(epoch), Step::Accepted);
        self.destination.guest = Guest::Paused;
        self.destination.is_stale = false;
        self.loaded = epoch;
    }

    /// The source offers the guest anew, and says with its offer that it has kept it before.
    pub(crate) fn offer_again(&mut self, flaw: Flaw) {
        let Some(machine) = self.destination.machine else { return };
        let abandon = Say::Abandon(Reason::default());
        let abandon = Word::new(&secret(machine.transfer), machine.transfer, abandon);
        self.destination_hears(flaw, &abandon);
    }

    /// Whether the source could try once more.
    pub(crate) fn can_try_again(&self) -> bool {
        let machine = self.source.machine.filter(|_| self.source.is_idle());
        machine.is_some_and(|machine| {
            machine.state == SourceState::Resumed && machine.transfer.epoch < ATTEMPTS
        })
    }

    pub(crate) fn try_again(&mut self) {
        self.source.machine = Some(source(ATTEMPTS));
        self.source.guest = Guest::Paused;
        self.is_sending = true;
    }

    /// Whether a person who looks at both sides first may decide this at the source: keep only what
    /// the destination can never run, discard only what it owns.
    pub(crate) fn may_resolve_source(&self, resolution: Resolution) -> bool {
        let Some(machine) = self.source.machine.filter(|_| self.is_quiet()) else { return false };
        if !machine.is_in_doubt() || !self.source.is_up {
            return false;
        }
        let is_owner = self.destination.disk.last(machine.transfer) == Some(Step::Owner);
        let is_there = self.destination.guest != Guest::Gone;
        match resolution {
            Resolution::Keep => self.source.guest != Guest::Gone && !is_there && !is_owner,
            // One that is prepared may yet give the guest back.
            Resolution::Discard => is_owner,
        }
    }

    /// The same at the destination: keep only what the source has given away for good, discard only
    /// what the source still has.
    pub(crate) fn may_resolve_destination(&self, resolution: Resolution) -> bool {
        let Some(machine) = self.destination.machine else { return false };
        if machine.state != DestinationState::Prepared || !self.is_quiet() {
            return false;
        }
        let at_source = self.source.disk.last(machine.transfer);
        match resolution {
            Resolution::Keep => {
                at_source == Some(Step::Released)
                    || at_source == Some(Step::Committed) && self.source.guest == Guest::Gone
            }
            Resolution::Discard => self.source.guest != Guest::Gone,
        }
    }

    /// Whether no side is in the middle of something.
    fn is_quiet(&self) -> bool {
        self.source.is_settled() && self.destination.is_settled()
    }
}
