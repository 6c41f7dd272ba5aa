//! The record of a handover that survives a crash of the host: one small file per guest and side.
//!
//! `<directory>/<guest>.source.journal` and `<guest>.destination.journal` hold a line per step,
//! as text:
//!
//! ```text
//! 2 <checksum> <guest> <epoch> <secret> <step> <peer>
//! ```
//!
//! The checksum is XXH3 of the rest of the line. When [`Journal::append`] returns, the line is durable, in a file
//! that the next process will find. A crash may leave a torn last line: it was never reported as written, and is
//! dropped. Lines that are needed no more are removed ([`Journal::forget`]).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{Error as IoError, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::from_utf8;

use log::{debug, warn};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use twox_hash::XxHash3_64;

use super::step::Step;
use crate::migration::wire::{Secret, Transfer, VmId};
use crate::text::chain_of;

/// Bytes of the longest journal that is read. A handover adds less than 1,200.
const JOURNAL_BYTES_MAX: u64 = 1 << 20;

/// Bytes that the lines of a handover may take.
const RESERVED_BYTES: u64 = 4096;

/// Bytes of a peer's address that are kept.
const PEER_BYTES_MAX: usize = 256;

/// Version of a line.
const VERSION: &str = "2";

/// The side of a handover that a journal belongs to. One host can be both sides of one guest's handover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// It had the guest.
    Source,
    /// It gets the guest.
    Destination,
}

impl Side {
    fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }
}

/// A line of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Which handover.
    pub transfer: Transfer,
    /// The key of the proofs of all words about it.
    pub secret: Secret,
    /// What was decided.
    pub step: Step,
    /// The other side's address, for people and for connecting again.
    pub peer: String,
}

/// A guest's journal, open for writing. No other process has it open.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    records: Vec<Record>,
    /// Bytes of the file that hold `records`. What is behind them does not count.
    length: u64,
    /// Whether there may be bytes beyond `length`.
    is_torn: bool,
}

