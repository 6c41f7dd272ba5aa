//! The options that put devices on the guest's PCI bus, for `run` and `receive` alike.

use std::convert::Infallible;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;

use super::key_values::{BadKeyValues, KeyValues};
use crate::devices::virtio::{Mac, PAIRS_MAX, RateLimit, TapSource};
use crate::machine::config::DeviceConfig;

/// What is on the bus.
#[derive(Debug, Args)]
pub(super) struct DeviceArguments {
    /// Give the guest random numbers of a character device
    #[arg(long, value_name = "src=PATH", value_parser = rng)]
    rng: Option<DeviceConfig>,
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
        self.rng.into_iter().chain(self.net).collect()
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
        let arguments = || DeviceArguments { rng: None, net: vec![net("tap=tap0").unwrap()] };
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
}
