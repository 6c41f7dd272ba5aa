//! How a migration is shown while it is waited for: a bar on a terminal, lines elsewhere, or JSON.

use std::io::stderr;

use indicatif::ProgressBar;
use log::debug;
use rustix::termios::isatty;
use serde::Serialize;
use serde_json::{Value, from_value};

use crate::control::api::{Outcome, Progress, StatusReply};
use crate::migration::progress;

/// Where the progress goes.
#[derive(Debug)]
pub(super) enum Display {
    /// Lines of JSON on standard output.
    Json,
    /// A bar on standard error.
    Bar(ProgressBar),
    /// A line on standard error whenever the round changes.
    Lines { last: Option<String> },
}

impl Display {
    /// JSON if it is wanted, else what standard error can show.
    pub(super) fn new(json: bool) -> Self {
        if json {
            Self::Json
        } else if isatty(stderr()) {
            Self::Bar(ProgressBar::new_spinner())
        } else {
            Self::Lines { last: None }
        }
    }

    /// How things stand now.
    pub(super) fn show(&mut self, status: &StatusReply) {
        match self {
            Self::Json => print_json(status),
            Self::Bar(bar) => {
                if let Some(progress) = &status.migration {
                    bar.set_message(line(progress));
                    bar.tick();
                }
            }
            Self::Lines { last } => {
                let Some(now) = &status.migration else { return };
                let step = now.get("phase").zip(now.get("round")).map(|step| format!("{step:?}"));
                if step != *last {
                    eprintln!("sevferry: {}", line(now));
                    *last = step;
                }
            }
        }
    }

    /// Something for the user, beside the progress.
    pub(super) fn say(&self, text: &str) {
        match self {
            Self::Json | Self::Lines { .. } => eprintln!("sevferry: {text}"),
            Self::Bar(bar) => bar.println(format!("sevferry: {text}")),
        }
    }

    /// How it ended; nothing is shown after it.
    pub(super) fn end(&mut self, outcome: &Outcome) {
        match self {
            Self::Json => return print_json(outcome),
            Self::Bar(bar) => bar.finish_and_clear(),
            Self::Lines { .. } => {}
        }
        match outcome {
            Outcome::Moved { summary } => println!("{}", summary_text(summary)),
            Outcome::Stayed { reason } => {
                eprintln!("sevferry: the guest did not move, and runs on: {reason}");
            }
            Outcome::InDoubt { reason } => {
                eprintln!("sevferry: it is in doubt where the guest is: {reason}");
            }
        }
    }
}

fn line(progress: &Progress) -> String {
    let parsed: Result<progress::Progress, _> = from_value(progress.clone());
    parsed.map_or_else(|_not_begun| "beginning".to_owned(), |progress| progress.to_string())
}

fn summary_text(summary: &Value) -> String {
    let parsed: Result<progress::Summary, _> = from_value(summary.clone());
    parsed.map_or_else(|_newer| summary.to_string(), |summary| summary.to_string())
}

fn print_json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(line) => println!("{line}"),
        Err(cause) => debug!("a status that is not JSON: {cause}"),
    }
}
