//! What a command says: `println!` and its kin for all of this module.
//!
//! The standard macros panic when standard output or error is a closed pipe, as under `| head`, and
//! wait when it is a full one. A guest must not end, nor stand still, because nobody reads on.

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
use repeats::Kind;

use crate::stream::write_all;

/// Standard error is the process's own, so this is too.
pub(crate) static ERRORS: LazyLock<Outbox> = LazyLock::new(|| Outbox::new(stderr()));

/// How long a reader may take nothing before what is left for it is given up.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// To standard output, of commands that have nothing else to do: it waits for its reader.
macro_rules! println {
    ($($text:tt)*) => { $crate::cli::say::to_output(format_args!("{}\n", format_args!($($text)*))) };
}

macro_rules! eprint {
    ($($text:tt)*) => { $crate::cli::say::to_error(format!($($text)*)) };
}

macro_rules! eprintln {
    ($($text:tt)*) => { $crate::cli::say::to_error(format!("{}\n", format_args!($($text)*))) };
}

/// As `eprintln!`, for what others can cause as often as they like: at most one a second.
macro_rules! notice {
    ($($text:tt)*) => {
        $crate::cli::say::seldom_to_error((file!(), line!()), format!($($text)*))
    };
}

pub(crate) fn to_output(text: Arguments<'_>) {
    // What was said before comes before.
    settle();
    // Not through Rust's own buffer, which loses what a non-blocking stream does not take.
    if let Err(cause) = write_all(stdout(), text.to_string().as_bytes()) {
        debug!("standard output: {cause}");
    }
}

pub(crate) fn to_error(text: String) {
    ERRORS.say(text);
}

pub(crate) fn seldom_to_error(kind: Kind, line: String) {
    ERRORS.say_seldom(kind, line);
}

/// Waits until what was said is written, unless nobody takes it.
pub(crate) fn settle() {
    if !ERRORS.flush(PATIENCE) {
        debug!("nobody reads standard error");
    }
}

/// Dropped at the end of the process: what was said is written, unless nobody takes it.
#[derive(Debug)]
pub(crate) struct Farewell(());

impl Farewell {
    /// From now on a panic, too, is said without waiting for a reader.
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
        // Whether or not somebody took it: this is the end.
        let _taken = ERRORS.flush_all(PATIENCE);
    }
}
