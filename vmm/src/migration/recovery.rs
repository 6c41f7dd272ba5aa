//! After a crash of a source: the handovers that its journals leave in doubt.
//!
//! The guest went with the process that had it. If its destination is still waiting for the word,
//! it is paused there, whole, and ours by nobody's leave: so `commit` is said again, as the process
//! that is gone would have, until the destination says what became of the guest.

use std::path::Path;
use std::thread::{Builder, park_timeout};
use std::time::Duration;

use log::{debug, info, warn};

use super::endpoint::Endpoint;
use super::handover::{Source, SourceInput, SourceOutput, SourceState};
use super::journal::{Journal, JournalError, Record, Side};
use super::link::{Due, Link};
use super::message::{Message, NotRunning};
use super::transport::Stream;

/// How often a destination that does not answer is tried.
const RETRY: Duration = Duration::from_secs(2);

/// How long a destination may take for its answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A handover that a process which is gone has left in doubt.
#[derive(Debug)]
pub struct Unfinished {
    journal: Journal,
    record: Record,
}

/// What became of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It runs at the destination.
    Runs,
    /// It runs nowhere: lost here by the crash, and there as the destination says.
    Lost(NotRunning),
}

/// Finds the handovers in `directory` that are in doubt and belong to no process any more.
///
/// # Errors
/// [`JournalError`] if the directory cannot be read; a journal that cannot be is left for a person.
pub fn unfinished(directory: &Path) -> Result<Vec<Unfinished>, JournalError> {
    let mut found = Vec::new();
    for vm in Journal::guests(directory, Side::Source)? {
        match Journal::open(directory, vm, Side::Source) {
            Ok(journal) => {
                let last = journal.records().last().cloned();
                let doubtful =
                    last.filter(|record| Source::recovered(record.transfer, record.step).is_some());
                found.extend(doubtful.map(|record| Unfinished { journal, record }));
            }
            Err(JournalError::InUse { .. }) => debug!("guest {vm} is being moved"),
            Err(cause) => warn!("{}", super::chain_of(&cause)),
        }
    }
    Ok(found)
}

impl Unfinished {
    /// What the journal said last.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Asks the destination until it says what became of the guest, on a thread of its own that ends
    /// with the process. `tell` hears it.
    ///
    /// # Errors
    /// If the host has no thread to give.
    pub fn finish(
        mut self,
        tell: impl Fn(&Record, Fate) + Send + 'static,
    ) -> Result<(), std::io::Error> {
        let ask = move || {
            let Ok(to) = self.record.peer.parse::<Endpoint>() else {
                warn!("'{}' in a journal is no address", self.record.peer);
                return;
            };
            loop {
                match self.ask_once(&to) {
                    Some(fate) => return tell(&self.record, fate),
                    None => park_timeout(RETRY),
                }
            }
        };
        Builder::new().name("unfinished".to_owned()).spawn(ask).map(|_detached| ())
    }

    /// Connects, says `commit`, and hears the answer, if there is one.
    fn ask_once(&mut self, to: &Endpoint) -> Option<Fate> {
        let transfer = self.record.transfer;
        let mut side = Source::recovered(transfer, self.record.step)?;
        // On this thread, which nobody waits for.
        let mut link = match Stream::connect(to, ANSWER_MAX, &|| true) {
            Ok(stream) => Link::new(stream, ANSWER_MAX),
            Err(cause) => {
                debug!("connecting to {to} for {transfer}: {cause}");
                return None;
            }
        };
        let mut input = SourceInput::Connected;
        loop {
            let (next, outputs) = side.on(input);
            side = next;
            for output in outputs {
                self.perform(output, &mut link)?;
            }
            match side.state {
                SourceState::Released => return Some(Fate::Runs),
                SourceState::InDoubt(doubt) => match doubt.answer {
                    // It still has the guest, and will try again.
                    Some(NotRunning::JournalFailed) => return None,
                    Some(because) => return Some(Fate::Lost(because)),
                    None => {}
                },
                SourceState::Waiting
                | SourceState::Committing { .. }
                | SourceState::Keeping(_)
                | SourceState::Resumed => return None,
            }
            input = match link.answer(Due::VERDICT, ANSWER_MAX) {
                Ok(Message::Running(transfer)) => SourceInput::Running(transfer),
                Ok(Message::NotRunning { transfer, because }) => {
                    SourceInput::NotRunning(transfer, because)
                }
                other => {
                    info!("{to} was asked for {transfer}: {other:?}");
                    return None;
                }
            };
        }
    }

