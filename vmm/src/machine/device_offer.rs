//! What a machine's devices are, compared with those that a destination has for it.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::config::DeviceConfig;
use crate::devices::pci::SLOTS;
use crate::devices::virtio::{ANY, VirtioDevice};
use crate::text::chain_of;

/// A device, as far as a destination must be able to make the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceOffer {
    /// Its slot on the PCI bus.
    pub slot: u8,
    /// virtio's number of its kind.
    pub kind: u16,
    /// The kind's name, for people.
    pub name: String,
    /// What it offers its driver.
    pub features: u64,
    /// The most entries of each of its queues.
    pub queues: Vec<u16>,
    /// What else must be alike, by name.
    pub alike: Vec<(String, String)>,
}

/// What this host would give to such a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceHere {
    /// The device that it makes, in no slot yet; or why it cannot be made, in words.
    pub offer: Result<DeviceOffer, String>,
    /// What was configured.
    pub config: DeviceConfig,
}

impl DeviceOffer {
    /// What `device` in `slot` is.
    pub(super) fn new(slot: u8, device: &dyn VirtioDevice) -> Self {
        let kind = device.kind();
        Self {
            slot,
            kind: kind.id,
            name: kind.name.to_owned(),
            features: device.features(),
            queues: device.queue_sizes(),
            alike: device.alike().into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        }
    }
}

impl DeviceHere {
    /// Opens the device of `config`, looks at it and closes it.
    #[must_use]
    pub fn look(config: &DeviceConfig) -> Self {
        let offer = config.open().map(|device| DeviceOffer::new(0, &*device));
        Self { offer: offer.map_err(|cause| chain_of(&cause)), config: config.clone() }
    }
}

/// The configuration here for each device that was offered: the first of a kind there is the first of
/// that kind here. What the guest does not have is left unused.
///
/// # Errors
/// Every [`DeviceDifference`].
pub(super) fn matching<'a>(
    offered: &[DeviceOffer],
    here: &'a [DeviceHere],
) -> Result<Vec<(u8, &'a DeviceConfig)>, Vec<DeviceDifference>> {
    let (mut found, mut differences) = (Vec::new(), Vec::new());
    let mut left: Vec<_> = here.iter().collect();
    for offer in offered {
        let name = || offer.name.chars().filter(char::is_ascii_graphic).take(16).collect();
        let slot = offer.slot;
        if slot == 0 || slot >= SLOTS || found.iter().any(|&(taken, _)| taken == slot) {
            differences.push(DeviceDifference::Slot { name: name(), slot });
            continue;
        }
        let place = left.iter().position(|here| here.config.kind() == offer.kind);
        let Some(one) = place.map(|place| left.remove(place)) else {
            differences.push(DeviceDifference::Missing { name: name(), slot });
            continue;
        };
        match &one.offer {
            Err(why) => {
                differences.push(DeviceDifference::Closed { name: name(), slot, why: why.clone() });
            }
            Ok(made) => {
                if let Some(what) = unlike(offer, made) {
                    differences.push(DeviceDifference::Unlike { name: name(), slot, what });
                }
            }
        }
        found.push((slot, &one.config));
    }
    if differences.is_empty() { Ok(found) } else { Err(differences) }
}

/// What of the device that was offered is not so here, in words.
fn unlike(offer: &DeviceOffer, here: &DeviceOffer) -> Option<String> {
    // First what was configured: features follow from it, and are harder to read.
    let is_so = |(key, value): &(String, String)| {
        here.alike.iter().any(|(name, here)| {
            name == key && (here == value || [here, value].map(String::as_str).contains(&ANY))
        })
    };
    if let Some((key, value)) = offer.alike.iter().find(|pair| !is_so(pair)) {
        let other = here.alike.iter().find(|(name, _)| name == key);
        let other = other.map_or("none", |(_, value)| value.as_str());
        return Some(format!("{key} {value:?}, and here {other:?}"));
    }
    if offer.queues != here.queues {
        return Some(format!("queues of {:?} entries, and here {:?}", offer.queues, here.queues));
    }
    let missing = offer.features & !here.features;
    (missing != 0).then(|| format!("features {missing:#x}, which the one here lacks"))
}

/// One reason why a device cannot go on here.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DeviceDifference {
    /// No device can be there.
    #[error("its {name} is in slot {slot}, where another is, or none can be")]
    Slot {
        /// Its kind.
        name: String,
        /// Its slot.
        slot: u8,
    },
    /// None of that kind is configured here.
    #[error("it has a {name} in slot {slot}, and none was given here: start receive with --{name}")]
    Missing {
        /// Its kind.
        name: String,
        /// Its slot.
        slot: u8,
    },
    /// What it would stand on cannot be opened.
    #[error("for its {name} in slot {slot}: {why}")]
    Closed {
        /// Its kind.
        name: String,
        /// Its slot.
        slot: u8,
        /// The reason.
        why: String,
    },
    /// It is another device.
    #[error("its {name} in slot {slot} has {what}")]
    Unlike {
        /// Its kind.
        name: String,
        /// Its slot.
        slot: u8,
        /// What is not alike.
        what: String,
    },
}

