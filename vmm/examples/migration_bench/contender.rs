//! What every VMM of the comparison can do.

use std::path::Path;
use std::process::Command;

use super::cost::{Result, Run};
use super::guest::Guest;

/// Milliseconds for which every VMM may pause the guest.
pub(crate) const DOWNTIME_MS: u32 = 30;

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    Sevferry,
    /// Another VMM.
    Peer,
    /// What the machine can do.
    Limit,
}

/// A VMM of the comparison.
pub(crate) trait Contender {
    /// Which side it is on.
    fn role(&self) -> Role {
        Role::Peer
    }

    /// Its name in the tables.
    fn name(&self) -> String;

    /// The command that boots the guest so that it could be migrated, controlled at `api`.
    fn boot(&self, guest: &Guest, api: &Path) -> Command;

    /// Migrates the guest once, over TCP on loopback.
    fn migrate(&self, guest: &Guest, connections: u8, port: u16) -> Result<Run>;
}
