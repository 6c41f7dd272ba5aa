//! Moving a running guest to another host.

mod codec;
#[cfg(test)]
mod codec_tests;
mod cursor;
mod endpoint;
pub mod frame;
#[cfg(test)]
mod frame_tests;
pub mod handover;
pub mod journal;
mod malformed;
pub mod message;
mod stream;

pub use endpoint::{BadEndpoint, Endpoint};
pub use malformed::Malformed;
pub use stream::{Listener, Stream};
