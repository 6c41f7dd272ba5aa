//! A machine before it runs: its guest owner has seen the measurement, and may send secrets.

use thiserror::Error;

use super::{Machine, Report};
use crate::boot::layout::SECRET_PAGE;
use crate::page::{Gpa, PAGE_SIZE, PageRange};
use crate::sev::SevStatus;
use crate::sev::launch::{LaunchError, SealedSecret};

/// Encrypted memory is addressed in blocks of so many bytes.
const BLOCK: u64 = 16;

impl Machine {
    /// What the machine can say about itself now.
    pub fn report(&mut self) -> Report {
        let mut report = self.assembly.describe();
        if let Some((sev, measured)) = report.sev.as_mut().zip(self.measured.as_ref()) {
            sev.guest = measured.status().ok();
        }
        report
    }

    /// Decrypts a secret of the guest's owner to `gpa`, or to the start of the secret page that the
    /// guest finds by the table below its reset vector.
    ///
    /// # Errors
    /// [`SecretError`]; the guest's memory is then as it was, and may be given another.
    pub fn inject_secret(
        &self,
        gpa: Option<Gpa>,
        secret: &SealedSecret,
    ) -> Result<(), SecretError> {
        let measured = self.measured.as_ref().ok_or(SecretError::PlainVm)?;
        if self.launch().is_some_and(|launch| launch.verified) {
            return Err(SecretError::NoOwner);
        }
        let gpa = gpa.unwrap_or(SECRET_PAGE);
        let (offset, len) = (gpa.0 % PAGE_SIZE, secret.bytes());
        let whole = offset.is_multiple_of(BLOCK) && len.is_multiple_of(BLOCK);
        if len == 0 || !whole || len > PAGE_SIZE - offset {
            return Err(SecretError::Place { gpa, len });
        }
        let outside = || SecretError::NotRam { gpa };
        let page = PageRange::one(gpa.frame()).map_err(|_empty| outside())?;
        let ram = &self.assembly.board.ram;
        let address = ram.user_address(page).map_err(|_elsewhere| outside())?;
        measured.inject_secret(address + offset, secret).map_err(|refused| {
            if let LaunchError::Secret { cause, .. } = refused
                && cause.status() == Some(SevStatus::BAD_MEASUREMENT)
            {
                return SecretError::OtherKeys;
            }
            SecretError::Launch(refused)
        })
    }
}

/// Why a guest was not given its owner's secret.
#[derive(Debug, Error)]
pub enum SecretError {
    /// No page is encrypted.
    #[error("this is a plain VM: only SEV guests (run --platform) take secrets")]
    PlainVm,
    /// This process launched it for itself.
    #[error(
        "the guest was launched without its owner's certificate and session (dh_cert_file= and \
         session_file= of --platform), so nobody has the keys to make a secret for it"
    )]
    NoOwner,
    /// The firmware takes no such piece of memory.
    #[error(
        "a secret of {len} bytes at {gpa}: it must be whole blocks of {BLOCK} bytes, start at a \
         multiple of {BLOCK}, and lie in one page of {PAGE_SIZE} bytes"
    )]
    Place {
        /// Where.
        gpa: Gpa,
        /// Its bytes.
        len: u64,
    },
    /// No memory is there.
    #[error("the guest has no RAM at {gpa}")]
    NotRam {
        /// The address.
        gpa: Gpa,
    },
    /// The packet's MAC.
    #[error(
        "the SEV firmware says BAD_MEASUREMENT: header and secret are not of one packet, or were made \
         with other keys than this session's, or for another launch than the one whose measurement \
         `sevferry status` shows"
    )]
    OtherKeys,
    /// The platform refused for another reason.
    #[error(transparent)]
    Launch(LaunchError),
}
