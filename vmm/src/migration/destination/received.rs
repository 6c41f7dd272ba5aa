//! The result of a control connection to this host: a guest, or an answer that was given.

use crate::machine::PausedMachine;
use crate::migration::account::Account;
use crate::migration::handover::journal::Journal;
use crate::migration::handover::journal::forget;
use crate::migration::net::{Caller, Line, Link};
use crate::migration::wire::{NotRunning, Secret, Transfer};

/// A guest that has arrived completely and is paused here. It is not decided yet who owns it.
#[derive(Debug)]
pub struct Prepared {
    /// The machine.
    pub machine: PausedMachine,
    /// The control connection.
    pub(crate) link: Link,
    /// The record of who owns it.
    pub(crate) journal: Journal,
    /// Which guest and which attempt.
    pub transfer: Transfer,
    /// The key of the proofs of all words about it.
    pub(crate) secret: Secret,
    /// What was counted while it arrived.
    pub account: Account,
}

impl Prepared {
    /// Drops the guest. Its source keeps it, because it was not told that the guest is prepared here.
    pub fn refuse(mut self, why: &str) {
        forget(&mut self.journal, self.transfer);
        Caller::refuse_on(self.link, why);
    }
}

/// The result of a control connection.
#[derive(Debug)]
pub enum Received {
    /// A guest.
    Guest(Box<Prepared>),
    /// The source of an earlier guest was told what became of it here, and may have a last word.
    Answered(Transfer, NotRunning, Line),
    /// The source of an earlier guest will not ask about it any more.
    Settled(Transfer),
    /// A source asked whether this guest would be taken. The number counts the reasons against it.
    Asked(Transfer, usize),
}
