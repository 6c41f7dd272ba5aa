//! The vendor's certificates above a chip: the ARK, which signs the ASK, which signs each chip's CEK.
//!
//! AMD publishes one pair per generation of chips; the software platform has a pair of its own
//! ([`Root::Software`]), so that no chain of one kind verifies as the other.

use sha2::{Digest, Sha256};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::certificate::{Certificate, Usage};
use super::rsa::{self, Hash, WrongSignature};

/// Bytes before the public exponent.
const HEADER_LEN: usize = 0x40;

/// SHA-256, in hexadecimal, of the signed part of each ARK that AMD has published, at
/// `https://developer.amd.com/wp-content/resources/ask_ark_<generation>.cert`.
const AMD_ROOTS: [(&str, &str); 5] = [
    ("Naples", "8efddcaaf84990cf6354d93637be270220cf15797332b3d918c3b8cc77349f31"),
    ("Rome", "ae2456af6c6ad234badd6c75e58915be61568286766083853bf668e6e23977c3"),
    ("Milan", "263b13fd3170c6ffbb0b4f01f09848dc08a8dc1e9637d47e42cbe6c135e4af12"),
    ("Genoa", "973df6265e1b40cf8883305c1f6a6cd254979446acb40bd396946b2f19e751e9"),
    ("Turin", "89327696f8082b20f5a588565adc26d478e1c6d56153c1de656e63396b8f8e20"),
];

/// ASK and ARK of each generation, as AMD publishes them (Naples' ARK with its signature).
const PUBLISHED: [(&str, &[u8]); 5] = [
    ("Naples", include_bytes!("amd/naples-ask-ark.cert")),
    ("Rome", include_bytes!("amd/rome-ask-ark.cert")),
    ("Milan", include_bytes!("amd/milan-ask-ark.cert")),
    ("Genoa", include_bytes!("amd/genoa-ask-ark.cert")),
    ("Turin", include_bytes!("amd/turin-ask-ark.cert")),
];

/// SHA-256, in hexadecimal, of the signed part of the software platform's ARK.
const SOFTWARE_ROOT: &str = "14c4f5e5760b9a1db7b38d0e32d74f917080b67af1dd265d61655e79897d2d84";

/// Where a chain ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// A key of AMD's, for this generation of chips.
    Amd(&'static str),
    /// The software platform's key. Its private half is published: it vouches for nothing.
    Software,
}

impl Root {
    /// Whether a guest may move from a platform under this root to one under `other`.
    #[must_use]
    pub fn is_kin_of(self, other: Self) -> bool {
        matches!((self, other), (Self::Amd(_), Self::Amd(_)) | (Self::Software, Self::Software))
    }
}

/// The fields before the numbers.
#[repr(C)]
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct KeyHeader {
    version: u32,
    key_id: [u8; 16],
    certifying_id: [u8; 16],
    usage: Usage,
    reserved: [u8; 16],
    exponent_bits: u32,
    modulus_bits: u32,
}

const _: () = assert!(size_of::<KeyHeader>() == HEADER_LEN);

/// An ARK or ASK certificate whose form is known; its signature is checked when it is used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VendorCertificate {
    /// A header, then exponent, modulus and signature, little-endian and equally long.
    bytes: Vec<u8>,
    /// Bytes of each number.
    len: usize,
    usage: Usage,
    key_id: [u8; 16],
    certifying_id: [u8; 16],
}

