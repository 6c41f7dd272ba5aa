//! Standard error as a terminal that a progress bar is drawn on, without ever waiting for it.

use std::fmt::{Arguments, Write};
use std::io::{Error as IoError, stderr};
use std::mem::take;
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::TermLike;
use rustix::termios::tcgetwinsize;

/// Of a terminal that does not say how large it is.
const COLUMNS: u16 = 80;

/// What is drawn, until it is flushed: a drawing is said whole or not at all.
#[derive(Debug, Default)]
pub(crate) struct Screen(Mutex<String>);

impl Screen {
    fn draw(&self, what: Arguments<'_>) -> Result<(), IoError> {
        self.drawn().write_fmt(what).map_err(IoError::other)
    }

    fn drawn(&self) -> MutexGuard<'_, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The sequences are ECMA-48's: CUU, CUD, CUF, CUB and EL.
impl TermLike for Screen {
    fn width(&self) -> u16 {
        tcgetwinsize(stderr())
            .map_or(COLUMNS, |size| if size.ws_col == 0 { COLUMNS } else { size.ws_col })
    }

    fn move_cursor_up(&self, n: usize) -> Result<(), IoError> {
        if n == 0 { Ok(()) } else { self.draw(format_args!("\x1b[{n}A")) }
    }

    fn move_cursor_down(&self, n: usize) -> Result<(), IoError> {
        if n == 0 { Ok(()) } else { self.draw(format_args!("\x1b[{n}B")) }
    }

    fn move_cursor_right(&self, n: usize) -> Result<(), IoError> {
        if n == 0 { Ok(()) } else { self.draw(format_args!("\x1b[{n}C")) }
    }

    fn move_cursor_left(&self, n: usize) -> Result<(), IoError> {
        if n == 0 { Ok(()) } else { self.draw(format_args!("\x1b[{n}D")) }
    }

    fn write_line(&self, s: &str) -> Result<(), IoError> {
        self.draw(format_args!("{s}\n"))
    }

    fn write_str(&self, s: &str) -> Result<(), IoError> {
        self.draw(format_args!("{s}"))
    }

    fn clear_line(&self) -> Result<(), IoError> {
        self.draw(format_args!("\r\x1b[2K"))
    }

    fn flush(&self) -> Result<(), IoError> {
        let drawn = take(&mut *self.drawn());
        if !drawn.is_empty() {
            eprint!("{drawn}");
        }
        Ok(())
    }
}
