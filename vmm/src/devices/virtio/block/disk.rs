//! What a disk is at the host: a raw file or a block device, opened, measured and locked.

use std::fs::{File, OpenOptions};
use std::io::{Error as IoError, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Advice, fadvise};
use thiserror::Error;

use super::arena::Arena;
use super::lock::{Hold, hold};

/// virtio counts in these, whatever the blocks are.
pub(super) const SECTOR: u64 = 512;

/// Most queues of a disk.
pub const QUEUES_MAX: u16 = 16;

/// Block sizes that `O_DIRECT` may want.
const BLOCKS: [u32; 4] = [512, 1024, 2048, 4096];

/// What a disk is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskOptions {
    /// A raw file or a block device.
    pub path: PathBuf,
    /// Its name, for people, and to find its counterpart by when the guest moves.
    pub id: String,
    /// What the guest reads as its serial number: at most 20 bytes of ASCII.
    pub serial: String,
    /// The guest cannot write, and nor can we.
    pub readonly: bool,
    /// Past the host's page cache.
    pub direct: bool,
    /// How many queues: 1 to [`QUEUES_MAX`].
    pub queues: u16,
}

/// A disk that is open, and not locked yet.
#[derive(Debug)]
pub struct Disk {
    options: DiskOptions,
    file: Arc<File>,
    /// Sectors of 512 bytes.
    sectors: u64,
    /// Bytes of a block: requests are multiples of it.
    block: u32,
    is_locked: bool,
}

impl Disk {
    /// Opens it. The guest may not run before it is locked.
    ///
    /// # Errors
    /// [`NoDisk`].
    pub fn open(options: DiskOptions) -> Result<Self, NoDisk> {
        let path = options.path.clone();
        let failed = |cause| NoDisk::Open { path: path.clone(), cause };
        let flags = if options.direct { libc::O_DIRECT } else { 0 };
        let opened =
            OpenOptions::new().read(true).write(!options.readonly).custom_flags(flags).open(&path);
        let file = opened.map_err(|cause| {
            let is_refused = options.direct && cause.kind() == ErrorKind::InvalidInput;
            if is_refused { NoDisk::Direct { path: path.clone() } } else { failed(cause) }
        })?;
        let kind = file.metadata().map_err(failed)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(NoDisk::Kind { path });
        }
        let block = if options.direct { block_of(&file, &path)? } else { 512 };
        let sectors = sectors_of(&file, block).map_err(failed)?;
        if sectors == 0 {
            return Err(NoDisk::Empty { path });
        }
        Ok(Self { options, file: Arc::new(file), sectors, block, is_locked: false })
    }

    /// Locks it, for this host's guest to run.
    ///
    /// # Errors
    /// [`NoDisk::Held`], [`NoDisk::Lock`].
    pub(super) fn lock(&mut self) -> Result<(), NoDisk> {
        if self.is_locked {
            return Ok(());
        }
        let path = || self.path().to_owned();
        let (wanted, others) = if self.options.readonly {
            (Hold::Shared, "write to it")
        } else {
            (Hold::Alone, "use it")
        };
        hold(&self.file, wanted).map_err(|cause| match cause.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => NoDisk::Held { path: path(), others },
            _ => NoDisk::Lock { path: path(), cause },
        })?;
        // What this host has of it from before is not what another has written since.
        fadvise(&*self.file, 0, None, Advice::DontNeed).unwrap_or_default();
        self.is_locked = true;
        Ok(())
    }

    /// Unlocks it: another host's guest is to run. All is written by now.
    pub(super) fn unlock(&mut self) {
        if std::mem::take(&mut self.is_locked)
            && let Err(cause) = hold(&self.file, Hold::Free)
        {
            log::warn!("unlocking {}: {cause}", self.path().display());
        }
    }

    /// Keeps the lock until the process ends, whatever becomes of this: the storage may write late.
    pub(super) fn stay_locked(&mut self) {
        if std::mem::take(&mut self.is_locked) {
            std::mem::forget(Arc::clone(&self.file));
        }
    }

    /// Whether it is locked.
    pub(super) fn is_locked(&self) -> bool {
        self.is_locked
    }

    pub(super) fn path(&self) -> &Path {
        &self.options.path
    }

    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    pub(super) fn options(&self) -> &DiskOptions {
        &self.options
    }

    /// Sectors of 512 bytes.
    pub(super) fn sectors(&self) -> u64 {
        self.sectors
    }

    /// Bytes of a block.
    pub(super) fn block(&self) -> u32 {
        self.block
    }

    /// Makes a file so many bytes, not fewer than it has; then, or without a number, looks how large it
    /// is. Returns whether that is new.
    pub(super) fn resize(&mut self, bytes: Option<u64>) -> Result<bool, NotResized> {
        if let Some(bytes) = bytes {
            let metadata = self.file.metadata()?;
            if self.options.readonly || !metadata.is_file() {
                return Err(NotResized::NotOurs);
            }
            if bytes < metadata.len() || !bytes.is_multiple_of(u64::from(self.block)) {
                return Err(NotResized::Bytes { bytes, now: metadata.len(), block: self.block });
            }
            self.file.set_len(bytes)?;
        }
        let sectors = sectors_of(&self.file, self.block)?;
        if sectors < self.sectors {
            return Err(NotResized::Shrunk { sectors, before: self.sectors });
        }
        Ok(std::mem::replace(&mut self.sectors, sectors) != sectors)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // An io_uring that goes keeps the file a moment longer.
        self.unlock();
    }
}

