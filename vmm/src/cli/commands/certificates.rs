//! `sevferry certificates`: a platform's chain in the files that the tools of guest owners read.

use std::fs::create_dir_all;
use std::io::Error as IoError;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::machine::config::PlatformKind;
use crate::machine::{MachineError, certificates_of};
use crate::sev::certificate::Chain;
use crate::sev::target::PlatformCertificates;
use crate::stream::{create, write_all};

/// Writes one file for each certificate of the platform, and two that have several one after the
/// other: `sev.chain` (PDH, PEK, OCA, CEK) and `ca.chain` (ASK, ARK), as `sevctl` takes them.
///
/// # Errors
/// [`CertificateExportError`].
pub(crate) fn export(platform: &PlatformKind, out: &Path) -> Result<(), CertificateExportError> {
    if matches!(platform, PlatformKind::Software { identity: None, .. }) {
        return Err(CertificateExportError::NoIdentity);
    }
    let certificates = certificates_of(platform).map_err(Box::new)?;
    create_dir_all(out)
        .map_err(|cause| CertificateExportError::File { path: out.to_owned(), cause })?;
    for (name, bytes) in files(&certificates) {
        let path = out.join(name);
        let written = create(&path).and_then(|file| write_all(file, &bytes));
        written.map_err(|cause| CertificateExportError::File { path: path.clone(), cause })?;
        println!("{}", path.display());
    }
    Ok(())
}

fn files(certificates: &PlatformCertificates) -> [(&'static str, Vec<u8>); 8] {
    let PlatformCertificates { pdh, chain: Chain { pek, oca, cek }, vendor } = certificates;
    let sev = [pdh, pek, oca, cek].map(|certificate| certificate.as_bytes().to_vec());
    let sev_chain = sev.concat();
    let [pdh, pek, oca, cek] = sev;
    [
        ("pdh.cert", pdh),
        ("pek.cert", pek),
        ("oca.cert", oca),
        ("cek.cert", cek),
        ("ask.cert", vendor.ask.as_bytes().to_vec()),
        ("ark.cert", vendor.ark.as_bytes().to_vec()),
        ("sev.chain", sev_chain),
        ("ca.chain", vendor.to_bytes()),
    ]
}

/// Why the files are not there.
#[derive(Debug, Error)]
pub(crate) enum CertificateExportError {
    /// The platform's keys would end with this process.
    #[error(
        "the keys of sev=software are kept nowhere, and its certificates would end with this process: \
         add identity=DIR, and give it to run and receive too"
    )]
    NoIdentity,
    /// The certificates.
    #[error(transparent)]
    Certificates(#[from] Box<MachineError>),
    /// A file.
    #[error("writing {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: IoError,
    },
}
