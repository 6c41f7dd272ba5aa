//! What a caller has led to: a guest, or an answer.

use crate::machine::PausedMachine;
use crate::migration::account::Account;
use crate::migration::handover::journal::Journal;
use crate::migration::handover::journal::forget;
use crate::migration::net::{Caller, Line, Link};
use crate::migration::wire::{NotRunning, Secret, Transfer};

/// A guest that has arrived whole and is paused here, its owner not yet decided.
#[derive(Debug)]
pub struct Prepared {
    /// The machine.
    pub machine: PausedMachine,
    /// The control connection.
    pub(crate) link: Link,
    /// Where it is written down whose it is.
    pub(crate) journal: Journal,
    /// Which guest, which attempt.
    pub transfer: Transfer,
    /// What makes words about it count.
    pub(crate) secret: Secret,
    /// How it came.
    pub account: Account,
}

impl Prepared {
    /// The guest is not to be taken over; its source, which was not told that it is prepared, keeps it.
    pub fn refuse(mut self, why: &str) {
        forget(&mut self.journal, self.transfer);
        Caller::refuse_on(self.link, why);
    }
}

/// What a caller has led to.
#[derive(Debug)]
pub enum Received {
    /// A guest.
    Guest(Box<Prepared>),
    /// The source of an earlier one was told what became of it here, and may have a last word.
    Answered(Transfer, NotRunning, Line),
    /// The source of an earlier one will not ask for it any more.
    Settled(Transfer),
    /// A source was told whether this guest would be taken: so many reasons against it.
    Asked(Transfer, usize),
}
