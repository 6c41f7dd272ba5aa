//! A packet: bytes encrypted and authenticated under a session's keys. Secrets now, pages later.

use getrandom::Error as RandomError;
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Status;
use super::session::{TransportKeys, random, verify};

/// Bytes of a packet's header.
pub const HEADER_LEN: usize = 52;

/// First byte of the MAC's input for `LAUNCH_SECRET`.
const CONTEXT_SECRET: u8 = 0x01;

/// A packet's header as it travels.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Header {
    flags: [u8; 4],
    iv: [u8; 16],
    mac: [u8; 32],
}

const _: () = assert!(size_of::<Header>() == HEADER_LEN);

/// What a packet is for, as its MAC binds it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose<'a> {
    /// `LAUNCH_SECRET` into a guest with this measurement (API 0.17 and later).
    Secret { measure: &'a [u8; 32] },
}

/// Encrypts `bytes` in place and returns their header.
///
/// # Errors
/// [`RandomError`] if the system has no randomness.
pub(crate) fn seal(
    keys: &TransportKeys,
    purpose: Purpose<'_>,
    bytes: &mut [u8],
) -> Result<Header, RandomError> {
    Ok(seal_with(keys, purpose, random()?, bytes))
}

fn seal_with(keys: &TransportKeys, purpose: Purpose<'_>, iv: [u8; 16], bytes: &mut [u8]) -> Header {
    keys.tek.apply_ctr(&iv, bytes);
    let mut header = Header { flags: [0; 4], iv, mac: [0; 32] };
    header.mac = mac(keys, purpose, &header, bytes).finalize().into_bytes().into();
    header
}

/// Checks `bytes` against their header and decrypts them in place.
///
/// # Errors
/// [`Status::UNSUPPORTED`] for any flag, [`Status::BAD_MEASUREMENT`] if the MAC does not verify;
/// `bytes` are then unchanged.
pub(crate) fn open(
    keys: &TransportKeys,
    purpose: Purpose<'_>,
    header: &Header,
    bytes: &mut [u8],
) -> Result<(), Status> {
    verify(mac(keys, purpose, header, bytes), &header.mac)?;
    if header.flags != [0; 4] {
        return Err(Status::UNSUPPORTED);
    }
    keys.tek.apply_ctr(&header.iv, bytes);
    Ok(())
}

/// The MAC over a header and the ciphertext; both lengths are those of the ciphertext, because
/// nothing is compressed.
fn mac(
    keys: &TransportKeys,
    purpose: Purpose<'_>,
    header: &Header,
    ciphertext: &[u8],
) -> Hmac<Sha256> {
    let Purpose::Secret { measure } = purpose;
    // A packet is at most 16 KiB by then.
    let len = u32::try_from(ciphertext.len()).unwrap_or(u32::MAX).to_le_bytes();
    keys.tik
        .hmac()
        .chain_update([CONTEXT_SECRET])
        .chain_update(header.flags)
        .chain_update(header.iv)
        .chain_update(len)
        .chain_update(len)
        .chain_update(ciphertext)
        .chain_update(measure)
}
