//! What a command prints: its own `println!`, `eprintln!` and so on, for all of `cli`.
//!
//! The standard macros panic when standard output or error is a closed pipe, as under `| head`, and wait when it is a
//! full pipe. A guest must neither end nor stop because nothing reads the pipe.

mod logging;
mod outbox;
mod repeats;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Arguments;
use std::io::{stderr, stdout};
use std::panic::set_hook;
use std::sync::LazyLock;
use std::thread::current;
use std::time::Duration;

use log::{debug, logger};

pub(crate) use logging::start_log;
pub(crate) use outbox::Outbox;
use repeats::CallSite;

use crate::stream::write_all;

/// Standard error is the process's own, so this is too.
pub(crate) static ERRORS: LazyLock<Outbox> = LazyLock::new(|| Outbox::new(stderr()));

/// How long the reader may read nothing before the rest of the output is given up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// Prints to standard output, for commands that have nothing else to do: it waits for the reader.
macro_rules! println {
    ($($text:tt)*) => { $crate::cli::say::to_output(format_args!("{}\n", format_args!($($text)*))) };
}

macro_rules! eprint {
    ($($text:tt)*) => { $crate::cli::say::to_error(format!($($text)*)) };
}

macro_rules! eprintln {
    ($($text:tt)*) => { $crate::cli::say::to_error(format!("{}\n", format_args!($($text)*))) };
}

/// As `eprintln!`, for messages that others can cause as often as they like: at most one a second.
macro_rules! notice {
    ($($text:tt)*) => {
        $crate::cli::say::seldom_to_error((file!(), line!()), format!($($text)*))
    };
}

pub(crate) fn to_output(text: Arguments<'_>) {
    // Messages in the queue come first.
    settle();
    // Not through Rust's own buffer: that loses bytes which a non-blocking stream does not take.
    if let Err(cause) = write_all(stdout(), text.to_string().as_bytes()) {
        debug!("standard output: {cause}");
    }
}

pub(crate) fn to_error(text: String) {
    ERRORS.say(text);
}

pub(crate) fn seldom_to_error(kind: CallSite, line: String) {
    ERRORS.say_seldom(kind, line);
}

/// Waits until all messages are written, unless nothing reads them.
pub(crate) fn settle() {
    if !ERRORS.flush(PATIENCE) {
        debug!("nobody reads standard error");
    }
}

/// Dropped at the end of the process: then all messages are written, unless nothing reads them.
#[derive(Debug)]
pub(crate) struct Farewell(());

impl Farewell {
    /// From now on the message of a panic does not wait for a reader either.
    pub(crate) fn prepare() -> Self {
        set_hook(Box::new(|panic| {
            let backtrace = Backtrace::capture();
            let captured = backtrace.status() == BacktraceStatus::Captured;
            let place = if captured { backtrace.to_string() } else { String::new() };
            let thread = current();
            let name = thread.name().unwrap_or("unnamed");
            eprintln!("sevferry: thread '{name}' {panic}; this is a bug\n{place}");
        }));
        Self(())
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        logger().flush();
        // The process ends, whether or not the messages were read.
        let _taken = ERRORS.flush_all(PATIENCE);
    }
}
