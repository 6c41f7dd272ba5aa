//! A guest owner's secret, as it goes to the firmware.

use super::measurement::Measurement;
use super::packet::{PacketHeader, PacketKeys, Purpose};
use super::session::{TransportKeys, random};

/// An owner's secret, encrypted for one measured guest.
#[derive(Debug, Clone)]
pub struct SealedSecret {
    pub(super) header: PacketHeader,
    pub(super) ciphertext: Vec<u8>,
}

impl SealedSecret {
    /// A secret that its owner has encrypted elsewhere.
    #[must_use]
    pub fn new(header: PacketHeader, ciphertext: Vec<u8>) -> Self {
        Self { header, ciphertext }
    }

    /// Encrypts `plaintext`, a multiple of 16 bytes and at most 16 KiB, for the guest that was
    /// measured so. The owner verifies the measurement first.
    ///
    /// # Errors
    /// [`getrandom::Error`] if the system has no randomness.
    pub fn seal(
        keys: &TransportKeys,
        measurement: &Measurement,
        plaintext: &[u8],
    ) -> Result<Self, getrandom::Error> {
        let mut ciphertext = plaintext.to_vec();
        let purpose = Purpose::Secret { measure: &measurement.mac };
        let header = PacketKeys::new(keys).seal(purpose, random()?, &mut ciphertext);
        Ok(Self::new(header, ciphertext))
    }

    /// Bytes of the secret.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.ciphertext.len() as u64
    }

    /// The header and the ciphertext.
    #[must_use]
    pub fn into_parts(self) -> (PacketHeader, Vec<u8>) {
        (self.header, self.ciphertext)
    }
}