impl Journal {
    /// Opens the journal of `vm` in `directory`, or begins it. A journal without lines leaves no file, because a
    /// peer can name any number of guests.
    ///
    /// # Errors
    /// [`JournalError`] if the directory cannot be written, the file is another's, or it is damaged.
    pub fn open(directory: &Path, vm: VmId, side: Side) -> Result<Self, JournalError> {
        let path = path_of(directory, vm, side);
        let failed = |doing| failed(doing, &path);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file =
            options.custom_flags(libc::O_NOFOLLOW).open(&path).map_err(failed("opening"))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(JournalError::InUse { path }),
            Err(TryLockError::Error(cause)) => return Err(failed("locking")(cause)),
        }
        // The process that had it may have removed it after we opened it and before we locked it.
        if !is_file_at(&file, &path).map_err(failed("looking for"))? {
            return Err(JournalError::InUse { path });
        }
        let bytes = read_bounded(&mut file, &path)?;
        // A file with lines was made durable before its first line was written.
        if bytes.is_empty() {
            let sync = File::open(directory).and_then(|directory| directory.sync_all());
            sync.map_err(failed("making durable the directory of"))?;
        }
        let (records, length) = parse(&bytes, &path)?;
        let is_torn = length < bytes.len();
        let mut journal = Self { path, file, records, length: length as u64, is_torn };
        journal.trim()?;
        Ok(journal)
    }

    /// Reads the journal of `vm` without keeping it; a journal that does not exist is empty.
    ///
    /// # Errors
    /// [`JournalError`] if it cannot be read or is damaged.
    pub fn read(directory: &Path, vm: VmId, side: Side) -> Result<Vec<Record>, JournalError> {
        let path = path_of(directory, vm, side);
        let opened = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path);
        let mut file = match opened {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(failed("opening", &path)(error)),
        };
        let bytes = read_bounded(&mut file, &path)?;
        parse(&bytes, &path).map(|(records, _length)| records)
    }

    /// Every guest with a journal of this side in `directory`, in the order of their identities.
    ///
    /// # Errors
    /// [`JournalError`] if the directory cannot be read.
    pub fn guests(directory: &Path, side: Side) -> Result<Vec<VmId>, JournalError> {
        let failed = failed("listing", directory);
        let suffix = format!(".{}.journal", side.name());
        let mut guests = Vec::new();
        for entry in directory.read_dir().map_err(&failed)? {
            let name = entry.map_err(&failed)?.file_name();
            let text = name.to_str().and_then(|name| name.strip_suffix(&suffix));
            let vm = text.and_then(|text| text.parse::<VmId>().ok());
            guests.extend(vm);
        }
        guests.sort_unstable();
        Ok(guests)
    }

    /// Reserves room for the lines of a handover, where the file system can.
    ///
    /// # Errors
    /// [`JournalError`] if there is none.
    pub fn reserve(&self) -> Result<(), JournalError> {
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, self.length, RESERVED_BYTES) {
            Ok(()) => Ok(()),
            Err(cause @ (Errno::OPNOTSUPP | Errno::NOSYS)) => {
                debug!("no room can be reserved for {}: {cause}", self.path.display());
                Ok(())
            }
            Err(cause) => Err(failed("reserving room for", &self.path)(cause.into())),
        }
    }

    /// Appends a line. When this returns, the line survives a crash of the host, and the next process finds it.
    ///
    /// # Errors
    /// [`JournalError`] if it could not be written. The line was then removed as far as the disk allows, and does
    /// not count for this process.
    pub fn append(
        &mut self,
        transfer: Transfer,
        secret: Secret,
        step: Step,
        peer: &str,
    ) -> Result<(), JournalError> {
        self.trim()?;
        let record = Record { transfer, secret, step, peer: printable(peer) };
        let line = line(&record);
        if let Err(cause) = self.write(&line) {
            self.is_torn = true;
            // If even this fails, the next append tries again before it writes.
            let taken_back = self.trim();
            debug!("taking back a line of {}: {taken_back:?}", self.path.display());
            return Err(cause);
        }
        self.length += line.len() as u64;
        self.records.push(record);
        Ok(())
    }

    /// The file may have been moved or removed since it was opened. Then the next process would not find the line.
    fn write(&self, line: &str) -> Result<(), JournalError> {
        let written = self.file.write_all_at(line.as_bytes(), self.length);
        written.and_then(|()| self.file.sync_all()).map_err(failed("writing", &self.path))?;
        if is_file_at(&self.file, &self.path).map_err(failed("looking for", &self.path))? {
            return Ok(());
        }
        Err(JournalError::Moved { path: self.path.clone() })
    }

    /// Removes the lines of `transfer` from the end: they are needed no more. A journal without lines is removed
    /// when it is closed.
    ///
    /// # Errors
    /// [`JournalError`] if the file cannot be cut. The lines stay, and stay true.
    pub fn forget(&mut self, transfer: Transfer) -> Result<(), JournalError> {
        let of_others = self.records.iter().rposition(|record| record.transfer != transfer);
        let kept = of_others.map_or(0, |last| last + 1);
        if kept == self.records.len() {
            return Ok(());
        }
        self.records.truncate(kept);
        self.length = self.records.iter().map(|record| line(record).len() as u64).sum();
        self.is_torn = true;
        if kept == 0 { Ok(()) } else { self.trim() }
    }

    /// Moves it to a name that is not read at start. All of it is settled on this host, but a person who has to
    /// decide on the other host may want to read it.
    ///
    /// # Errors
    /// [`JournalError`] if it cannot be moved.
    pub fn set_aside(self) -> Result<(), JournalError> {
        let Some(last) = self.records.last() else { return Ok(()) };
        let aside = self.path.with_extension(format!("{}.settled", last.transfer.epoch));
        fs::rename(&self.path, aside).map_err(failed("setting aside", &self.path))
    }

    /// Every line, oldest first.
    #[must_use]
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    /// The last line about `transfer`.
    #[must_use]
    pub fn last(&self, transfer: Transfer) -> Option<&Record> {
        last(&self.records, transfer)
    }

    /// Removes what a failed write may have left.
    fn trim(&mut self) -> Result<(), JournalError> {
        if self.is_torn {
            let trimmed = self.file.set_len(self.length).and_then(|()| self.file.sync_all());
            trimmed.map_err(failed("removing a torn line from", &self.path))?;
            self.is_torn = false;
        }
        Ok(())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // It is locked until it is closed, so no other process has begun to write to it. By now another file may
        // have its name.
        if self.records.is_empty() && is_file_at(&self.file, &self.path).unwrap_or(false) {
            fs::remove_file(&self.path).unwrap_or_else(|cause| {
                debug!("removing the empty {}: {cause}", self.path.display());
            });
        }
    }
}

/// This transfer's lines are needed no more. If they cannot be removed, they do no harm.
pub(crate) fn forget(journal: &mut Journal, transfer: Transfer) {
    if let Err(cause) = journal.forget(transfer) {
        warn!("{}", chain_of(&cause));
    }
}

