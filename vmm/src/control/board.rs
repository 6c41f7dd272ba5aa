//! How things stand, for everyone to read at any moment; the owner of the guest writes it.

use std::process::id;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::api::{PagesReply, Progress, Response, State, StatusReply};
use crate::machine::PageWatch;

/// The state, the page status and the progress of a migration; and the wish to cancel it.
#[derive(Debug)]
pub struct StatusBoard {
    shown: Mutex<Shown>,
    /// Set only while a migration is under way.
    cancelled: AtomicBool,
}

#[derive(Debug)]
struct Shown {
    state: State,
    pages: Option<PageWatch>,
    migration: Option<Arc<Mutex<Progress>>>,
}

impl StatusBoard {
    /// No guest yet, and no migration.
    #[must_use]
    pub fn new(state: State) -> Self {
        let shown = Shown { state, pages: None, migration: None };
        Self { shown: Mutex::new(shown), cancelled: AtomicBool::new(false) }
    }

    /// The guest is being put together, or its end is near: its pages are not looked at.
    pub fn show_starting(&self) {
        let mut shown = self.shown();
        (shown.state, shown.pages) = (State::Starting, None);
    }

    /// The guest runs, and these are its pages.
    pub fn show_running(&self, pages: Option<PageWatch>) {
        let mut shown = self.shown();
        (shown.state, shown.pages) = (State::Running, pages);
    }

    /// A migration begins, or comes to another state; nobody has cancelled it yet.
    pub fn show_migration(&self, state: State, progress: Arc<Mutex<Progress>>) {
        let mut shown = self.shown();
        (shown.state, shown.migration) = (state, Some(progress));
        self.cancelled.store(false, Ordering::Release);
    }

    /// What the owner does.
    #[must_use]
    pub fn state(&self) -> State {
        self.shown().state
    }

    /// Whether the migration that is under way is to be given up.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Answers [`Request::Cancel`](super::api::Request::Cancel).
    #[must_use]
    pub fn cancel(&self) -> Response {
        let shown = self.shown();
        let reason = match shown.state {
            State::Migrating => {
                self.cancelled.store(true, Ordering::Release);
                return Response::Accepted;
            }
            State::InDoubt => {
                "the handover is in doubt: the other host may run the guest already; `sevferry \
                 resolve` decides"
            }
            State::Waiting | State::Receiving => {
                "a migration is cancelled at its source; `sevferry quit` ends this process"
            }
            State::Starting | State::Running => "no migration is under way",
        };
        Response::Refused { reason: reason.to_owned() }
    }

    /// Answers [`Request::Status`](super::api::Request::Status).
    #[must_use]
    pub fn status(&self) -> Response {
        // The watch waits for the guest's hypercalls: not while the board is locked.
        let (state, pages, migration) = {
            let shown = self.shown();
            (shown.state, shown.pages.clone(), shown.migration.clone())
        };
        let pages = pages.and_then(|pages| pages.summary()).map(|pages| PagesReply {
            shared: pages.shared.ok(),
            private: pages.private.ok(),
            not_migratable: pages.migratable.err().map(|why| why.to_string()),
        });
        let migration = migration
            .map(|progress| progress.lock().unwrap_or_else(PoisonError::into_inner).clone());
        Response::Status(StatusReply { state, process: id(), pages, migration })
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only a migration that is under way can be cancelled, and the next one is not cancelled too.
    #[test]
    fn a_migration_is_cancelled_once() {
        let board = StatusBoard::new(State::Starting);
        board.show_running(None);
        assert!(matches!(board.cancel(), Response::Refused { .. }));
        assert!(!board.is_cancelled());
        let progress = Arc::new(Mutex::new(Progress::default()));
        board.show_migration(State::Migrating, Arc::clone(&progress));
        assert!(!board.is_cancelled());
        assert_eq!(board.cancel(), Response::Accepted);
        assert!(board.is_cancelled());
        board.show_running(None);
        board.show_migration(State::Migrating, progress);
        assert!(!board.is_cancelled());
    }

    /// In doubt and at the destination, cancelling is refused with what to do instead.
    #[test]
    fn what_cannot_be_cancelled_says_what_can_be_done() {
        let progress = Arc::new(Mutex::new(Progress::default()));
        for (wanted, hint) in
            [(State::InDoubt, "resolve"), (State::Waiting, "quit"), (State::Receiving, "quit")]
        {
            let board = StatusBoard::new(State::Starting);
            board.show_migration(wanted, Arc::clone(&progress));
            assert_eq!(board.state(), wanted);
            let Response::Refused { reason } = board.cancel() else { panic!("not refused") };
            assert!(reason.contains(hint), "{reason}");
            assert!(!board.is_cancelled());
        }
    }
}
