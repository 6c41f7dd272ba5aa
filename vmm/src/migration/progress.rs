//! How a migration goes and how it went: values to show, and their one rendering as text.

use std::fmt::{Display, Formatter, Result as FmtResult};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::convergence::{Left, Rates};
use super::handover::journal::Side;
use super::wire::Transfer;
use crate::machine::pinning::Pinned;
use crate::page::PAGE_SIZE;

/// What a migration is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Connecting, or waiting for a connection.
    Connect,
    /// Offering the guest, comparing the machines.
    Offer,
    /// Checking the destination's certificates and agreeing on transport keys.
    Attest,
    /// Sending pages while the guest runs.
    Rounds,
    /// The guest is paused: the last pages.
    LastRound,
    /// The guest is paused: registers and devices.
    State,
    /// The guest is paused: deciding who owns it.
    Handover,
    /// It is over.
    Done,
}

impl Display for Phase {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.pad(match self {
            Self::Connect => "connect",
            Self::Offer => "offer",
            Self::Attest => "attest",
            Self::Rounds => "rounds",
            Self::LastRound => "last round",
            Self::State => "state",
            Self::Handover => "handover",
            Self::Done => "done",
        })
    }
}

/// What has gone over the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Carried {
    /// Private pages, each time they were sent.
    pub private_pages: u64,
    /// Shared pages with their bytes.
    pub shared_pages: u64,
    /// Shared pages that were all zero.
    pub zero_pages: u64,
    /// All bytes, headers included.
    pub wire_bytes: u64,
}

impl Carried {
    /// Pages of all kinds.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.private_pages.saturating_add(self.shared_pages).saturating_add(self.zero_pages)
    }
}

impl Display for Carried {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let size = |pages: u64| Bytes(pages.saturating_mul(PAGE_SIZE));
        let Self { private_pages, shared_pages, zero_pages, wire_bytes } = *self;
        write!(f, "{private_pages} private ({}), ", size(private_pages))?;
        write!(f, "{shared_pages} shared ({}), ", size(shared_pages))?;
        write!(f, "{zero_pages} zero; {} on the wire", Bytes(wire_bytes))
    }
}

/// A migration at a moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Which migration.
    pub transfer: Transfer,
    /// Which end of it this is.
    pub side: Side,
    /// What it is doing.
    pub phase: Phase,
    /// Since the start.
    pub elapsed_ms: u64,
    /// The round, from 1; 0 before.
    pub round: u32,
    /// Pages that are left in this round; of the source.
    pub left: Left,
    /// How much of the guest's memory the destination has pinned, if that takes long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<Pinned>,
    /// What has been sent, or has arrived.
    pub carried: Carried,
    /// How fast; of the source, once measured.
    pub rates: Option<Rates>,
    /// Pages that the guest wrote per second in the last round; of the source.
    pub dirty_pages_per_s: Option<u64>,
    /// How long the guest would have been paused after the last round; of the source.
    pub expected_downtime_ms: Option<u64>,
    /// Whether rounds have stopped helping.
    pub is_stalled: bool,
    /// How much the guest is slowed down.
    pub throttle_percent: u32,
}

impl Progress {
    /// Nothing has happened yet.
    #[must_use]
    pub fn new(transfer: Transfer, side: Side) -> Self {
        Self {
            transfer,
            side,
            phase: Phase::Connect,
            elapsed_ms: 0,
            round: 0,
            left: Left::default(),
            pinned: None,
            carried: Carried::default(),
            rates: None,
            dirty_pages_per_s: None,
            expected_downtime_ms: None,
            is_stalled: false,
            throttle_percent: 0,
        }
    }
}

