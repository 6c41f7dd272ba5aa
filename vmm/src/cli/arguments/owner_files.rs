//! The files of a guest owner, as their tools (`sevctl`, `virt-qemu-sev-validate`) write them.

use std::io::Error as IoError;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use thiserror::Error;
use zerocopy::FromBytes;
use zeroize::Zeroizing;

use crate::control::api::Base64;
use crate::machine::config::OwnerInput;
use crate::sev::certificate::{BadCertificate, Certificate};
use crate::sev::session::{Key, SESSION_LEN, Session};
use crate::stream::{PIPE_PATIENCE, read_file};

/// Bytes read of a file at most; the longest that is of use has about 3 KiB.
const FILE_BYTES_MAX: usize = 64 << 10;

/// Bytes of a transport integrity key.
const TIK_LEN: usize = 16;

/// Reads the owner's DH certificate and session, both in base64.
///
/// # Errors
/// [`OwnerFileError`] names the file.
pub(crate) fn read_owner(certificate: &Path, session: &Path) -> Result<OwnerInput, OwnerFileError> {
    let bytes = read_base64(certificate)?;
    let wrong = |cause| OwnerFileError::Certificate { path: certificate.into(), cause };
    let certificate = Box::new(Certificate::decode(&bytes).map_err(wrong)?);
    let bytes = read_base64(session)?;
    let session = Session::read_from_bytes(&bytes)
        .map_err(|_size| OwnerFileError::Session { path: session.into(), len: bytes.len() })?;
    Ok(OwnerInput::Files { certificate, session })
}

/// Reads a transport integrity key: 16 bytes as they are.
///
/// # Errors
/// [`OwnerFileError`] names the file.
pub(crate) fn read_tik(path: &Path) -> Result<Key, OwnerFileError> {
    let bytes = read(path)?;
    let key = <[u8; TIK_LEN]>::try_from(bytes.as_slice());
    let wrong = |_size| OwnerFileError::Tik { path: path.into(), len: bytes.len() };
    key.map(Key::from_bytes).map_err(wrong)
}

/// Reads a part of a secret's packet: in base64, as `virt-qemu-sev-validate` writes it, or as it is, as
/// `sevctl secret build` does. Bytes that only look like base64 would be refused by the firmware.
///
/// # Errors
/// [`OwnerFileError`] names the file.
pub(crate) fn read_packet(path: &Path) -> Result<Base64, OwnerFileError> {
    let bytes = read(path)?;
    Ok(Base64(decode(&bytes).unwrap_or_else(|| bytes.to_vec())))
}

fn read_base64(path: &Path) -> Result<Vec<u8>, OwnerFileError> {
    decode(&read(path)?).ok_or_else(|| OwnerFileError::NotBase64 { path: path.into() })
}

/// The bytes in base64, which may be broken into lines; `None` if it is something else.
fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let text: Vec<_> = text.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    BASE64_STANDARD.decode(text).ok()
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, OwnerFileError> {
    let failed = |cause| OwnerFileError::Read { path: path.into(), cause };
    read_file(path, FILE_BYTES_MAX, PIPE_PATIENCE).map_err(failed)
}

/// Why a file of the guest owner is of no use.
#[derive(Debug, Error)]
pub(crate) enum OwnerFileError {
    /// It could not be read.
    #[error("reading {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: IoError,
    },
    /// It is not base64.
    #[error("{} is not base64, as the tools of guest owners write it", path.display())]
    NotBase64 {
        /// The file.
        path: PathBuf,
    },
    /// It is not a certificate.
    #[error("{} is not the guest owner's DH certificate", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: BadCertificate,
    },
    /// It is not a session.
    #[error("{} has {len} bytes; a launch session has {SESSION_LEN}, in base64", path.display())]
    Session {
        /// The file.
        path: PathBuf,
        /// Bytes after decoding.
        len: usize,
    },
    /// It is not a key.
    #[error("{} has {len} bytes; a TIK has {TIK_LEN}, not encoded", path.display())]
    Tik {
        /// The file.
        path: PathBuf,
        /// Bytes in it.
        len: usize,
    },
}
