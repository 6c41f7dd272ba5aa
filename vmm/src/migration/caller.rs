//! Who connects to a host that receives guests: a source with a guest, or one that is back with a
//! word about an earlier one.

use super::link::Link;
use super::message::{Message, Reason};

/// A control connection and the first message on it.
#[derive(Debug)]
pub struct Caller {
    pub(super) link: Link,
    pub(super) first: Message,
}

impl Caller {
    /// Turns it away.
    pub(super) fn refuse(mut self, why: &str) {
        // It may be gone: then it needs no reason.
        self.link.say(&Message::Refuse { reason: Reason::new(why) }).unwrap_or_default();
    }
}
