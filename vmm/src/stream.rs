//! Reads and writes files and streams that other processes may share: pipes and terminals that are slow or full.
//!
//! Several processes may hold one terminal or pipe, and each can make it blocking or non-blocking for all of them. So
//! nothing here relies on either: a call that would block, or that returns `EAGAIN`, is made again when the stream is
//! ready. Opening a pipe does not wait for its other end.

use std::fs::{File, OpenOptions};
use std::io::{Error as IoError, ErrorKind, Result as IoResult};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use libc::{ENXIO, O_NOCTTY, O_NONBLOCK};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionbio, read as read_some, write as write_some};
use zeroize::Zeroizing;

/// `PIPE_BUF`: what a pipe that can be written to takes without blocking.
const AT_ONCE: usize = 4096;

/// How long to wait for a stream that reports room but takes nothing: a terminal may have less room than a line feed
/// needs.
const REST: Duration = Duration::from_millis(5);

/// How long a pipe may take to give its bytes. It may be a shell's `<(command)`.
pub const PIPE_PATIENCE: Duration = Duration::from_secs(30);

/// Writes all of `bytes`. Waits while `stream` takes nothing, whether it is blocking or not.
///
/// # Errors
/// From `write` and `poll`; some of the bytes may have been written.
pub fn write_all(stream: impl AsFd, bytes: &[u8]) -> IoResult<()> {
    write_until(stream.as_fd(), bytes, None)
}

/// The same, but gives up once `stop` can be read.
///
/// # Errors
/// [`ErrorKind::TimedOut`] if `stop` came first; else as [`write_all`].
pub fn write_all_unless(stream: impl AsFd, bytes: &[u8], stop: impl AsFd) -> IoResult<()> {
    write_until(stream.as_fd(), bytes, Some(stop.as_fd()))
}

fn write_until(stream: BorrowedFd<'_>, bytes: &[u8], stop: Option<BorrowedFd<'_>>) -> IoResult<()> {
    let mut left = bytes;
    while !left.is_empty() {
        if !wait_for(stream, PollFlags::OUT, stop, None)? {
            let why = "nobody takes the output, and it was not to be waited for any longer";
            return Err(IoError::new(ErrorKind::TimedOut, why));
        }
        let (now, _later) = left.split_at(left.len().min(AT_ONCE));
        match write_some(stream, now) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => left = left.get(count..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => rest(stop)?,
            Err(cause) => return Err(cause.into()),
        }
    }
    Ok(())
}

/// Reads into `buffer`. Waits while there is nothing, whether `stream` is blocking or not. 0 is its end.
///
/// # Errors
/// From `read` and `poll`.
pub fn read(stream: impl AsFd, buffer: &mut [u8]) -> IoResult<usize> {
    let stream = stream.as_fd();
    loop {
        match read_some(stream, &mut *buffer) {
            Ok(count) => return Ok(count),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                wait_for(stream, PollFlags::IN, None, None)?;
            }
            Err(cause) => return Err(cause.into()),
        }
    }
}

/// Opens the file at `path` to be appended to, or makes it. A pipe must have its reader already.
///
/// # Errors
/// [`ErrorKind::NotConnected`] for a pipe that nobody reads; else from `open`.
pub fn open_to_append(path: &Path) -> IoResult<File> {
    open_to_write(path, File::options().append(true).create(true))
}

/// Opens the file at `path` to be written anew, or makes it. A pipe must have its reader already.
///
/// # Errors
/// [`ErrorKind::NotConnected`] for a pipe that nobody reads; else from `open`.
pub fn create(path: &Path) -> IoResult<File> {
    open_to_write(path, File::options().write(true).truncate(true).create(true))
}

fn open_to_write(path: &Path, options: &mut OpenOptions) -> IoResult<File> {
    let file = options.custom_flags(O_NONBLOCK | O_NOCTTY).open(path).map_err(|cause| {
        let is_pipe = path.metadata().is_ok_and(|found| found.file_type().is_fifo());
        if is_pipe && cause.raw_os_error() == Some(ENXIO) {
            let why = "it is a pipe that nobody reads: start its reader first";
            return IoError::new(ErrorKind::NotConnected, why);
        }
        cause
    })?;
    // Only opening must not wait.
    ioctl_fionbio(&file, false)?;
    Ok(file)
}

