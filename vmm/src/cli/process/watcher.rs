//! The guest's process as the watch of its migration, at either host: it shows the progress, and passes on what its
//! users wish.

use std::sync::{Arc, Mutex, PoisonError};

use super::guest_process::GuestProcess;
use crate::control::api::{Progress, State};
use crate::migration::progress::Phase;
use crate::migration::watch::{Sight, Watch, Wish};

/// The watcher of one migration.
#[derive(Debug)]
pub(crate) struct Watcher<'a> {
    process: &'a GuestProcess,
    /// Until there is a doubt.
    state: State,
    /// The progress that the status board shows, once there is one.
    shown: Option<Arc<Mutex<Progress>>>,
}

impl<'a> Watcher<'a> {
    /// Of a migration during which the process is in `state`.
    pub(crate) fn new(process: &'a GuestProcess, state: State) -> Self {
        Self { process, state, shown: None }
    }

    /// `progress` is what a status shows from now on.
    pub(crate) fn show(&mut self, progress: &Progress) {
        match &self.shown {
            Some(shown) => {
                progress.clone_into(&mut shown.lock().unwrap_or_else(PoisonError::into_inner));
            }
            None => {
                let shown = Arc::new(Mutex::new(progress.clone()));
                self.process.board.show_migration(self.state, Arc::clone(&shown));
                self.shown = Some(shown);
            }
        }
    }

    /// The migration is over. The guest runs at full speed, wherever it is.
    pub(crate) fn end(&self) {
        if let Some(shown) = &self.shown {
            let mut last = shown.lock().unwrap_or_else(PoisonError::into_inner);
            (last.phase, last.throttle_percent) = (Phase::Done, 0);
        }
    }
}

impl Watch for Watcher<'_> {
    fn look(&mut self, sight: &Sight<'_>) -> Option<Wish> {
        self.show(sight.progress);
        if sight.in_doubt {
            self.process.board.show(State::InDoubt);
        }
        if let Some(refusal) = sight.refused {
            self.process.inbox.refuse_decision(&refusal.to_string());
        }
        self.process.inbox.wish()
    }
}
