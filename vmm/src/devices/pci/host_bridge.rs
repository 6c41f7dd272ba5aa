//! Function 00:00.0, which every PCI bus has: it says that this is one, and does nothing.

use std::sync::{Mutex, PoisonError};

use super::config_space::{ConfigSpace, PciIdentity};
use super::function::PciFunction;

/// Red Hat's generic PCI host bridge, as QEMU's `gpex` and others say they are.
const IDENTITY: PciIdentity = PciIdentity {
    vendor: 0x1b36,
    device: 0x0008,
    subsystem: 0x1100,
    class: [6, 0, 0],
    revision: 0,
};

/// The host bridge.
#[derive(Debug)]
pub(super) struct HostBridge {
    config: Mutex<ConfigSpace>,
}

impl HostBridge {
    pub(super) fn new() -> Self {
        Self { config: Mutex::new(ConfigSpace::new(&IDENTITY)) }
    }
}

impl PciFunction for HostBridge {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).read(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) {
        self.config.lock().unwrap_or_else(PoisonError::into_inner).write(offset, data);
    }

    fn bar(&self) -> Option<u64> {
        None
    }

    fn read_bar(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0xff);
    }

    fn write_bar(&self, _offset: u64, _data: &[u8]) {}
}
