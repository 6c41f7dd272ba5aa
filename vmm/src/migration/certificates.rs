//! This host's certificates, and a peer's, between the SEV types and the wire.

use thiserror::Error;
use zerocopy::IntoBytes;

use super::message::PlatformBytes;
use crate::machine::compatibility::PlatformName;
use crate::sev::SevDevice;
use crate::sev::device::ExportError;
use crate::sev::software::vendor_chain;
use crate::sev::target::{BadPlatformCertificates, PlatformCertificates};

/// What vouches for this host's platform.
///
/// # Errors
/// [`CertificatesError`].
pub(super) fn of_this_host(
    device: &dyn SevDevice,
    platform: PlatformName,
) -> Result<PlatformCertificates, CertificatesError> {
    match platform {
        PlatformName::Software => Ok(PlatformCertificates::export(device, vendor_chain(), None)?),
        PlatformName::Hardware => Err(CertificatesError::Hardware),
    }
}

pub(super) fn to_wire(certificates: &PlatformCertificates) -> PlatformBytes {
    PlatformBytes {
        pdh: certificates.pdh.as_bytes().to_vec(),
        chain: certificates.chain.as_bytes().to_vec(),
        roots: certificates.vendor.to_bytes(),
    }
}

pub(super) fn from_wire(bytes: &PlatformBytes) -> Result<PlatformCertificates, CertificatesError> {
    let all = [bytes.pdh.as_slice(), &bytes.chain, &bytes.roots].concat();
    Ok(PlatformCertificates::decode(&all)?)
}

/// Why a platform's certificates cannot be had.
#[derive(Debug, Error)]
pub enum CertificatesError {
    /// Ours.
    #[error(transparent)]
    Export(#[from] ExportError),
    /// Theirs.
    #[error("the other host sent certificates that are none")]
    Peer(#[from] BadPlatformCertificates),
    /// AMD's part of the chain comes from files that cannot be given yet.
    #[error(
        "sev=hardware guests cannot be migrated yet: AMD's certificates (CEK, ASK, ARK) must come \
         from files, and there is no flag for them"
    )]
    Hardware,
}
