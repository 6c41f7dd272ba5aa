//! SEV certificates: 2,084 bytes holding one public key and up to two signatures.
//!
//! A platform's chain is PDH <- PEK <- (OCA and CEK). On AMD hardware the CEK is signed by AMD's ASK
//! and that by AMD's ARK; the copy of the CEK that the firmware exports has no signature.
//! Numbers in a certificate are little-endian, also those inside keys and signatures.

use p384::PublicKey;
use p384::SecretKey;
use p384::ecdsa::signature::hazmat::{PrehashSigner, PrehashVerifier};
use p384::ecdsa::{Error as SignatureError, Signature, SigningKey, VerifyingKey};
use p384::elliptic_curve::Error as CurveError;
use p384::elliptic_curve::sec1::ToSec1Point;
use sha2::{Digest, Sha256};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Bytes of a certificate.
pub const CERTIFICATE_LEN: usize = 2084;

/// The curve number of NIST P-384.
const CURVE_P384: u32 = 2;

/// Bytes of a P-384 coordinate or scalar.
const SCALAR_LEN: usize = 48;

/// Bytes of the field that holds one.
const FIELD_LEN: usize = 72;

/// Bytes of an ECDSA signature: R and S.
pub(crate) const SIGNATURE_LEN: usize = 2 * FIELD_LEN;

/// What a key is for: `PUBKEY_USAGE`, or `SIG_USAGE` of what it signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Usage(pub u32);

impl Usage {
    /// The vendor's root key.
    pub const ARK: Self = Self(0);
    /// The vendor's key that signs chips' keys.
    pub const ASK: Self = Self(0x13);
    /// An empty signature slot.
    pub const NONE: Self = Self(0x1000);
    /// Owner's certificate authority.
    pub const OCA: Self = Self(0x1001);
    /// Platform endorsement key: signs the PDH and attestation reports.
    pub const PEK: Self = Self(0x1002);
    /// Platform (or guest owner's) Diffie-Hellman key.
    pub const PDH: Self = Self(0x1003);
    /// Chip endorsement key.
    pub const CEK: Self = Self(0x1004);

    /// The name that AMD gives it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ARK => "ARK",
            Self::ASK => "ASK",
            Self::NONE => "no key",
            Self::OCA => "OCA",
            Self::PEK => "PEK",
            Self::PDH => "PDH",
            Self::CEK => "CEK",
            _ => "unknown key",
        }
    }
}

/// `PUBKEY_ALGO` and `SIG_ALGO`: ECDSA with SHA-256.
pub const ECDSA_SHA256: u32 = 2;

/// `PUBKEY_ALGO`: ECDH with SHA-256.
pub const ECDH_SHA256: u32 = 3;

/// What a certificate's key is for, and how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PublicKeyUse {
    /// The key's usage.
    pub usage: Usage,
    /// [`ECDSA_SHA256`] or [`ECDH_SHA256`].
    pub algorithm: u32,
}

impl PublicKeyUse {
    /// A PDH, or a guest owner's key in its place.
    pub const DIFFIE_HELLMAN: Self = Self { usage: Usage::PDH, algorithm: ECDH_SHA256 };

    /// A key that signs.
    #[must_use]
    pub const fn signing(usage: Usage) -> Self {
        Self { usage, algorithm: ECDSA_SHA256 }
    }
}

/// A signature slot.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
struct Slot {
    usage: Usage,
    algorithm: u32,
    /// An ECDSA signature is R and S in the first two 72-byte fields.
    bytes: [u8; 512],
}

impl Slot {
    const EMPTY: Self = Self { usage: Usage::NONE, algorithm: 0, bytes: [0; 512] };
}

/// What the signatures cover.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
struct Body {
    version: u32,
    api_major: u8,
    api_minor: u8,
    reserved: [u8; 2],
    usage: Usage,
    algorithm: u32,
    /// For an elliptic curve; an RSA key fills this and the rest.
    curve: u32,
    x: [u8; FIELD_LEN],
    y: [u8; FIELD_LEN],
    rest: [u8; 880],
}

/// A certificate whose version is known; its key and signatures are checked when they are used.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Certificate {
    body: Body,
    slots: [Slot; 2],
}

const _: () = assert!(size_of::<Certificate>() == CERTIFICATE_LEN);

impl Certificate {
    /// An unsigned certificate of `key`, as made by firmware of API version `api` (0, 0 for an owner's).
    #[must_use]
    pub fn new(key_use: PublicKeyUse, key: &PublicKey, api: (u8, u8)) -> Self {
        let point = key.to_sec1_point(false);
        // Uncompressed: a tag byte, then X and Y big-endian.
        let (x, y) = point.as_bytes().split_at(1).1.split_at(SCALAR_LEN);
        let body = Body {
            version: 1,
            api_major: api.0,
            api_minor: api.1,
            reserved: [0; 2],
            usage: key_use.usage,
            algorithm: key_use.algorithm,
            curve: CURVE_P384,
            x: to_little_endian(x),
            y: to_little_endian(y),
            rest: [0; 880],
        };
        Self { body, slots: [Slot::EMPTY; 2] }
    }

