//! What a guest's process waits for: its guest's end, its user, and requests, each with the channel for its answer.

use std::sync::mpsc::{Receiver, Sender, channel};

use log::debug;

use super::api::{Request, Response};
use crate::vcpu::Stop;

/// What the process of a guest waits for.
#[derive(Debug)]
pub enum Event {
    /// A vCPU stopped, and the machine with it.
    Stopped(Stop),
    /// The user wants to end.
    Quit,
    /// The user wants to see the page status.
    Report,
    /// A request through the API socket.
    Request(Request, Answer),
}

impl From<Stop> for Event {
    fn from(stop: Stop) -> Self {
        Self::Stopped(stop)
    }
}

/// The channel for the answers to one request. The connection ends when this is dropped.
#[derive(Debug)]
pub struct Answer(Sender<Response>);

impl Answer {
    /// An answer, and the receiver of the responses that it is given.
    #[must_use]
    pub fn channel() -> (Self, Receiver<Response>) {
        let (sender, responses) = channel();
        (Self(sender), responses)
    }

    /// Sends one response. It does not matter if the client has gone away.
    pub fn give(&self, response: Response) {
        if self.0.send(response).is_err() {
            debug!("nobody waits for the answer any more");
        }
    }

    /// Refuses the request, with the reason.
    pub fn refuse(&self, reason: impl Into<String>) {
        self.give(Response::Refused { reason: reason.into() });
    }
}