/// The bytes at `path`, at most `most` of them. A pipe has `patience` to give them all.
///
/// # Errors
/// [`ErrorKind::TimedOut`] if a pipe did not; else from `open` and `read`.
pub fn read_file(path: &Path, most: usize, patience: Duration) -> IoResult<Zeroizing<Vec<u8>>> {
    let deadline = Instant::now() + patience;
    let file = File::options().read(true).custom_flags(O_NONBLOCK | O_NOCTTY).open(path)?;
    let is_regular = file.metadata()?.is_file();
    // It must not move while it grows, because the bytes left behind would not be wiped.
    let mut bytes = Zeroizing::new(vec![0; most]);
    let mut len = 0;
    while let Some(room @ [_, ..]) = bytes.get_mut(len..) {
        if !is_regular && !wait_for(file.as_fd(), PollFlags::IN, None, Some(deadline))? {
            let why = "nothing more came from it for too long: is it a pipe that nobody writes to?";
            return Err(IoError::new(ErrorKind::TimedOut, why));
        }
        match read(&file, room)? {
            0 => break,
            count => len += count,
        }
    }
    bytes.truncate(len);
    Ok(bytes)
}

/// The bytes of the regular file at `path`, at most `most` of them, for files that may be read again: a pipe cannot be.
///
/// # Errors
/// [`ErrorKind::InvalidInput`] if it is none; else from `open` and `read`.
pub fn read_regular_file(path: &Path, most: usize) -> IoResult<Zeroizing<Vec<u8>>> {
    if path.metadata()?.is_file() {
        return read_file(path, most, PIPE_PATIENCE);
    }
    Err(IoError::new(ErrorKind::InvalidInput, "it is not a regular file: name the file itself"))
}

/// Waits until `stream` is ready or broken; the next call shows which. False if `stop` or the deadline came first.
fn wait_for(
    stream: BorrowedFd<'_>,
    ready: PollFlags,
    stop: Option<BorrowedFd<'_>>,
    deadline: Option<Instant>,
) -> IoResult<bool> {
    // The same stream twice is no way to do without a stop: what comes while both are looked at is then
    // seen by the second alone.
    let stop = stop.map(|stop| PollFd::from_borrowed_fd(stop, PollFlags::IN));
    let mut waited = Vec::from([PollFd::from_borrowed_fd(stream, ready)]);
    waited.extend(stop);
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        match poll(&mut waited, left.map(timespec).as_ref()) {
            Ok(_) => return Ok(waited.first().is_some_and(|stream| !stream.revents().is_empty())),
            Err(Errno::INTR) => {}
            Err(cause) => return Err(cause.into()),
        }
    }
}

/// Waits a moment, or for `stop`.
fn rest(stop: Option<BorrowedFd<'_>>) -> IoResult<()> {
    let mut stop = stop.map(|stop| PollFd::from_borrowed_fd(stop, PollFlags::IN));
    match poll(stop.as_mut_slice(), Some(&timespec(REST))) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(cause) => Err(cause.into()),
    }
}

fn timespec(duration: Duration) -> Timespec {
    // Patience is never of centuries.
    Timespec::try_from(duration).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 })
}

#[cfg(test)]
mod tests {
    use std::fs::write;
    use std::io::{PipeReader, PipeWriter, Read, pipe};
    use std::path::PathBuf;
    use std::process::Command;
    use std::sync::mpsc::channel;
    use std::thread::{scope, spawn};

    use rustix::event::{EventfdFlags, eventfd};
    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    /// A pipe whose writing end another holder has made non-blocking, and filled.
    fn full_pipe() -> (PipeReader, PipeWriter, usize) {
        let (reader, writer) = pipe().unwrap();
        ioctl_fionbio(&writer, true).unwrap();
        let mut filled = 0;
        while let Ok(count) = write_some(&writer, &[b'.'; AT_ONCE]) {
            filled += count;
        }
        (reader, writer, filled)
    }

    /// A pipe in the file system.
    fn fifo(directory: &TempDir) -> PathBuf {
        let path = directory.as_path().join("fifo");
        assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
        path
    }

