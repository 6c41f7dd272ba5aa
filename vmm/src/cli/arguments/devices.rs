//! The options that put devices on the guest's PCI bus, for `run` and `receive` alike.

use std::convert::Infallible;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::key_values::{BadKeyValues, KeyValues};
use crate::devices::virtio::{DISK_QUEUES_MAX, DiskOptions, Mac, PAIRS_MAX, RateLimit, TapSource};
use crate::machine::config::DeviceConfig;

/// What is on the bus.
#[derive(Debug, Args)]
pub(super) struct DeviceArguments {
    /// Give the guest random numbers of a character device
    #[arg(long, value_name = "src=PATH", value_parser = rng)]
    rng: Option<DeviceConfig>,
    /// Give the guest a raw file or a block device as a disk; may be given again. More keys:
    /// `readonly=on|off`, `direct=on|off` (past the page cache), `id=NAME`, `serial=TEXT`,
    /// `num_queues=N`
    #[arg(long, value_name = "path=PATH,...", value_parser = disk)]
    disk: Vec<DiskOptions>,
    /// Give the guest a network card with its wire in a tap of the host; once for each card
    #[arg(long, value_name = NET, value_parser = net, long_help = NET_HELP)]
    net: Vec<DeviceConfig>,
}

const NET: &str = "tap=NAME[,...]";

const NET_HELP: &str = "\
Give the guest a network card with its wire in a tap of the host; once for each card

  tap=NAME    the tap, which is there already: `ip tuntap add NAME mode tap`
              (with queues= also `multi_queue`)
  fd=N[:N...] in place of tap: descriptors of a tap that this process was started
              with, one for each queue pair, opened with IFF_TAP, IFF_NO_PI and
              IFF_VNET_HDR
  mac=MAC     the card's address; without it one is made up when the guest starts,
              which it keeps where it moves to
  queues=N    queue pairs, 1 to 16 [default: 1]
  bw_size=BYTES,bw_refill_time=MS
              so many bytes in so many milliseconds, for each direction";

impl DeviceArguments {
    /// In the order of their slots.
    pub(super) fn devices(self) -> Vec<DeviceConfig> {
        // Names that are the same at both ends, whatever the paths are.
        let disks = (0..).zip(self.disk).map(|(index, disk)| {
            let id = if disk.id.is_empty() { format!("disk{index}") } else { disk.id };
            DeviceConfig::Disk(DiskOptions { id, ..disk })
        });
        self.rng.into_iter().chain(disks).chain(self.net).collect()
    }

    /// The same for a guest that starts here: what it keeps for as long as it lives is settled.
    pub(super) fn of_new_guest(self) -> Vec<DeviceConfig> {
        let mut devices = self.devices();
        for device in &mut devices {
            let mut bytes = [0; 6];
            if let DeviceConfig::Net { mac: mac @ None, .. } = device
                && getrandom::fill(&mut bytes).is_ok()
            {
                *mac = Some(Mac::local(bytes));
            }
        }
        devices
    }
}

/// `--disk path=PATH,...`
fn disk(text: &str) -> Result<DiskOptions, BadKeyValues> {
    let keys = ["path", "readonly", "direct", "id", "serial", "num_queues"];
    let list = KeyValues::parse(text, &keys)?;
    Ok(DiskOptions {
        path: list.required("path", |path| Ok::<_, Infallible>(PathBuf::from(path)))?,
        readonly: list.parsed("readonly", on_or_off)?.unwrap_or(false),
        direct: list.parsed("direct", on_or_off)?.unwrap_or(false),
        id: list.parsed("id", |id| name(id, 64))?.unwrap_or_default(),
        serial: list.parsed("serial", |serial| name(serial, 20))?.unwrap_or_default(),
        queues: list.parsed("num_queues", queues)?.unwrap_or(1),
    })
}

fn on_or_off(text: &str) -> Result<bool, &'static str> {
    match text {
        "on" | "true" => Ok(true),
        "off" | "false" => Ok(false),
        _ => Err("write on or off"),
    }
}