#[cfg(test)]
mod tests {
    use std::env::temp_dir;
    use std::fs::{File, remove_file};
    use std::path::PathBuf;
    use std::process::id;

    use super::*;
    use crate::devices::virtio::DiskOptions;

    fn here(source: &str) -> DeviceHere {
        DeviceHere::look(&DeviceConfig::Rng { source: PathBuf::from(source) })
    }

    fn rng(slot: u8) -> DeviceOffer {
        DeviceOffer { slot, ..here("/dev/urandom").offer.unwrap() }
    }

    #[track_caller]
    fn refused(offered: &[DeviceOffer], here: &[DeviceHere]) -> Vec<String> {
        let differences = matching(offered, here).unwrap_err();
        differences.iter().map(ToString::to_string).collect()
    }

    /// Each device finds its counterpart in the order of its kind, and keeps its slot; what the guest
    /// does not have stays away.
    #[test]
    fn each_device_finds_its_counterpart() {
        let two = [here("/dev/urandom"), here("/dev/random")];
        let found = matching(&[rng(7), rng(3)], &two).unwrap();
        assert_eq!(found, [(7, &two[0].config), (3, &two[1].config)]);
        assert_eq!(matching(&[], &two).unwrap(), []);
    }

    /// What may be anything at one host is like anything at the other; a name that is not known there is
    /// not.
    #[test]
    fn anything_is_like_anything() {
        let with = |key: &str, value: &str| DeviceOffer {
            alike: vec![(key.to_owned(), value.to_owned())],
            ..rng(1)
        };
        for (offer, here) in [("a", "a"), ("a", ANY), (ANY, "b"), (ANY, ANY)] {
            assert_eq!(unlike(&with("mac", offer), &with("mac", here)), None);
        }
        assert!(unlike(&with("mac", "a"), &with("mac", "b")).is_some());
        assert!(unlike(&with("mac", "a"), &with("size", ANY)).is_some());
    }

    /// A device that is not there, cannot be opened, or is another is named.
    #[test]
    fn every_difference_is_named() {
        let none = refused(&[rng(1)], &[]);
        let why = "it has a rng in slot 1, and none was given here: start receive with --rng";
        assert_eq!(none, [why]);
        let closed = refused(&[rng(1)], &[here("/dev/none")]);
        assert!(
            closed[0].contains("/dev/none") && closed[0].contains("No such file"),
            "{closed:?}"
        );
        let more = DeviceOffer { features: 5, ..rng(1) };
        assert!(refused(&[more], &[here("/dev/urandom")])[0].contains("features 0x5"));
        let queues = DeviceOffer { queues: vec![8], ..rng(1) };
        assert!(refused(&[queues], &[here("/dev/urandom")])[0].contains("[8] entries"));
        let alike = vec![("mac".to_owned(), "52:54:00:00:00:01".to_owned())];
        let alike = DeviceOffer { alike, ..rng(1) };
        assert!(refused(&[alike, rng(2)], &[here("/dev/urandom")]).len() == 2);
        let two = || [here("/dev/urandom"), here("/dev/urandom")];
        for (slots, wrong) in [([3, 3], 3), ([1, 0], 0), ([1, 32], 32)] {
            let why = refused(&slots.map(rng), &two());
            assert_eq!(
                why,
                [format!("its rng is in slot {wrong}, where another is, or none can be")]
            );
        }
    }

    /// A disk of another size or name, or one that is only read, is named in words.
    #[test]
    fn another_disk_is_named() {
        let path = temp_dir().join(format!("sevferry-offer-{}.raw", id()));
        let file = File::create(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        let options = DiskOptions {
            path: path.clone(),
            id: "disk0".to_owned(),
            serial: String::new(),
            readonly: false,
            direct: false,
            queues: 1,
        };
        let look = |options: &DiskOptions| DeviceHere::look(&DeviceConfig::Disk(options.clone()));
        let offered = [DeviceOffer { slot: 1, ..look(&options).offer.unwrap() }];
        let (id, readonly) = ("data".to_owned(), true);
        for (other, why) in [
            (DiskOptions { id, ..options.clone() }, "id \"disk0\", and here \"data\""),
            (DiskOptions { readonly, ..options.clone() }, "readonly \"off\", and here \"on\""),
            (DiskOptions { queues: 2, ..options.clone() }, "queues of [256] entries"),
        ] {
            let refused = refused(&offered, &[look(&other)]);
            assert!(refused[0].contains(why), "{refused:?}");
        }
        let here = [look(&options)];
        assert_eq!(matching(&offered, &here).unwrap()[0].0, 1);
        file.set_len(2 << 20).unwrap();
        let refused = refused(&offered, &[look(&options)]);
        remove_file(path).unwrap();
        assert!(refused[0].contains("size in sectors \"2048\", and here \"4096\""), "{refused:?}");
    }
}