    /// A call that must not block for ever, on a thread of its own.
    fn soon<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, answer) = channel();
        spawn(move || sender.send(call()));
        answer.recv_timeout(PATIENCE).unwrap()
    }

    /// A reader that is slower than a non-blocking stream's writer loses nothing, and gets it in order.
    #[test]
    fn a_full_stream_is_waited_for() {
        let (mut reader, writer, filled) = full_pipe();
        let text: Vec<u8> =
            (0..200_000_u32).map(|i| b'a' + u8::try_from(i % 26).unwrap()).collect();
        scope(|scope| {
            let written = scope.spawn(|| {
                let written = write_all(&writer, &text);
                drop(writer);
                written
            });
            let mut got = Vec::new();
            reader.read_to_end(&mut got).unwrap();
            written.join().unwrap().unwrap();
            assert!(got[..filled].iter().all(|&byte| byte == b'.'));
            assert!(got[filled..] == text, "{} of {} bytes", got.len() - filled, text.len());
        });
    }

    /// Whether the stream blocks or not, waiting for it ends when it is to.
    #[test]
    fn a_wait_for_a_full_stream_can_be_stopped() {
        for blocking in [false, true] {
            let (reader, writer, _filled) = full_pipe();
            ioctl_fionbio(&writer, !blocking).unwrap();
            let stop = eventfd(1, EventfdFlags::CLOEXEC).unwrap();
            let refused = soon(move || write_all_unless(&writer, b"x", &stop));
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::TimedOut, "{blocking}");
            drop(reader);
        }
    }

    /// A stream that has nothing yet is waited for, and its end is its end.
    #[test]
    fn an_empty_stream_is_waited_for() {
        let (reader, writer) = pipe().unwrap();
        ioctl_fionbio(&reader, true).unwrap();
        let (sender, heard) = channel();
        spawn(move || {
            for _ in 0..2 {
                let mut bytes = [0; 8];
                let count = read(&reader, &mut bytes).unwrap();
                sender.send(bytes[..count].to_vec()).unwrap();
            }
        });
        // It has found nothing by now, or finds this at once: neither may be taken for the end.
        heard.recv_timeout(Duration::from_millis(50)).unwrap_err();
        write_all(&writer, b"late").unwrap();
        assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), b"late");
        drop(writer);
        assert_eq!(heard.recv_timeout(PATIENCE).unwrap(), b"");
    }

    /// A pipe without a reader is refused at once. A pipe with a reader, a file, a device and a file that does not
    /// exist yet are opened.
    #[test]
    fn opening_to_write_does_not_wait_for_a_reader() {
        let directory = TempDir::new().unwrap();
        let path = fifo(&directory);
        for open in [open_to_append, create] {
            let name = path.clone();
            let refused = soon(move || open(&name)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::NotConnected, "{refused}");
            let new = directory.as_path().join("new");
            write_all(open(&new).unwrap(), b"x").unwrap();
            open(Path::new("/dev/null")).unwrap();
            let missing = open(&directory.as_path().join("no/where")).unwrap_err();
            assert_eq!(missing.kind(), ErrorKind::NotFound);
        }
        let both = File::options().read(true).write(true).open(&path).unwrap();
        write_all(open_to_append(&path).unwrap(), b"read").unwrap();
        let mut got = [0; 4];
        assert_eq!(read(&both, &mut got).unwrap(), 4);
    }

    /// The bytes of a pipe are read. A pipe without a writer is given up.
    #[test]
    fn a_file_is_read_from_a_pipe_too_but_not_for_ever() {
        let directory = TempDir::new().unwrap();
        let path = fifo(&directory);
        let name = path.clone();
        let refused = soon(move || read_file(&name, 64, Duration::from_millis(50))).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::TimedOut, "{refused}");
        let name = path.clone();
        let late = spawn(move || write(name, "a secret"));
        let name = path.clone();
        assert_eq!(&**soon(move || read_file(&name, 64, PATIENCE)).unwrap(), b"a secret");
        late.join().unwrap().unwrap();
        let refused = soon(move || read_regular_file(&path, 64)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput, "{refused}");
        let file = directory.as_path().join("file");
        write(&file, "12345").unwrap();
        assert_eq!(&**read_regular_file(&file, 64).unwrap(), b"12345");
        assert_eq!(&**read_file(&file, 3, PATIENCE).unwrap(), b"123");
    }
}
