//! A guest's devices for people.

use crate::devices::virtio::Condition;
use crate::machine::DeviceReport;

/// A line for each device.
pub(super) fn device_lines(devices: &[DeviceReport]) -> Vec<String> {
    devices.iter().map(line).collect()
}

fn line(device: &DeviceReport) -> String {
    let DeviceReport { slot, kind, condition } = device;
    let condition = match condition {
        Condition::Unused => "not used by the guest",
        Condition::Used => "used by the guest",
        Condition::Broken => "broken by the guest, until it resets it",
    };
    format!("device: {kind} in slot {slot}, {condition}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// People read where a device is, and whether it works.
    #[test]
    fn a_line_says_whether_a_device_works() {
        let device = |condition| DeviceReport { slot: 3, kind: "rng".to_owned(), condition };
        let lines = device_lines(&[Condition::Unused, Condition::Used].map(device));
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0], "device: rng in slot 3, not used by the guest");
        let broken = line(&device(Condition::Broken));
        assert_eq!(broken, "device: rng in slot 3, broken by the guest, until it resets it");
    }
}
