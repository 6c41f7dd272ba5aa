//! The transport session: how two parties that know each other's DH keys come to share the keys of
//! one guest's launch or migration (AMD document 55766; checked against virtee's vectors).
//!
//! Shared secret -> master secret -> KEK and KIK, which wrap the TEK (encrypts) and TIK (authenticates).

use std::fmt::{Debug, Formatter, Result as FmtResult};

use aes::Aes128;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use getrandom::Error as RandomError;
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use p384::{PublicKey, SecretKey, ecdh};
use sha2::Sha256;
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};
use zeroize::{Zeroize, Zeroizing};

use super::certificate::{BadCertificate, Certificate, PublicKeyUse};
use super::{Policy, SevStatus};

/// Bytes of a [`Session`].
pub const SESSION_LEN: usize = 128;

/// A 128-bit key; wiped when dropped and never shown.
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; 16]>);

impl Key {
    /// The key with these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// A key that nobody else knows.
    ///
    /// # Errors
    /// [`RandomError`] if the system has no randomness.
    pub fn random() -> Result<Self, RandomError> {
        random().map(Self::from_bytes)
    }

    /// The key's bytes, to hand to its owner.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }

    /// HMAC-SHA-256 under this key, to be fed.
    pub(crate) fn hmac(&self) -> Hmac<Sha256> {
        hmac(self.0.as_slice())
    }

    /// Encrypts or decrypts in place with AES-128 in counter mode.
    pub(crate) fn apply_ctr(&self, iv: &[u8; 16], bytes: &mut [u8]) {
        Ctr128BE::<Aes128>::new(self.as_bytes().into(), iv.into()).apply_keystream(bytes);
    }

    /// Derives another key (NIST SP 800-108, counter mode, one block).
    fn derive(&self, label: &str, context: &[u8]) -> Self {
        derive(self.0.as_slice(), label, context)
    }
}

impl Debug for Key {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str("Key(..)")
    }
}

/// The pair of keys that a session carries.
#[derive(Debug, Clone)]
pub struct TransportKeys {
    /// Transport encryption key.
    pub tek: Key,
    /// Transport integrity key.
    pub tik: Key,
}

impl TransportKeys {
    /// Fresh keys.
    ///
    /// # Errors
    /// [`RandomError`] if the system has no randomness.
    pub fn random() -> Result<Self, RandomError> {
        Ok(Self { tek: Key::random()?, tik: Key::random()? })
    }
}

/// The session as it travels: keys wrapped for the holder of one DH key, bound to one policy.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Session {
    nonce: [u8; 16],
    wrapped_keys: [u8; 32],
    wrap_iv: [u8; 16],
    wrap_mac: [u8; 32],
    policy_mac: [u8; 32],
}

const _: () = assert!(size_of::<Session>() == SESSION_LEN);

impl Session {
    /// Wraps `keys` for the holder of `secret`.
    ///
    /// # Errors
    /// [`RandomError`] if the system has no randomness.
    pub(crate) fn wrap(
        secret: &SharedSecret,
        keys: &TransportKeys,
        policy: Policy,
    ) -> Result<Self, RandomError> {
        Ok(Self::wrap_with(secret, keys, policy, (random()?, random()?)))
    }

    /// [`Session::wrap`] with the nonce and the initial counter block given.
    fn wrap_with(
        secret: &SharedSecret,
        keys: &TransportKeys,
        policy: Policy,
        (nonce, wrap_iv): ([u8; 16], [u8; 16]),
    ) -> Self {
        let (kek, kik) = secret.wrapping_keys(&nonce);
        let mut plain = Zeroizing::new([0; 32]);
        let (tek, tik) = plain.split_at_mut(16);
        tek.copy_from_slice(keys.tek.as_bytes());
        tik.copy_from_slice(keys.tik.as_bytes());
        kek.apply_ctr(&wrap_iv, plain.as_mut_slice());
        let wrapped_keys = *plain;
        let wrap_mac = kik.hmac().chain_update(wrapped_keys).finalize().into_bytes().into();
        let policy_mac = policy_mac(&keys.tik, policy).finalize().into_bytes().into();
        Self { nonce, wrapped_keys, wrap_iv, wrap_mac, policy_mac }
    }

    /// Unwraps the keys and checks that the session is for this secret and this policy.
    ///
    /// # Errors
    /// [`SevStatus::BAD_MEASUREMENT`] if either MAC does not verify, as the firmware says.
    pub(crate) fn unwrap(
        &self,
        secret: &SharedSecret,
        policy: Policy,
    ) -> Result<TransportKeys, SevStatus> {
        let (kek, kik) = secret.wrapping_keys(&self.nonce);
        verify(kik.hmac().chain_update(self.wrapped_keys), &self.wrap_mac)?;
        let mut plain = Zeroizing::new(self.wrapped_keys);
        kek.apply_ctr(&self.wrap_iv, plain.as_mut_slice());
        let (tek, tik) = plain.split_at(16);
        let keys = TransportKeys { tek: key_from_half(tek), tik: key_from_half(tik) };
        verify(policy_mac(&keys.tik, policy), &self.policy_mac)?;
        Ok(keys)
    }
}