impl VendorCertificate {
    /// The certificate in `bytes`.
    ///
    /// # Errors
    /// [`BadVendorCertificate`] unless version, usage, key size and length fit together.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadVendorCertificate> {
        let wrong_length = BadVendorCertificate::Length { len: bytes.len() };
        let (header, _numbers) =
            KeyHeader::read_from_prefix(bytes).map_err(|_size| wrong_length.clone())?;
        let KeyHeader { version, key_id, certifying_id, usage, .. } = header;
        let bits = header.modulus_bits;
        if version != 1 {
            return Err(BadVendorCertificate::Version { version });
        }
        if usage != Usage::ARK && usage != Usage::ASK {
            return Err(BadVendorCertificate::Usage { usage: usage.0 });
        }
        let len = match bits {
            2048 | 4096 if header.exponent_bits == bits => bits as usize / 8,
            _ => return Err(BadVendorCertificate::Bits { bits }),
        };
        if bytes.len() != HEADER_LEN + 3 * len {
            return Err(wrong_length);
        }
        Ok(Self { bytes: bytes.to_vec(), len, usage, key_id, certifying_id })
    }

    /// The certificate as it travels.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the signature covers, and the signature.
    fn parts(&self) -> (&[u8], &[u8]) {
        self.bytes.split_at(HEADER_LEN + 2 * self.len)
    }

    /// Modulus and public exponent.
    pub(crate) fn key(&self) -> (&[u8], &[u8]) {
        let numbers = self.parts().0.split_at(HEADER_LEN).1;
        let (exponent, modulus) = numbers.split_at(self.len);
        (modulus, exponent)
    }

    fn hash(&self) -> Hash {
        if self.len == 256 { Hash::Sha256 } else { Hash::Sha384 }
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), WrongSignature> {
        rsa::verify(self.hash(), self.key(), message, signature)
    }

    /// Bytes of a signature by this key, and the number of its algorithm in an SEV certificate.
    pub(crate) fn signature_form(&self) -> (usize, u32) {
        let algorithm = match self.hash() {
            Hash::Sha256 => RSA_SHA256,
            Hash::Sha384 => RSA_SHA384,
        };
        (self.len, algorithm)
    }
}

/// `SIG_ALGO`: RSA-PSS with SHA-256, by a key of 2048 bits.
const RSA_SHA256: u32 = 1;

/// `SIG_ALGO`: RSA-PSS with SHA-384, by a key of 4096 bits.
const RSA_SHA384: u32 = 0x101;

/// ASK and ARK, in the order in which AMD publishes them and `SEND_START` takes them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VendorChain {
    /// Signs CEKs.
    pub ask: VendorCertificate,
    /// Signs the ASK.
    pub ark: VendorCertificate,
}

impl VendorChain {
    /// The two certificates in `bytes`, both with keys of the same size.
    ///
    /// # Errors
    /// [`BadVendorCertificate`].
    pub fn decode(bytes: &[u8]) -> Result<Self, BadVendorCertificate> {
        let (ask, ark) = bytes.split_at(bytes.len() / 2);
        let (ask, ark) = (VendorCertificate::decode(ask)?, VendorCertificate::decode(ark)?);
        match (ask.usage, ark.usage) {
            (Usage::ASK, Usage::ARK) => Ok(Self { ask, ark }),
            (Usage::ASK, other) | (other, _) => Err(BadVendorCertificate::Usage { usage: other.0 }),
        }
    }

    /// ASK then ARK.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.ask.as_bytes(), self.ark.as_bytes()].concat()
    }

    /// Where this chain ends, if that is a root known here.
    #[must_use]
    pub fn root(&self) -> Option<Root> {
        let digest = Sha256::digest(self.ark.parts().0);
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        if digest == SOFTWARE_ROOT {
            return Some(Root::Software);
        }
        let known = AMD_ROOTS.iter().find(|(_, root)| *root == digest)?;
        Some(Root::Amd(known.0))
    }

    /// The published chain whose ASK signed `cek`, if it is of a generation that is known here.
    #[must_use]
    pub fn published_for(cek: &Certificate) -> Option<Self> {
        let mut chains = PUBLISHED.iter().filter_map(|(_, bytes)| Self::decode(bytes).ok());
        chains.find(|chain| chain.verify_cek(cek).is_ok())
    }

    /// Checks that the ARK signed the ASK. That the ARK is genuine, [`VendorChain::root`] says.
    ///
    /// # Errors
    /// [`WrongSignature`].
    pub fn verify_ask(&self) -> Result<(), WrongSignature> {
        if self.ask.certifying_id != self.ark.key_id {
            return Err(WrongSignature);
        }
        let (signed, signature) = self.ask.parts();
        self.ark.verify(signed, signature)
    }

    /// Checks that the ASK signed `cek`, in either slot.
    ///
    /// # Errors
    /// [`WrongSignature`], also if it carries no such signature.
    pub fn verify_cek(&self, cek: &Certificate) -> Result<(), WrongSignature> {
        let (len, algorithm) = self.ask.signature_form();
        let signature = cek.signature_by(Usage::ASK, algorithm).ok_or(WrongSignature)?;
        self.ask.verify(cek.signed_bytes(), signature.get(..len).ok_or(WrongSignature)?)
    }
}

