//! Moving a running guest to another host.
//!
//! ```text
//! source                                                   destination
//!   offer  ------------------------------------------------>  compare with this host
//!   verify certificates, SEND_START  <------------- accept --
//!   start  ------------------------------------------------>  RECEIVE_START
//!   page connections, rounds of pages ====================>   checked, placed, round by round
//!   pause, last round, region list, state  ----------------->  checked, RECEIVE_FINISH, prepared
//!   handover: see `handover/mod.rs`
//! ```
//!
//! A pre-flight (`preflight.rs`, `assessment.rs`) asks for everything that the first two lines would
//! refuse, and stops there.
//!
//! A page's way: `machine/running.rs` (`ChangeLog`: dirty log and flips), `rounds.rs` (which pages),
//! `sender.rs` (sealed, or as it is), `transport.rs`, `placer.rs` (checked and written),
//! `intake.rs` (the end of a round), `arrivals.rs` (nothing missing, nothing from the wrong view).

mod account;
mod arrivals;
mod asking;
mod assessment;
mod building;
mod caller;
mod certificates;
pub mod closing;
mod codec;
#[cfg(test)]
mod codec_tests;
pub mod convergence;
mod cursor;
pub mod destination;
mod dialling;
mod endpoint;
pub mod frame;
#[cfg(test)]
mod frame_tests;
pub mod handing_over;
pub mod handover;
#[cfg(test)]
mod hostile_tests;
mod intake;
mod joining;
pub mod journal;
mod link;
mod lobby;
mod malformed;
pub mod message;
mod not_taken;
mod offering;
mod patience;
mod placer;
pub mod preflight;
pub mod progress;
#[cfg(test)]
mod race_tests;
mod reading;
mod recall;
pub mod reception;
pub mod recovery;
mod rounds;
mod sender;
mod socket_file;
pub mod source;
pub mod taking_over;
mod transport;
pub mod watch;
pub mod word;

use crate::machine::chain_of;
pub use caller::{Caller, Line};
pub use dialling::LOOK_UP_MAX;
pub use endpoint::{BadEndpoint, Endpoint};
pub use link::LinkError;
pub use lobby::Lobby;
pub use malformed::Malformed;
pub use socket_file::{NoSocket, SocketFile};
pub use transport::{Listener, Stream};
