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
//! One folder a party:
//!
//! | folder | has |
//! |---|---|
//! | `wire/` | kinds, caps, messages and page frames as bytes, and what can be wrong with them; no I/O |
//! | `net/` | addresses, connections, deadlines |
//! | `handover/` | who owns the guest: two state machines without I/O, and the journal |
//! | `source/` | [`source::send`]: offer, rounds, senders, handover |
//! | `destination/` | [`destination::receive`] and [`destination::take_over`] |
//! | `preflight/` | every reason against a migration, before anything moves |
//!
//! Beside them: `watch` (what a VMM sees of a migration, and may wish), `account` (what is counted), `convergence`
//! (when to pause), `progress` (what is shown), `recovery` (handovers that a crash has left in doubt).
//!
//! The whole way of a page, from KVM's dirty log to guest RAM at the other host:
//!
//! 1. `memory/dirty.rs`: KVM's log of written pages, as frames;
//! 2. `machine/running.rs` (`ChangeLog`): the log first, then the pages whose status flipped;
//! 3. `source/rounds.rs`: which pages this round sends, and by which status;
//! 4. `source/sender.rs`: a window of them, sealed, as it is, or as zero, into a page frame;
//! 5. `sev/send/mod.rs`: `SEND_UPDATE_DATA`, for a private page;
//! 6. `wire/pages.rs`: the frame's header and the parts of its payload;
//! 7. `wire/digest.rs`: the digest of the payload, and of the round;
//! 8. `net/stream.rs`: the connection, at both ends;
//! 9. `destination/placer.rs`: every header checked, then the page written, or opened;
//! 10. `destination/arrivals.rs`: marked, so that none comes twice in a round, and none is missing;
//! 11. `sev/receive.rs`: `RECEIVE_UPDATE_DATA`, for a private page;
//! 12. `memory/access.rs`: guest RAM, for a shared page: written here, and read by the sender at step 4;
//! 13. `destination/intake.rs`: the end of the round on all connections.

mod account;
pub mod convergence;
pub mod destination;
pub mod handover;
mod net;
pub mod preflight;
pub mod progress;
#[cfg(test)]
mod race_tests;
pub mod recovery;
pub mod source;
pub mod watch;
pub mod wire;

pub use account::Account;
pub use handover::journal;
pub use net::{
    BadEndpoint, Caller, Endpoint, LOOK_UP_MAX, Line, LinkError, Listener, Lobby, Stream,
};
pub use wire::Malformed;
