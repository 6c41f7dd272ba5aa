//! After a crash of a source: finishes the handovers that its journals leave in doubt.
//!
//! The crash has lost the guest on this host. The destination may still have it, complete and paused, and wait for
//! `commit`. So `commit` is said again, as the process that crashed would have done, until the destination says
//! what became of the guest.

use std::path::Path;
use std::thread::{Builder, park_timeout};
use std::time::Duration;

use log::{debug, info, warn};

use super::handover::journal::{Journal, JournalError, Record, Side, forget};
use super::handover::{Source, SourceInput, SourceOutput, SourceState, advance};
use super::net::{Due, Endpoint, Link, Stream};
use super::wire::{Message, NotRunning};
use crate::text::chain_of;

/// How often to try a destination that does not answer.
const RETRY: Duration = Duration::from_secs(2);

/// How long a destination may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Most journals that one start reads. It sets settled ones aside, so that the next start has fewer.
const LOOKED_AT_MAX: usize = 256;

/// A handover that was in doubt when its process ended.
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
    /// It runs nowhere: it was lost here in the crash, and there for the reason that the destination gives.
    Lost(NotRunning),
}

/// Finds the handovers in `directory` that are in doubt and whose process is gone. Sets settled journals aside.
///
/// # Errors
/// [`JournalError`] if the directory cannot be read. A journal that cannot be read is left for a person.
pub fn unfinished(directory: &Path) -> Result<Vec<Unfinished>, JournalError> {
    let mut found = Vec::new();
    let guests = Journal::guests(directory, Side::Source)?;
    if let Some(more @ 1..) = guests.len().checked_sub(LOOKED_AT_MAX) {
        warn!("{more} more journals in {} are not looked at", directory.display());
    }
    for vm in guests.into_iter().take(LOOKED_AT_MAX) {
        match Journal::open(directory, vm, Side::Source) {
            Ok(journal) => match journal.records().last().cloned() {
                Some(record) if recovered(&record).is_some() => {
                    found.push(Unfinished { journal, record });
                }
                _ => journal.set_aside().unwrap_or_else(|cause| {
                    warn!("{}", chain_of(&cause));
                }),
            },
            Err(JournalError::InUse { .. }) => debug!("guest {vm} is being moved"),
            Err(cause) => warn!("{}", chain_of(&cause)),
        }
    }
    Ok(found)
}

fn recovered(record: &Record) -> Option<Source> {
    Source::recovered(record.transfer, record.secret, record.step)
}

impl Unfinished {
    /// What the journal said last.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Asks the destination until it says what became of the guest, and calls `tell` with that. It runs on a thread
    /// of its own, which ends with the process.
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

    /// Connects, says `commit`, and waits for the answer.
    fn ask_once(&mut self, to: &Endpoint) -> Option<Fate> {
        let transfer = self.record.transfer;
        let mut half = recovered(&self.record)?;
        // On this thread, because no other thread waits for it.
        let mut link = match Stream::connect(to, ANSWER_MAX, &|| true) {
            Ok(stream) => Link::new(stream, ANSWER_MAX),
            Err(cause) => {
                debug!("connecting to {to} for {transfer}: {cause}");
                return None;
            }
        };
        let (mut input, mut fate) = (SourceInput::Connected, Fate::Runs);
        loop {
            if let SourceInput::NotRunning(because) = input {
                fate = Fate::Lost(because);
            }
            let mut perform =
                |half: &Source, output: SourceOutput| self.perform(output, half, &mut link);
            advance(&mut half, input, &mut perform).ok()?;
            // It still has the guest, and tries again.
            if fate == Fate::Lost(NotRunning::JournalFailed) {
                return None;
            }
            if matches!(half.state, SourceState::Released(_)) {
                return Some(fate);
            }
            input = hear(&half, &mut link, to)?;
        }
    }

    /// Carries out one output. Its result is the next input, if there is one.
    ///
    /// # Errors
    /// [`Unheard`] if the destination cannot be told.
    fn perform(
        &mut self,
        output: SourceOutput,
        half: &Source,
        link: &mut Link,
    ) -> Result<Option<SourceInput>, Unheard> {
        match output {
            SourceOutput::Send(say) => {
                let sent = link.say(&half.word(say).into()).is_ok();
                // The peer of the last word may be gone.
                if sent || !half.is_in_doubt() { Ok(None) } else { Err(Unheard) }
            }
            SourceOutput::WriteJournal(step) => {
                let Record { transfer, secret, peer, .. } = self.record.clone();
                match self.journal.append(transfer, secret, step, &peer) {
                    Ok(()) => Ok(Some(SourceInput::JournalWritten)),
                    Err(cause) => {
                        // The next start asks again, and gets the same answer.
                        warn!("{}", chain_of(&cause));
                        Ok(Some(SourceInput::JournalFailed))
                    }
                }
            }
            SourceOutput::Forget => {
                forget(&mut self.journal, half.transfer);
                Ok(None)
            }
            // There is no guest, and no person asks here.
            SourceOutput::Reconnect
            | SourceOutput::SendCancel
            | SourceOutput::ResumeGuest
            | SourceOutput::SendFinish
            | SourceOutput::TearDown
            | SourceOutput::Refuse(_) => Ok(None),
        }
    }
}

