//! `sevferry digest`: the launch digest of a guest, recomputed from its files.

use thiserror::Error;

use super::arguments::{CBit, DigestOptions};
use super::report::hex;
use crate::boot::{BootError, load};
use crate::machine::config::PlatformKind;
use crate::machine::{Host, HostError, digest_of};
use crate::memory::{GuestRam, RamError};
use crate::sev::measurement::{Claim, WrongMeasurement};
use crate::vcpu::cpuid::{hardware_c_bit, software_c_bit};

/// Prints the digest; with a measurement to check, also whether it states this digest.
///
/// # Errors
/// [`DigestError`].
pub(super) fn digest(options: &DigestOptions) -> Result<(), DigestError> {
    let c_bit = c_bit(&options.c_bit)?;
    // Loaded exactly as for a launch, into memory that no guest will see.
    let ram = GuestRam::single(options.config.ram)?;
    let loaded = load(ram.host(), &options.config.boot(Some(c_bit)))?;
    let digest = digest_of(&ram, &loaded.pieces)?;
    for piece in &loaded.pieces {
        let (start, bytes) = (piece.range.start().0, piece.range.bytes());
        eprintln!("{start:#12x} {bytes:>10} bytes  {}", piece.name);
    }
    println!("launch digest: {}", hex(&digest));
    if let Some(check) = &options.check {
        let claim = Claim { version: check.version, policy: options.policy, digest };
        claim.verify(&check.tik, &check.measurement)?;
        println!("launch measurement: verified");
    }
    Ok(())
}

fn c_bit(wanted: &CBit) -> Result<u8, DigestError> {
    let platform = match wanted {
        CBit::Number(bit) => return Ok(*bit),
        CBit::OfThisHost(platform) => platform,
    };
    let supported = Host::open()?.supported_cpuid()?;
    let bit = match platform {
        PlatformKind::Hardware { .. } => hardware_c_bit(&supported),
        PlatformKind::Software { .. } => software_c_bit(&supported),
    };
    bit.ok_or_else(|| DigestError::CBit { platform: platform.clone() })
}

/// Why there is no digest, or it is not the one measured.
#[derive(Debug, Error)]
pub(super) enum DigestError {
    /// The host was to be asked for its C-bit.
    #[error("asking this host for its C-bit; give the guest's with --c-bit to compute it anywhere")]
    Host(#[from] HostError),
    /// The host has none.
    #[error("this host has no C-bit for sev={platform}; give the guest's with --c-bit")]
    CBit {
        /// The platform asked for.
        platform: PlatformKind,
    },
    /// Scratch memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The files.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Another launch was measured.
    #[error(transparent)]
    Measurement(#[from] WrongMeasurement),
}
