//! What a journal remembers, and what it does not let happen.

use std::env::temp_dir;
use std::fs::{create_dir, metadata, read, remove_dir_all, remove_file, rename, write};
use std::os::unix::fs::{PermissionsExt, symlink};

use super::*;

const VM: VmId = VmId([9; 16]);
const TRANSFER: Transfer = Transfer { vm: VM, epoch: 2 };
const EARLIER: Transfer = Transfer { vm: VM, epoch: 1 };
const SECRET: Secret = Secret([0x5a; 16]);

struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = temp_dir().join(format!("sevferry-journal-{}", VmId::random().unwrap()));
        create_dir(&path).unwrap();
        Self(path)
    }

    fn open(&self) -> Result<Journal, JournalError> {
        Journal::open(&self.0, VM, Side::Source)
    }

    fn file(&self) -> PathBuf {
        path_of(&self.0, VM, Side::Source)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(remove_dir_all(&self.0));
    }
}

/// A journal of two lines, as bytes.
fn two_lines(folder: &Folder) -> Vec<u8> {
    let mut journal = folder.open().unwrap();
    journal.append(TRANSFER, SECRET, Step::Committed, "tcp:10.0.0.2:4000").unwrap();
    journal.append(TRANSFER, SECRET, Step::Released, "tcp:10.0.0.2:4000").unwrap();
    read(folder.file()).unwrap()
}

fn step_of(journal: &Journal) -> Option<Step> {
    journal.last(TRANSFER).map(|last| last.step)
}

