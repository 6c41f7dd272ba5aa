//! The log: writes what `log`'s macros say to standard error or a file, and never waits for either.

use std::io::Error as IoError;

use log::{Level, Log, Metadata, Record, max_level, set_boxed_logger, set_max_level};

use super::outbox::Outbox;
use super::{ERRORS, PATIENCE};
use crate::cli::arguments::LogOptions;
use crate::stream::open_to_append;

#[derive(Debug)]
struct Logger {
    /// `None` is standard error.
    file: Option<Outbox>,
}

/// Logs from now on.
///
/// # Errors
/// If the file cannot be opened.
pub(crate) fn start_log(options: &LogOptions) -> Result<(), IoError> {
    let file = options.file.as_deref().map(open_to_append).transpose()?.map(Outbox::new);
    set_boxed_logger(Box::new(Logger { file })).map_err(IoError::other)?;
    set_max_level(options.level);
    Ok(())
}

impl Logger {
    fn outbox(&self) -> &Outbox {
        self.file.as_ref().unwrap_or(&ERRORS)
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= max_level()
    }

    /// Messages at the default level, and at the first `-v`, are limited: strangers can cause them as often as they
    /// like. A user who asks for more wants all of it.
    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text = record.args().to_string().replace('\n', "\n    ");
        let line = format!("[{:<5}] {text}", record.level());
        if record.level() <= Level::Info {
            let kind = (record.file_static().unwrap_or_default(), record.line().unwrap_or(0));
            self.outbox().say_seldom(kind, line);
        } else {
            self.outbox().say(line + "\n");
        }
    }

    fn flush(&self) {
        // Messages that cannot be written by then are lost, as on a full disk.
        let _written = self.outbox().flush_all(PATIENCE);
    }
}
