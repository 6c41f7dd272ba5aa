//! A guest that changes the status of its pages against a migration that copies them.
//!
//! The guest, its dirty log and the moments at which it acts are a script's. All else is what a
//! migration runs: the record of page status and the views that follow it, rounds, a page
//! connection, the firmware of both hosts. In the end every page at the destination must be what it
//! is at the source, for any script; and without any part of the rule that
//! [`take_in_order`] keeps, some scripts must break it, or this proves nothing.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{slice, thread};

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use vm_memory::{Bytes, GuestAddress};

use super::account::Tally;
use super::destination::arrivals::Arrivals;
use super::destination::placer::{PagePlacer, PageTarget};
use super::net::Stream;
use super::source::rounds::{Changes, Rounds};
use super::source::sender::PageSender;
use super::wire::{Message, Secret};
use crate::encryption::{KVM_HC_MAP_GPA_RANGE, Overflow, PageStatus, Status};
use crate::machine::take_in_order;
use crate::memory::{GuestRam, Pages, RamError};
use crate::page::{Frame, FrameSet, PAGE_LEN, PAGE_SIZE, PageRange};
use crate::sev::Policy;
use crate::sev::receive::Receiving;
use crate::sev::send::Sending;
use crate::sev::software::fixture::Fixture;

/// Some more than 1 MiB: below it views switch page by page, above it 2 MiB at once.
const RAM_BYTES: u64 = 0x110 * PAGE_SIZE;

/// The frames that scripts change: single pages, and pages of one piece of the view.
const FRAMES: [u64; 6] = [3, 4, 0x100, 0x101, 0x102, 0x10f];

const SESSION: u64 = 7;
const SECRET: Secret = Secret([7; 16]);

/// How long either side may be silent.
const SILENCE: Duration = Duration::from_secs(30);

/// What the guest does.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// Writes a page through a mapping with the C-bit (private) or without.
    Write(u64, Status),
    /// Makes a page zeros, likewise.
    Clear(u64, Status),
    /// Reports a page's status.
    Report(u64, Status),
}

use Act::{Clear, Report, Write};
use Status::{Private, Shared};

/// One turn of the migration: it learns what has changed, then sends it.
#[derive(Debug, Clone, Default)]
struct Turn {
    /// What the guest does before.
    before: Vec<Act>,
    /// What it does while the migration learns, between the first thing it reads and the next.
    between: Vec<Act>,
    /// What it does when the migration has learned, and has not sent yet.
    after: Vec<Act>,
}

/// A turn in which the guest acts before the migration looks.
fn before(acts: &[Act]) -> Turn {
    Turn { before: acts.to_vec(), ..Turn::default() }
}

/// A turn in which the guest acts while the migration looks.
fn between(acts: &[Act]) -> Turn {
    Turn { between: acts.to_vec(), ..Turn::default() }
}

/// How the migration learns what has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// As the product does.
    Kept,
    /// A page whose status flips does not count as written.
    FlipsDoNotCount,
    /// The status is older than the writes, and so than the flips.
    StatusBeforeWrites,
    /// The status is older than the flips.
    StatusBeforeFlips,
}

const BROKEN: [Rule; 3] =
    [Rule::FlipsDoNotCount, Rule::StatusBeforeWrites, Rule::StatusBeforeFlips];

struct Guest {
    host: Fixture,
    pages: Mutex<Pages>,
    /// The dirty log.
    written: RefCell<FrameSet>,
    stamp: Cell<u8>,
}

impl Guest {
    fn new() -> Self {
        let host = Fixture::with_ram(RAM_BYTES);
        let layout = host.memory.layout();
        let status = PageStatus::new(layout, Overflow::Promote);
        let pages = Mutex::new(Pages::new(status, Arc::clone(&host.memory)));
        Self { host, pages, written: RefCell::new(FrameSet::new(layout)), stamp: Cell::new(0) }
    }

    fn act(&self, acts: &[Act]) {
        for act in acts {
            match *act {
                Write(frame, view) => {
                    self.stamp.set(self.stamp.get().wrapping_add(1).max(1));
                    self.write(frame, view, self.stamp.get());
                }
                Clear(frame, view) => self.write(frame, view, 0),
                Report(frame, status) => {
                    let attributes = if status == Private { 1 << 4 } else { 0 };
                    let args = [frame * PAGE_SIZE, 1, attributes, 0, 0, 0];
                    let answer = self.pages.lock().unwrap().hypercall(KVM_HC_MAP_GPA_RANGE, &args);
                    assert_eq!(answer, 0);
                }
            }
        }
    }

    fn write(&self, frame: u64, view: Status, byte: u8) {
        let (bytes, at) = ([byte; PAGE_LEN], frame * PAGE_SIZE);
        match (view, Frame(frame).gpa()) {
            (Shared, Some(start)) => self.host.memory.write_without_c_bit(start, &bytes),
            _ => self.host.guest_writes(at, &bytes),
        }
        self.written.borrow_mut().insert(Frame(frame));
    }

