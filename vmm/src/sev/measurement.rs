//! The launch digest and the measurement: what proves to a guest owner what was loaded.

use std::fmt::{Debug, Formatter, Result as FmtResult};

use hmac::Mac;
use p384::SecretKey;
use sha2::{Digest, Sha256};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::certificate::{self, BadCertificate, Certificate, ECDSA_SHA256, Usage};
use super::session::{Key, verify};
use super::{Policy, SevStatus};

/// Bytes that `LAUNCH_MEASURE` writes: the MAC, then the firmware's nonce.
pub const MEASUREMENT_LEN: usize = 48;

/// First byte of the MAC's input (`LAUNCH_MEASURE`).
const CONTEXT: u8 = 0x04;

/// The version of the firmware API, which the measurement binds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FirmwareVersion {
    /// API major version.
    pub major: u8,
    /// API minor version.
    pub minor: u8,
    /// Build of that API version.
    pub build: u8,
}

/// SHA-256 over the plaintext of every `LAUNCH_UPDATE_DATA` in call order; addresses do not count.
#[derive(Clone, Default)]
pub struct LaunchDigest(Sha256);

impl LaunchDigest {
    /// Appends launch data.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of what was appended so far.
    #[must_use]
    pub fn finish(&self) -> [u8; 32] {
        self.0.clone().finalize().into()
    }
}

impl Debug for LaunchDigest {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str("LaunchDigest(..)")
    }
}

/// What a measurement states about a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// The firmware that measured.
    pub version: FirmwareVersion,
    /// The guest's policy.
    pub policy: Policy,
    /// [`LaunchDigest::finish`].
    pub digest: [u8; 32],
}

impl Claim {
    /// The MAC over this claim, as the firmware makes it (API 0.17 and later).
    #[must_use]
    pub fn measure(&self, tik: &Key, nonce: [u8; 16]) -> Measurement {
        Measurement { mac: self.mac(tik, nonce).finalize().into_bytes().into(), nonce }
    }

    /// Checks in constant time that the holder of `tik` measured exactly this.
    ///
    /// # Errors
    /// [`WrongMeasurement`] if version, policy, digest or key differ.
    pub fn verify(&self, tik: &Key, measurement: &Measurement) -> Result<(), WrongMeasurement> {
        verify(self.mac(tik, measurement.nonce), &measurement.mac)
            .map_err(|_status: SevStatus| WrongMeasurement)
    }

    fn mac(&self, tik: &Key, nonce: [u8; 16]) -> hmac::Hmac<Sha256> {
        let FirmwareVersion { major, minor, build } = self.version;
        tik.hmac()
            .chain_update([CONTEXT, major, minor, build])
            .chain_update(self.policy.bits().to_le_bytes())
            .chain_update(self.digest)
            .chain_update(nonce)
    }
}

/// The output of `LAUNCH_MEASURE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurement {
    /// HMAC-SHA-256 under the TIK.
    pub mac: [u8; 32],
    /// The firmware's nonce, new for each launch.
    pub nonce: [u8; 16],
}

impl Measurement {
    /// The 48 bytes that owners' tools take, usually in base64.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; MEASUREMENT_LEN] {
        let mut bytes = [0; MEASUREMENT_LEN];
        let (mac, nonce) = bytes.split_at_mut(32);
        mac.copy_from_slice(&self.mac);
        nonce.copy_from_slice(&self.nonce);
        bytes
    }

    /// The measurement in 48 bytes.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; MEASUREMENT_LEN]) -> Self {
        let (mut mac, mut nonce) = ([0; 32], [0; 16]);
        mac.copy_from_slice(bytes.split_at(32).0);
        nonce.copy_from_slice(bytes.split_at(32).1);
        Self { mac, nonce }
    }
}

/// What `ATTESTATION` states about a guest; the platform's PEK signs it. Numbers are little-endian.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct ReportBody {
    /// The caller's nonce.
    pub nonce: [u8; 16],
    /// [`LaunchDigest::finish`].
    pub digest: [u8; 32],
    /// The guest's policy.
    pub policy: [u8; 4],
}

