//! What a guest owner and a host exchange as files and text: AMD's structures, usually in base64.
//!
//! `sevctl session` and `virt-qemu-sev-validate` write and read the same: the DH certificate and the
//! session in base64, the TIK as 16 raw bytes, the measurement in base64. Either form is accepted.

use base64::engine::general_purpose::STANDARD;
use base64::{DecodeError, Engine};
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};
use zeroize::Zeroizing;

use super::certificate::{BadCertificate, CERTIFICATE_LEN, Certificate};
use super::measurement::{MEASUREMENT_LEN, Measurement};
use super::session::{Key, SESSION_LEN, Session};

/// The owner's DH certificate in a file's `contents`.
///
/// # Errors
/// [`BadOwnerInput`].
pub fn certificate(contents: &[u8]) -> Result<Certificate, BadOwnerInput> {
    let bytes = decode(contents, CERTIFICATE_LEN)?;
    let certificate = Certificate::decode(&bytes).map_err(BadOwnerInput::Certificate)?;
    certificate.diffie_hellman_key().map_err(BadOwnerInput::Certificate)?;
    Ok(certificate)
}

/// The session in a file's `contents`.
///
/// # Errors
/// [`BadOwnerInput`].
pub fn session(contents: &[u8]) -> Result<Session, BadOwnerInput> {
    let bytes = decode(contents, SESSION_LEN)?;
    Session::read_from_bytes(&bytes)
        .map_err(|_size| BadOwnerInput::Length { wanted: SESSION_LEN, len: bytes.len() })
}

/// A TIK or TEK in a file's `contents`.
///
/// # Errors
/// [`BadOwnerInput`].
pub fn key(contents: &[u8]) -> Result<Key, BadOwnerInput> {
    let mut key = Zeroizing::new([0; 16]);
    key.copy_from_slice(&Zeroizing::new(decode(contents, 16)?));
    Ok(Key::from_bytes(*key))
}

/// The measurement that a host reports.
///
/// # Errors
/// [`BadOwnerInput`].
pub fn measurement(text: &[u8]) -> Result<Measurement, BadOwnerInput> {
    let mut bytes = [0; MEASUREMENT_LEN];
    bytes.copy_from_slice(&decode(text, MEASUREMENT_LEN)?);
    Ok(Measurement::from_bytes(&bytes))
}

impl Measurement {
    /// The measurement as owners' tools take it.
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.to_bytes())
    }
}

impl Certificate {
    /// The certificate as owners' tools take it.
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.as_bytes())
    }
}

impl Session {
    /// The session as hosts' tools take it.
    #[must_use]
    pub fn to_base64(&self) -> String {
        STANDARD.encode(self.as_bytes())
    }
}

/// `wanted` bytes, as they are or in base64 with any white space.
fn decode(contents: &[u8], wanted: usize) -> Result<Vec<u8>, BadOwnerInput> {
    if contents.len() == wanted {
        return Ok(contents.to_vec());
    }
    let text: Vec<u8> =
        contents.iter().copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let bytes = STANDARD.decode(text).map_err(|cause| BadOwnerInput::Base64 { wanted, cause })?;
    if bytes.len() == wanted {
        Ok(bytes)
    } else {
        Err(BadOwnerInput::Length { wanted, len: bytes.len() })
    }
}

/// Why something of a guest owner's is refused.
#[derive(Debug, Error)]
pub enum BadOwnerInput {
    /// Neither the bytes nor base64.
    #[error("this is neither {wanted} bytes nor base64 of them")]
    Base64 {
        /// Bytes that it should be.
        wanted: usize,
        /// What is wrong with it as base64.
        #[source]
        cause: DecodeError,
    },
    /// Base64 of something else.
    #[error("this is base64 of {len} bytes; {wanted} are needed")]
    Length {
        /// Bytes that it should be.
        wanted: usize,
        /// Bytes that it is.
        len: usize,
    },
    /// Not a DH certificate.
    #[error("this is not a guest owner's DH certificate")]
    Certificate(#[source] BadCertificate),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sev::Policy;
    use crate::sev::session::OwnerSession;

    const PDH: &[u8] = include_bytes!("../../tests/data/rome-pdh.cert");

    /// Everything is read as bytes or as base64, however that is wrapped.
    #[test]
    fn reads_bytes_and_base64() {
        let pdh = certificate(PDH).unwrap();
        assert_eq!(certificate(pdh.to_base64().as_bytes()).unwrap(), pdh);
        let own = OwnerSession::new(&pdh, Policy::default()).unwrap();
        let text = own.session.to_base64();
        let wrapped = format!("{}\r\n {}\n", &text[..76], &text[76..]);
        assert_eq!(session(wrapped.as_bytes()).unwrap(), own.session);
        assert_eq!(session(own.session.as_bytes()).unwrap(), own.session);
        assert_eq!(key(&[7; 16]).unwrap().as_bytes(), &[7; 16]);
        assert_eq!(key(b"AAAAAAAAAAAAAAAAAAAAAQ==\n").unwrap().as_bytes()[15], 1);
        let reported = Measurement { mac: [1; 32], nonce: [2; 16] };
        assert_eq!(measurement(reported.to_base64().as_bytes()).unwrap(), reported);
    }

    /// The wrong file is refused with its length.
    #[test]
    fn refuses_the_wrong_file() {
        assert!(matches!(key(b""), Err(BadOwnerInput::Length { wanted: 16, len: 0 })));
        assert!(matches!(session(b"not base64!"), Err(BadOwnerInput::Base64 { .. })));
        let length = session(b"AAAA").unwrap_err();
        assert_eq!(length.to_string(), "this is base64 of 3 bytes; 128 are needed");
        let pek = include_bytes!("../../tests/data/rome-pek.cert");
        assert!(matches!(certificate(pek), Err(BadOwnerInput::Certificate(_))));
        assert!(matches!(certificate(&[0; 2084]), Err(BadOwnerInput::Certificate(_))));
    }
}
