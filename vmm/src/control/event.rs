//! What a guest's process waits for: its guest's end, its user, and requests with the way back for their answers.

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
    /// Somebody asked through the API socket.
    Request(Request, Answer),
}

impl From<Stop> for Event {
    fn from(stop: Stop) -> Self {
        Self::Stopped(stop)
    }
}

/// Where the answers to one request go, in order; the connection ends when this is dropped.
#[derive(Debug)]
pub struct Answer(Sender<Response>);

impl Answer {
    /// An answer, and where what it is given comes out.
    #[must_use]
    pub fn channel() -> (Self, Receiver<Response>) {
        let (sender, responses) = channel();
        (Self(sender), responses)
    }

    /// Sends one response. That the asker has gone away concerns nobody.
    pub fn give(&self, response: Response) {
        if self.0.send(response).is_err() {
            debug!("nobody waits for the answer any more");
        }
    }

    /// Says why the request cannot be met now.
    pub fn refuse(&self, reason: impl Into<String>) {
        self.give(Response::Refused { reason: reason.into() });
    }
}
