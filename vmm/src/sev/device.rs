//! What `/dev/sev` says about the platform: versions, state and certificates.

use thiserror::Error;
use zerocopy::{FromZeros, IntoBytes};

use super::abi::{self, SevIssueCmd, device_command, length};
use super::certificate::{BadCertificate, CERTIFICATE_LEN, Certificate, Chain};
use super::command::{CommandError, address_of_mut};
use super::measurement::FirmwareVersion;
use super::{Errno, SevDevice, SevStatus};

/// The state of a platform that is not initialised, as `PLATFORM_STATUS` numbers it.
const STATE_UNINIT: u8 = 0;

/// The platform's version and load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlatformStatus {
    /// The firmware's version.
    pub version: FirmwareVersion,
    /// Whether somebody other than the firmware made the OCA key.
    pub externally_owned: bool,
    /// Whether the kernel has initialised it. If not, it does so for the first guest, or the first command that needs
    /// it.
    pub is_initialised: bool,
    /// Guests that the firmware knows.
    pub guests: u32,
}

/// `PLATFORM_STATUS`.
///
/// # Errors
/// [`CommandError`].
pub fn platform_status(device: &dyn SevDevice) -> Result<PlatformStatus, CommandError> {
    let mut status = abi::UserDataStatus::default();
    issue(device, device_command::PLATFORM_STATUS, "SEV_PLATFORM_STATUS", &mut status)?;
    let abi::UserDataStatus { api_major, api_minor, build, .. } = status;
    Ok(PlatformStatus {
        version: FirmwareVersion { major: api_major, minor: api_minor, build },
        externally_owned: status.flags & 1 != 0,
        is_initialised: status.state != STATE_UNINIT,
        guests: status.guest_count,
    })
}

/// `PDH_CERT_EXPORT`: the platform's PDH certificate and its chain. Nothing is verified yet.
///
/// # Errors
/// [`ExportError`].
pub fn export_pdh(device: &dyn SevDevice) -> Result<(Certificate, Chain), ExportError> {
    let mut pdh = [0_u8; CERTIFICATE_LEN];
    let mut chain = Chain::new_zeroed();
    let mut export = abi::PdhCertExport {
        pdh_uaddr: address_of_mut(&mut pdh),
        pdh_len: length(pdh.len()),
        chain_uaddr: address_of_mut(&mut chain),
        chain_len: length(chain.as_bytes().len()),
    };
    issue(device, device_command::PDH_CERT_EXPORT, "SEV_PDH_CERT_EXPORT", &mut export)?;
    Ok((Certificate::decode(&pdh)?, chain))
}

/// `GET_ID2`: the chip's identifier, whose length the firmware is asked for first.
///
/// # Errors
/// [`CommandError`].
pub fn chip_id(device: &dyn SevDevice) -> Result<Vec<u8>, CommandError> {
    const NAME: &str = "SEV_GET_ID2";
    let mut query = abi::IdExport::default();
    match issue(device, device_command::GET_ID2, NAME, &mut query) {
        Err(refused) if refused.status() == Some(SevStatus::INVALID_LEN) => {}
        other => return other.map(|()| Vec::new()),
    }
    let mut id = vec![0; query.len.min(abi::BLOB_LEN_MAX) as usize];
    let mut export =
        abi::IdExport { uaddr: address_of_mut(id.as_mut_slice()), len: length(id.len()) };
    issue(device, device_command::GET_ID2, NAME, &mut export)?;
    Ok(id)
}

/// Why a platform's certificates could not be exported.
#[derive(Debug, Error)]
pub enum ExportError {
    /// The platform refused.
    #[error("the SEV platform did not export its certificates")]
    Command(#[from] CommandError),
    /// It exported something that is not a certificate.
    #[error("the SEV platform exported something that is no certificate")]
    Certificate(#[from] BadCertificate),
    /// The signed CEK is not this chip's.
    #[error("the CEK certificate given is of another chip; fetch the one for this chip's ID")]
    OtherChip,
}

fn issue<T>(
    device: &dyn SevDevice,
    cmd: u32,
    command: &'static str,
    data: &mut T,
) -> Result<(), CommandError> {
    let mut encoded = SevIssueCmd { cmd, data: address_of_mut(data), error: 0 };
    device.issue(&mut encoded).map_err(|errno| {
        let error = encoded.error;
        let status = (errno == Errno::EIO && error != 0).then_some(SevStatus(error));
        CommandError { command, errno, status }
    })
}