/// An attestation report.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct AttestationReport {
    /// What is signed.
    pub body: ReportBody,
    usage: [u8; 4],
    algorithm: [u8; 4],
    reserved: [u8; 4],
    signature: [u8; 144],
}

/// Bytes of an [`AttestationReport`].
pub const REPORT_LEN: usize = 208;

const _: () = assert!(size_of::<AttestationReport>() == REPORT_LEN);

impl AttestationReport {
    /// Signs `body` with a platform's PEK.
    ///
    /// # Errors
    /// [`BadCertificate::Signing`].
    pub(crate) fn sign(body: ReportBody, pek: &SecretKey) -> Result<Self, BadCertificate> {
        Ok(Self {
            body,
            usage: Usage::PEK.0.to_le_bytes(),
            algorithm: ECDSA_SHA256.to_le_bytes(),
            reserved: [0; 4],
            signature: certificate::sign(pek, body.as_bytes())?,
        })
    }

    /// Checks that the holder of `pek` signed this report.
    ///
    /// # Errors
    /// [`BadCertificate`].
    pub fn verify(&self, pek: &Certificate) -> Result<(), BadCertificate> {
        pek.verify_signature(self.body.as_bytes(), &self.signature)
    }
}

/// A measurement that does not match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "the launch measurement does not match: other files, policy or firmware version were launched, \
     or the measurement is of another session"
)]
pub struct WrongMeasurement;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sev::vectors::from_hex;

    /// The vector that virtee's tools publish: nothing loaded.
    #[test]
    fn measures_as_published() {
        let tik = Key::from_bytes(from_hex("66320db73158a35a255d051758e95ed4"));
        let claim = Claim {
            version: FirmwareVersion { major: 0, minor: 18, build: 15 },
            policy: Policy::new(0).unwrap(),
            digest: LaunchDigest::default().finish(),
        };
        let measurement = claim.measure(&tik, from_hex("4fbe0bedbad6c86ae8f68971d103e554"));
        assert_eq!(
            measurement.mac,
            from_hex("6faab2daae389bcd3405a05d6cafe33c0414f7bedd0bae19ba5f38b7fd1664ea")
        );
        assert_eq!(Measurement::from_bytes(&measurement.to_bytes()), measurement);
    }

    /// A measurement speaks for one version, policy, digest, nonce and key.
    #[test]
    fn a_measurement_binds_every_part() {
        let tik = Key::from_bytes([1; 16]);
        let claim = Claim {
            version: FirmwareVersion { major: 1, minor: 55, build: 1 },
            policy: Policy::default(),
            digest: [3; 32],
        };
        let measurement = claim.measure(&tik, [4; 16]);
        claim.verify(&tik, &measurement).unwrap();
        let version = claim.version;
        for wrong in [
            Claim { version: FirmwareVersion { major: 2, ..version }, ..claim },
            Claim { version: FirmwareVersion { minor: 54, ..version }, ..claim },
            Claim { version: FirmwareVersion { build: 2, ..version }, ..claim },
            Claim { policy: Policy::new(0).unwrap(), ..claim },
            Claim { digest: [2; 32], ..claim },
        ] {
            assert!(wrong.verify(&tik, &measurement).is_err(), "{wrong:?}");
        }
        assert!(claim.verify(&Key::from_bytes([2; 16]), &measurement).is_err());
        let other = Measurement { nonce: [5; 16], ..measurement };
        assert!(claim.verify(&tik, &other).is_err());
    }

    /// The digest is of the bytes in order, however they are cut.
    #[test]
    fn the_digest_ignores_where_data_is_cut() {
        let mut whole = LaunchDigest::default();
        whole.update(b"kernel and initrd");
        let mut cut = LaunchDigest::default();
        cut.update(b"kernel");
        cut.update(b" and initrd");
        assert_eq!(whole.finish(), cut.finish());
        let mut swapped = LaunchDigest::default();
        swapped.update(b" and initrd");
        swapped.update(b"kernel");
        assert_ne!(whole.finish(), swapped.finish());
    }
}
