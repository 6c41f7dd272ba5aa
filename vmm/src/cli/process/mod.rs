//! The process that has a guest, or waits for one: it runs the guest and serves requests.

mod audit;
mod console;
mod guest_process;
mod held;
mod inbox;
mod incoming;
mod journals;
mod outgoing;
mod running;
mod signals;
mod typed;
mod watcher;

pub(crate) use guest_process::{GuestProcess, ProcessError, warn_about};
pub(crate) use held::{Held, NotContinued, hold};
pub(crate) use incoming::receive_guest;
pub(crate) use journals::{NoJournal, open_journal};
pub(crate) use outgoing::options_of;
pub(crate) use running::{GuestEnd, run_until_end};