/// What two holders of DH keys share: the X coordinate, 48 bytes big-endian.
pub(crate) struct SharedSecret(Zeroizing<[u8; 48]>);

impl SharedSecret {
    pub(crate) fn agree(ours: &SecretKey, theirs: &PublicKey) -> Self {
        let point = ecdh::diffie_hellman(ours.to_nonzero_scalar(), theirs.as_affine());
        let mut bytes = Zeroizing::new([0; 48]);
        bytes.copy_from_slice(point.raw_secret_bytes());
        Self(bytes)
    }

    /// KEK and KIK.
    fn wrapping_keys(&self, nonce: &[u8; 16]) -> (Key, Key) {
        let master = derive(self.0.as_slice(), "sev-master-secret", nonce);
        (master.derive("sev-kek", &[]), master.derive("sev-kik", &[]))
    }
}

/// A guest owner's side of one launch: what the firmware is given, and the keys that only the owner
/// and the firmware know.
#[derive(Debug)]
pub struct OwnerSession {
    /// The owner's DH certificate (2,084 bytes); the firmware does not check its signatures.
    pub certificate: Certificate,
    /// For `LAUNCH_START`.
    pub session: Session,
    /// TEK encrypts secrets; TIK authenticates them and the measurement.
    pub keys: TransportKeys,
}

impl OwnerSession {
    /// A fresh session with the platform that holds the private half of `pdh`.
    ///
    /// Whose platform that is, only the chain of `pdh` can say: verify it first.
    ///
    /// # Errors
    /// [`SessionError`] if `pdh` is not a PDH certificate with a P-384 key, or without randomness.
    pub fn new(pdh: &Certificate, policy: Policy) -> Result<Self, SessionError> {
        let theirs = pdh.diffie_hellman_key().map_err(SessionError::Pdh)?;
        let ours = random_secret_key().map_err(SessionError::Random)?;
        let keys = TransportKeys::random().map_err(SessionError::Random)?;
        let session = Session::wrap(&SharedSecret::agree(&ours, &theirs), &keys, policy)
            .map_err(SessionError::Random)?;
        let certificate =
            Certificate::new(PublicKeyUse::DIFFIE_HELLMAN, &ours.public_key(), (0, 0));
        Ok(Self { certificate, session, keys })
    }
}