    /// The certificate in `bytes`.
    ///
    /// # Errors
    /// [`BadCertificate`] unless `bytes` has the right length and version.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadCertificate> {
        let certificate = Self::read_from_bytes(bytes)
            .map_err(|_size| BadCertificate::Length { len: bytes.len() })?;
        match certificate.body.version {
            1 => Ok(certificate),
            version => Err(BadCertificate::Version { version }),
        }
    }

    /// The certificate as it travels.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        IntoBytes::as_bytes(self)
    }

    /// What the key is for.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.body.usage
    }

    /// The API version of the firmware that made it: major, minor.
    #[must_use]
    pub fn api(&self) -> (u8, u8) {
        (self.body.api_major, self.body.api_minor)
    }

    /// The key, checked to be a PDH's.
    ///
    /// # Errors
    /// [`BadCertificate`] for another usage or algorithm, or what is not a point of P-384.
    pub fn diffie_hellman_key(&self) -> Result<PublicKey, BadCertificate> {
        self.key(PublicKeyUse::DIFFIE_HELLMAN)
    }

    /// The key, checked to be one that signs with ECDSA and SHA-256.
    pub(crate) fn signing_key(&self) -> Result<PublicKey, BadCertificate> {
        self.key(PublicKeyUse::signing(self.usage()))
    }

    /// Fills the first empty signature slot with the signature of `signer`, whose key has this `usage`.
    ///
    /// # Errors
    /// [`BadCertificate::Full`] if both slots are in use; [`BadCertificate::Signing`].
    pub fn sign(&mut self, usage: Usage, signer: &SecretKey) -> Result<(), BadCertificate> {
        let signature = sign(signer, self.body.as_bytes())?;
        self.add_signature((usage, ECDSA_SHA256), &signature)
    }

    /// Fills the first empty slot with a signature made elsewhere over [`Certificate::signed_bytes`].
    ///
    /// # Errors
    /// [`BadCertificate::Full`] if both slots are in use.
    pub(crate) fn add_signature(
        &mut self,
        (usage, algorithm): (Usage, u32),
        signature: &[u8],
    ) -> Result<(), BadCertificate> {
        let slot = self
            .slots
            .iter_mut()
            .find(|slot| slot.usage == Usage::NONE)
            .ok_or(BadCertificate::Full)?;
        *slot = Slot { usage, algorithm, bytes: [0; 512] };
        for (to, from) in slot.bytes.iter_mut().zip(signature) {
            *to = *from;
        }
        Ok(())
    }

    /// What the signatures cover.
    pub(crate) fn signed_bytes(&self) -> &[u8] {
        self.body.as_bytes()
    }

    /// The slot in which `usage` has signed with `algorithm`.
    pub(crate) fn signature_by(&self, usage: Usage, algorithm: u32) -> Option<&[u8; 512]> {
        let wanted = |slot: &&Slot| (slot.usage, slot.algorithm) == (usage, algorithm);
        self.slots.iter().find(wanted).map(|slot| &slot.bytes)
    }

    /// Checks that `signer` signed this certificate, in either slot.
    ///
    /// # Errors
    /// [`BadCertificate`] if no slot names the signer's usage, or the signature does not verify.
    pub fn verify(&self, signer: &Self) -> Result<(), BadCertificate> {
        let signature = self
            .signature_by(signer.usage(), ECDSA_SHA256)
            .ok_or(BadCertificate::NotSignedBy { signer: signer.usage().name() })?;
        signer.verify_signature(self.body.as_bytes(), signature.split_at(SIGNATURE_LEN).0)
    }

    /// Checks a signature, R and S little-endian, that this certificate's key made over `signed`.
    ///
    /// # Errors
    /// [`BadCertificate`] if this is not a signing key, or the signature does not verify.
    pub(crate) fn verify_signature(
        &self,
        signed: &[u8],
        signature: &[u8],
    ) -> Result<(), BadCertificate> {
        let key = self.signing_key()?;
        let (r, s) = signature.split_at(FIELD_LEN.min(signature.len()));
        let mut scalars = [0; 2 * SCALAR_LEN];
        let (r_out, s_out) = scalars.split_at_mut(SCALAR_LEN);
        to_big_endian(r, r_out);
        to_big_endian(s, s_out);
        Signature::from_slice(&scalars)
            .and_then(|signature| {
                VerifyingKey::from(key).verify_prehash(&Sha256::digest(signed), &signature)
            })
            .map_err(|cause| BadCertificate::Signature { signer: self.usage().name(), cause })
    }

    /// The P-384 key, checked to be for `wanted`.
    fn key(&self, wanted: PublicKeyUse) -> Result<PublicKey, BadCertificate> {
        let Body { usage, algorithm, curve, x, y, .. } = &self.body;
        if (*usage, *algorithm, *curve) != (wanted.usage, wanted.algorithm, CURVE_P384) {
            return Err(BadCertificate::Key {
                wanted: wanted.usage.name(),
                usage: usage.0,
                algorithm: *algorithm,
                curve: *curve,
            });
        }
        let mut point = [0; 1 + 2 * SCALAR_LEN];
        let (tag, coordinates) = point.split_at_mut(1);
        // Uncompressed.
        tag.fill(4);
        let (x_out, y_out) = coordinates.split_at_mut(SCALAR_LEN);
        to_big_endian(x, x_out);
        to_big_endian(y, y_out);
        PublicKey::from_sec1_bytes(&point).map_err(BadCertificate::Point)
    }
}

