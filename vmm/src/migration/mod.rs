//! A guest on its way from one host to another.

mod endpoint;
mod stream;

pub use endpoint::{BadEndpoint, Endpoint};
pub use stream::{Listener, Stream};
