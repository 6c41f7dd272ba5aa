//! `sevferry digest`: the launch digest of a guest, recomputed from its files.

use std::io::Error as IoError;
use std::path::{Path, PathBuf};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};

use crate::boot::{BootError, Piece, load};
use crate::cli::arguments::{CBit, DigestOptions};
use crate::machine::compatibility::PlatformName;
use crate::machine::config::PlatformKind;
use crate::machine::{Host, HostError, digest_of};
use crate::memory::{GuestRam, RamError};
use crate::sev::measurement::{Claim, WrongMeasurement};
use crate::stream::create;
use crate::text::hex;
use crate::vcpu::cpuid::{hardware_c_bit, software_c_bit};

/// Prints the digest; with a measurement to check, also whether it states this digest.
///
/// # Errors
/// [`DigestError`].
pub(crate) fn digest(options: &DigestOptions) -> Result<(), DigestError> {
    let c_bit = c_bit(&options.c_bit)?;
    // Loaded exactly as for a launch, into memory that no guest will see.
    let ram = GuestRam::single(options.config.ram)?;
    let loaded = load(ram.host(), &options.config.boot(Some(c_bit)))?;
    let digest = digest_of(&ram, &loaded.pieces)?;
    for piece in &loaded.pieces {
        let (start, bytes) = (piece.range.start().0, piece.range.bytes());
        eprintln!("{start:#12x} {bytes:>10} bytes  {}", piece.name);
    }
    if let Some(path) = &options.launch_data {
        write_launch_data(&ram, &loaded.pieces, path)
            .map_err(|cause| DigestError::LaunchData { path: path.clone(), cause })?;
    }
    println!("launch digest: {}", hex(&digest));
    if let Some(check) = &options.check {
        let claim = Claim { version: check.version, policy: options.policy, digest };
        claim.verify(&check.tik, &check.measurement)?;
        println!("launch measurement: verified");
    }
    Ok(())
}

/// Writes the pieces one after the other: the bytes that the digest is of.
fn write_launch_data(ram: &GuestRam, pieces: &[Piece], path: &Path) -> Result<(), IoError> {
    let mut file = create(path)?;
    for Piece { range, .. } in pieces {
        let bytes = usize::try_from(range.bytes()).map_err(IoError::other)?;
        ram.host()
            .write_all_volatile_to(GuestAddress(range.start().0), &mut file, bytes)
            .map_err(IoError::other)?;
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
    bit.ok_or_else(|| DigestError::CBit { platform: platform.into() })
}

/// Why there is no digest, or it is not the one measured.
#[derive(Debug, Error)]
pub(crate) enum DigestError {
    /// The host was to be asked for its C-bit.
    #[error("asking this host for its C-bit; give the guest's with --c-bit to compute it anywhere")]
    Host(#[from] HostError),
    /// The host has none.
    #[error("this host has no C-bit for sev={platform}; give the guest's with --c-bit")]
    CBit {
        /// The platform asked for.
        platform: PlatformName,
    },
    /// Scratch memory.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The files.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// The file for the launch data.
    #[error("writing the launch data to {}", path.display())]
    LaunchData {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: IoError,
    },
    /// Another launch was measured.
    #[error(transparent)]
    Measurement(#[from] WrongMeasurement),
}
