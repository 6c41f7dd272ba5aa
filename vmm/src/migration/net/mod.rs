//! Connections between two hosts: addresses, deadlines, whole messages, and incoming connections.

mod building;
mod caller;
mod dialling;
mod due;
mod endpoint;
mod link;
mod lobby;
mod not_taken;
mod patience;
mod reading;
mod stream;

pub(crate) use building::{Heard, Words};
pub use caller::{Caller, Line};
pub(crate) use dialling::Dialling;
pub use dialling::LOOK_UP_MAX;
pub(crate) use due::Due;
pub use due::LinkError;
pub use endpoint::{BadEndpoint, Endpoint};
pub(crate) use link::Link;
pub use lobby::Lobby;
pub(crate) use patience::{Overdue, Wait, in_all};
pub use stream::{Listener, Stream};