/// Why an ARK or ASK certificate cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadVendorCertificate {
    /// The length does not go with the key's size.
    #[error("an ARK or ASK certificate has 832 or 1600 bytes, not {len}")]
    Length {
        /// Bytes given.
        len: usize,
    },
    /// Not version 1.
    #[error("ARK or ASK certificate version {version} is unknown; only 1 is")]
    Version {
        /// The version found.
        version: u32,
    },
    /// Not the key wanted.
    #[error("the ASK must come first, then the ARK; key usage {usage:#x} is out of place")]
    Usage {
        /// `KEY_USAGE` found.
        usage: u32,
    },
    /// A size that AMD has not used.
    #[error("an ARK or ASK key has 2048 or 4096 bits, not {bits}")]
    Bits {
        /// Bits of the modulus.
        bits: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// AMD's own chains verify, end in a root known by name, and are not each other's.
    #[test]
    fn verifies_what_amd_publishes() {
        let chains = PUBLISHED.map(|(name, bytes)| (name, VendorChain::decode(bytes).unwrap()));
        for (name, chain) in &chains {
            chain.verify_ask().unwrap();
            assert_eq!(chain.root(), Some(Root::Amd(name)));
            for (_, other) in chains.iter().filter(|(other, _)| other != name) {
                let mixed = VendorChain { ask: chain.ask.clone(), ark: other.ark.clone() };
                assert_eq!(mixed.verify_ask(), Err(WrongSignature));
            }
        }
    }

    /// The endorsement keys of two real chips verify under their own generation's key only.
    #[test]
    fn verifies_real_chips() {
        let chips = [
            ("Naples", Certificate::decode(include_bytes!("../../tests/data/naples-cek.cert"))),
            ("Rome", Certificate::decode(include_bytes!("../../tests/data/rome-cek.cert"))),
        ];
        for (chip, cek) in chips {
            let cek = cek.unwrap();
            for (name, bytes) in PUBLISHED {
                let verified = VendorChain::decode(bytes).unwrap().verify_cek(&cek);
                assert_eq!(verified.is_ok(), name == chip, "{chip} under {name}");
            }
            let found = VendorChain::published_for(&cek).and_then(|chain| chain.root());
            assert_eq!(found, Some(Root::Amd(chip)));
        }
    }

    /// A bit changed in what is signed or in the signature is noticed; a changed ARK is no known root.
    #[test]
    fn a_changed_bit_breaks_a_chain() {
        let good = PUBLISHED[0].1;
        for at in (0..good.len()).step_by(13) {
            let mut changed = good.to_vec();
            changed[at] ^= 1;
            let Ok(chain) = VendorChain::decode(&changed) else { continue };
            // The ARK's own signature counts for nothing: the whole key is known.
            let in_ark_signature = at >= 832 + 576;
            let whole = chain.verify_ask().is_ok() && chain.root().is_some();
            assert_eq!(whole, in_ark_signature, "byte {at}");
        }
    }

    /// Lengths, sizes, versions and orders that no vendor certificate has.
    #[test]
    fn refuses_what_is_no_vendor_chain() {
        let good = PUBLISHED[0].1;
        for len in [0, 1, 63, 64, 128, 1662, 1663] {
            assert!(VendorChain::decode(&good[..len]).is_err(), "{len}");
        }
        let swapped = [&good[832..], &good[..832]].concat();
        assert!(matches!(
            VendorChain::decode(&swapped),
            Err(BadVendorCertificate::Usage { usage: 0 })
        ));
        for (at, value) in [(0, 2), (0x24, 0x14), (0x38, 1), (0x3d, 0x10)] {
            let mut changed = good.to_vec();
            changed[at] = value;
            assert!(VendorChain::decode(&changed).is_err(), "byte {at:#x}");
        }
    }
}
