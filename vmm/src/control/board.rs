//! The status of the process that has the guest: it writes it, and any thread may read it at any moment.

use std::process::id;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::api::{LaunchReply, PagesReply, Progress, Request, Response, State, StatusReply};
use super::policy::{NOT_NOW, decide};
use crate::machine::{DeviceWatch, LaunchRecord, PageWatch};

/// The state, the page status, the progress of a migration, and the wish to cancel it.
#[derive(Debug)]
pub struct StatusBoard {
    shown: Mutex<Shown>,
    /// Notified whenever the state changes.
    changed: Condvar,
    /// Set only while a migration is under way.
    cancelled: AtomicBool,
}

#[derive(Debug, Clone)]
struct Shown {
    state: State,
    launch: Option<LaunchReply>,
    pages: Option<PageWatch>,
    devices: DeviceWatch,
    migration: Option<Arc<Mutex<Progress>>>,
}

impl StatusBoard {
    /// No guest yet, and no migration.
    #[must_use]
    pub fn new(state: State) -> Self {
        let devices = DeviceWatch::default();
        let shown = Shown { state, launch: None, pages: None, devices, migration: None };
        Self {
            shown: Mutex::new(shown),
            changed: Condvar::new(),
            cancelled: AtomicBool::new(false),
        }
    }

    /// There is a guest, which does not run yet.
    pub fn show_paused(&self, launch: Option<&LaunchRecord>) {
        let mut shown = self.shown();
        (shown.state, shown.launch) = (State::Paused, launch.map(LaunchReply::from));
        self.changed.notify_all();
    }

    /// What was launched, of a guest that is about to run.
    pub fn show_launch(&self, launch: Option<&LaunchRecord>) {
        self.shown().launch = launch.map(LaunchReply::from);
    }

    /// What is on the PCI bus of a guest that is about to run.
    pub fn show_devices(&self, devices: DeviceWatch) {
        self.shown().devices = devices;
    }

    /// The guest runs, and these are its pages.
    pub fn show_running(&self, pages: Option<PageWatch>) {
        let mut shown = self.shown();
        (shown.state, shown.pages) = (State::Running, pages);
        self.changed.notify_all();
    }

