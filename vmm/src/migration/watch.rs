//! Whoever watches a migration, at either host: sees how far it is, and says what is wished.

use super::handover::{Refusal, Resolution};
use super::progress::Progress;
use super::wire::Reason;

/// Whoever watches a migration, at either host.
pub trait Watch {
    /// Called every tenth of a second or oftener, by the thread that owns the guest.
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

/// What there is to see.
#[derive(Debug)]
pub struct Sight<'a> {
    /// What has been done.
    pub progress: &'a Progress,
    /// Whether the other host may run the guest already.
    pub in_doubt: bool,
    /// Why the last wish is not granted, if it is not.
    pub refused: Option<Refusal>,
}

/// What is wished then.
#[derive(Debug, Clone)]
pub enum Wish {
    /// Give up, if that is still possible.
    Cancel(Reason),
    /// End a doubt.
    Resolve(Resolution),
}

/// Before the handover: why the migration is to be given up, if it is. There is no doubt to end.
pub(crate) fn cancelled(watch: &mut dyn Watch, progress: &Progress) -> Option<Reason> {
    match watch.look(&Sight { progress, in_doubt: false, refused: None }) {
        Some(Wish::Cancel(reason)) => Some(reason),
        Some(Wish::Resolve(_)) | None => None,
    }
}
