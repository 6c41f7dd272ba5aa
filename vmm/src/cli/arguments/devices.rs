//! The options that put devices on the guest's PCI bus, for `run` and `receive` alike.

use std::convert::Infallible;
use std::path::PathBuf;

use clap::Args;

use super::key_values::{BadKeyValues, KeyValues};
use crate::devices::virtio::{DISK_QUEUES_MAX, DiskOptions};
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
}

impl DeviceArguments {
    /// In the order of their slots.
    pub(super) fn devices(self) -> Vec<DeviceConfig> {
        // Names that are the same at both ends, whatever the paths are.
        let disks = (0..).zip(self.disk).map(|(index, disk)| {
            let id = if disk.id.is_empty() { format!("disk{index}") } else { disk.id };
            DeviceConfig::Disk(DiskOptions { id, ..disk })
        });
        self.rng.into_iter().chain(disks).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

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
        let devices = DeviceArguments { rng: None, disk: disks.into() }.devices();
        let names = devices.iter().map(|device| match device {
            DeviceConfig::Disk(options) => options.id.as_str(),
            DeviceConfig::Rng { .. } => "rng",
        });
        assert_eq!(names.collect::<Vec<_>>(), ["disk0", "data", "disk2"]);
    }
}