    fn take_written(&self, into: &mut FrameSet) {
        into.merge(&self.written.borrow());
        self.written.borrow_mut().clear();
    }

    fn take_flipped(&self, into: &mut FrameSet) {
        self.pages.lock().unwrap().take_flipped(into);
    }

    fn status(&self) -> PageStatus {
        self.pages.lock().unwrap().status().clone()
    }
}

/// What has changed, as the rule has it; the guest acts in the middle of each look.
struct Scripted {
    guest: Rc<Guest>,
    rule: Rule,
    between: VecDeque<Vec<Act>>,
}

impl Changes for Scripted {
    fn take(&mut self, into: &mut FrameSet) -> Result<Option<PageStatus>, RamError> {
        let acts = self.between.pop_front().unwrap_or_default();
        let guest = &self.guest;
        let status = match self.rule {
            Rule::Kept => {
                let written = |into: &mut FrameSet| {
                    guest.take_written(into);
                    guest.act(&acts);
                    Ok(())
                };
                return take_in_order(written, Some(&guest.pages), into);
            }
            Rule::FlipsDoNotCount => {
                guest.take_written(into);
                guest.act(&acts);
                guest.take_flipped(&mut FrameSet::new(into.layout()));
                guest.status()
            }
            Rule::StatusBeforeWrites => {
                let status = guest.status();
                guest.act(&acts);
                guest.take_written(into);
                guest.take_flipped(into);
                status
            }
            Rule::StatusBeforeFlips => {
                guest.take_written(into);
                let status = guest.status();
                guest.act(&acts);
                guest.take_flipped(into);
                status
            }
        };
        Ok(Some(status))
    }
}

/// Both ends of the one page connection.
struct Connection {
    sender: PageSender,
    placer: PagePlacer,
    sending: Sending,
    receiving: Receiving,
    arrivals: Arrivals,
    arrived: Tally,
    sent: Tally,
}

impl Connection {
    fn new(source: &Fixture, destination: &Fixture) -> Self {
        let launched = source.launched(Policy::default());
        let own = source.certificates();
        let sending = launched.start_send(&destination.certificates(), own.pdh).unwrap();
        let receiving = destination.initialised().start_receive(sending.session()).unwrap();
        let (here, there) = UnixStream::pair().unwrap();
        let sender = PageSender::join(Stream::Unix(here), (SESSION, 0), &SECRET, SILENCE).unwrap();
        let proof = SECRET.proof_of_join(SESSION, 0);
        let join = Message::Join { session: SESSION, index: 0, proof }.encode().unwrap();
        let (mut stream, mut came) = (Stream::Unix(there), vec![0; join.len()]);
        std::io::Read::read_exact(&mut stream, &mut came).unwrap();
        assert_eq!(came, join);
        let placer = PagePlacer::new(stream, 1);
        let arrivals = Arrivals::new(source.memory.layout()).unwrap();
        let arrived = Tally::default();
        Self { sender, placer, sending, receiving, arrivals, arrived, sent: Tally::default() }
    }

    fn send_round(&mut self, rounds: &mut Rounds<Scripted>, into: &GuestRam) {
        let Self { sender, placer, sending, receiving, arrivals, arrived, sent } = self;
        let receiving = Some(&*receiving);
        let silence = SILENCE;
        let (session, tally) = (SESSION, &*arrived);
        let target = PageTarget { ram: into, arrivals, receiving, session, tally, silence };
        let deadline = Instant::now() + Duration::from_secs(60);
        thread::scope(|scope| {
            let placed = scope.spawn(|| placer.place_round(&target, &|| Instant::now() > deadline));
            let senders = slice::from_mut(sender);
            rounds.send(senders, Some(sending), sent, &mut || false).unwrap();
            placed.join().unwrap().unwrap().expect("the round ends");
        });
        arrivals.end_round();
    }
}

/// How a migration ended.
#[derive(Debug, PartialEq, Eq)]
struct Outcome {
    /// Pages that the guest would find changed at the destination.
    wrong: Vec<u64>,
    /// Whether the destination saw a page that came as what the final region list denies.
    contradiction: bool,
}

const EQUAL: Outcome = Outcome { wrong: Vec::new(), contradiction: false };

