//! Who connects to a host that receives guests: a source with a guest, or one that is back with a
//! word about an earlier one.

use std::time::Duration;

use super::link::{Due, Link, LinkError};
use super::message::{Message, Reason};
use super::transport::Stream;

/// How long a peer may take for its first message, and for all of its page connections.
pub(super) const GREETING_MAX: Duration = Duration::from_secs(10);

/// A control connection and the first message on it.
#[derive(Debug)]
pub struct Caller {
    pub(super) link: Link,
    pub(super) first: Message,
}

impl Caller {
    /// Waits for the first message on `stream`.
    ///
    /// # Errors
    /// [`LinkError`] if none came in time, or it is no message.
    pub fn greet(stream: Stream) -> Result<Self, LinkError> {
        let mut link = Link::new(stream);
        let first = link.receive(Due::GREETING, GREETING_MAX, &mut || false);
        let silent = || Due::GREETING.silent(GREETING_MAX);
        match first.and_then(|first| first.ok_or_else(silent)) {
            Ok(first) => Ok(Self { link, first }),
            Err(cause) => {
                // A source of another version learns so, if it is one at all.
                let reason = Reason::new(&super::chain_of(&cause));
                link.send(&Message::Refuse { reason }).unwrap_or_default();
                Err(cause)
            }
        }
    }

    /// Turns it away.
    pub(super) fn refuse(mut self, why: &str) {
        // It may be gone: then it needs no reason.
        self.link.send(&Message::Refuse { reason: Reason::new(why) }).unwrap_or_default();
    }
}
