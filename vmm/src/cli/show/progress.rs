//! Shows a migration while the command waits for it: as a bar on a terminal, as lines elsewhere, or as JSON.
//!
//! All output goes through an outbox, so that the command notices signals although a pipe is full.

use std::io::{stderr, stdout};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use log::debug;
use rustix::termios::isatty;
use serde::Serialize;

use super::screen::Screen;
use crate::cli::say::Outbox;
use crate::control::api::{Outcome, Progress, StatusReply, Summary};
use crate::migration::progress::Phase;

/// Pages of the round, then all that is known.
const BAR: &str = "[{bar:24}] {wide_msg}";

/// Most draws of the bar a second.
const BAR_HZ: u8 = 20;

/// How long the reader of standard output may read nothing before the rest is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is shown, and where.
#[derive(Debug)]
pub(crate) struct Display {
    progress: ProgressDisplay,
    output: Outbox,
}

/// Where the progress goes.
#[derive(Debug)]
enum ProgressDisplay {
    /// Lines of JSON on standard output.
    Json,
    /// A bar on standard error.
    Bar {
        bar: ProgressBar,
        /// The round that the bar shows.
        round: u32,
    },
    /// A line on standard error for each phase and round, and for each tenth of memory that is pinned.
    Lines { last: Option<(Phase, u32, u64)> },
}

/// How a migration ended.
#[derive(Debug)]
pub(crate) enum End {
    /// As the guest's process tells it.
    Told(Box<Summary>),
    /// It did not begin, or the guest's process is gone.
    Untold(Outcome),
}

impl End {
    /// In one word.
    pub(crate) fn outcome(&self) -> &Outcome {
        match self {
            Self::Told(summary) => &summary.outcome,
            Self::Untold(outcome) => outcome,
        }
    }
}

impl Display {
    /// JSON if it is wanted, else what standard error can show.
    pub(crate) fn new(json: bool) -> Self {
        Self { progress: ProgressDisplay::new(json), output: Outbox::verbatim(stdout()) }
    }

    /// How things stand now.
    pub(crate) fn show(&mut self, status: &StatusReply) {
        match (&mut self.progress, &status.migration) {
            (ProgressDisplay::Json, _) => self.print_json(status),
            (ProgressDisplay::Bar { bar, round }, Some(progress)) => draw(bar, round, progress),
            (ProgressDisplay::Lines { last }, Some(progress)) => {
                let tenths = progress
                    .pinned
                    .map_or(0, |pinned| pinned.pages.saturating_mul(10) / pinned.of.max(1));
                let now = Some((progress.phase, progress.round, tenths));
                if *last != now {
                    *last = now;
                    eprintln!("sevferry: {progress}");
                }
            }
            (ProgressDisplay::Bar { .. } | ProgressDisplay::Lines { .. }, None) => {}
        }
    }

    /// Something for the user, beside the progress.
    pub(crate) fn say(&self, text: &str) {
        match &self.progress {
            ProgressDisplay::Json | ProgressDisplay::Lines { .. } => eprintln!("sevferry: {text}"),
            ProgressDisplay::Bar { bar, .. } => bar.suspend(|| eprintln!("sevferry: {text}")),
        }
    }

    /// How it ended; nothing is shown after it.
    pub(crate) fn end(&self, end: &End) {
        if let ProgressDisplay::Bar { bar, .. } = &self.progress {
            bar.finish_and_clear();
        }
        match (&self.progress, end) {
            (ProgressDisplay::Json, End::Told(summary)) => self.print_json(summary),
            (ProgressDisplay::Json, End::Untold(outcome)) => self.print_json(outcome),
            (_, End::Told(summary)) => self.output.say(format!("{summary}\n")),
            (_, End::Untold(Outcome::Moved)) => self.output.say("moved\n".to_owned()),
            (_, End::Untold(Outcome::Kept(reason))) => {
                eprintln!("sevferry: not moved, the guest runs on: {reason}");
            }
            (_, End::Untold(Outcome::Ended(reason))) => {
                eprintln!("sevferry: not moved, the guest has ended: {reason}");
            }
            (_, End::Untold(Outcome::InDoubt(reason))) => eprintln!("sevferry: in doubt: {reason}"),
            (_, End::Untold(Outcome::Failed(reason))) => eprintln!("sevferry: failed: {reason}"),
        }
        if !self.output.flush(PATIENCE) {
            debug!("nobody reads standard output");
        }
    }

    fn print_json(&self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(line) => self.output.say(line + "\n"),
            Err(cause) => debug!("a status that is not JSON: {cause}"),
        }
    }
}

impl ProgressDisplay {
    fn new(json: bool) -> Self {
        if json {
            return Self::Json;
        }
        if !isatty(stderr()) {
            return Self::Lines { last: None };
        }
        let screen = ProgressDrawTarget::term_like_with_hz(Box::<Screen>::default(), BAR_HZ);
        let bar = ProgressBar::with_draw_target(Some(0), screen);
        match ProgressStyle::with_template(BAR) {
            Ok(style) => bar.set_style(style.progress_chars("=> ")),
            Err(cause) => debug!("the plain bar: {cause}"),
        }
        Self::Bar { bar, round: 0 }
    }
}

/// The bar is full when the round's pages are sent. Pages that the guest writes meanwhile belong to the next round.
fn draw(bar: &ProgressBar, round: &mut u32, progress: &Progress) {
    let left = progress.left.private_pages.saturating_add(progress.left.shared_pages);
    if *round != progress.round {
        *round = progress.round;
        bar.set_length(left);
    }
    let total = bar.length().unwrap_or_default().max(left);
    bar.set_length(total);
    bar.set_position(total - left);
    bar.set_message(progress.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::convergence::Left;
    use crate::migration::journal::Side;
    use crate::migration::wire::{Transfer, VmId};

    /// The bar fills with the pages of a round, starts again with the next, and never runs back
    /// below nothing when a round grows.
    #[test]
    fn the_bar_shows_the_round() {
        let transfer = Transfer { vm: VmId([7; 16]), epoch: 1 };
        let mut progress = Progress::new(transfer, Side::Source);
        let (bar, mut shown) = (ProgressBar::hidden(), 0);
        for (round, left, position, length) in [
            (1, 1000, 0, 1000),
            (1, 250, 750, 1000),
            (1, 1200, 0, 1200),
            (2, 30, 0, 30),
            (2, 0, 30, 30),
        ] {
            progress.round = round;
            progress.left = Left { private_pages: left / 2, shared_pages: left - left / 2 };
            draw(&bar, &mut shown, &progress);
            assert_eq!((bar.position(), bar.length()), (position, Some(length)));
            assert_eq!(bar.message(), progress.to_string());
        }
    }

    /// The bar's layout is one that indicatif understands.
    #[test]
    fn the_bar_has_its_layout() {
        ProgressStyle::with_template(BAR).unwrap();
    }
}
