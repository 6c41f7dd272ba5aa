//! The API socket of the process that has a guest: what may be asked, the server that answers, and the client.
//!
//! ```text
//! client --one line--> server --Event::Request--> process (runs the guest, or migrates it)
//!                        |  <------ Answer -------
//!                        +-- status, cancel: from the StatusBoard, even while the process is busy
//! ```
//!
//! Nothing here touches the machine: the server queues requests, and the process answers when it can. What it does with
//! a request depends on its state: see [`policy`].

pub mod api;
mod board;
mod client;
mod event;
mod line;
pub mod policy;
mod server;

pub use board::StatusBoard;
pub use client::{Client, ClientError, PATIENCE, Responses, ask};
pub use event::{Answer, Event};
pub use line::LineError;
pub use server::{Server, ServerError};
