//! A platform's certificates, between the SEV types and the wire.

use thiserror::Error;
use zerocopy::IntoBytes;

use super::message::PlatformBytes;
use crate::sev::endorsement::EndorsementError;
use crate::sev::target::{BadPlatformCertificates, PlatformCertificates};

pub(crate) fn to_wire(certificates: &PlatformCertificates) -> PlatformBytes {
    PlatformBytes {
        pdh: certificates.pdh.as_bytes().to_vec(),
        chain: certificates.chain.as_bytes().to_vec(),
        roots: certificates.vendor.to_bytes(),
    }
}

pub(crate) fn from_wire(bytes: &PlatformBytes) -> Result<PlatformCertificates, CertificatesError> {
    let all = [bytes.pdh.as_slice(), &bytes.chain, &bytes.roots].concat();
    Ok(PlatformCertificates::decode(&all)?)
}

/// Why a platform's certificates cannot be had.
#[derive(Debug, Error)]
pub enum CertificatesError {
    /// Ours.
    #[error(transparent)]
    Own(#[from] EndorsementError),
    /// Theirs.
    #[error("the other host sent certificates that are none")]
    Peer(#[from] BadPlatformCertificates),
}