/// The destination could not be asked.
#[derive(Debug)]
struct Unheard;

/// What the destination says, if it proves that it is the destination.
fn hear(half: &Source, link: &mut Link, to: &Endpoint) -> Option<SourceInput> {
    let answer = link.answer(Due::VERDICT, ANSWER_MAX);
    if let Ok(Message::Word(word)) = &answer
        && let Some(input) = half.hear(word)
    {
        return Some(input);
    }
    info!("{to} was asked for {} and has no answer that counts: {answer:?}", half.transfer);
    None
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;
    use crate::migration::handover::Step;
    use crate::migration::net::{Listener, Lobby};
    use crate::migration::wire::{Say, Secret, Transfer, VmId, Word};

    const SOON: Duration = Duration::from_secs(20);

    const SECRET: Secret = Secret([3; 16]);

    fn transfer(number: u8) -> Transfer {
        Transfer { vm: VmId([number; 16]), epoch: 3 }
    }

    fn write(directory: &Path, number: u8, steps: &[Step], peer: &str) {
        let transfer = transfer(number);
        let mut journal = Journal::open(directory, transfer.vm, Side::Source).unwrap();
        for step in steps {
            journal.append(transfer, SECRET, *step, peer).unwrap();
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
        // What is settled is there for a person, and the next start does not look at it.
        let left = Journal::guests(path, Side::Source).unwrap();
        assert_eq!(left, [transfer(1).vm, transfer(5).vm]);
        let aside = |number| path.join(format!("{}.source.3.settled", transfer(number).vm));
        assert!(aside(2).exists() && aside(3).exists());
        let missing = path.join("nothing");
        assert!(matches!(unfinished(&missing), Err(JournalError::Io { .. })));
    }

    /// The destination is told `commit` again until it answers, and its answer is the guest's fate. Then it is told
    /// that the source asks no more, and the journal is removed. A peer that cannot prove to be the destination is
    /// ignored.
    #[test]
    fn a_destination_that_waits_hears_the_commit_again() {
        for (number, answer, fate) in [
            (1, Say::Running, Fate::Runs),
            (2, Say::NotRunning(NotRunning::Crashed), Fate::Lost(NotRunning::Crashed)),
            (3, Say::NotRunning(NotRunning::GivenBack), Fate::Lost(NotRunning::GivenBack)),
        ] {
            let directory = TempDir::new().unwrap();
            let socket = format!("unix:{}", directory.as_path().join("b").display());
            let listener = Listener::bind(&socket.parse().unwrap()).unwrap();
            write(directory.as_path(), number, &[Step::Committed], &socket);
            let found = unfinished(directory.as_path()).unwrap().remove(0);
            let (told, heard) = channel();
            found.finish(move |_, fate| told.send(fate).unwrap()).unwrap();
            // The first connection breaks before it is answered; the next is a stranger's.
            drop(listener.accept(SOON).unwrap().unwrap());
            for secret in [Secret([4; 16]), SECRET] {
                let mut caller = Lobby::new(SOON).hear(&listener, SOON).unwrap().unwrap();
                let commit = Say::Commit { is_last: true };
                let commit = Word::new(&SECRET, transfer(number), commit);
                assert_eq!(caller.first, commit.into());
                let answer = Word::new(&secret, transfer(number), answer.clone());
                caller.link.say(&answer.into()).unwrap();
                let last_word = caller.link.hear(Due::COMMIT, SOON);
                if secret == SECRET {
                    let released = Word::new(&SECRET, transfer(number), Say::Released);
                    assert_eq!(last_word.unwrap(), Some(released.into()));
                } else {
                    assert!(last_word.is_err(), "{last_word:?}");
                    heard.try_recv().unwrap_err();
                }
            }
            assert_eq!(heard.recv_timeout(SOON), Ok(fate));
            // The thread may not have closed it yet.
            let vm = transfer(number).vm;
            let read = Journal::read(directory.as_path(), vm, Side::Source).unwrap();
            assert!(read.iter().all(|record| record.step != Step::Kept));
            assert!(read.is_empty() || read.last().unwrap().step == Step::Released);
        }
    }
}