/// The certificates that a platform exports besides its PDH.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
pub struct Chain {
    /// Signs the PDH.
    pub pek: Certificate,
    /// The platform owner's certificate. It signs the PEK.
    pub oca: Certificate,
    /// Signs the PEK: the chip.
    pub cek: Certificate,
}

impl Chain {
    /// PEK, OCA and CEK in `bytes`.
    ///
    /// # Errors
    /// [`BadCertificate`] unless the length and all three versions are right.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadCertificate> {
        let chain = Self::read_from_bytes(bytes)
            .map_err(|_size| BadCertificate::Length { len: bytes.len() })?;
        for certificate in [&chain.pek, &chain.oca, &chain.cek] {
            Certificate::decode(certificate.as_bytes())?;
        }
        Ok(chain)
    }

    /// Checks every signature from `pdh` up to the chip and the owner, as far as this chain reaches. Only AMD's
    /// certificates can show whether the chip is AMD's.
    ///
    /// # Errors
    /// [`BadCertificate`], naming the signer that did not sign.
    pub fn verify(&self, pdh: &Certificate) -> Result<(), BadCertificate> {
        pdh.diffie_hellman_key()?;
        pdh.verify(&self.pek)?;
        self.pek.verify(&self.oca)?;
        self.pek.verify(&self.cek)?;
        self.oca.verify(&self.oca)
    }
}

/// Signs `signed` with ECDSA and SHA-256: R and S as certificates and reports hold them.
///
/// # Errors
/// [`BadCertificate::Signing`].
pub(crate) fn sign(
    signer: &SecretKey,
    signed: &[u8],
) -> Result<[u8; SIGNATURE_LEN], BadCertificate> {
    let signature: Signature = SigningKey::from(signer)
        .sign_prehash(&Sha256::digest(signed))
        .map_err(BadCertificate::Signing)?;
    let (r, s) = signature.split_bytes();
    let mut bytes = [0; SIGNATURE_LEN];
    let (r_out, s_out) = bytes.split_at_mut(FIELD_LEN);
    r_out.copy_from_slice(&to_little_endian(&r));
    s_out.copy_from_slice(&to_little_endian(&s));
    Ok(bytes)
}

/// A big-endian number of at most [`FIELD_LEN`] bytes as a certificate holds it.
fn to_little_endian(number: &[u8]) -> [u8; FIELD_LEN] {
    let mut field = [0; FIELD_LEN];
    for (to, from) in field.iter_mut().zip(number.iter().rev()) {
        *to = *from;
    }
    field
}

/// The low bytes of a certificate's number, as many as `number` takes, big-endian.
fn to_big_endian(field: &[u8], number: &mut [u8]) {
    for (to, from) in number.iter_mut().rev().zip(field) {
        *to = *from;
    }
}

/// Why a certificate cannot be used.
#[derive(Debug, Error)]
pub enum BadCertificate {
    /// Not 2,084 bytes.
    #[error("an SEV certificate has {CERTIFICATE_LEN} bytes, not {len}")]
    Length {
        /// Bytes given.
        len: usize,
    },
    /// Not version 1.
    #[error("SEV certificate version {version} is unknown; only 1 is")]
    Version {
        /// The version found.
        version: u32,
    },
    /// The key is not the one wanted.
    #[error(
        "the certificate is not of a {wanted} with a P-384 key (usage {usage:#x}, algorithm \
         {algorithm:#x}, curve {curve})"
    )]
    Key {
        /// Name of the key wanted.
        wanted: &'static str,
        /// `PUBKEY_USAGE` found.
        usage: u32,
        /// `PUBKEY_ALGO` found.
        algorithm: u32,
        /// Curve found.
        curve: u32,
    },
    /// Not a point of the curve.
    #[error("the certificate's key is not a point of P-384")]
    Point(#[source] CurveError),
    /// No slot names the signer.
    #[error("the certificate carries no signature by a {signer}")]
    NotSignedBy {
        /// Name of the signer.
        signer: &'static str,
    },
    /// The signature is wrong.
    #[error("the certificate's signature by the {signer} does not verify")]
    Signature {
        /// Name of the signer.
        signer: &'static str,
        /// Why.
        #[source]
        cause: SignatureError,
    },
    /// Both slots are used.
    #[error("the certificate already carries two signatures")]
    Full,
    /// The vendor's key is not an RSA key.
    #[error("the vendor's key cannot sign the certificate")]
    VendorKey,
    /// The key cannot sign.
    #[error("the certificate could not be signed")]
    Signing(#[source] SignatureError),
}

#[cfg(test)]
mod tests;
