//! Where a guest may be sent: a platform's whole chain of certificates, checked against the guest's
//! policy.
//!
//! ```text
//! ARK -> ASK -> CEK -> PEK -> PDH      the chip: policy bit SEV
//!               OCA -> PEK             the owner: policy bit DOMAIN
//! ```
//!
//! The firmware makes the same checks in `SEND_START`, but says only which kind failed. A guest without
//! the SEV bit it sends to any platform that shows a key, so here that is refused too, by name.

use thiserror::Error;
use zerocopy::IntoBytes;

use super::abi::CHAIN_LEN;
use super::certificate::{BadCertificate, CERTIFICATE_LEN, Certificate, Chain};
use super::device::{ExportError, export_pdh};
use super::rsa::WrongSignature;
use super::vendor::{BadVendorCertificate, Root, VendorChain};
use super::{Policy, SevDevice};

/// Most bytes that [`PlatformCertificates::to_bytes`] gives.
pub const PLATFORM_CERTIFICATES_LEN_MAX: usize = CERTIFICATE_LEN + CHAIN_LEN + 3200;

/// All certificates of a platform. They are not verified yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlatformCertificates {
    /// The key that sessions are wrapped for.
    pub pdh: Certificate,
    /// PEK, OCA and CEK.
    pub chain: Chain,
    /// ASK and ARK.
    pub vendor: VendorChain,
}

impl PlatformCertificates {
    /// What the platform behind `device` exports, completed with its vendor's certificates.
    ///
    /// The CEK that AMD's firmware exports has no signature: `signed_cek` takes its place, as AMD's key
    /// server gives it. The software platform needs none.
    ///
    /// # Errors
    /// [`ExportError`]; [`ExportError::OtherChip`] if `signed_cek` is of another chip.
    pub fn export(
        device: &dyn SevDevice,
        vendor: VendorChain,
        signed_cek: Option<Certificate>,
    ) -> Result<Self, ExportError> {
        let (pdh, mut chain) = export_pdh(device)?;
        if let Some(signed) = signed_cek {
            if signed.signing_key()? != chain.cek.signing_key()? {
                return Err(ExportError::OtherChip);
            }
            chain.cek = signed;
        }
        Ok(Self { pdh, chain, vendor })
    }

    /// PDH, PEK, OCA, CEK, ASK, ARK, one after the other.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [self.pdh.as_bytes(), self.chain.as_bytes(), &self.vendor.to_bytes()].concat()
    }

    /// The certificates in `bytes`, as [`PlatformCertificates::to_bytes`] gives them.
    ///
    /// # Errors
    /// [`BadPlatformCertificates`] unless there are six certificates of known versions, and no more.
    pub fn decode(bytes: &[u8]) -> Result<Self, BadPlatformCertificates> {
        let short = || BadCertificate::Length { len: bytes.len() };
        let (pdh, rest) = bytes.split_at_checked(CERTIFICATE_LEN).ok_or_else(short)?;
        let (chain, vendor) = rest.split_at_checked(CHAIN_LEN).ok_or_else(short)?;
        Ok(Self {
            pdh: Certificate::decode(pdh)?,
            chain: Chain::decode(chain)?,
            vendor: VendorChain::decode(vendor)?,
        })
    }
}