fn queues(text: &str) -> Result<u16, String> {
    let count = text.parse().ok().filter(|count| (1..=DISK_QUEUES_MAX).contains(count));
    count.ok_or_else(|| format!("a disk has 1 to {DISK_QUEUES_MAX} queues"))
}

/// Something that people and the guest can read.
fn name(text: &str, most: usize) -> Result<String, String> {
    let is_one = text.len() <= most && text.bytes().all(|byte| byte.is_ascii_graphic());
    let wanted = || format!("write 1 to {most} characters of ASCII, without spaces");
    is_one.then(|| text.to_owned()).ok_or_else(wanted)
}

/// `--rng src=PATH`
fn rng(text: &str) -> Result<DeviceConfig, BadKeyValues> {
    let list = KeyValues::parse(text, &["src"])?;
    let source = list.required("src", |path| Ok::<_, Infallible>(PathBuf::from(path)))?;
    Ok(DeviceConfig::Rng { source })
}

/// `--net tap=NAME|fd=N[:N...][,mac=MAC][,queues=N]`
fn net(text: &str) -> Result<DeviceConfig, BadKeyValues> {
    const KEYS: [&str; 6] = ["tap", "fd", "mac", "queues", "bw_size", "bw_refill_time"];
    let list = KeyValues::parse(text, &KEYS)?;
    let name = list.parsed("tap", |name| Ok::<_, Infallible>(TapSource::Name(name.to_owned())))?;
    let tap = match (name, list.parsed("fd", descriptors)?) {
        (Some(name), None) => name,
        (None, Some(descriptors)) => descriptors,
        (None, None) => return Err(BadKeyValues::Missing { key: "tap" }),
        (Some(_), Some(_)) => {
            let (key, value) = ("fd", list.value("fd").unwrap_or_default().to_owned());
            let problem = "it stands in place of tap=NAME".to_owned();
            return Err(BadKeyValues::Value { key, value, problem });
        }
    };
    let queues = list.parsed("queues", |text| match text.parse() {
        Ok(queues @ 1..=PAIRS_MAX) => Ok(queues),
        _ => Err(format!("a card has 1 to {PAIRS_MAX} queue pairs")),
    })?;
    let mac = list.parsed("mac", Mac::from_str)?;
    let (queues, limit) = (queues.unwrap_or(1), limit(&list)?);
    Ok(DeviceConfig::Net { tap, mac, queues, limit })
}

/// `bw_size=BYTES,bw_refill_time=MS`
fn limit(list: &KeyValues<'_>) -> Result<Option<RateLimit>, BadKeyValues> {
    let number = |text: &str| match text.parse::<NonZeroU32>() {
        Ok(number) => Ok(number.get()),
        Err(cause) => Err(format!("{cause}; write a number from 1 to {}", u32::MAX)),
    };
    let (size, time) = ("bw_size", "bw_refill_time");
    let why = "a limit is a number of bytes in a number of milliseconds";
    match (list.parsed(size, number)?, list.parsed(time, number)?) {
        (None, None) => Ok(None),
        (Some(bytes), Some(ms)) => {
            Ok(Some(RateLimit { bytes, refill: Duration::from_millis(ms.into()) }))
        }
        (Some(_), None) => Err(BadKeyValues::Without { key: size, other: time, why }),
        (None, Some(_)) => Err(BadKeyValues::Without { key: time, other: size, why }),
    }
}

