//! A software platform's identity: its four keys and their certificates.

use std::fmt::{Debug, Formatter, Result as FmtResult};

use getrandom::Error as RandomError;
use p384::SecretKey;
use sha2::{Digest, Sha512};
use thiserror::Error;

use crate::sev::certificate::{BadCertificate, Certificate, Chain, PublicKeyUse, Usage};
use crate::sev::session::random_secret_key;

use super::firmware::VERSION;

/// Bytes of a chip's identifier.
pub(super) const ID_LEN: usize = 64;

/// Keys and certificates of one software platform.
///
/// CEK and OCA sign the PEK, which signs the PDH; the CEK is its own root, trusted by no hardware.
pub struct Identity {
    pek: SecretKey,
    pdh: SecretKey,
    pdh_certificate: Certificate,
    chain: Chain,
}

impl Identity {
    /// A new identity, forgotten with this process.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn ephemeral() -> Result<Self, IdentityError> {
        let (cek, oca) = (new_key()?, new_key()?);
        let (pek, pdh) = (new_key()?, new_key()?);
        let cek_certificate = certificate(PublicKeyUse::signing(Usage::CEK), &cek, &[])?;
        let oca_certificate =
            certificate(PublicKeyUse::signing(Usage::OCA), &oca, &[(Usage::OCA, &oca)])?;
        let pek_certificate = certificate(
            PublicKeyUse::signing(Usage::PEK),
            &pek,
            &[(Usage::OCA, &oca), (Usage::CEK, &cek)],
        )?;
        let pdh_certificate =
            certificate(PublicKeyUse::DIFFIE_HELLMAN, &pdh, &[(Usage::PEK, &pek)])?;
        let chain = Chain { pek: pek_certificate, oca: oca_certificate, cek: cek_certificate };
        Ok(Self { pek, pdh, pdh_certificate, chain })
    }
}

impl Identity {
    /// The key that sessions are wrapped for.
    pub(super) fn pdh_key(&self) -> &SecretKey {
        &self.pdh
    }

    /// The key that signs attestation reports.
    pub(super) fn pek_key(&self) -> &SecretKey {
        &self.pek
    }

    /// What identifies the chip: a digest of its endorsement key's certificate.
    pub(super) fn chip_id(&self) -> [u8; ID_LEN] {
        Sha512::digest(self.chain.cek.as_bytes()).into()
    }

    /// The certificate of the key that sessions are wrapped for.
    #[must_use]
    pub fn pdh_certificate(&self) -> &Certificate {
        &self.pdh_certificate
    }

    /// What vouches for the PDH.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.chain
    }
}

impl Debug for Identity {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str("Identity(..)")
    }
}

fn new_key() -> Result<SecretKey, IdentityError> {
    random_secret_key().map_err(IdentityError::Random)
}

fn certificate(
    key_use: PublicKeyUse,
    key: &SecretKey,
    signers: &[(Usage, &SecretKey)],
) -> Result<Certificate, IdentityError> {
    let api = (VERSION.major, VERSION.minor);
    let mut certificate = Certificate::new(key_use, &key.public_key(), api);
    for (usage, signer) in signers {
        certificate.sign(*usage, signer).map_err(IdentityError::Certificate)?;
    }
    Ok(certificate)
}

/// Why a software platform has no identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// No randomness.
    #[error("the system gave no random bytes for the software SEV platform's keys")]
    Random(#[source] RandomError),
    /// A certificate could not be made.
    #[error("making the software SEV platform's certificates")]
    Certificate(#[source] BadCertificate),
}
