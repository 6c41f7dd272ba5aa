//! A control connection to a host that receives guests: of a source that offers a guest, or of one that asks about
//! an earlier guest.

use super::link::Link;
use crate::migration::wire::{Message, Reason};

/// A connection whose first message was answered. More may come on it.
#[derive(Debug)]
pub struct Line(pub(crate) Link);

/// A control connection and the first message on it.
#[derive(Debug)]
pub struct Caller {
    pub(crate) link: Link,
    pub(crate) first: Message,
}

impl Caller {
    /// Refuses it, and closes the connection.
    pub(crate) fn refuse(self, why: &str) {
        Self::refuse_on(self.link, why);
    }

    /// Refuses on `link`, and closes it.
    pub(crate) fn refuse_on(mut link: Link, why: &str) {
        // It may be gone: then it needs no reason.
        link.say(&Message::Refuse { reason: Reason::new(why) }).unwrap_or_default();
    }
}