/// Whole blocks, in sectors.
fn sectors_of(mut file: &File, block: u32) -> Result<u64, IoError> {
    let bytes = file.seek(SeekFrom::End(0))?;
    Ok((bytes - bytes % u64::from(block)) / SECTOR)
}

/// The smallest block that can be read by itself, as whatever is below says it: by doing so.
fn block_of(file: &File, path: &Path) -> Result<u32, NoDisk> {
    let failed = |cause| NoDisk::Open { path: path.to_owned(), cause };
    let arena = Arena::new(64).map_err(|cause| failed(IoError::other(cause)))?;
    for block in BLOCKS {
        let Some(mut slot) = arena.take(block as usize) else { break };
        match file.read_at(slot.bytes_mut(), u64::from(block)) {
            Ok(_) => return Ok(block),
            Err(cause) if cause.kind() == ErrorKind::InvalidInput => {}
            Err(cause) => return Err(failed(cause)),
        }
    }
    Err(NoDisk::Direct { path: path.to_owned() })
}

/// Not a disk.
#[derive(Debug, Error)]
pub enum NoDisk {
    /// It cannot be opened.
    #[error("opening {} for the guest's disk", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: IoError,
    },
    /// Neither a file nor a block device.
    #[error("{} is neither a file nor a block device", path.display())]
    Kind {
        /// The path.
        path: PathBuf,
    },
    /// Without a single block.
    #[error("{} is empty: make it as large as the disk is to be, with truncate -s", path.display())]
    Empty {
        /// The path.
        path: PathBuf,
    },
    /// No `O_DIRECT`.
    #[error("{} cannot be read past the page cache: leave out direct=on", path.display())]
    Direct {
        /// The path.
        path: PathBuf,
    },
    /// Somebody else has it.
    #[error("{} is in use: somebody else has locked it, and only one guest may {others}", path.display())]
    Held {
        /// The path.
        path: PathBuf,
        /// What others cannot do.
        others: &'static str,
    },
    /// A file system without locks.
    #[error("locking {}: does its file system have locks?", path.display())]
    Lock {
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: IoError,
    },
    /// Nothing to do its work.
    #[error("starting what reads and writes {}", path.display())]
    Engine {
        /// The path.
        path: PathBuf,
        /// Why not.
        #[source]
        cause: IoError,
    },
}

/// A disk keeps its size.
#[derive(Debug, Error)]
pub enum NotResized {
    /// No such disk.
    #[error("there is no disk {id:?}; their names are what id= says, or disk0, disk1 and so on")]
    Nobody {
        /// Who was asked for.
        id: String,
    },
    /// Something else.
    #[error("it is no disk")]
    NoDisk,
    /// A block device, or a disk that is only read.
    #[error(
        "only a file that the guest may write is made larger here; change what is below the disk, then \
         leave out the size"
    )]
    NotOurs,
    /// Fewer bytes, or no whole blocks.
    #[error("{bytes} bytes: a disk of {now} bytes can only grow, by whole blocks of {block} bytes")]
    Bytes {
        /// Asked for.
        bytes: u64,
        /// What it has.
        now: u64,
        /// Of its blocks.
        block: u32,
    },
    /// The host has taken something away from it.
    #[error("it has {sectors} sectors now, and had {before}: give it its size back")]
    Shrunk {
        /// Now.
        sectors: u64,
        /// Before.
        before: u64,
    },
    /// The host does not.
    #[error("the size of the disk")]
    Host(#[from] IoError),
}
