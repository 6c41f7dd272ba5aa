//! Moving a running guest to another host.

mod codec;
#[cfg(test)]
mod codec_tests;
mod cursor;
pub mod frame;
#[cfg(test)]
mod frame_tests;
pub mod handover;
pub mod journal;
mod malformed;
pub mod message;

pub use malformed::Malformed;