/// One line.
impl Display for Progress {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let seconds = Duration::from_millis(self.elapsed_ms).as_secs_f64();
        write!(f, "{seconds:.1} s, {}", self.phase)?;
        if self.round > 0 {
            write!(f, ", round {}", self.round)?;
        } else if let Some(Pinned { pages, of }) = self.pinned {
            let bytes = |pages: u64| Bytes(pages.saturating_mul(PAGE_SIZE));
            write!(f, ", {} of {} of memory pinned", bytes(pages), bytes(of))?;
        }
        if self.side == Side::Source {
            let Left { private_pages, shared_pages } = self.left;
            write!(f, ", left {private_pages} private and {shared_pages} shared pages")?;
        } else {
            write!(f, ", {} pages arrived", self.carried.pages())?;
        }
        if let Some(Rates { private_pages_per_s, shared_bytes_per_s }) = self.rates {
            let shared = Bytes::from_f64(shared_bytes_per_s);
            write!(f, ", {private_pages_per_s:.0} private pages/s, {shared}/s shared")?;
        }
        if let Some(dirty) = self.dirty_pages_per_s {
            write!(f, ", guest writes {dirty} pages/s")?;
        }
        if let Some(expected) = self.expected_downtime_ms {
            write!(f, ", expected downtime {expected} ms")?;
        }
        if self.is_stalled {
            write!(f, ", stalled")?;
        }
        if self.throttle_percent > 0 {
            write!(f, ", guest slowed by {} %", self.throttle_percent)?;
        }
        Ok(())
    }
}

/// How long each phase took; begins with [`Phase::Connect`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PhaseClock {
    /// Each phase that was entered, and when.
    entered: Vec<(Phase, Duration)>,
}

impl PhaseClock {
    /// The clock starts; all times are since now.
    #[must_use]
    pub fn new() -> Self {
        Self { entered: vec![(Phase::Connect, Duration::ZERO)] }
    }

    /// A phase begins, `elapsed` after the start.
    pub fn enter(&mut self, phase: Phase, elapsed: Duration) {
        self.entered.push((phase, elapsed));
    }

    /// Each phase but the last, and how long it took.
    #[must_use]
    pub fn times(&self) -> Vec<PhaseTime> {
        let ends = self.entered.iter().skip(1).map(|(_, entered)| *entered);
        let phases = self.entered.iter().zip(ends);
        let time = |((phase, entered), end): (&(Phase, Duration), Duration)| PhaseTime {
            phase: *phase,
            took_us: micros(end.saturating_sub(*entered)),
        };
        phases.map(time).collect()
    }
}

impl Default for PhaseClock {
    fn default() -> Self {
        Self::new()
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// How long one phase took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTime {
    /// The phase.
    pub phase: Phase,
    /// Microseconds.
    pub took_us: u64,
}

/// How it ended, on this side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome", content = "reason")]
pub enum Outcome {
    /// The guest runs at the destination.
    Moved,
    /// The guest runs on at the source; why it was not moved.
    Kept(String),
    /// The guest has ended by itself while it was being moved, and runs nowhere. How it ended.
    Ended(String),
    /// The guest runs on neither host as far as this side knows, until the other side answers or a person decides.
    InDoubt(String),
    /// This side has nothing; why.
    Failed(String),
}

/// What happened, once it is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Which migration.
    pub transfer: Transfer,
    /// Which end of it this is.
    pub side: Side,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Rounds, the last included.
    pub rounds: u32,
    /// The most that the guest was slowed down to make it converge, in percent; 0: not at all, or at
    /// the destination, which is not told.
    #[serde(default)]
    pub throttle_percent_max: u32,
    /// Page connections.
    pub connections: u16,
    /// What was sent, or has arrived.
    pub carried: Carried,
    /// Each phase in order.
    pub phases: Vec<PhaseTime>,
    /// From the guest's last instruction at the source to `running`; `None` if it was not paused.
    pub downtime_us: Option<u64>,
}

impl Summary {
    /// It was over before anything was done.
    #[must_use]
    pub fn of_nothing(transfer: Transfer, side: Side, outcome: Outcome) -> Self {
        Self {
            transfer,
            side,
            outcome,
            rounds: 0,
            throttle_percent_max: 0,
            connections: 0,
            carried: Carried::default(),
            phases: Vec::new(),
            downtime_us: None,
        }
    }

