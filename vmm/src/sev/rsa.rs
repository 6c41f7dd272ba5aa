//! RSASSA-PSS (RFC 8017, section 8.1) as SEV's vendor keys use it: MGF1 with the same hash, a salt as
//! long as the hash, numbers little-endian in memory.
//!
//! Only public values pass through here: AMD's keys verify, and the software platform's signing key is
//! published. So nothing need run in constant time.

use crypto_bigint::modular::{BoxedMontyForm, BoxedMontyParams};
use crypto_bigint::{BoxedUint, Odd};
use sha2::{Digest, Sha256, Sha384};
use thiserror::Error;

/// The hash that goes with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hash {
    Sha256,
    Sha384,
}

impl Hash {
    fn len(self) -> usize {
        match self {
            Self::Sha256 => 32,
            Self::Sha384 => 48,
        }
    }

    fn digest(self, parts: &[&[u8]]) -> Vec<u8> {
        fn all<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
            parts.iter().fold(D::new(), |hash, part| hash.chain_update(part)).finalize().to_vec()
        }
        match self {
            Self::Sha256 => all::<Sha256>(parts),
            Self::Sha384 => all::<Sha384>(parts),
        }
    }

    /// XORs MGF1 of `seed` onto `bytes`.
    fn mask(self, seed: &[u8], bytes: &mut [u8]) {
        for (counter, block) in (0_u32..).zip(bytes.chunks_mut(self.len())) {
            let mask = self.digest(&[seed, &counter.to_be_bytes()]);
            for (byte, mask) in block.iter_mut().zip(mask) {
                *byte ^= mask;
            }
        }
    }

    /// The hash that the encoded message ends in.
    fn bound(self, message: &[u8], salt: &[u8]) -> Vec<u8> {
        self.digest(&[&[0; 8], &self.digest(&[message]), salt])
    }
}

/// Checks `signature` over `message` by the key of `modulus` (as many bytes as the signature) and
/// `exponent`.
///
/// # Errors
/// [`WrongSignature`].
pub(crate) fn verify(
    hash: Hash,
    (modulus, exponent): (&[u8], &[u8]),
    message: &[u8],
    signature: &[u8],
) -> Result<(), WrongSignature> {
    let encoded = raise(signature, exponent, modulus).ok_or(WrongSignature)?;
    check_encoding(hash, message, encoded).ok_or(WrongSignature)
}

/// Signs `message` with SHA-256 and the private exponent of `modulus`; `None` if that is no modulus.
pub(crate) fn sign(
    (modulus, exponent): (&[u8], &[u8]),
    message: &[u8],
    salt: &[u8; 32],
) -> Option<Vec<u8>> {
    let mut encoded = encode(Hash::Sha256, message, salt, modulus.len());
    encoded.reverse();
    let mut signature = raise(&encoded, exponent, modulus)?;
    signature.reverse();
    Some(signature)
}

/// EMSA-PSS encoding (section 9.1.1), big-endian, for a modulus of `len` bytes.
fn encode(hash: Hash, message: &[u8], salt: &[u8], len: usize) -> Vec<u8> {
    let bound = hash.bound(message, salt);
    let padding = len.saturating_sub(2 * hash.len() + 2);
    let mut encoded = [vec![0; padding], vec![1], salt.to_vec()].concat();
    hash.mask(&bound, &mut encoded);
    clear_top_bit(&mut encoded);
    encoded.extend(bound);
    encoded.push(0xbc);
    encoded
}

/// EMSA-PSS verification (section 9.1.2) of a big-endian number as long as the modulus.
fn check_encoding(hash: Hash, message: &[u8], mut encoded: Vec<u8>) -> Option<()> {
    let padding = encoded.len().checked_sub(2 * hash.len() + 2)?;
    let (last, rest) = encoded.split_last_mut()?;
    let (masked, bound) = rest.split_at_mut(padding + 1 + hash.len());
    if *last != 0xbc || masked.first().is_none_or(|top| top & 0x80 != 0) {
        return None;
    }
    hash.mask(bound, masked);
    clear_top_bit(masked);
    let (zeros, after) = masked.split_at(padding);
    let (one, salt) = after.split_first()?;
    let right = zeros.iter().all(|&byte| byte == 0)
        && *one == 1
        && hash.bound(message, salt).as_slice() == &*bound;
    right.then_some(())
}

/// The modulus has its top bit set, and the number is one bit shorter.
fn clear_top_bit(bytes: &mut [u8]) {
    if let Some(top) = bytes.first_mut() {
        *top &= 0x7f;
    }
}

/// `base` to the power of `exponent` modulo `modulus`, big-endian; `None` if the modulus is even or
/// does not fill its bytes, or `base` is not below it.
fn raise(base: &[u8], exponent: &[u8], modulus: &[u8]) -> Option<Vec<u8>> {
    let bits = u32::try_from(modulus.len().checked_mul(8)?).ok()?;
    let number = |bytes: &[u8]| BoxedUint::from_le_slice(bytes, bits).ok();
    let (base, exponent, modulus) = (number(base)?, number(exponent)?, number(modulus)?);
    if modulus.bits_vartime() != bits || base >= modulus {
        return None;
    }
    let modulus = BoxedMontyParams::new_vartime(Option::from(Odd::new(modulus))?);
    let power = BoxedMontyForm::new(base, &modulus);
    let raised = power.pow_bounded_exp(&exponent, exponent.bits_vartime()).retrieve();
    Some(raised.to_be_bytes().into_vec())
}

/// A signature that the key did not make over these bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the RSA signature does not verify")]
pub struct WrongSignature;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sev::software::vendor_chain;

    /// The software platform's own signing key, whose private half everybody knows.
    const PRIVATE: &[u8] = include_bytes!("software/root/ask.private");

    /// What was signed verifies, and nothing else: another message, another hash, a changed bit, a
    /// signature that is no number below the modulus.
    #[test]
    fn verifies_what_it_signs() {
        let ask = vendor_chain().ask;
        let (modulus, exponent) = ask.key();
        let check = |hash, message: &[u8], signature: &[u8]| {
            verify(hash, (modulus, exponent), message, signature)
        };
        let signature = sign((modulus, PRIVATE), b"message", &[5; 32]).unwrap();
        check(Hash::Sha256, b"message", &signature).unwrap();
        assert!(check(Hash::Sha256, b"massage", &signature).is_err());
        assert!(check(Hash::Sha384, b"message", &signature).is_err());
        for at in (0..signature.len()).step_by(15) {
            let mut changed = signature.clone();
            changed[at] ^= 1;
            assert!(check(Hash::Sha256, b"message", &changed).is_err(), "byte {at}");
        }
        for bad in [[0; 256].as_slice(), &[1; 256], &[0xff; 256], modulus, &signature[..255], &[]] {
            assert!(check(Hash::Sha256, b"message", bad).is_err());
        }
        for bad in [[0; 256].as_slice(), &[2; 256], &[0xfe; 256], &[1; 256], &[]] {
            assert!(verify(Hash::Sha256, (bad, exponent), b"message", &signature).is_err());
        }
    }
}
