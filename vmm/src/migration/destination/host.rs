//! What a host receives guests with.

use std::io::Error as IoError;
use std::time::Duration;

use crate::devices::SerialOutput;
use crate::machine::config::{DeviceConfig, PlatformKind};
use crate::migration::handover::journal::Journal;
use crate::migration::wire::VmId;

/// What this host receives guests with.
pub struct Host<'a> {
    /// Receives SEV guests; `None` takes plain VMs only.
    pub platform: Option<&'a PlatformKind>,
    /// What a guest's devices stand on.
    pub devices: &'a [DeviceConfig],
    /// Where a guest's serial port writes to: open already, so that no guest comes in vain.
    pub output: &'a SerialOutput,
    /// Opens a guest's journal.
    pub journal: &'a mut dyn FnMut(VmId) -> Result<Journal, IoError>,
    /// How long the source may be silent.
    pub silence: Duration,
}

impl std::fmt::Debug for Host<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("platform", &self.platform).finish_non_exhaustive()
    }
}
