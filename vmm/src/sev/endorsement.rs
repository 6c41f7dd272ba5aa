//! The vendor's certificates for a chip: the signed CEK, and the ASK and ARK above it.
//!
//! The CEK that AMD's firmware exports carries no signature; AMD's key server gives the signed one for
//! the chip's identifier, once, and it is kept in a file. ASK and ARK are the same for a generation of
//! chips: they are built in, and a file may take their place.

use std::io::Error as IoError;
use std::path::{Path, PathBuf};

use thiserror::Error;
use zeroize::Zeroizing;

use super::SevDevice;
use super::certificate::{BadCertificate, Certificate};
use super::device::{ExportError, chip_id};
use super::rsa::WrongSignature;
use super::target::PlatformCertificates;
use super::vendor::{BadVendorCertificate, VendorChain};
use crate::stream::read_regular_file;

/// Where AMD's key server has the signed CEK of a chip; the identifier in hexadecimal follows.
const KEY_SERVER: &str = "https://kdsintf.amd.com/cek/id/";

/// Bytes of the identifier of one chip: of a host with two, the first is asked for.
const CHIP_ID_LEN: usize = 64;

/// Bytes read of a file at most; ASK and ARK together have about 3 KiB.
const FILE_BYTES_MAX: usize = 64 << 10;

/// The files that complete a hardware platform's certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EndorsementFiles {
    /// The signed CEK; without it the platform cannot take part in a migration.
    pub cek: Option<PathBuf>,
    /// ASK and ARK, one after the other; `None` takes the built-in ones of the chip's generation.
    pub ask_ark: Option<PathBuf>,
}

impl EndorsementFiles {
    /// The certificates of the platform behind `device`: its own export with the signed CEK in place, and the vendor's
    /// certificates. It checks that they have signed the CEK.
    ///
    /// # Errors
    /// [`EndorsementError`].
    pub fn complete(
        &self,
        device: &dyn SevDevice,
    ) -> Result<PlatformCertificates, EndorsementError> {
        let Some(path) = &self.cek else {
            return Err(EndorsementError::NoCek { address: cek_address(device) });
        };
        let wrong = |cause| EndorsementError::Cek { path: path.clone(), cause };
        let cek = Certificate::decode(&read(path)?).map_err(wrong)?;
        let vendor = match &self.ask_ark {
            None => VendorChain::published_for(&cek).ok_or(EndorsementError::Generation)?,
            Some(path) => VendorChain::decode(&read(path)?)
                .map_err(|cause| EndorsementError::Vendor { path: path.clone(), cause })?,
        };
        vendor.verify_ask().map_err(EndorsementError::AskByArk)?;
        vendor.verify_cek(&cek).map_err(EndorsementError::CekByAsk)?;
        Ok(PlatformCertificates::export(device, vendor, Some(cek))?)
    }
}

/// Where the signed CEK of this chip is to be had; without the identifier if the firmware gives none.
#[must_use]
pub fn cek_address(device: &dyn SevDevice) -> String {
    let id = chip_id(device).unwrap_or_default();
    let id: String = id.iter().take(CHIP_ID_LEN).map(|byte| format!("{byte:02x}")).collect();
    let id = if id.is_empty() { "<the chip's identifier>" } else { &id };
    format!("{KEY_SERVER}{id}")
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, EndorsementError> {
    read_regular_file(path, FILE_BYTES_MAX)
        .map_err(|cause| EndorsementError::Read { path: path.to_owned(), cause })
}

/// Why a platform's certificates are not complete.
#[derive(Debug, Error)]
pub enum EndorsementError {
    /// There is no signed CEK.
    #[error(
        "a guest moves only between platforms that their vendor vouches for: fetch this chip's signed \
         CEK once, with `curl -o cek.cert {address}`, and give it with cek_cert_file=cek.cert"
    )]
    NoCek {
        /// Where it is to be had.
        address: String,
    },
    /// A file cannot be read.
    #[error("reading the certificate file {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: IoError,
    },
    /// Not a CEK.
    #[error("{path} (cek_cert_file) is no SEV certificate")]
    Cek {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: BadCertificate,
    },
    /// Not an ASK and an ARK.
    #[error("{path} (ask_ark_file) is no ASK followed by an ARK")]
    Vendor {
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: BadVendorCertificate,
    },
    /// None of the built-in ASKs has signed the CEK.
    #[error(
        "no ASK that sevferry knows has signed this CEK: is it the file that AMD's key server gave? For \
         a newer generation of chips give AMD's ASK and ARK with ask_ark_file="
    )]
    Generation,
    /// ARK -> ASK.
    #[error("the ARK of ask_ark_file has not signed its ASK")]
    AskByArk(#[source] WrongSignature),
    /// ASK -> CEK.
    #[error("the ASK of ask_ark_file has not signed the CEK: they are of different generations")]
    CekByAsk(#[source] WrongSignature),
    /// The platform's own part.
    #[error(transparent)]
    Export(#[from] ExportError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sev::software::fixture::Fixture;
    use crate::sev::software::vendor_chain;

    /// A file for one test, with these bytes.
    fn file(name: &str, bytes: &[u8]) -> PathBuf {
        let path = std::env::temp_dir().join(format!("sevferry-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        path
    }

    fn refused(files: &EndorsementFiles, device: &dyn SevDevice) -> String {
        files.complete(device).unwrap_err().to_string()
    }

    /// The signed CEK and its vendor's certificates make a chain; without, the address of the CEK is
    /// named, and each file that is another's is refused in words.
    #[test]
    fn files_complete_a_chain_or_say_what_is_wrong() {
        let fixture = Fixture::new();
        let own = fixture.certificates();
        let device = &fixture.device;
        let none = refused(&EndorsementFiles::default(), device);
        let id: String = chip_id(device).unwrap().iter().map(|b| format!("{b:02x}")).collect();
        assert!(none.contains(&format!("kdsintf.amd.com/cek/id/{id}`")), "{none}");

        let cek = Some(file("cek", own.chain.cek.as_bytes()));
        let ask_ark = Some(file("vendor", &vendor_chain().to_bytes()));
        let files = EndorsementFiles { cek, ask_ark };
        assert_eq!(files.complete(device).unwrap(), own);

        let built_in = EndorsementFiles { ask_ark: None, ..files.clone() };
        assert!(refused(&built_in, device).contains("no ASK that sevferry knows"));
        let rome = include_bytes!("amd/rome-ask-ark.cert");
        let other = EndorsementFiles { ask_ark: Some(file("rome", rome)), ..files.clone() };
        assert!(refused(&other, device).contains("different generations"));
        let swapped = EndorsementFiles { ask_ark: files.cek.clone(), ..files.clone() };
        assert!(refused(&swapped, device).contains("(ask_ark_file) is no ASK"));
        let swapped = EndorsementFiles { cek: files.ask_ark.clone(), ..files };
        assert!(refused(&swapped, device).contains("(cek_cert_file) is no SEV certificate"));
    }

    /// The CEK of a real chip finds its generation's certificates, and is refused on another chip.
    #[test]
    fn a_real_cek_is_of_one_chip() {
        let fixture = Fixture::new();
        let cek = include_bytes!("../../tests/data/rome-cek.cert");
        let files = EndorsementFiles { cek: Some(file("rome-cek", cek)), ask_ark: None };
        assert!(refused(&files, &fixture.device).contains("of another chip"));
    }
}
