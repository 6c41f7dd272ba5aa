//! The serial form of what a device is: whose it is, in which version, and its fields.

use std::io::Error as IoError;

use rmp_serde::decode::Error as DecodeError;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::DeviceKind;

/// The state of a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceState {
    kind: u16,
    version: u32,
    /// `MessagePack` with names, so that fields can be added.
    fields: Vec<u8>,
}

impl DeviceState {
    /// What a device of this kind is, in a version of its fields.
    #[must_use]
    pub fn new(kind: &DeviceKind, version: u32, fields: &impl Serialize) -> Self {
        // Only a state that cannot be written at all fails, and no fields are not read as any.
        let fields = rmp_serde::to_vec_named(fields).unwrap_or_default();
        Self { kind: kind.id, version, fields }
    }

    /// Its fields. They are not trusted: where they name guest memory, it may be anywhere.
    ///
    /// # Errors
    /// [`BadState`] if it is another kind's, or in another version.
    pub fn read<T: DeserializeOwned>(
        &self,
        kind: &DeviceKind,
        version: u32,
    ) -> Result<T, BadState> {
        let Self { kind: came, version: written, fields } = self;
        if *came != kind.id {
            return Err(BadState::DeviceKind { came: *came });
        }
        if *written != version {
            return Err(BadState::Version { came: *written, here: version });
        }
        Ok(rmp_serde::from_slice(fields)?)
    }
}

/// A state that is none of a device.
#[derive(Debug, Error)]
pub enum BadState {
    /// Another kind of device.
    #[error("the state is that of a virtio device of kind {came}")]
    DeviceKind {
        /// virtio's number of it.
        came: u16,
    },
    /// Another version of it.
    #[error("the state is in version {came}; this program reads version {here}")]
    Version {
        /// In the state.
        came: u32,
        /// Of this program.
        here: u32,
    },
    /// Fields that are none.
    #[error("reading the state: {0}")]
    Malformed(#[from] DecodeError),
    /// Fields that make no sense in this device.
    #[error("the state is that of {0}")]
    Values(&'static str),
    /// What it needs of the host.
    #[error("taking on the state: {0}")]
    Host(#[source] IoError),
    /// Requests in flight that are nowhere.
    #[error("a request in the state names memory that the guest does not have")]
    NotRam,
    /// It belongs to something else than is here.
    #[error("the state is that of {0}")]
    Unlike(String),
}
