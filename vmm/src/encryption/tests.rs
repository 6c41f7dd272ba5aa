//! Page status against the simplest thing that can be right: one flag per page.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::page::{Frame, PAGE_SIZE, PageRange, RamLayout};

/// What may happen to a guest.
#[derive(Debug, Clone, Copy)]
enum Event {
    Report {
        base: u64,
        pages: u64,
        status: Status,
    },
    WriteControl(u64),
    Reset,
    /// Serialised and restored, as by a migration.
    Moved,
}

/// One flag per page.
struct Flags {
    layout: RamLayout,
    overflow: Overflow,
    bound: usize,
    shared: Vec<bool>,
    poisoned: bool,
    ready: bool,
    epoch: u64,
}

impl Flags {
    fn new(layout: RamLayout, overflow: Overflow, bound: usize) -> Self {
        let frames = layout.ranges().last().unwrap().limit().0;
        let shared = vec![false; usize::try_from(frames).unwrap()];
        Self { layout, overflow, bound, shared, poisoned: false, ready: false, epoch: 0 }
    }

    /// Sets flags; returns the frames of RAM reported and those that flipped.
    fn report(&mut self, base: u64, pages: u64, status: Status) -> (Vec<u64>, Vec<u64>) {
        let (mut reported, mut flipped) = (Vec::new(), Vec::new());
        let shared = status == Status::Shared;
        for run in self.layout.ranges() {
            for frame in base.max(run.base().0)..run.limit().0.min(base + pages) {
                let flag = &mut self.shared[usize::try_from(frame).unwrap()];
                reported.push(frame);
                if *flag != shared || self.poisoned {
                    flipped.push(frame);
                }
                *flag = shared;
            }
            let full = self.regions().len() > self.bound;
            self.poisoned |= full && self.overflow == Overflow::Poison;
        }
        (reported, flipped)
    }

    fn reset(&mut self) {
        self.shared.fill(false);
        self.poisoned = false;
        self.ready = false;
        self.epoch += 1;
    }

    fn regions(&self) -> Vec<PageRange> {
        let mut regions = Vec::new();
        let mut frame = 0;
        for run in self.shared.chunk_by(|a, b| a == b) {
            let limit = frame + run.len() as u64;
            if run[0] {
                regions.push(PageRange::new(Frame(frame), Frame(limit)).unwrap());
            }
            frame = limit;
        }
        regions
    }

    fn pages(&self) -> u64 {
        self.shared.iter().filter(|&&shared| shared).count() as u64
    }
}

fn frames(ranges: impl Iterator<Item = PageRange>) -> Vec<u64> {
    ranges.flat_map(|range| range.base().0..range.limit().0).collect()
}

fn step(status: &mut PageStatus, flags: &mut Flags, event: Event) -> Result<(), TestCaseError> {
    match event {
        Event::Report { base, pages, status: wanted } => {
            let attributes = if wanted == Status::Private { 0x10 } else { 0 };
            let args = [base * PAGE_SIZE, pages, attributes, 0, 0, 0];
            let mut runs = Vec::new();
            let change = status.hypercall(KVM_HC_MAP_GPA_RANGE, &args, &mut |run| runs.push(run));
            let change = change.unwrap();
            let (reported, flipped) = flags.report(base, pages, wanted);
            prop_assert_eq!(change.status(), wanted);
            prop_assert_eq!(frames(change.reported()), reported);
            prop_assert_eq!(change.flipped_pages(), flipped.len() as u64);
            prop_assert_eq!(frames(runs.into_iter()), flipped);
        }
        Event::WriteControl(value) => {
            let accepted = status.write_migration_control(value);
            prop_assert_eq!(accepted.is_ok(), value <= 1);
            flags.ready = if value <= 1 { value == 1 } else { flags.ready };
        }
        Event::Reset => {
            status.reset();
            flags.reset();
        }
        Event::Moved => {
            let bytes = status.to_bytes();
            let Flags { layout, overflow, bound, .. } = *flags;
            *status = PageStatus::from_bytes_with_bound(&bytes, layout, overflow, bound).unwrap();
            prop_assert_eq!(status.to_bytes(), bytes);
        }
    }
    Ok(())
}

fn agree(status: &PageStatus, flags: &Flags) -> Result<(), TestCaseError> {
    prop_assert_eq!(status.epoch(), flags.epoch);
    prop_assert_eq!(status.migratable().is_ok(), flags.ready && !flags.poisoned);
    prop_assert_eq!(status.form() == Form::Poisoned, flags.poisoned);
    let all = PageRange::new(Frame(0), Frame(1 << 40)).unwrap();
    if flags.poisoned {
        prop_assert!(status.shared_regions().is_err());
        prop_assert!(status.shared_pages().is_err());
        prop_assert!(status.status(Frame(0)).is_err());
        prop_assert!(status.may_share(all));
        return Ok(());
    }
    prop_assert_eq!(status.shared_regions().unwrap().collect::<Vec<_>>(), flags.regions());
    prop_assert_eq!(status.shared_pages(), Ok(flags.pages()));
    prop_assert_eq!(status.private_pages(), Ok(flags.layout.pages() - flags.pages()));
    prop_assert_eq!(status.may_share(all), flags.pages() > 0);
    let list_bytes = SharedRegions::most_memory(flags.bound);
    let bitmap_bytes = SharedBitmap::new(flags.layout).memory_bytes();
    prop_assert!(status.memory_bytes() <= list_bytes.max(bitmap_bytes));
    Ok(())
}

