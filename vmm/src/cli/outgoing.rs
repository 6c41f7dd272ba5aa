//! A guest on its way out: what the owner does for `sevferry migrate`.

use super::owner::Owner;
use crate::control::Answer;
use crate::control::api::MigrateRequest;
use crate::machine::RunningMachine;

/// Where the guest is now.
#[derive(Debug)]
pub(super) enum Sent {
    /// At the destination.
    #[expect(dead_code, reason = "nothing sends guests yet")]
    Moved,
    /// Still here, running.
    Stayed(Box<RunningMachine>),
}

/// Sends the guest to `request.to`; tells the asker when it has begun and how it ended.
pub(super) fn send_guest(
    machine: RunningMachine,
    request: &MigrateRequest,
    answer: &Answer,
    _owner: &Owner,
) -> Sent {
    answer.refuse(format!("this version cannot send a guest to {} yet", request.to));
    Sent::Stayed(Box::new(machine))
}