    fn perform(&mut self, output: SourceOutput, link: &mut Link) -> Option<()> {
        match output {
            SourceOutput::Send(say) => link.say(&say.into()).ok(),
            SourceOutput::WriteJournal(step) => {
                let written = self.journal.append(self.record.transfer, step, &self.record.peer);
                if let Err(cause) = written {
                    // The same is asked, and answered, at the next start.
                    warn!("{}", super::chain_of(&cause));
                }
                Some(())
            }
            // There is no guest to do anything to, and no person to refuse.
            SourceOutput::Reconnect
            | SourceOutput::SendCancel
            | SourceOutput::ResumeGuest
            | SourceOutput::SendFinish
            | SourceOutput::TearDown
            | SourceOutput::Refuse(_) => Some(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;
    use crate::migration::handover::{Destination, DestinationInput, DestinationOutput, Step};
    use crate::migration::lobby::Lobby;
    use crate::migration::message::{Transfer, VmId};
    use crate::migration::transport::Listener;

    const SOON: Duration = Duration::from_secs(20);

    fn transfer(number: u8) -> Transfer {
        Transfer { vm: VmId([number; 16]), epoch: 3 }
    }

    fn write(directory: &Path, number: u8, steps: &[Step], peer: &str) {
        let transfer = transfer(number);
        let mut journal = Journal::open(directory, transfer.vm, Side::Source).unwrap();
        for step in steps {
            journal.append(transfer, *step, peer).unwrap();
        }
    }

    /// Only what was committed and never ended is in doubt, and only if no process has it.
    #[test]
    fn only_a_commit_without_an_end_is_unfinished() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path();
        write(path, 1, &[Step::Committed], "tcp:b:1");
        write(path, 2, &[Step::Committed, Step::Released], "tcp:b:1");
        write(path, 3, &[Step::Committed, Step::Kept], "tcp:b:1");
        write(path, 4, &[], "");
        write(path, 5, &[Step::Committed], "tcp:b:1");
        let _moving = Journal::open(path, transfer(5).vm, Side::Source).unwrap();
        let found = unfinished(path).unwrap();
        let transfers: Vec<_> = found.iter().map(|found| found.record.transfer).collect();
        assert_eq!(transfers, [transfer(1)]);
        let missing = path.join("nothing");
        assert!(matches!(unfinished(&missing), Err(JournalError::Io { .. })));
    }

    /// The destination hears `commit` again until it answers, and its answer is the guest's fate.
    #[test]
    fn a_destination_that_waits_hears_the_commit_again() {
        for (number, answer, fate, last) in [
            (1, None, Fate::Runs, Step::Released),
            (2, Some(NotRunning::Crashed), Fate::Lost(NotRunning::Crashed), Step::Committed),
        ] {
            let directory = TempDir::new().unwrap();
            let socket = format!("unix:{}", directory.as_path().join("b").display());
            let listener = Listener::bind(&socket.parse().unwrap()).unwrap();
            write(directory.as_path(), number, &[Step::Committed], &socket);
            let found = unfinished(directory.as_path()).unwrap().remove(0);
            let (told, heard) = channel();
            found.finish(move |_, fate| told.send(fate).unwrap()).unwrap();
            // The first connection breaks before it is answered.
            drop(listener.accept(SOON).unwrap().unwrap());
            let mut caller = Lobby::new(SOON).hear(&listener, SOON).unwrap().unwrap();
            assert_eq!(caller.first, Message::Commit(transfer(number)));
            let say = match answer {
                None => Message::Running(transfer(number)),
                Some(_) => {
                    let side = Destination::recovered(transfer(number), Some(Step::Owner));
                    let (_, outputs) = side.on(DestinationInput::Commit(transfer(number)));
                    let [DestinationOutput::Send(say)] = outputs.as_slice() else { panic!() };
                    say.clone().into()
                }
            };
            caller.link.say(&say).unwrap();
            assert_eq!(heard.recv_timeout(SOON), Ok(fate));
            let read = Journal::read(directory.as_path(), transfer(number).vm, Side::Source);
            assert_eq!(read.unwrap().last().unwrap().step, last);
        }
    }
}
