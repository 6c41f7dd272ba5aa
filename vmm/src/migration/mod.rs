//! Moving a running guest to another host.

mod codec;
#[cfg(test)]
mod codec_tests;
pub mod convergence;
mod cursor;
pub mod frame;
#[cfg(test)]
mod frame_tests;
pub mod handover;
pub mod journal;
mod malformed;
pub mod message;
pub mod progress;

pub use malformed::Malformed;
