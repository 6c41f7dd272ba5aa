//! A unix socket in the file system: made where no other is served, and removed in the end.
//!
//! Two processes may find the same dead socket at the same moment, and each could remove what the other has just made.
//! So a process first locks an empty file beside the socket. It holds the lock from before its first look at the path
//! until the socket is removed. The kernel releases the lock of a process that is killed.

use std::fs::{
    File, Metadata, OpenOptions, Permissions, TryLockError, remove_file, set_permissions,
    symlink_metadata,
};
use std::io::{Error as IoError, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use libc::{O_NOFOLLOW, O_NONBLOCK};
use log::debug;
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, connect, listen, socket_with,
};
use thiserror::Error;

/// Only its user may use a socket or its lock, whatever the umask.
const MODE: u32 = 0o600;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 128;

/// How often to try the lock again if its last holder removes the file at that moment.
const LOCK_TRIES: u32 = 100;

/// The socket's file. When this is dropped it is removed, unless another file has taken its place. Drop it before the
/// listener: that keeps the kernel from giving the file's inode to another file.
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    identity: Option<FileId>,
    /// Dropped last.
    _lock: Lock,
}

/// Device and inode.
type FileId = (u64, u64);

impl SocketFile {
    /// Listens at `path`. Only this user and root may connect. A socket that no process serves any more is replaced. A
    /// socket that is served, and any other file, is left alone.
    ///
    /// # Errors
    /// [`NoSocket`].
    pub fn bind(path: &Path) -> Result<(UnixListener, Self), NoSocket> {
        let lock = Lock::take(path)?;
        make_way(path)?;
        let address = SocketAddrUnix::new(path).map_err(IoError::from)?;
        // As a `File`, because that can be given a mode. The kernel makes the socket's file with this mode, so other
        // users cannot connect at any moment.
        let socket = File::from(new_socket(SocketFlags::empty())?);
        socket.set_permissions(Permissions::from_mode(MODE))?;
        bind(&socket, &address).map_err(IoError::from)?;
        let file = Self { path: path.to_owned(), identity: identity(path), _lock: lock };
        // A umask may have taken from the mode what the user needs.
        set_permissions(path, Permissions::from_mode(MODE))?;
        listen(&socket, BACKLOG).map_err(IoError::from)?;
        Ok((UnixListener::from(OwnedFd::from(socket)), file))
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        remove_if_it_is(&self.path, self.identity);
    }
}

/// The right to a socket: a lock on an empty file beside it. When this is dropped, the file is removed.
#[derive(Debug)]
struct Lock {
    path: PathBuf,
    /// Holds the lock; closed after the file is removed.
    _file: File,
    identity: FileId,
}

impl Lock {
    /// If another process holds the lock, this does not wait: that process serves the socket, or is about to.
    fn take(socket: &Path) -> Result<Self, NoSocket> {
        let mut path = socket.as_os_str().to_owned();
        path.push(".lock");
        let path = PathBuf::from(path);
        for _ in 0..LOCK_TRIES {
            let Some(file) = open_or_make(&path)? else { continue };
            let found = file.metadata()?;
            if !found.is_file() || found.len() > 0 {
                return Err(NoSocket::NotALock { path });
            }
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(NoSocket::InUse),
                Err(TryLockError::Error(cause)) => return Err(cause.into()),
            }
            // If the last holder has removed the file meanwhile, the lock on it is worth nothing.
            if identity(&path) == Some(identity_of(&found)) {
                return Ok(Self { path, _file: file, identity: identity_of(&found) });
            }
        }
        Err(NoSocket::InUse)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        remove_if_it_is(&self.path, Some(self.identity));
    }
}

/// `None` if the file came or went at that moment.
fn open_or_make(path: &Path) -> Result<Option<File>, NoSocket> {
    let mut options = OpenOptions::new();
    options.write(true).mode(MODE).custom_flags(O_NOFOLLOW | O_NONBLOCK);
    // In two steps: the kernel may refuse O_CREAT for an existing file of another user.
    let opened = match options.open(path) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => options.create_new(true).open(path),
        opened => opened,
    };
    match opened {
        Ok(file) => Ok(Some(file)),
        Err(cause) if cause.kind() == ErrorKind::AlreadyExists => Ok(None),
        // The directory does not exist.
        Err(cause) if cause.kind() == ErrorKind::NotFound => Err(cause.into()),
        Err(cause) => Err(NoSocket::Lock { path: path.to_owned(), cause }),
    }
}

fn make_way(path: &Path) -> Result<(), NoSocket> {
    match symlink_metadata(path) {
        Err(cause) if cause.kind() == ErrorKind::NotFound => return Ok(()),
        Err(cause) => return Err(cause.into()),
        Ok(found) if !found.file_type().is_socket() => return Err(NoSocket::NotASocket),
        Ok(_socket) => {}
    }
    let address = SocketAddrUnix::new(path).map_err(IoError::from)?;
    match connect(new_socket(SocketFlags::NONBLOCK)?, &address) {
        // A process listens. EAGAIN means that its queue of connections is full.
        Ok(()) | Err(Errno::AGAIN) => Err(NoSocket::InUse),
        Err(Errno::CONNREFUSED) => {
            debug!("{} was left by a process that is gone", path.display());
            Ok(remove_file(path)?)
        }
        Err(cause) => Err(IoError::from(cause).into()),
    }
}

