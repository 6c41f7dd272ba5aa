//! A software platform's identity: its keys and certificates, kept in a directory or forgotten.

use std::fmt::{Debug, Formatter, Result as FmtResult};
use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{Error as IoError, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;

use getrandom::Error as RandomError;
use p384::SecretKey;
use sha2::{Digest, Sha512};
use thiserror::Error;
use zerocopy::{FromBytes, Immutable, IntoBytes};
use zeroize::{Zeroize, Zeroizing};

use crate::sev::certificate::{BadCertificate, Certificate, Chain, PublicKeyUse, Usage};
use crate::sev::rsa::WrongSignature;
use crate::sev::session::{random, random_secret_key};
use crate::stream::{PIPE_PATIENCE, read_file};

use super::model::VERSION;
use super::root::{sign_cek, vendor_chain};

/// The file in an identity's directory.
const FILE_NAME: &str = "identity";

/// How the file starts.
const MAGIC: [u8; 8] = *b"SEVFIDN2";

/// Bytes of a chip's identifier.
pub(super) const ID_LEN: usize = 64;

/// Keys and certificates of one software platform.
///
/// CEK and OCA sign the PEK, which signs the PDH; the CEK is signed by the software platforms' own ASK,
/// which no hardware trusts.
pub struct Identity {
    pek: SecretKey,
    pdh: SecretKey,
    pdh_certificate: Certificate,
    chain: Chain,
}

impl Identity {
    /// The identity kept in `directory`; makes the directory and the identity if there is none.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn load_or_create(directory: &Path) -> Result<Self, IdentityError> {
        let path = directory.join(FILE_NAME);
        match read(&path) {
            Ok(bytes) => {
                Self::decode(&bytes).map_err(|cause| IdentityError::Damaged { path, cause })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Self::create(&path),
            Err(cause) => Err(IdentityError::File { path, cause }),
        }
    }

    /// Makes an identity and stores it. If another process is first, its identity counts.
    fn create(path: &Path) -> Result<Self, IdentityError> {
        let identity = Self::ephemeral()?;
        match store(path, &identity.encode()) {
            Ok(()) => Ok(identity),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                let bytes = read(path)
                    .map_err(|cause| IdentityError::File { path: path.to_owned(), cause })?;
                Self::decode(&bytes)
                    .map_err(|cause| IdentityError::Damaged { path: path.to_owned(), cause })
            }
            Err(cause) => Err(IdentityError::File { path: path.to_owned(), cause }),
        }
    }

    /// A new identity, forgotten with this process.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn ephemeral() -> Result<Self, IdentityError> {
        Self::owned_by(&new_key()?)
    }

    /// A new identity whose owner holds the OCA key `oca`.
    pub(super) fn owned_by(oca: &SecretKey) -> Result<Self, IdentityError> {
        Self::of_api(oca, (VERSION.major, VERSION.minor))
    }

    /// The same, its certificates made by firmware of this API.
    pub(super) fn of_api(oca: &SecretKey, api: (u8, u8)) -> Result<Self, IdentityError> {
        let certificate = |key_use, key: &SecretKey, signers: &[(Usage, &SecretKey)]| {
            certificate(key_use, key, signers, api)
        };
        let (cek, pek, pdh) = (new_key()?, new_key()?, new_key()?);
        let mut cek_certificate = certificate(PublicKeyUse::signing(Usage::CEK), &cek, &[])?;
        let salt = random().map_err(IdentityError::Random)?;
        sign_cek(&mut cek_certificate, &salt).map_err(IdentityError::Certificate)?;
        let oca_certificate =
            certificate(PublicKeyUse::signing(Usage::OCA), oca, &[(Usage::OCA, oca)])?;
        let pek_certificate = certificate(
            PublicKeyUse::signing(Usage::PEK),
            &pek,
            &[(Usage::OCA, oca), (Usage::CEK, &cek)],
        )?;
        let pdh_certificate =
            certificate(PublicKeyUse::DIFFIE_HELLMAN, &pdh, &[(Usage::PEK, &pek)])?;
        let chain = Chain { pek: pek_certificate, oca: oca_certificate, cek: cek_certificate };
        Ok(Self { pek, pdh, pdh_certificate, chain })
    }
}