    /// A migration begins, and is not cancelled yet. The guest's pages are those shown last.
    pub fn show_migration(&self, state: State, progress: Arc<Mutex<Progress>>) {
        let mut shown = self.shown();
        (shown.state, shown.migration) = (state, Some(progress));
        self.cancelled.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    /// The process goes to another state. The page status is kept only while the guest migrates.
    pub fn show(&self, state: State) {
        let mut shown = self.shown();
        shown.state = state;
        match state {
            State::Running | State::Migrating | State::InDoubt => {}
            State::Starting | State::Paused | State::Waiting | State::Receiving | State::Moved => {
                (shown.launch, shown.pages) = (None, None);
                shown.devices = DeviceWatch::default();
            }
        }
        self.changed.notify_all();
    }

    /// What the process does.
    #[must_use]
    pub fn state(&self) -> State {
        self.shown().state
    }

    /// Whether the migration that is under way is to be given up.
    #[must_use]
    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Asks the process to give up the migration that is under way. Refused if there is none.
    #[must_use]
    pub fn cancel(&self) -> Response {
        let shown = self.shown();
        if let Some(why) = decide(shown.state, true, &Request::Cancel).refusal() {
            return Response::Refused { reason: why.to_owned() };
        }
        self.cancelled.store(true, Ordering::Release);
        Response::Accepted
    }

    /// Answers a request that does not need the process. A cancelled migration may take `patience` to end.
    #[must_use]
    pub fn answer(&self, request: &Request, patience: Duration) -> Response {
        match request {
            Request::Status => self.status(),
            Request::Cancel => self.cancel_and_wait(patience),
            Request::Report
            | Request::Audit
            | Request::InjectSecret(_)
            | Request::Continue
            | Request::Migrate(_)
            | Request::Check(_)
            | Request::Resolve(_)
            | Request::ResizeDisk { .. }
            | Request::Quit => Response::Refused { reason: NOT_NOW.to_owned() },
        }
    }

    /// Answers [`Request::Cancel`]: asks the process, and waits for at most `patience` until the
    /// migration has ended, one way or another.
    #[must_use]
    pub fn cancel_and_wait(&self, patience: Duration) -> Response {
        let asked = self.cancel();
        if asked != Response::Accepted {
            return asked;
        }
        let migrating = |shown: &mut Shown| shown.state == State::Migrating;
        let (shown, _timeout) = self
            .changed
            .wait_timeout_while(self.shown(), patience, migrating)
            .unwrap_or_else(PoisonError::into_inner);
        match shown.state {
            State::Moved | State::InDoubt => {
                let why = decide(shown.state, true, &Request::Cancel).refusal().unwrap_or(NOT_NOW);
                let reason = format!("too late: {why}");
                Response::Refused { reason }
            }
            State::Migrating => {
                let seconds = patience.as_secs();
                let reason = format!(
                    "the migration was told to end, and after {seconds} s it has not ended yet; \
                     `sevferry status` shows when it has"
                );
                Response::Refused { reason }
            }
            State::Starting
            | State::Paused
            | State::Running
            | State::Waiting
            | State::Receiving => Response::Accepted,
        }
    }

    /// Answers [`Request::Status`].
    #[must_use]
    pub fn status(&self) -> Response {
        // The watches wait for the guest's hypercalls and devices, so the board must not be locked meanwhile.
        let Shown { state, launch, pages, devices, migration } = self.shown().clone();
        let pages = pages.and_then(|pages| pages.summary()).map(|pages| PagesReply::from(&pages));
        let migration = migration
            .map(|progress| progress.lock().unwrap_or_else(PoisonError::into_inner).clone());
        let (process, devices) = (id(), devices.devices());
        let status = StatusReply { state, process, launch, pages, devices, migration };
        Response::Status(Box::new(status))
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::hint::spin_loop;
    use std::thread::scope;

    use super::*;
    use crate::migration::journal::Side;
    use crate::migration::wire::{Transfer, VmId};

    fn progress() -> Arc<Mutex<Progress>> {
        let transfer = Transfer { vm: VmId([7; 16]), epoch: 1 };
        Arc::new(Mutex::new(Progress::new(transfer, Side::Source)))
    }

    /// Only a migration that is under way can be cancelled, and the next one is not cancelled too.
    #[test]
    fn a_migration_is_cancelled_once() {
        let board = StatusBoard::new(State::Starting);
        board.show_running(None);
        assert!(matches!(board.cancel(), Response::Refused { .. }));
        assert!(!board.is_cancelled());
        let progress = progress();
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
        let progress = progress();
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

    /// A client that cancels hears how it ended: the guest runs on, or it was too late.
    #[test]
    fn cancelling_waits_for_the_end() {
        let refused = |response| matches!(response, Response::Refused { .. });
        let board = StatusBoard::new(State::Starting);
        let progress = progress();
        board.show_migration(State::Migrating, Arc::clone(&progress));
        // Nobody is told that it has ended before it has.
        let Response::Refused { reason } = board.cancel_and_wait(Duration::from_millis(1)) else {
            panic!("it has not ended");
        };
        assert!(reason.contains("has not ended yet"), "{reason}");
        assert!(board.is_cancelled());
        for too_late in [false, true] {
            board.show_migration(State::Migrating, Arc::clone(&progress));
            let response = scope(|scope| {
                let asker = scope.spawn(|| board.cancel_and_wait(Duration::from_secs(60)));
                while !board.is_cancelled() {
                    spin_loop();
                }
                if too_late {
                    board.show(State::Moved);
                } else {
                    board.show_running(None);
                }
                asker.join().unwrap()
            });
            assert_eq!(refused(response), too_late);
        }
    }
}
