//! A sevferry whose messages nobody reads: the pipe that it writes them to is full from the start.

use std::ffi::OsStr;
use std::io::{ErrorKind, PipeReader, Write, pipe};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::ioctl_fionbio;
use rustix::process::{Pid, Signal, kill_process};

use crate::process::program;

/// Ending takes seconds: for a vCPU that does not come back, and for a reader that might.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running sevferry. Dropped, it is killed.
#[derive(Debug)]
pub struct Unread {
    child: Child,
    /// Has its other end open only in the process.
    unread: PipeReader,
}

impl Unread {
    /// Its standard error is the full pipe, and so is its standard output if `both`.
    pub fn start<S: AsRef<OsStr>>(both: bool, arguments: impl IntoIterator<Item = S>) -> Self {
        let (unread, mut writer) = pipe().expect("a pipe");
        ioctl_fionbio(&writer, true).expect("a pipe");
        for piece in [4096, 1] {
            let full = loop {
                if let Err(full) = writer.write_all(&vec![b'.'; piece]) {
                    break full;
                }
            };
            assert_eq!(full.kind(), ErrorKind::WouldBlock);
        }
        ioctl_fionbio(&writer, false).expect("a pipe");
        let mut command = Command::new(program());
        command.args(arguments).stdin(Stdio::null());
        command.stdout(if both {
            writer.try_clone().expect("a descriptor").into()
        } else {
            Stdio::null()
        });
        let child = command.stderr(writer).spawn().expect("sevferry can be started");
        Self { child, unread }
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our child");
    }

    /// Waits until the process ends of its own, and gives its exit code; `None` if time was up before.
    pub fn end(mut self) -> Option<i32> {
        let patience = Timespec::try_from(PATIENCE).expect("a minute");
        let mut polled = [PollFd::new(&self.unread, PollFlags::empty())];
        // It says only that the other end is closed.
        let closed = poll(&mut polled, Some(&patience)).expect("a pipe");
        if closed == 0 {
            return None;
        }
        self.child.wait().expect("our child").code()
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        // It may have ended, which is what `end` waits for.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}