impl Identity {
    /// The key that sessions are wrapped for.
    pub(super) fn pdh_key(&self) -> &SecretKey {
        &self.pdh
    }

    /// The key that signs attestation reports.
    pub(super) fn pek_key(&self) -> &SecretKey {
        &self.pek
    }

    /// What identifies the chip: a digest of its endorsement key's certificate.
    pub(super) fn chip_id(&self) -> [u8; ID_LEN] {
        Sha512::digest(self.chain.cek.as_bytes()).into()
    }

    /// The certificate of the key that sessions are wrapped for.
    #[must_use]
    pub fn pdh_certificate(&self) -> &Certificate {
        &self.pdh_certificate
    }

    /// What vouches for the PDH.
    #[must_use]
    pub fn chain(&self) -> &Chain {
        &self.chain
    }
}

/// An identity as it is stored.
#[repr(C)]
#[derive(FromBytes, IntoBytes, Immutable)]
struct Stored {
    magic: [u8; 8],
    pek: [u8; 48],
    pdh: [u8; 48],
    pdh_certificate: Certificate,
    chain: Chain,
}

impl Identity {
    fn encode(&self) -> Zeroizing<Vec<u8>> {
        let mut stored = Stored {
            magic: MAGIC,
            pek: self.pek.to_bytes().into(),
            pdh: self.pdh.to_bytes().into(),
            pdh_certificate: self.pdh_certificate,
            chain: self.chain,
        };
        let bytes = Zeroizing::new(stored.as_bytes().to_vec());
        stored.as_mut_bytes().zeroize();
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let mut stored = Stored::read_from_bytes(bytes).map_err(|_size| Damage::Length)?;
        if stored.magic != MAGIC {
            return Err(Damage::Magic);
        }
        let keys = (SecretKey::from_slice(&stored.pek), SecretKey::from_slice(&stored.pdh));
        let Stored { pdh_certificate, chain, .. } = stored;
        stored.as_mut_bytes().zeroize();
        let (Ok(pek), Ok(pdh)) = keys else { return Err(Damage::Keys) };
        chain.verify(&pdh_certificate)?;
        vendor_chain().verify_cek(&chain.cek)?;
        let same = pdh_certificate.diffie_hellman_key()? == pdh.public_key()
            && chain.pek.signing_key()? == pek.public_key();
        if same { Ok(Self { pek, pdh, pdh_certificate, chain }) } else { Err(Damage::Keys) }
    }
}

/// The bytes at `path`; of a longer file than an identity has, too many by one.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, IoError> {
    read_file(path, size_of::<Stored>() + 1, PIPE_PATIENCE)
}

/// Puts `bytes` at `path`, whole or not at all, readable by this user only.
fn store(path: &Path, bytes: &[u8]) -> Result<(), IoError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    let draft = path.with_extension(process::id().to_string());
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    // A link, because a rename would replace what another process has just made.
    let stored = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&draft, path));
    fs::remove_file(&draft)?;
    stored
}

impl Debug for Identity {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str("Identity(..)")
    }
}

fn new_key() -> Result<SecretKey, IdentityError> {
    random_secret_key().map_err(IdentityError::Random)
}

fn certificate(
    key_use: PublicKeyUse,
    key: &SecretKey,
    signers: &[(Usage, &SecretKey)],
    api: (u8, u8),
) -> Result<Certificate, IdentityError> {
    let mut certificate = Certificate::new(key_use, &key.public_key(), api);
    for (usage, signer) in signers {
        certificate.sign(*usage, signer).map_err(IdentityError::Certificate)?;
    }
    Ok(certificate)
}

