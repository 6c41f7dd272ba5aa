//! How a host receives guests: its platform, the serial output, the journals, and its patience.

use std::io::Error as IoError;
use std::time::Duration;

use crate::devices::SerialOutput;
use crate::machine::config::{DeviceConfig, PlatformKind};
use crate::migration::handover::journal::Journal;
use crate::migration::wire::VmId;

/// How this host receives guests.
pub struct ReceiveConfig<'a> {
    /// The platform for SEV guests; with `None` it takes plain VMs only.
    pub platform: Option<&'a PlatformKind>,
    /// What a guest's devices are made from.
    pub devices: &'a [DeviceConfig],
    /// Where a guest's serial port writes to. It is open before a guest comes.
    pub output: &'a SerialOutput,
    /// Opens a guest's journal.
    pub journal: &'a mut dyn FnMut(VmId) -> Result<Journal, IoError>,
    /// How long the source may be silent.
    pub silence: Duration,
}

impl std::fmt::Debug for ReceiveConfig<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReceiveConfig").field("platform", &self.platform).finish_non_exhaustive()
    }
}