fn new_socket(flags: SocketFlags) -> Result<OwnedFd, IoError> {
    let flags = SocketFlags::CLOEXEC | flags;
    Ok(socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?)
}

fn remove_if_it_is(path: &Path, ours: Option<FileId>) {
    if ours.is_some()
        && identity(path) == ours
        && let Err(cause) = remove_file(path)
    {
        debug!("removing {}: {cause}", path.display());
    }
}

fn identity(path: &Path) -> Option<FileId> {
    symlink_metadata(path).ok().as_ref().map(identity_of)
}

fn identity_of(found: &Metadata) -> FileId {
    (found.dev(), found.ino())
}

/// Why there is no socket.
#[derive(Debug, Error)]
pub enum NoSocket {
    /// Another process serves it.
    #[error("another process serves it, or is about to")]
    InUse,
    /// Another kind of file is there.
    #[error("it exists and is not a socket; it is left alone")]
    NotASocket,
    /// The file that should be the lock is not empty, or not a regular file.
    #[error("{} is not the empty file that is locked for it; it is left alone", path.display())]
    NotALock {
        /// The file.
        path: PathBuf,
    },
    /// The lock.
    #[error("opening {}, which is locked for it", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: IoError,
    },
    /// The host refused.
    #[error(transparent)]
    Io(#[from] IoError),
}

#[cfg(test)]
mod tests {
    use std::fs::{create_dir, read_dir, write};
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixStream;
    use std::sync::Barrier;
    use std::thread::scope;

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

    /// Of many who find a dead socket at the same moment one serves it, and the others are told so.
    #[test]
    fn a_dead_socket_is_replaced_once() {
        const STARTERS: usize = 8;
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("socket");
        for round in 0..200 {
            drop(UnixListener::bind(&path).unwrap());
            let ready = Barrier::new(STARTERS);
            let bind = || {
                ready.wait();
                SocketFile::bind(&path)
            };
            let outcomes: Vec<_> = scope(|scope| {
                let starters: Vec<_> = (0..STARTERS).map(|_| scope.spawn(bind)).collect();
                starters.into_iter().map(|starter| starter.join().unwrap()).collect()
            });
            let mut served: Vec<_> = outcomes
                .into_iter()
                .filter_map(|outcome| match outcome {
                    Ok(served) => Some(served),
                    Err(NoSocket::InUse) => None,
                    Err(other) => panic!("{other}"),
                })
                .collect();
            assert_eq!(served.len(), 1, "in round {round}");
            let (listener, file) = served.remove(0);
            let _client = UnixStream::connect(&path).unwrap();
            listener.accept().unwrap();
            drop(file);
            assert_eq!(read_dir(directory.as_path()).unwrap().count(), 0, "files are left");
        }
    }

    /// A socket belongs to its holder until it is removed, also when the holder does not listen any more. Otherwise
    /// the holder would at its end remove the socket of a process that came in between.
    #[test]
    fn a_socket_that_is_being_removed_is_still_in_use() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("socket");
        let (listener, file) = SocketFile::bind(&path).unwrap();
        drop(listener);
        assert!(matches!(SocketFile::bind(&path), Err(NoSocket::InUse)));
        drop(file);
        SocketFile::bind(&path).unwrap();
    }

    /// A process that accepts no connection, and whose queue is full, still serves its socket. A start does not wait
    /// for it.
    #[test]
    fn a_full_queue_is_a_socket_in_use() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        listen(&listener, 0).unwrap();
        for _ in 0..3 {
            assert!(matches!(SocketFile::bind(&path), Err(NoSocket::InUse)));
        }
    }

    /// What is where the lock should be, and is none, is left alone.
    #[test]
    fn nothing_but_a_lock_is_locked() {
        let directory = TempDir::new().unwrap();
        let at = |name| directory.as_path().join(name);
        write(at("one.lock"), "precious").unwrap();
        symlink("nowhere", at("two.lock")).unwrap();
        assert!(matches!(SocketFile::bind(&at("one")), Err(NoSocket::NotALock { .. })));
        assert!(matches!(SocketFile::bind(&at("two")), Err(NoSocket::Lock { .. })));
        for name in ["one.lock", "two.lock"] {
            symlink_metadata(at(name)).unwrap();
        }
        // What a killed process leaves.
        write(at("three.lock"), "").unwrap();
        SocketFile::bind(&at("three")).unwrap();
    }

    /// A file that has taken the socket's place is not removed.
    #[test]
    fn a_replaced_socket_is_left_alone() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("socket");
        let (_served, file) = SocketFile::bind(&path).unwrap();
        remove_file(&path).unwrap();
        write(&path, "precious").unwrap();
        drop(file);
        assert!(path.exists());
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