/// Whether `path` still leads to `file`.
fn is_file_at(file: &File, path: &Path) -> Result<bool, IoError> {
    let ours = file.metadata()?;
    match fs::symlink_metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The last line about `transfer` in `records`.
#[must_use]
pub fn last(records: &[Record], transfer: Transfer) -> Option<&Record> {
    records.iter().rev().find(|record| record.transfer == transfer)
}

fn path_of(directory: &Path, vm: VmId, side: Side) -> PathBuf {
    directory.join(format!("{vm}.{}.journal", side.name()))
}

fn failed(doing: &'static str, path: &Path) -> impl Fn(IoError) -> JournalError + use<> {
    let path = path.to_owned();
    move |cause| JournalError::Io { doing, path: path.clone(), cause }
}

fn read_bounded(file: &mut File, path: &Path) -> Result<Vec<u8>, JournalError> {
    let mut bytes = Vec::new();
    let read = file.take(JOURNAL_BYTES_MAX + 1).read_to_end(&mut bytes);
    if read.map_err(failed("reading", path))? as u64 > JOURNAL_BYTES_MAX {
        return Err(JournalError::TooLong { path: path.to_owned() });
    }
    Ok(bytes)
}

/// An address on one line, short.
fn printable(peer: &str) -> String {
    let is_kept = |char: &char| !char.is_control() && char.is_ascii();
    peer.chars().filter(is_kept).take(PEER_BYTES_MAX).collect()
}

fn line(record: &Record) -> String {
    let Record { transfer: Transfer { vm, epoch }, secret, step, peer } = record;
    let text = format!("{vm} {epoch} {secret} {} {peer}", step_name(*step));
    format!("{VERSION} {:016x} {text}\n", XxHash3_64::oneshot(text.as_bytes()))
}

/// The records, and how many bytes they take. Behind them is one torn line or nothing.
fn parse(bytes: &[u8], path: &Path) -> Result<(Vec<Record>, usize), JournalError> {
    let mut records = Vec::new();
    let mut length = 0;
    for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let number = index + 1;
        match parse_line(line) {
            Ok(record) => records.push(record),
            Err(BadLine::Version) => {
                return Err(JournalError::Version { path: path.to_owned(), line: number });
            }
            Err(BadLine::Torn) if length + line.len() == bytes.len() => break,
            Err(BadLine::Torn) => {
                return Err(JournalError::Damaged { path: path.to_owned(), line: number });
            }
        }
        length += line.len();
    }
    Ok((records, length))
}

enum BadLine {
    Version,
    Torn,
}

fn parse_line(line: &[u8]) -> Result<Record, BadLine> {
    let line = line.strip_suffix(b"\n").and_then(|line| from_utf8(line).ok());
    let (version, rest) = line.and_then(|line| line.split_once(' ')).ok_or(BadLine::Torn)?;
    let (checksum, text) = rest.split_once(' ').ok_or(BadLine::Torn)?;
    if format!("{:016x}", XxHash3_64::oneshot(text.as_bytes())) != checksum {
        return Err(BadLine::Torn);
    }
    if version != VERSION {
        return Err(BadLine::Version);
    }
    parse_record(text).ok_or(BadLine::Torn)
}

fn parse_record(text: &str) -> Option<Record> {
    let mut words = text.splitn(5, ' ');
    let vm = words.next()?.parse().ok()?;
    let epoch = words.next()?.parse().ok()?;
    let secret = words.next()?.parse().ok()?;
    let name = words.next()?;
    let step = STEPS.into_iter().find(|step| step_name(*step) == name)?;
    let peer = words.next()?.to_owned();
    Some(Record { transfer: Transfer { vm, epoch }, secret, step, peer })
}

const STEPS: [Step; 6] =
    [Step::Committed, Step::Kept, Step::Released, Step::Accepted, Step::Owner, Step::Discarded];

fn step_name(step: Step) -> &'static str {
    match step {
        Step::Committed => "committed",
        Step::Kept => "kept",
        Step::Released => "released",
        Step::Accepted => "accepted",
        Step::Owner => "owner",
        Step::Discarded => "discarded",
    }
}

/// Why a journal cannot be used.
#[derive(Debug, Error)]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum JournalError {
    /// The file system refused.
    #[error("{doing} the journal {path}")]
    Io {
        doing: &'static str,
        path: PathBuf,
        #[source]
        cause: IoError,
    },
    /// The next process would not find a line.
    #[error("the journal {path} was moved or removed while it was in use: put it back")]
    Moved { path: PathBuf },
    /// Another process has it.
    #[error("the journal {path} is in use: is the guest being moved by another process?")]
    InUse { path: PathBuf },
    /// Longer than any journal can be.
    #[error("the journal {path} is longer than 1 MiB: it is not one, or it must be moved away")]
    TooLong { path: PathBuf },
    /// A line that is not the last has a wrong checksum.
    #[error(
        "line {line} of the journal {path} is damaged: read it, and the peer's, to find who owns the guest; then move it away"
    )]
    Damaged { path: PathBuf, line: usize },
    /// A line of another program.
    #[error(
        "line {line} of the journal {path} was written by another version of this program: finish with that what it began, then move it away"
    )]
    Version { path: PathBuf, line: usize },
}

#[cfg(test)]
#[path = "journal_tests.rs"]
mod tests;
