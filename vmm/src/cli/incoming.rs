//! A guest on its way in: what the owner does while nothing runs yet.

use std::sync::Arc;
use std::time::Duration;

use super::migration_arguments::ReceiveOptions;
use super::owner::Owner;
use super::receive::ReceiveError;
use crate::devices::SerialPort;
use crate::machine::RunningMachine;
use crate::migration::Listener;

/// How often the user's wish to end is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Takes over the guest that comes; `None` if the user ended the wait.
///
/// # Errors
/// [`ReceiveError`] if a guest came and could not be taken over.
pub(super) fn receive_guest(
    listener: &Listener,
    _options: &ReceiveOptions,
    owner: &Owner,
) -> Result<Option<(RunningMachine, Arc<SerialPort>)>, ReceiveError> {
    loop {
        if owner.inbox.interruption(&owner.board).is_some() {
            return Ok(None);
        }
        if let Some(_source) = listener.accept(LOOK_EVERY).map_err(ReceiveError::Accept)? {
            return Err(ReceiveError::NotYet);
        }
    }
}