fn each_page_agrees(status: &PageStatus, flags: &Flags) -> Result<(), TestCaseError> {
    for (frame, &shared) in (0..).zip(&flags.shared) {
        let expected = if shared { Status::Shared } else { Status::Private };
        prop_assert_eq!(status.status(Frame(frame)), Ok(expected), "frame {:#x}", frame);
        let page = PageRange::one(Frame(frame)).unwrap();
        prop_assert_eq!(status.may_share(page), shared);
    }
    Ok(())
}

fn status() -> impl Strategy<Value = Status> {
    prop_oneof![Just(Status::Shared), Just(Status::Private)]
}

fn overflow() -> impl Strategy<Value = Overflow> {
    prop_oneof![Just(Overflow::Promote), Just(Overflow::Poison)]
}

/// Events whose reports start at one of `bases`; every tenth is not a report.
fn event(bases: impl Strategy<Value = u64> + 'static, pages: u64) -> impl Strategy<Value = Event> {
    let report = (bases, prop_oneof![3 => 1..5_u64, 1 => 1..=pages], status())
        .prop_map(|(base, pages, status)| Event::Report { base, pages, status });
    prop_oneof![
        27 => report,
        1 => Just(Event::Reset),
        1 => Just(Event::Moved),
        1 => (0..4_u64).prop_map(Event::WriteControl),
    ]
}