/// Why a guest owner has no session.
#[derive(Debug, Error)]
pub enum SessionError {
    /// The platform's certificate cannot be used.
    #[error("the platform's PDH certificate cannot be used to start a session; export it again")]
    Pdh(#[source] BadCertificate),
    /// No randomness.
    #[error("the system gave no random bytes for the session's keys")]
    Random(#[source] RandomError),
}

/// Random bytes.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

/// A random P-384 private key.
pub(crate) fn random_secret_key() -> Result<SecretKey, RandomError> {
    loop {
        // Fails only for 0 and for the top 2^-190 of all values.
        if let Ok(key) = SecretKey::from_slice(Zeroizing::new(random::<48>()?).as_slice()) {
            return Ok(key);
        }
    }
}

/// Compares a MAC in constant time.
pub(crate) fn verify(mac: Hmac<Sha256>, expected: &[u8; 32]) -> Result<(), SevStatus> {
    mac.verify(&(*expected).into()).map_err(|_mismatch| SevStatus::BAD_MEASUREMENT)
}

fn policy_mac(tik: &Key, policy: Policy) -> Hmac<Sha256> {
    tik.hmac().chain_update(policy.bits().to_le_bytes())
}

fn key_from_half(half: &[u8]) -> Key {
    let mut key = Key::from_bytes([0; 16]);
    key.0.copy_from_slice(half);
    key
}

fn derive(key: &[u8], label: &str, context: &[u8]) -> Key {
    let mut block: [u8; 32] = hmac(key)
        .chain_update(1_u32.to_le_bytes())
        .chain_update(label)
        .chain_update([0])
        .chain_update(context)
        .chain_update(128_u32.to_le_bytes())
        .finalize()
        .into_bytes()
        .into();
    let derived = key_from_half(block.split_at(16).0);
    block.zeroize();
    derived
}

#[expect(clippy::expect_used, reason = "HMAC takes keys of every length")]
fn hmac(key: &[u8]) -> Hmac<Sha256> {
    <Hmac<Sha256> as KeyInit>::new_from_slice(key).expect("HMAC takes keys of every length")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sev::vectors::{counting, from_hex};

    /// Vectors that virtee's tools publish: everything zero.
    #[test]
    fn wraps_zero_keys_as_published() {
        let secret = SharedSecret(Zeroizing::new([0; 48]));
        let (kek, kik) = secret.wrapping_keys(&[0; 16]);
        assert_eq!(
            derive(&[0; 16], "sev-master-secret", &[0; 16]).as_bytes(),
            &from_hex("ab4d269fcc62bedb4511d56c386ce706")
        );
        assert_eq!(kek.as_bytes(), &from_hex("b6abfbfb75ea1ea74ed8750b8afdb973"));
        assert_eq!(kik.as_bytes(), &from_hex("53b524bf5669a363f365c864acba8572"));
        let zero = || Key::from_bytes([0; 16]);
        let keys = TransportKeys { tek: zero(), tik: zero() };
        let policy = Policy::new(0).unwrap();
        let session = Session::wrap_with(&secret, &keys, policy, ([0; 16], [0; 16]));
        assert_eq!(
            session.wrapped_keys,
            from_hex("2137bc7f9bb8bd7c3e55a576a15d3454b3856b8ba27afadf46dcfee9f02c02c4")
        );
        assert_eq!(
            session.wrap_mac,
            from_hex("3176c0752738bd9d5e86689534020f528c088f16238826b000b327dee6aeed7d")
        );
        assert_eq!(
            session.policy_mac,
            from_hex("aa7855e13839dd767cd5da7c1ff5036540c9264b7a803029315e55375287b4af")
        );
    }

    /// Vectors computed independently from the formulas, with every input different.
    #[test]
    fn wraps_keys_as_the_formulas_say() {
        let secret = SharedSecret(Zeroizing::new(counting(0)));
        let keys = TransportKeys {
            tek: Key::from_bytes(counting(0x20)),
            tik: Key::from_bytes(counting(0x30)),
        };
        let nonce = counting(0x10);
        let (kek, kik) = secret.wrapping_keys(&nonce);
        assert_eq!(kek.as_bytes(), &from_hex("a4c597230ccabe1ae4e55417f6b4ada9"));
        assert_eq!(kik.as_bytes(), &from_hex("d5f7ec035a40910f0e7e9c72dc49b572"));
        let policy = Policy::new(u32::from_le_bytes([0x31, 0, 1, 0x37])).unwrap();
        let session = Session::wrap_with(&secret, &keys, policy, (nonce, counting(0x40)));
        assert_eq!(
            session.wrapped_keys,
            from_hex("88b18544eaa87511bae385956c1279df013f7480dc91e8d3411d3aa595ec3d11")
        );
        assert_eq!(
            session.wrap_mac,
            from_hex("eb22fe8a1026e72b3e77c02d87727490d62b2b4c0e856f3081c85c4ef3c2cc6b")
        );
        assert_eq!(
            session.policy_mac,
            from_hex("b51b625feeb627a8b8f82e3dece05ea9d3d48bd37e8b07da25a6defb24f1b157")
        );
    }

    /// Only the same secret and policy unwrap a session; any changed bit is noticed, except in the
    /// initial counter block, which no MAC covers but which garbles the TIK and so the policy's MAC.
    #[test]
    fn any_changed_bit_spoils_a_session() {
        let (ours, theirs) = (random_secret_key().unwrap(), random_secret_key().unwrap());
        let secret = SharedSecret::agree(&ours, &theirs.public_key());
        let same = SharedSecret::agree(&theirs, &ours.public_key());
        let keys = TransportKeys::random().unwrap();
        let policy = Policy::default();
        let session = Session::wrap(&secret, &keys, policy).unwrap();
        let opened = session.unwrap(&same, policy).unwrap();
        assert_eq!(opened.tek.as_bytes(), keys.tek.as_bytes());
        assert_eq!(opened.tik.as_bytes(), keys.tik.as_bytes());

        let other = SharedSecret::agree(&ours, &ours.public_key());
        session.unwrap(&other, policy).unwrap_err();
        session.unwrap(&same, Policy::new(0x20).unwrap()).unwrap_err();
        for at in 0..SESSION_LEN {
            for bit in 0..8 {
                let mut changed = session;
                changed.as_mut_bytes()[at] ^= 1 << bit;
                let opened = changed.unwrap(&same, policy);
                assert_eq!(opened.err(), Some(SevStatus::BAD_MEASUREMENT), "byte {at} bit {bit}");
            }
        }
    }

    /// Keys do not show up in messages.
    #[test]
    fn keys_are_not_shown() {
        assert_eq!(format!("{:?}", Key::from_bytes([0x5a; 16])), "Key(..)");
    }
}