/// Why a stored identity cannot be used.
#[derive(Debug, Error)]
pub enum Damage {
    /// Too short or too long.
    #[error("its length is wrong")]
    Length,
    /// Another kind of file, or another version.
    #[error("it does not start with {:?}", MAGIC.escape_ascii().to_string())]
    Magic,
    /// The private keys are not those of the certificates.
    #[error("its keys and certificates do not belong together")]
    Keys,
    /// The certificates do not verify.
    #[error("its certificates do not verify")]
    Certificate(#[from] BadCertificate),
    /// The CEK is not signed by the software platforms' ASK.
    #[error("its CEK is not signed by the software platforms' ASK")]
    Cek(#[from] WrongSignature),
}

/// Why a software platform has no identity.
#[derive(Debug, Error)]
pub enum IdentityError {
    /// No randomness.
    #[error("the system gave no random bytes for the software SEV platform's keys")]
    Random(#[source] RandomError),
    /// The file cannot be read or written.
    #[error("the software SEV platform's identity cannot be kept in {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        cause: IoError,
    },
    /// The file is not an identity.
    #[error("{path} is not a software SEV platform's identity; remove it to make a new one")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        cause: Damage,
    },
    /// A certificate could not be made.
    #[error("making the software SEV platform's certificates")]
    Certificate(#[source] BadCertificate),
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A directory of its own, removed at the end.
    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            Self(std::env::temp_dir().join(format!("sevferry-{name}-{}", process::id())))
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            if self.0.exists() {
                fs::remove_dir_all(&self.0).unwrap();
            }
        }
    }

    /// The second start finds the identity of the first, in a file that only this user can read.
    #[test]
    fn an_identity_is_kept() {
        use std::os::unix::fs::PermissionsExt;

        let directory = Directory::new("kept");
        let first = Identity::load_or_create(&directory.0).unwrap();
        let second = Identity::load_or_create(&directory.0).unwrap();
        assert_eq!(first.encode(), second.encode());
        let entries: Vec<_> = fs::read_dir(&directory.0).unwrap().map(Result::unwrap).collect();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].metadata().unwrap().permissions().mode() & 0o777, 0o600);
        // Another process was faster: its identity is used.
        let third = Identity::create(&directory.0.join(FILE_NAME)).unwrap();
        assert_eq!(first.encode(), third.encode());
    }

    /// A damaged file is refused and left alone.
    #[test]
    fn a_damaged_identity_is_refused() {
        let directory = Directory::new("damaged");
        let good = Identity::load_or_create(&directory.0).unwrap().encode();
        let path = directory.0.join(FILE_NAME);
        let other = Identity::ephemeral().unwrap().encode();
        let mut mixed = good.clone();
        mixed[8..104].copy_from_slice(&other[8..104]);
        let mut magic = good.clone();
        magic[7] = b'1';
        let mut certificate = good.clone();
        certificate[200] ^= 1;
        for bytes in [&good[1..], &mixed, &magic, &certificate, &[]] {
            fs::write(&path, bytes).unwrap();
            let refused = Identity::load_or_create(&directory.0);
            assert!(matches!(refused, Err(IdentityError::Damaged { .. })));
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
        // One that never ends is too long, not read to its end.
        fs::remove_file(&path).unwrap();
        symlink("/dev/zero", &path).unwrap();
        let refused = Identity::load_or_create(&directory.0);
        assert!(matches!(refused, Err(IdentityError::Damaged { cause: Damage::Length, .. })));
    }

    /// A platform vouches for its own PDH, and two platforms have nothing in common.
    #[test]
    fn each_identity_has_its_own_root() {
        let (ours, theirs) = (Identity::ephemeral().unwrap(), Identity::ephemeral().unwrap());
        ours.chain().verify(ours.pdh_certificate()).unwrap();
        assert!(ours.chain().verify(theirs.pdh_certificate()).is_err());
        assert_ne!(ours.chip_id(), theirs.chip_id());
    }
}