/// `N[:N...]`; the first three are this process's own.
fn descriptors(text: &str) -> Result<TapSource, &'static str> {
    let number = |part: &str| part.parse().ok().filter(|number| *number > 2);
    let numbers: Option<_> = text.split(':').map(number).collect();
    numbers.map(TapSource::Descriptors).ok_or("descriptors are numbers from 3 on, as in 3:4")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tap by name or by descriptors, and nothing that is not one.
    #[test]
    fn a_card_has_one_tap() {
        let tap = TapSource::Name("tap0".to_owned());
        let plain = DeviceConfig::Net { tap: tap.clone(), mac: None, queues: 1, limit: None };
        assert_eq!(net("tap=tap0"), Ok(plain));
        let mac = "52:54:00:00:00:01".parse().unwrap();
        let limit = Some(RateLimit { bytes: 9, refill: Duration::from_millis(7) });
        let full = DeviceConfig::Net { tap, mac: Some(mac), queues: 4, limit };
        let text = "tap=tap0,mac=52:54:00:00:00:01,queues=4,bw_size=9,bw_refill_time=7";
        assert_eq!(net(text), Ok(full));
        let tap = TapSource::Descriptors(vec![3, 4]);
        let passed = DeviceConfig::Net { tap, mac: None, queues: 2, limit: None };
        assert_eq!(net("fd=3:4,queues=2"), Ok(passed));
        for wrong in [
            "",
            "tap0",
            "mac=52:54:00:00:00:01",
            "tap=a,fd=3",
            "fd=2",
            "fd=3:",
            "tap=a,queues=0",
            "tap=a,queues=17",
            "tap=a,bw_size=1",
            "tap=a,bw_size=0,bw_refill_time=1",
            "tap=a,mac=ff:ff:ff:ff:ff:ff",
        ] {
            assert!(net(wrong).is_err(), "{wrong}");
        }
    }

    /// A guest that starts here has an address for each card; one that is awaited brings its own.
    #[test]
    fn a_new_guest_has_addresses() {
        let arguments =
            || DeviceArguments { rng: None, disk: Vec::new(), net: vec![net("tap=tap0").unwrap()] };
        let settled = arguments().of_new_guest();
        assert!(matches!(settled[..], [DeviceConfig::Net { mac: Some(_), .. }]), "{settled:?}");
        assert!(matches!(arguments().devices()[..], [DeviceConfig::Net { mac: None, .. }]));
    }

    /// The source must be named, and nothing else can be.
    #[test]
    fn random_numbers_come_from_a_path() {
        let source = PathBuf::from("/dev/urandom");
        assert_eq!(rng("src=/dev/urandom"), Ok(DeviceConfig::Rng { source }));
        for wrong in ["/dev/urandom", "src=", "src=/dev/urandom,max=5", ""] {
            assert!(rng(wrong).is_err(), "{wrong}");
        }
    }

    /// A disk needs its path; the rest has defaults, and what is not one of its values is refused.
    #[test]
    fn a_disk_is_a_path_and_how_to_use_it() {
        let path = PathBuf::from("/disks/a.raw");
        let plain = DiskOptions {
            path,
            id: String::new(),
            serial: String::new(),
            readonly: false,
            direct: false,
            queues: 1,
        };
        assert_eq!(disk("path=/disks/a.raw"), Ok(plain.clone()));
        let all = "serial=S1,path=/disks/a.raw,readonly=on,id=root,direct=on,num_queues=4";
        let (id, serial) = ("root".to_owned(), "S1".to_owned());
        let wanted = DiskOptions { id, serial, readonly: true, direct: true, queues: 4, ..plain };
        assert_eq!(disk(all), Ok(wanted));
        for wrong in [
            "/disks/a.raw",
            "readonly=on",
            "path=a,readonly=maybe",
            "path=a,serial=longer-than-20-characters",
            "path=a,num_queues=0",
            "path=a,num_queues=17",
            "path=a,format=qcow2",
        ] {
            assert!(disk(wrong).is_err(), "{wrong}");
        }
    }

    /// A disk without a name is called by its place.
    #[test]
    fn disks_have_names() {
        let disks = ["path=a", "path=b,id=data", "path=c"].map(|text| disk(text).unwrap());
        let devices = DeviceArguments { rng: None, disk: disks.into(), net: Vec::new() }.devices();
        let names = devices.iter().map(|device| match device {
            DeviceConfig::Disk(options) => options.id.as_str(),
            DeviceConfig::Rng { .. } | DeviceConfig::Net { .. } => "rng",
        });
        assert_eq!(names.collect::<Vec<_>>(), ["disk0", "data", "disk2"]);
    }
}
