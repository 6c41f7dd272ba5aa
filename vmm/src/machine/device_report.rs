//! What a machine can say about the devices on its PCI bus.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::devices::virtio::{Condition, VirtioFunction};

/// A device on the PCI bus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceReport {
    /// Its slot.
    pub slot: u8,
    /// Its kind's name.
    pub kind: String,
    /// Whether the guest uses it.
    pub condition: Condition,
}

/// Looks at the devices of a machine that runs.
#[derive(Debug, Clone, Default)]
pub struct DeviceWatch(Vec<Arc<VirtioFunction>>);

impl DeviceWatch {
    pub(super) fn new(functions: Vec<Arc<VirtioFunction>>) -> Self {
        Self(functions)
    }

    /// How they are now. One that is at work is waited for.
    #[must_use]
    pub fn devices(&self) -> Vec<DeviceReport> {
        let report = |function: &Arc<VirtioFunction>| DeviceReport {
            slot: function.slot(),
            kind: function.ask(|device| device.kind().name.to_owned()),
            condition: function.condition(),
        };
        self.0.iter().map(report).collect()
    }
}
