//! How a guest is sent.

use std::time::Duration;

use crate::migration::convergence::Goal;
use crate::migration::net::Endpoint;
use crate::migration::wire::{Abandoned, Transfer};

/// How to send.
#[derive(Debug)]
pub struct Options {
    /// The destination's address.
    pub to: Endpoint,
    /// Number of page connections.
    pub connections: u16,
    /// When to pause the guest.
    pub goal: Goal,
    /// Whether to slow the guest down if it writes faster than its pages can be sent.
    pub throttle: bool,
    /// How long the destination may be silent.
    pub silence: Duration,
    /// Which guest, and which attempt.
    pub transfer: Transfer,
    /// Earlier attempts, whose destinations may still have a copy of the guest.
    pub abandoned: Vec<Abandoned>,
    /// Also send a guest whose policy lets the firmware send it to any destination.
    pub allow_unchecked: bool,
}