/// What was appended is there for the next process, and no one else can read it.
#[test]
fn steps_outlive_the_process() {
    let folder = Folder::new();
    assert_eq!(Journal::read(&folder.0, VM, Side::Source).unwrap(), []);
    two_lines(&folder);
    let journal = folder.open().unwrap();
    let steps: Vec<_> = journal.records().iter().map(|record| record.step).collect();
    assert_eq!(steps, [Step::Committed, Step::Released]);
    assert_eq!(journal.records()[0].peer, "tcp:10.0.0.2:4000");
    assert_eq!(
        journal.last(TRANSFER).map(|last| (last.step, last.secret)),
        Some((Step::Released, SECRET))
    );
    assert_eq!(journal.last(EARLIER), None);
    assert_eq!(Journal::read(&folder.0, VM, Side::Source).unwrap(), journal.records());
    assert_eq!(metadata(folder.file()).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(Journal::guests(&folder.0, Side::Source).unwrap(), [VM]);
    assert_eq!(Journal::guests(&folder.0, Side::Destination).unwrap(), []);
}

/// A guest that was only named leaves nothing behind; a journal with a line stays. A file that was
/// replaced is not the journal any more.
#[test]
fn a_journal_without_a_line_leaves_no_file() {
    let folder = Folder::new();
    let journal = folder.open().unwrap();
    let file = File::open(folder.file()).unwrap();
    assert!(is_file_at(&file, &folder.file()).unwrap());
    drop(journal);
    assert_eq!(Journal::guests(&folder.0, Side::Source).unwrap(), []);
    assert!(!is_file_at(&file, &folder.file()).unwrap());
    two_lines(&folder);
    assert!(!is_file_at(&file, &folder.file()).unwrap());
    assert_eq!(Journal::guests(&folder.0, Side::Source).unwrap(), [VM]);
}

/// Cut anywhere, a journal keeps its whole lines, and the next step follows them.
#[test]
fn a_torn_last_line_is_dropped() {
    let folder = Folder::new();
    let whole = two_lines(&folder);
    let first = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for cut in 0..whole.len() {
        write(folder.file(), &whole[..cut]).unwrap();
        let mut journal = folder.open().unwrap();
        assert_eq!(journal.records().len(), usize::from(cut >= first), "cut at {cut}");
        journal.append(TRANSFER, SECRET, Step::Kept, "").unwrap();
        drop(journal);
        assert_eq!(step_of(&folder.open().unwrap()), Some(Step::Kept), "cut at {cut}");
    }
    // A file system may also leave a line of the right length and the wrong content.
    let mut zeroed = whole.clone();
    zeroed[first..].fill(0);
    write(folder.file(), &zeroed).unwrap();
    assert_eq!(step_of(&folder.open().unwrap()), Some(Step::Committed));
}

/// Damage before the last line is no crash's doing, and is not guessed away.
#[test]
fn damage_is_refused() {
    let folder = Folder::new();
    let mut bytes = two_lines(&folder);
    bytes[30] ^= 1;
    write(folder.file(), &bytes).unwrap();
    assert!(matches!(folder.open(), Err(JournalError::Damaged { line: 1, .. })));
    bytes[30] ^= 1;
    bytes[0] = b'1';
    write(folder.file(), &bytes).unwrap();
    assert!(matches!(folder.open(), Err(JournalError::Version { line: 1, .. })));
    write(folder.file(), vec![b'\n'; 2 << 20]).unwrap();
    assert!(matches!(folder.open(), Err(JournalError::TooLong { .. })));
}

/// Two processes cannot both decide, and a symbolic link is not followed.
#[test]
fn a_journal_has_one_writer_and_no_links() {
    let folder = Folder::new();
    let first = folder.open().unwrap();
    assert!(matches!(folder.open(), Err(JournalError::InUse { .. })));
    Journal::open(&folder.0, VM, Side::Destination).unwrap();
    drop(first);
    folder.open().unwrap();
    symlink("/dev/null", folder.file()).unwrap();
    assert!(matches!(folder.open(), Err(JournalError::Io { doing: "opening", .. })));
    assert!(matches!(
        Journal::open(&folder.0.join("missing"), VM, Side::Source),
        Err(JournalError::Io { doing: "opening", .. })
    ));
}

/// A step that could not be written does not count, and does not spoil the next.
#[test]
fn a_failed_write_is_taken_back() {
    let folder = Folder::new();
    two_lines(&folder);
    let mut journal = folder.open().unwrap();
    let writable = journal.file.try_clone().unwrap();
    journal.file = File::open(folder.file()).unwrap();
    let refused = journal.append(TRANSFER, SECRET, Step::Kept, "").unwrap_err();
    assert!(matches!(refused, JournalError::Io { doing: "writing", .. }), "{refused}");
    assert_eq!(step_of(&journal), Some(Step::Released));
    // What the failed write may have left, now that the disk works again:
    writable.write_all_at(b"1 half a li", journal.length).unwrap();
    journal.file = writable;
    journal.append(TRANSFER, SECRET, Step::Kept, "").unwrap();
    drop(journal);
    let records = Journal::read(&folder.0, VM, Side::Source).unwrap();
    assert_eq!(records.len(), 3);
    assert_eq!(last(&records, TRANSFER).unwrap().step, Step::Kept);
}

/// An address cannot write lines of its own.
#[test]
fn an_address_is_one_short_line() {
    let folder = Folder::new();
    let mut journal = folder.open().unwrap();
    journal.append(TRANSFER, SECRET, Step::Owner, &format!("a\nb c{}", "d".repeat(999))).unwrap();
    drop(journal);
    let records = Journal::read(&folder.0, VM, Side::Source).unwrap();
    assert_eq!(records.len(), 1);
    assert!(records[0].peer.starts_with("ab cd") && records[0].peer.len() == 256);
}

/// A line that no name leads to is not written down: the next process would not find it. What has
/// taken the file's place is another's, and is left alone.
#[test]
fn a_journal_that_was_moved_takes_no_line() {
    let folder = Folder::new();
    let aside = folder.0.join("aside");
    for replaced in [false, true] {
        let mut journal = folder.open().unwrap();
        journal.append(TRANSFER, SECRET, Step::Committed, "").unwrap();
        let before = read(folder.file()).unwrap();
        rename(folder.file(), &aside).unwrap();
        if replaced {
            write(folder.file(), b"").unwrap();
        }
        let refused = journal.append(TRANSFER, SECRET, Step::Released, "").unwrap_err();
        assert!(matches!(refused, JournalError::Moved { .. }), "{refused}");
        assert_eq!(step_of(&journal), Some(Step::Committed));
        assert_eq!(read(&aside).unwrap(), before, "the line was taken back");
        journal.forget(TRANSFER).unwrap();
        drop(journal);
        assert_eq!(folder.file().exists(), replaced);
        // Back in its place it is the journal again.
        rename(&aside, folder.file()).unwrap();
        assert_eq!(step_of(&folder.open().unwrap()), Some(Step::Committed));
        remove_file(folder.file()).unwrap();
    }
}

/// Lines that are needed no more are removed, and the file with them if it has no others. Lines about another attempt
/// stay.
#[test]
fn what_is_settled_is_forgotten() {
    let folder = Folder::new();
    let mut journal = folder.open().unwrap();
    journal.append(TRANSFER, SECRET, Step::Accepted, "source").unwrap();
    journal.append(TRANSFER, SECRET, Step::Owner, "source").unwrap();
    journal.forget(EARLIER).unwrap();
    assert_eq!(step_of(&journal), Some(Step::Owner));
    journal.forget(TRANSFER).unwrap();
    assert_eq!(journal.records(), []);
    drop(journal);
    assert!(!folder.file().exists());
    let mut journal = folder.open().unwrap();
    journal.append(EARLIER, SECRET, Step::Owner, "source").unwrap();
    let kept = read(folder.file()).unwrap();
    journal.append(TRANSFER, SECRET, Step::Accepted, "source").unwrap();
    journal.forget(TRANSFER).unwrap();
    assert_eq!(read(folder.file()).unwrap(), kept);
    // It can be written to as before.
    journal.append(TRANSFER, SECRET, Step::Accepted, "source").unwrap();
    drop(journal);
    let steps = Journal::read(&folder.0, VM, Side::Source).unwrap();
    let steps: Vec<_> = steps.iter().map(|record| (record.transfer, record.step)).collect();
    assert_eq!(steps, [(EARLIER, Step::Owner), (TRANSFER, Step::Accepted)]);
}

/// What is set aside is there for a person, under its attempt's number, and for no start.
#[test]
fn what_is_set_aside_is_not_listed() {
    let folder = Folder::new();
    two_lines(&folder);
    folder.open().unwrap().set_aside().unwrap();
    assert_eq!(Journal::guests(&folder.0, Side::Source).unwrap(), []);
    assert!(folder.file().with_extension("2.settled").exists());
}

/// Room is had before anything depends on it, and costs the file no byte.
#[test]
fn room_is_reserved() {
    let folder = Folder::new();
    let journal = folder.open().unwrap();
    journal.reserve().unwrap();
    let reserved = metadata(folder.file()).unwrap();
    assert_eq!(reserved.len(), 0);
    assert!(reserved.blocks() * 512 >= RESERVED_BYTES, "{} blocks", reserved.blocks());
}
