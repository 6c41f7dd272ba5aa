//! Printing to a reader that may be gone: `println!` and its kin for all of this module.
//!
//! The standard macros panic when standard output or error is a closed pipe, as under `| head`. A
//! guest must not end, nor a digest fail, because nobody reads on: what cannot be printed is dropped.

use std::fmt::Arguments;
use std::io::{Write, stderr, stdout};

use log::debug;

macro_rules! println {
    ($($text:tt)*) => { $crate::cli::say::to_output(format_args!("{}\n", format_args!($($text)*))) };
}

macro_rules! eprint {
    ($($text:tt)*) => { $crate::cli::say::to_error(format_args!($($text)*)) };
}

macro_rules! eprintln {
    ($($text:tt)*) => { $crate::cli::say::to_error(format_args!("{}\n", format_args!($($text)*))) };
}

pub(super) fn to_output(text: Arguments<'_>) {
    let mut output = stdout().lock();
    if let Err(cause) = output.write_fmt(text).and_then(|()| output.flush()) {
        debug!("standard output: {cause}");
    }
}

pub(super) fn to_error(text: Arguments<'_>) {
    if let Err(cause) = stderr().write_fmt(text) {
        debug!("standard error: {cause}");
    }
}
