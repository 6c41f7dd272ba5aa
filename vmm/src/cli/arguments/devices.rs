//! The options that put devices on the guest's PCI bus, for `run` and `receive` alike.

use std::convert::Infallible;
use std::path::PathBuf;

use clap::Args;

use super::key_values::{BadKeyValues, KeyValues};
use crate::machine::config::DeviceConfig;

/// What is on the bus.
#[derive(Debug, Args)]
pub(super) struct DeviceArguments {
    /// Give the guest random numbers of a character device
    #[arg(long, value_name = "src=PATH", value_parser = rng)]
    rng: Option<DeviceConfig>,
}

impl DeviceArguments {
    /// In the order of their slots.
    pub(super) fn devices(self) -> Vec<DeviceConfig> {
        self.rng.into_iter().collect()
    }
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
}
