//! The parts of messages that are bounded, by name: the same bounds for writing and for reading.

use super::kind::{ABANDONED_MAX, CONNECTIONS_MAX, OBJECTIONS_MAX};
use super::malformed::Malformed;

pub(super) const MACHINE: &str = "the machine's offer";
pub(super) const PDH: &str = "the PDH certificate";
pub(super) const CHAIN: &str = "the platform's certificate chain";
pub(super) const ROOTS: &str = "the vendor's certificates";
pub(super) const SESSION: &str = "the session buffer";
pub(super) const REASON: &str = "the reason";

pub(super) fn checked_connections(connections: u16) -> Result<u16, Malformed> {
    if (1..=CONNECTIONS_MAX).contains(&connections) {
        return Ok(connections);
    }
    Err(Malformed::Value { field: "the number of connections", found: u64::from(connections) })
}

pub(super) fn checked_abandoned(count: usize) -> Result<u8, Malformed> {
    let known = u8::try_from(count).ok().filter(|&count| u32::from(count) <= ABANDONED_MAX);
    known.ok_or(Malformed::Value { field: "the number of earlier attempts", found: count as u64 })
}

pub(super) fn checked_objections(count: usize) -> Result<u8, Malformed> {
    let known = u8::try_from(count).ok().filter(|&count| u32::from(count) <= OBJECTIONS_MAX);
    known.ok_or(Malformed::Value { field: "the number of objections", found: count as u64 })
}