proptest! {
    /// After any history the record agrees with one flag per page, at every step: small RAM that
    /// ends within a word of the bitmap, reports that run past it, and bounds that are soon reached.
    #[test]
    fn agrees_with_one_flag_per_page(
        ram_pages in 1..300_u64,
        bound in 0..12_usize,
        overflow in overflow(),
        events in vec(event(0..320_u64, 320), 0..80),
    ) {
        let layout = RamLayout::new(ram_pages * PAGE_SIZE).unwrap();
        let mut flags = Flags::new(layout, overflow, bound);
        let mut status = PageStatus::with_bound(layout, overflow, bound);
        status.offer_migration();
        for event in events {
            step(&mut status, &mut flags, event)?;
            agree(&status, &flags)?;
        }
        if !flags.poisoned {
            each_page_agrees(&status, &flags)?;
        }
    }

    /// Whatever arrives as page status is refused, or is exactly what that status writes.
    #[test]
    fn hostile_bytes_never_mean_two_things(
        ram_pages in 1..300_u64,
        overflow in overflow(),
        events in vec(event(0..320_u64, 320), 0..30),
        edits in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let layout = RamLayout::new(ram_pages * PAGE_SIZE).unwrap();
        let mut status = PageStatus::with_bound(layout, overflow, 8);
        let mut flags = Flags::new(layout, overflow, 8);
        status.offer_migration();
        for event in events {
            step(&mut status, &mut flags, event)?;
        }
        let mut bytes = status.to_bytes();
        for (index, value) in edits {
            let offset = index.index(bytes.len());
            bytes[offset] = value;
        }
        bytes.truncate(cut.map_or(bytes.len(), |index| index.index(bytes.len())));
        if let Ok(read) = PageStatus::from_bytes_with_bound(&bytes, layout, overflow, 8) {
            prop_assert_eq!(read.to_bytes(), bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The same with RAM on both sides of the device hole, and reports that begin, end and lie in it.
    #[test]
    fn agrees_with_one_flag_per_page_around_the_hole(
        bound in 0..8_usize,
        overflow in overflow(),
        events in vec(event(
            prop_oneof![
                0..8_u64,
                0xb_ffc0..0xc_0010_u64,
                0xf_fff0..0x10_0050_u64,
            ],
            0x10_0060,
        ), 0..12),
    ) {
        let layout = RamLayout::new((3 << 30) + 70 * PAGE_SIZE).unwrap();
        let mut flags = Flags::new(layout, overflow, bound);
        let mut status = PageStatus::with_bound(layout, overflow, bound);
        status.offer_migration();
        for event in events {
            step(&mut status, &mut flags, event)?;
        }
        agree(&status, &flags)?;
    }
}

/// A guest that alternates every page cannot make the record grow, and none of it is lost.
#[test]
fn alternating_every_page_is_bounded() {
    let layout = RamLayout::new(4 << 30).unwrap();
    let mut status = PageStatus::new(layout, Overflow::Promote);
    let mut most_bytes = 0;
    for frame in layout.ranges().flat_map(PageRange::frames).step_by(2) {
        let page = PageRange::one(frame).unwrap();
        status.apply(MapGpaRange { range: page, status: Status::Shared }, &mut |_| {});
        most_bytes = most_bytes.max(status.memory_bytes());
    }
    assert_eq!(status.form(), Form::Bitmap);
    assert!(most_bytes <= SharedRegions::most_memory(4096), "{most_bytes} bytes");
    assert_eq!(status.shared_pages(), Ok(layout.pages() / 2));
    assert_eq!(status.shared_regions().unwrap().count() as u64, layout.pages() / 2);
    status.reset();
    assert_eq!((status.form(), status.memory_bytes()), (Form::List, 0));
}

/// A poisoned record refuses to answer, lets the guest run on, and a reset heals it.
#[test]
fn poison_lasts_until_reset() {
    let layout = RamLayout::new(16 << 20).unwrap();
    let mut status = PageStatus::with_bound(layout, Overflow::Poison, 1);
    status.offer_migration();
    status.write_migration_control(1).unwrap();
    for frame in [1, 3] {
        let range = PageRange::one(Frame(frame)).unwrap();
        status.apply(MapGpaRange { range, status: Status::Shared }, &mut |_| {});
    }
    let incomplete = Incomplete::Overflow { bound: 1 };
    assert_eq!(status.status(Frame(1)), Err(incomplete));
    assert_eq!(status.migratable(), Err(NotMigratable::Incomplete(incomplete)));
    let all = PageRange::new(Frame(0), Frame(4096)).unwrap();
    let private = MapGpaRange { range: all, status: Status::Private };
    assert_eq!(status.apply(private, &mut |_| {}).flipped_pages(), 4096);
    assert_eq!(status.form(), Form::Poisoned);
    status.reset();
    assert_eq!(status.status(Frame(1)), Ok(Status::Private));
    assert_eq!(status.migratable(), Err(NotMigratable::NotReady));
    assert_eq!(status.epoch(), 1);
}

/// A guest that says it is ready and never reports, or whose reports make no sense, is doubtful, until
/// it is reset; other hypercalls, and a guest that came from elsewhere, are not.
#[test]
fn what_makes_a_guest_doubtful_is_named() {
    let layout = RamLayout::new(16 << 20).unwrap();
    let mut status = PageStatus::new(layout, Overflow::Promote);
    let doubts = |status: &PageStatus| status.doubts().collect::<Vec<_>>();
    status.offer_migration();
    assert_eq!(doubts(&status), []);
    status.write_migration_control(1).unwrap();
    assert_eq!(doubts(&status), [ReportDoubt::Unheard]);
    let moved = PageStatus::from_bytes(&status.to_bytes(), layout, Overflow::Promote).unwrap();
    assert_eq!(doubts(&moved), []);
    let mut call =
        |number, gpa| status.hypercall(number, &[gpa, 1, 0, 0, 0, 0], &mut |_| {}).is_ok();
    assert!(call(KVM_HC_MAP_GPA_RANGE, 0x1000) && !call(5, 0));
    for gpa in [0x801, 0x1001] {
        assert!(!call(KVM_HC_MAP_GPA_RANGE, gpa));
    }
    let last = BadRequest::Unaligned { gpa: 0x1001 };
    assert_eq!(doubts(&status), [ReportDoubt::Refused { count: 2, last }]);
    status.reset();
    assert_eq!(doubts(&status), []);
}

/// Each kind of hypercall is counted, and what was refused changes nothing else.
#[test]
fn counts_what_the_guest_does() {
    let mut status = PageStatus::new(RamLayout::new(16 << 20).unwrap(), Overflow::Promote);
    let mut call = |args: [u64; 3]| {
        let [gpa, pages, attributes] = args;
        let args = [gpa, pages, attributes, 0, 0, 0];
        status
            .hypercall(KVM_HC_MAP_GPA_RANGE, &args, &mut |_| {})
            .map(|change| change.flipped_pages())
    };
    assert_eq!(call([0, 4, 0]), Ok(4));
    assert_eq!(call([0x1000, 4, 0x10]), Ok(3));
    assert_eq!(call([0xff_f000, 2, 0]), Ok(1));
    assert_eq!(call([0xfee0_0000, 1, 0]), Ok(0));
    assert_eq!(call([0, 0, 0]), Err(BadRequest::NoPages { gpa: 0 }));
    let counters = Counters {
        shared_calls: 3,
        private_calls: 1,
        rejected_calls: 1,
        clipped_calls: 2,
        reported_pages: 9,
        flipped_pages: 8,
    };
    assert_eq!(status.counters(), counters);
    assert_eq!(status.shared_pages(), Ok(2));
}