    /// From the first phase to the last.
    #[must_use]
    pub fn total_us(&self) -> u64 {
        self.phases.iter().map(|time| time.took_us).fold(0, u64::saturating_add)
    }
}

/// The report, one thing per line.
impl Display for Summary {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        match (&self.outcome, self.side) {
            (Outcome::Moved, Side::Source) => write!(f, "moved: the guest runs at the destination"),
            (Outcome::Moved, Side::Destination) => write!(f, "moved: the guest runs here"),
            (Outcome::Kept(reason), Side::Source) => {
                write!(f, "not moved: the guest runs on here: {reason}")
            }
            (Outcome::Kept(reason), Side::Destination) => {
                write!(f, "not moved: the source keeps the guest: {reason}")
            }
            (Outcome::Ended(reason), _) => {
                write!(f, "not moved: the guest has ended: {reason}")
            }
            (Outcome::InDoubt(reason), _) => write!(f, "in doubt: {reason}"),
            (Outcome::Failed(reason), _) => write!(f, "failed: {reason}"),
        }?;
        let Transfer { vm, epoch } = self.transfer;
        write!(f, "\n  guest     {vm}, move {epoch}")?;
        let connections = if self.connections == 1 { "connection" } else { "connections" };
        write!(f, "\n  rounds    {} over {} {connections}", self.rounds, self.connections)?;
        if self.throttle_percent_max > 0 {
            write!(f, "\n  slowed    by up to {} %", self.throttle_percent_max)?;
        }
        write!(f, "\n  pages     {}", self.carried)?;
        write!(f, "\n  time      {}", Time(self.total_us()))?;
        for (index, PhaseTime { phase, took_us }) in self.phases.iter().enumerate() {
            let separator = if index == 0 { ": " } else { ", " };
            write!(f, "{separator}{phase} {}", Time(*took_us))?;
        }
        match (self.downtime_us, self.side) {
            (Some(downtime), _) => write!(f, "\n  downtime  {}", Time(downtime)),
            (None, Side::Source) => write!(f, "\n  downtime  none: the guest was not paused"),
            // Only the source knows.
            (None, Side::Destination) => Ok(()),
        }
    }
}

/// Bytes for people.
struct Bytes(u64);

impl Bytes {
    /// A rate; one that is no number is none.
    fn from_f64(bytes: f64) -> Self {
        let whole = Duration::try_from_secs_f64(bytes).map_or(0, |seconds| seconds.as_secs());
        Self(whole)
    }
}

impl Display for Bytes {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        const UNITS: [(u32, &str); 3] = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        let unit = UNITS.iter().find(|(shift, _)| self.0 >> shift > 0);
        match unit {
            Some((shift, name)) => {
                let unit = 1_u64 << shift;
                write!(f, "{}.{} {name}", self.0 / unit, self.0 % unit * 10 / unit)
            }
            None => write!(f, "{} B", self.0),
        }
    }
}

/// Microseconds for people.
struct Time(u64);

impl Display for Time {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        match self.0 {
            0..10_000 => write!(f, "{}.{} ms", self.0 / 1000, self.0 % 1000 / 100),
            10_000..1_000_000 => write!(f, "{} ms", self.0 / 1000),
            _ => write!(f, "{}.{:02} s", self.0 / 1_000_000, self.0 % 1_000_000 / 10_000),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::wire::VmId;

    const TRANSFER: Transfer = Transfer { vm: VmId([0xab; 16]), epoch: 2 };

    fn summary(outcome: Outcome, side: Side) -> Summary {
        let mut clock = PhaseClock::new();
        clock.enter(Phase::Rounds, Duration::from_micros(2500));
        clock.enter(Phase::Handover, Duration::from_millis(1250));
        clock.enter(Phase::Done, Duration::from_millis(1300));
        Summary {
            transfer: TRANSFER,
            side,
            outcome,
            rounds: 3,
            throttle_percent_max: 40,
            connections: 2,
            carried: Carried {
                private_pages: 512,
                shared_pages: 3,
                zero_pages: 7,
                wire_bytes: (2 << 20) + (300 << 10),
            },
            phases: clock.times(),
            downtime_us: Some(50_900),
        }
    }

