//! A unix socket in the file system: made where no other is served, and removed in the end.

use std::fs::{remove_file, symlink_metadata};
use std::io::{Error as IoError, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use log::debug;
use thiserror::Error;

/// The file; dropped, it is removed, unless something else has taken its place. To be dropped before
/// the listener, which keeps the kernel from giving the file's inode to another.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Option<Identity>,
}

/// Device and inode.
type Identity = (u64, u64);

impl SocketFile {
    /// Listens at `path`. A socket that nobody serves any more is replaced; one that is served, and
    /// anything else that is there, is left alone.
    ///
    /// # Errors
    /// [`NoSocket`].
    pub fn bind(path: &Path) -> Result<(UnixListener, Self), NoSocket> {
        make_way(path)?;
        let listener = UnixListener::bind(path)?;
        Ok((listener, Self { path: path.to_owned(), identity: identity(path) }))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some()
            && identity(&self.path) == self.identity
            && let Err(cause) = remove_file(&self.path)
        {
            debug!("removing {}: {cause}", self.path.display());
        }
    }
}

fn make_way(path: &Path) -> Result<(), NoSocket> {
    match symlink_metadata(path) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(cause.into()),
        Ok(found) if !found.file_type().is_socket() => return Err(NoSocket::NotASocket),
        Ok(_socket) => {}
    }
    match UnixStream::connect(path) {
        Ok(_served) => Err(NoSocket::InUse),
        Err(cause) if cause.kind() == ErrorKind::ConnectionRefused => {
            debug!("{} was left by a process that is gone", path.display());
            Ok(remove_file(path)?)
        }
        Err(cause) => Err(cause.into()),
    }
}

fn identity(path: &Path) -> Option<Identity> {
    symlink_metadata(path).ok().map(|found| (found.dev(), found.ino()))
}

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum NoSocket {
    /// Another process serves it.
    #[error("another process serves it")]
    InUse,
    /// It is something else.
    #[error("it exists and is not a socket; it is left alone")]
    NotASocket,
    /// The host refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir, write};
    use std::os::unix::fs::symlink;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    /// A socket that a dead process left is replaced; one that is served is not.
    #[test]
    fn only_dead_sockets_are_replaced() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let (_served, file) = SocketFile::bind(&path).unwrap();
        assert!(matches!(SocketFile::bind(&path), Err(NoSocket::InUse)));
        drop(file);
        assert!(!path.exists());
    }

    /// What has taken the place of a socket is somebody else's to remove.
    #[test]
    fn a_replaced_socket_is_left_alone() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("socket");
        let (_served, file) = SocketFile::bind(&path).unwrap();
        remove_file(&path).unwrap();
        let (_next, next) = SocketFile::bind(&path).unwrap();
        drop(file);
        assert!(path.exists());
        drop(next);
        assert!(!path.exists());
    }

    /// What is not a socket is left alone, and links are not followed.
    #[test]
    fn nothing_but_a_socket_is_replaced() {
        let directory = TempDir::new().unwrap();
        let at = |name| directory.as_path().join(name);
        let (_served, _file) = SocketFile::bind(&at("socket")).unwrap();
        write(at("file"), "precious").unwrap();
        create_dir(at("folder")).unwrap();
        symlink(at("socket"), at("link")).unwrap();
        symlink("nowhere", at("dangling")).unwrap();
        for name in ["file", "folder", "link", "dangling"] {
            assert!(matches!(SocketFile::bind(&at(name)), Err(NoSocket::NotASocket)), "{name}");
            symlink_metadata(at(name)).unwrap();
        }
        assert!(matches!(SocketFile::bind(&at("no/such")), Err(NoSocket::Io(_))));
    }
}