/// Why bytes are not a platform's certificates.
#[derive(Debug, Error)]
pub enum BadPlatformCertificates {
    /// PDH, PEK, OCA or CEK.
    #[error("the platform's certificates are malformed")]
    Certificate(#[from] BadCertificate),
    /// ASK or ARK.
    #[error("the platform's vendor certificates are malformed")]
    Vendor(#[from] BadVendorCertificate),
}

/// Checks that a guest with this policy may be sent to `target` from the platform of `own`.
///
/// # Errors
/// The first of [`refusals`].
pub fn verify_target(
    target: &PlatformCertificates,
    policy: Policy,
    own: &PlatformCertificates,
) -> Result<(), RefusedTarget> {
    refusals(target, policy, own).into_iter().next().map_or(Ok(()), Err)
}

/// Every reason why a guest with this policy may not be sent to `target` from the platform of `own`;
/// [`RefusedTarget::Unattested`], after everything else, for a guest whose policy does not make the
/// firmware check the chain.
#[must_use]
pub fn refusals(
    target: &PlatformCertificates,
    policy: Policy,
    own: &PlatformCertificates,
) -> Vec<RefusedTarget> {
    let source = SendingPlatform { root: own.vendor.root(), oca: &own.chain.oca };
    let mut refusals = firmware_refusals(target, policy, &source);
    refusals.extend(unattested(policy));
    refusals
}

/// Those of [`refusals`] that hold for any target.
#[must_use]
pub fn refusals_anywhere(policy: Policy) -> Vec<RefusedTarget> {
    forbidden(policy).into_iter().chain(unattested(policy)).collect()
}

fn forbidden(policy: Policy) -> Option<RefusedTarget> {
    policy.has(Policy::NOSEND).then_some(RefusedTarget::NoSend)
}

fn unattested(policy: Policy) -> Option<RefusedTarget> {
    (!policy.has(Policy::SEV)).then_some(RefusedTarget::Unattested)
}

/// The platform that sends: what its targets must have in common with it.
pub(crate) struct SendingPlatform<'a> {
    /// `None` if its own vendor is unknown.
    pub(crate) root: Option<Root>,
    pub(crate) oca: &'a Certificate,
}

/// The checks of `SEND_START`: of the chain, only what the policy asks for.
///
/// # Errors
/// The first of its reasons, never [`RefusedTarget::Unattested`].
pub(crate) fn check_target(
    target: &PlatformCertificates,
    policy: Policy,
    source: &SendingPlatform<'_>,
) -> Result<(), RefusedTarget> {
    firmware_refusals(target, policy, source).into_iter().next().map_or(Ok(()), Err)
}

/// In the order of the firmware's checks.
fn firmware_refusals(
    target: &PlatformCertificates,
    policy: Policy,
    source: &SendingPlatform<'_>,
) -> Vec<RefusedTarget> {
    let PlatformCertificates { pdh, chain: Chain { pek, oca, cek }, vendor } = target;
    let (chip, owner) = (policy.has(Policy::SEV), policy.has(Policy::DOMAIN));
    let mut refusals = Vec::new();
    let mut note = |wrong: Option<RefusedTarget>| refusals.extend(wrong);
    note(forbidden(policy));
    note(pdh.diffie_hellman_key().err().map(RefusedTarget::Pdh));
    if chip || owner {
        note(pdh.verify(pek).err().map(RefusedTarget::PdhByPek));
    }
    if chip {
        note(pek.verify(cek).err().map(RefusedTarget::PekByCek));
        note(vendor.verify_cek(cek).err().map(RefusedTarget::CekByAsk));
        note(vendor.verify_ask().err().map(RefusedTarget::AskByArk));
        note(check_root(vendor.root(), source.root).err());
    }
    if owner {
        note(pek.verify(oca).err().map(RefusedTarget::PekByOca));
        let same = match (oca.signing_key(), source.oca.signing_key()) {
            (Ok(theirs), Ok(ours)) => theirs == ours,
            _ => false,
        };
        note((!same).then_some(RefusedTarget::Domain));
    }
    let (minimum, found) = (policy.minimum_api(), pek.api());
    note((found < minimum).then_some(RefusedTarget::Api { minimum, found }));
    refusals
}

fn check_root(theirs: Option<Root>, ours: Option<Root>) -> Result<(), RefusedTarget> {
    match (theirs, ours) {
        (Some(theirs), Some(ours)) if theirs.is_kin_of(ours) => Ok(()),
        (theirs, ours) => {
            Err(RefusedTarget::Root { theirs: describe(theirs), ours: describe(ours) })
        }
    }
}

fn describe(root: Option<Root>) -> &'static str {
    match root {
        Some(Root::Amd(_)) => "AMD's",
        Some(Root::Software) => "the software platform's",
        None => "unknown",
    }
}

impl RefusedTarget {
    /// Whether the guest's policy forbids it, and not a certificate that is wrong.
    #[must_use]
    pub fn is_policy(&self) -> bool {
        match self {
            Self::NoSend | Self::Domain | Self::Api { .. } | Self::Unattested => true,
            Self::Pdh(_)
            | Self::PdhByPek(_)
            | Self::PekByCek(_)
            | Self::CekByAsk(_)
            | Self::AskByArk(_)
            | Self::Root { .. }
            | Self::PekByOca(_) => false,
        }
    }
}

/// Why a guest may not be sent to a platform.
#[derive(Debug, Error)]
pub enum RefusedTarget {
    /// Policy bit NOSEND.
    #[error("the guest's policy forbids sending it anywhere (NOSEND)")]
    NoSend,
    /// The PDH holds no usable key.
    #[error("the destination's PDH certificate holds no usable key")]
    Pdh(#[source] BadCertificate),
    /// PEK -> PDH.
    #[error("the destination's PDH is not certified by its PEK")]
    PdhByPek(#[source] BadCertificate),
    /// CEK -> PEK.
    #[error("the destination's PEK is not certified by its chip (CEK)")]
    PekByCek(#[source] BadCertificate),
    /// ASK -> CEK.
    #[error(
        "the destination's chip (CEK) is not certified by its vendor (ASK); on hardware, give the CEK \
         that AMD's key server signed"
    )]
    CekByAsk(#[source] WrongSignature),
    /// ARK -> ASK.
    #[error("the destination's vendor key (ASK) is not certified by its root (ARK)")]
    AskByArk(#[source] WrongSignature),
    /// The ARK is not one that this platform trusts.
    #[error(
        "the destination's root (ARK) is {theirs} and this platform's is {ours}: a guest moves only \
         between hardware and hardware, or software and software"
    )]
    Root {
        /// Whose root the destination has.
        theirs: &'static str,
        /// Whose root this platform has.
        ours: &'static str,
    },
    /// OCA -> PEK.
    #[error("the destination's PEK is not certified by its owner (OCA)")]
    PekByOca(#[source] BadCertificate),
    /// Policy bit DOMAIN.
    #[error(
        "the guest's policy allows only platforms of the same owner (DOMAIN), and the destination's OCA \
         is another"
    )]
    Domain,
    /// The policy's lowest API version.
    #[error(
        "the guest's policy asks for firmware API {}.{}, and the destination has {}.{}",
        minimum.0, minimum.1, found.0, found.1
    )]
    Api {
        /// Lowest version allowed: major, minor.
        minimum: (u8, u8),
        /// Version of the destination's PEK: major, minor.
        found: (u8, u8),
    },
    /// Policy bit SEV is clear.
    #[error(
        "the guest's policy lets the firmware send it to anybody (SEV is not set); launch it with policy \
         bit SEV (0x20), or allow an unattested destination explicitly"
    )]
    Unattested,
}

#[cfg(test)]
mod tests;
