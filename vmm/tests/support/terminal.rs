//! A terminal for a process under test: the other end of a pseudoterminal.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Stdio;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::tcgetattr;

/// A terminal, with its user.
#[derive(Debug)]
pub struct Terminal {
    /// Where a user types.
    keyboard: File,
    /// What the process gets; open here too, so that the modes outlive the process.
    input: File,
}

impl Terminal {
    /// A new one.
    pub fn open() -> Self {
        let keyboard = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pseudoterminal");
        grantpt(&keyboard).expect("our own");
        unlockpt(&keyboard).expect("our own");
        let name = ptsname(&keyboard, Vec::new()).expect("its name");
        let name = name.to_str().expect("a path in /dev");
        let mut options = OpenOptions::new();
        options.read(true).write(true).custom_flags(libc::O_NOCTTY);
        let input = options.open(name).expect("its other end");
        Self { keyboard: keyboard.into(), input }
    }

    /// To be the standard input of a process.
    pub fn input(&self) -> Stdio {
        self.input.try_clone().expect("a descriptor").into()
    }

    /// The user presses these keys.
    pub fn press(&mut self, keys: &str) {
        self.keyboard.write_all(keys.as_bytes()).expect("a keyboard is never full");
    }

    /// All of its modes and special characters.
    pub fn modes(&self) -> String {
        format!("{:?}", tcgetattr(&self.input).expect("a terminal"))
    }
}