/// Moves a guest that acts as the script says, and is then paused.
fn migrate(script: &[Turn], rule: Rule) -> Outcome {
    let (guest, destination) = (Rc::new(Guest::new()), Fixture::with_ram(RAM_BYTES));
    let mut connection = Connection::new(&guest.host, &destination);
    let mut turns = script.iter();
    let first = turns.next().cloned().unwrap_or_default();
    // What the guest is before anybody looks; its first turn counts for that.
    guest.act(&first.before);
    guest.pages.lock().unwrap().track_flips();
    guest.written.borrow_mut().clear();
    let between = script.iter().map(|turn| turn.between.clone()).collect();
    let log = Scripted { guest: Rc::clone(&guest), rule, between };
    let mut rounds = Rounds::start(Arc::clone(&guest.host.memory), log).unwrap();
    guest.act(&first.after);
    connection.send_round(&mut rounds, &destination.memory);
    for turn in turns {
        guest.act(&turn.before);
        rounds.take_changes().unwrap();
        guest.act(&turn.after);
        connection.send_round(&mut rounds, &destination.memory);
    }
    // The last round, with the guest paused.
    rounds.take_changes().unwrap();
    connection.send_round(&mut rounds, &destination.memory);

    let status = guest.status();
    let frames = guest.host.memory.layout().ranges().flat_map(PageRange::frames);
    let differs = |frame: &Frame| {
        let status = status.status(*frame).unwrap();
        seen(&guest.host, *frame, status) != seen(&destination, *frame, status)
    };
    let wrong = frames.filter(differs).map(|frame| frame.0).collect();
    Outcome { wrong, contradiction: connection.arrivals.check(Some(&status)).is_err() }
}

/// What the guest finds in a page of this status.
fn seen(host: &Fixture, frame: Frame, status: Status) -> Vec<u8> {
    let (at, len) = (frame.0 * PAGE_SIZE, PAGE_LEN);
    if status == Private {
        return host.guest_sees(at, len);
    }
    let mut bytes = vec![0; len];
    host.memory.host().read_slice(&mut bytes, GuestAddress(at)).unwrap();
    bytes
}

/// The guest drops the C-bit and writes; the migration sees the write while the record still says
/// private; then comes the hypercall, and the guest writes no more. The neighbour is shared, so that
/// the view without the C-bit shows shared memory.
#[test]
fn a_write_before_its_hypercall_is_not_lost() {
    let script = [
        before(&[Write(0x101, Private), Report(0x100, Shared), Write(0x100, Shared)]),
        before(&[Write(0x101, Shared)]),
        before(&[Report(0x101, Shared)]),
    ];
    assert_eq!(migrate(&script, Rule::Kept), EQUAL);
    let lost = Outcome { wrong: vec![0x101], contradiction: true };
    assert_eq!(migrate(&script, Rule::FlipsDoNotCount), lost);
}

/// The migration reads the record; the guest converts a page and writes it; the migration reads
/// the dirty log, and has the page in it as what it was.
#[test]
fn a_status_older_than_the_dirty_log_is_not_used() {
    let script = [
        before(&[Write(0x101, Private)]),
        between(&[Report(0x101, Shared), Write(0x101, Shared)]),
        Turn::default(),
    ];
    assert_eq!(migrate(&script, Rule::Kept), EQUAL);
    let lost = Outcome { wrong: vec![0x101], contradiction: true };
    assert_eq!(migrate(&script, Rule::StatusBeforeWrites), lost);
}

/// The guest has written a page through its new mapping; between the reading of the status and that
/// of the flips it makes the hypercall, and the flip is taken for one that the status knows.
#[test]
fn a_flip_between_the_two_reads_is_not_lost() {
    let script = [
        before(&[Write(0x101, Private), Report(0x100, Shared)]),
        Turn { before: vec![Write(0x101, Shared)], ..between(&[Report(0x101, Shared)]) },
        Turn::default(),
    ];
    assert_eq!(migrate(&script, Rule::Kept), EQUAL);
    let lost = Outcome { wrong: vec![0x101], contradiction: true };
    assert_eq!(migrate(&script, Rule::StatusBeforeFlips), lost);
}

fn act() -> impl Strategy<Value = Act> {
    let frame = prop::sample::select(FRAMES.to_vec());
    let status = prop_oneof![Just(Private), Just(Shared)];
    (frame, status, 0..7).prop_map(|(frame, status, kind)| match kind {
        0..3 => Report(frame, status),
        3..6 => Write(frame, status),
        _ => Clear(frame, status),
    })
}

fn script() -> impl Strategy<Value = Vec<Turn>> {
    let acts = || prop::collection::vec(act(), 0..4);
    let turn = (acts(), acts(), acts());
    let turn = turn.prop_map(|(before, between, after)| Turn { before, between, after });
    prop::collection::vec(turn, 1..6)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever a guest does and whenever it does it, all pages arrive.
    #[test]
    fn any_guest_arrives_equal(script in script()) {
        prop_assert_eq!(migrate(&script, Rule::Kept), EQUAL);
    }
}

/// Such guests do lose pages if any part of the rule is taken out.
#[test]
fn without_the_rule_some_guest_loses_a_page() {
    for rule in BROKEN {
        let mut runner = TestRunner::deterministic();
        let lost = (0..100).any(|_| {
            let script = script().new_tree(&mut runner).unwrap().current();
            !migrate(&script, rule).wrong.is_empty()
        });
        assert!(lost, "{rule:?} lost nothing");
    }
}
