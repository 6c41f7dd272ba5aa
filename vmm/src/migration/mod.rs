//! Moving a running guest to another host.
//!
//! `docs/protocol.md` shows the messages and who owns the guest at each fault.
//! Only [`journal`], [`Stream`] and [`Listener`] do I/O.
//!
//! | module | owns |
//! |---|---|
//! | [`message`] | what the two sides say, as plain data |
//! | [`frame`] | frames and page frames: bytes, caps, digests |
//! | [`handover`] | who owns the guest, as two state machines |
//! | [`journal`] | what a host remembers of that through a crash |
//! | [`convergence`] | another round, pause now, or give up |
//! | [`progress`] | how it goes and how it went |

mod codec;
#[cfg(test)]
mod codec_tests;
pub mod convergence;
mod cursor;
mod endpoint;
pub mod frame;
#[cfg(test)]
mod frame_tests;
pub mod handover;
pub mod journal;
mod malformed;
pub mod message;
pub mod progress;
mod stream;

pub use endpoint::{BadEndpoint, Endpoint};
pub use malformed::Malformed;
pub use stream::{Listener, Stream};