    /// The report says what happened, in units that people read.
    #[test]
    fn a_summary_reads_well() {
        let text = summary(Outcome::Moved, Side::Source).to_string();
        let expected = "\
moved: the guest runs at the destination
  guest     abababababababababababababababab, move 2
  rounds    3 over 2 connections
  slowed    by up to 40 %
  pages     512 private (2.0 MiB), 3 shared (12.0 KiB), 7 zero; 2.2 MiB on the wire
  time      1.30 s: connect 2.5 ms, rounds 1.24 s, handover 50 ms
  downtime  50 ms";
        assert_eq!(text, expected);
    }

    /// Each side says where the guest is, and why if it is not where it should be.
    #[test]
    fn each_side_says_where_the_guest_is() {
        let first_line = |outcome: &Outcome, side| {
            let text = summary(outcome.clone(), side).to_string();
            text.lines().next().unwrap().to_owned()
        };
        let kept = Outcome::Kept("cancelled".into());
        let kept_here = first_line(&kept, Side::Source);
        assert_eq!(kept_here, "not moved: the guest runs on here: cancelled");
        let kept_there = first_line(&kept, Side::Destination);
        assert_eq!(kept_there, "not moved: the source keeps the guest: cancelled");
        assert_eq!(first_line(&Outcome::Moved, Side::Destination), "moved: the guest runs here");
    }

    /// Programs read what they are sent.
    #[test]
    fn values_travel_as_json() {
        for outcome in [Outcome::Moved, Outcome::InDoubt("why".into())] {
            let summary = summary(outcome, Side::Source);
            let json = serde_json::to_string(&summary).unwrap();
            assert_eq!(serde_json::from_str::<Summary>(&json).unwrap(), summary);
        }
        let json = serde_json::to_value(summary(Outcome::Kept("no".into()), Side::Source)).unwrap();
        assert_eq!((&json["outcome"], &json["reason"]), (&"kept".into(), &"no".into()));
        assert_eq!(json["transfer"]["vm"], "ab".repeat(16));
        assert_eq!(json["phases"][1]["phase"], "rounds");
        let progress = Progress::new(TRANSFER, Side::Destination);
        let json = serde_json::to_string(&progress).unwrap();
        assert_eq!(serde_json::from_str::<Progress>(&json).unwrap(), progress);
    }

    /// A line of progress names what is known, and nothing else.
    #[test]
    fn a_line_of_progress_says_what_is_known() {
        let mut progress = Progress::new(TRANSFER, Side::Source);
        assert_eq!(progress.to_string(), "0.0 s, connect, left 0 private and 0 shared pages");
        progress.pinned = Some(Pinned { pages: 3 << 18, of: 64 << 18 });
        assert!(progress.to_string().contains(", 3.0 GiB of 64.0 GiB of memory pinned,"));
        progress.phase = Phase::Rounds;
        progress.elapsed_ms = 12_340;
        progress.round = 2;
        progress.left = Left { private_pages: 10, shared_pages: 4 };
        let rates = Rates { private_pages_per_s: 2000.4, shared_bytes_per_s: 1.5e9 };
        progress.rates = Some(rates);
        progress.dirty_pages_per_s = Some(77);
        progress.expected_downtime_ms = Some(120);
        progress.is_stalled = true;
        progress.throttle_percent = 20;
        let expected = "12.3 s, rounds, round 2, left 10 private and 4 shared pages, \
            2000 private pages/s, 1.3 GiB/s shared, guest writes 77 pages/s, \
            expected downtime 120 ms, stalled, guest slowed by 20 %";
        assert_eq!(progress.to_string(), expected);
        progress.rates = Some(Rates { private_pages_per_s: f64::INFINITY, ..rates });
        assert!(progress.to_string().contains("inf private pages/s"));
    }
}
