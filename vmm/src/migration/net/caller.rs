//! Who connects to a host that receives guests: a source with a guest, or one that is back with a
//! word about an earlier one.

use super::link::Link;
use crate::migration::wire::{Message, Reason};

/// The connection of somebody who was answered, and may have more to say.
#[derive(Debug)]
pub struct Line(pub(crate) Link);

/// A control connection and the first message on it.
#[derive(Debug)]
pub struct Caller {
    pub(crate) link: Link,
    pub(crate) first: Message,
}

impl Caller {
    /// Turns it away.
    pub(crate) fn refuse(self, why: &str) {
        Self::refuse_on(self.link, why);
    }

    /// Turns away whoever is at the other end.
    pub(crate) fn refuse_on(mut link: Link, why: &str) {
        // It may be gone: then it needs no reason.
        link.say(&Message::Refuse { reason: Reason::new(why) }).unwrap_or_default();
    }
}
