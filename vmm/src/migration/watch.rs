//! What a VMM sees of a migration that is under way, and what it may wish: the same at both hosts.

use super::handover::{Refusal, Resolution};
use super::progress::Progress;
use super::wire::Reason;

/// Watches a migration, at either host: shows how far it is, cancels it, or ends its doubt.
pub trait Watch {
    /// Called at least every tenth of a second, by the thread that owns the guest.
    fn look(&mut self, sight: &Sight<'_>) -> Option<Wish>;
}

impl<F> Watch for F
where
    F: FnMut(&Sight<'_>) -> Option<Wish>,
{
    fn look(&mut self, sight: &Sight<'_>) -> Option<Wish> {
        self(sight)
    }
}

/// What a watch sees.
#[derive(Debug)]
pub struct Sight<'a> {
    /// What was done so far.
    pub progress: &'a Progress,
    /// Whether the other host may run the guest already.
    pub in_doubt: bool,
    /// Why the last wish was refused, if it was.
    pub refused: Option<Refusal>,
}

/// What a watch may wish.
#[derive(Debug, Clone)]
pub enum Wish {
    /// Give up, if that is still possible.
    Cancel(Reason),
    /// End a doubt.
    Resolve(Resolution),
}

/// Before the handover, when there is no doubt to end: the reason to give the migration up, if there is one.
pub(crate) fn cancelled(watch: &mut dyn Watch, progress: &Progress) -> Option<Reason> {
    match watch.look(&Sight { progress, in_doubt: false, refused: None }) {
        Some(Wish::Cancel(reason)) => Some(reason),
        Some(Wish::Resolve(_)) | None => None,
    }
}
