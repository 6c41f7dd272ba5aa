//! The three designs in step: the same histories, the same answers. And tables that lie, or change
//! while they are read.

use std::sync::atomic::{AtomicU64, Ordering};

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::{Design, Incomplete, KVM_HC_MAP_GPA_RANGE, Overflow, PageStatus};
use super::*;

/// Where tests put the table: its head, then one page of bits, enough for 32,768 frames.
const HEAD: u64 = 2;
const TABLE: [u64; 2] = [HEAD, HEAD + 2];

/// The table's two pages, which the guest writes and the host reads.
#[derive(Debug)]
struct Pages(Vec<AtomicU64>);

impl Pages {
    fn new(layout: &RamLayout) -> Arc<Self> {
        let pages = Self((0..1024).map(|_| AtomicU64::new(0)).collect());
        let head = [MAGIC, VERSION, DonatedTable::bytes_of_bits(layout)];
        for (word, value) in pages.0.iter().zip(head) {
            word.store(value, Ordering::Relaxed);
        }
        pages.mark(TABLE[0], TABLE[1], Status::Shared);
        Arc::new(pages)
    }

    fn mark(&self, base: u64, limit: u64, status: Status) {
        for frame in base..limit {
            let word = &self.0[512 + usize::try_from(frame / 64).unwrap()];
            match status {
                Status::Shared => word.fetch_or(1 << (frame % 64), Ordering::Relaxed),
                Status::Private => word.fetch_and(!(1 << (frame % 64)), Ordering::Relaxed),
            };
        }
    }
}

impl TableMemory for Pages {
    fn read_words(&self, at: Gpa, words: &mut [u64]) -> bool {
        let Some(offset) = at.0.checked_sub(HEAD * PAGE_SIZE) else { return false };
        let first = usize::try_from(offset / 8).unwrap();
        let Some(from) = self.0.get(first..first + words.len()) else { return false };
        for (word, from) in words.iter_mut().zip(from) {
            *word = from.load(Ordering::Relaxed);
        }
        true
    }
}

const NAME: u64 = HEAD << 12 | NAMED;

/// A guest that reports to three hosts, each with its own design.
struct Three {
    layout: RamLayout,
    table: Arc<Pages>,
    hosts: Vec<PageStatus>,
    flags: Vec<bool>,
    /// What flipped since the changes were taken: by the flags, and as each host was told.
    flipped: FrameSet,
    told: Vec<FrameSet>,
    /// The guest's table when the changes were last taken.
    last: FrameSet,
}

const DESIGNS: [Design; 3] = [Design::List(Overflow::Promote), Design::Bitmap, Design::Donated];
const BOUND: usize = 6;

impl Three {
    fn new(layout: RamLayout) -> Self {
        let hosts = DESIGNS.map(|design| PageStatus::with_bound(layout, design, BOUND)).to_vec();
        let empty = FrameSet::new(layout);
        let flags = vec![false; usize::try_from(layout.pages()).unwrap()];
        let (flipped, told) = (empty.clone(), vec![empty.clone(); 3]);
        let table = Pages::new(&layout);
        let mut three = Self { layout, table, hosts, flags, flipped, told, last: empty };
        three.begin();
        three.last = three.hosts[2].sample().sampled_table().unwrap().clone();
        three
    }

    /// What each guest does when it starts: a table, which is shared.
    fn begin(&mut self) {
        self.table = Pages::new(&self.layout);
        self.report(TABLE[0], 2, Status::Shared);
        let table = Arc::clone(&self.table);
        self.hosts[2].write_table_register(NAME, table).unwrap();
    }

    fn report(&mut self, base: u64, pages: u64, status: Status) {
        let limit = (base + pages).min(self.layout.pages());
        self.table.mark(base, limit, status);
        for frame in base..limit {
            let flag = &mut self.flags[usize::try_from(frame).unwrap()];
            if *flag != (status == Status::Shared) {
                self.flipped.insert(Frame(frame));
            }
            *flag = status == Status::Shared;
        }
        let attributes = if status == Status::Shared { 0 } else { 0x10 };
        let args = [base * PAGE_SIZE, pages, attributes, 0, 0, 0];
        for (host, told) in self.hosts.iter_mut().zip(&mut self.told) {
            let mut flip = |range| told.insert_range(range);
            host.hypercall(KVM_HC_MAP_GPA_RANGE, &args, &mut flip).unwrap();
        }
    }

    fn reset(&mut self) {
        self.hosts.iter_mut().for_each(PageStatus::reset);
        assert_eq!(self.hosts[2].shared_pages(), Err(Incomplete::NoTable));
        for (frame, flag) in (0..).zip(&mut self.flags) {
            if *flag {
                self.flipped.insert(Frame(frame));
            }
            *flag = false;
        }
        self.told.iter_mut().for_each(|told| told.merge(&self.flipped));
        self.begin();
    }

    /// Each host's record moves to another, the memory with it.
    fn moved(&mut self) {
        for (host, design) in self.hosts.iter_mut().zip(DESIGNS) {
            let bytes = host.to_bytes();
            let read = PageStatus::from_bytes_with_bound(&bytes, self.layout, design, BOUND);
            *host = read.unwrap();
            assert_eq!(host.to_bytes(), bytes);
            let table = Arc::clone(&self.table);
            host.adopt_table(table);
            assert_eq!(host.to_bytes(), bytes);
        }
    }

    /// Hosts that keep the record know what flipped; hosts that read the guest's table know no less.
    fn take_changes(&mut self) {
        assert_eq!(self.told[0], self.flipped);
        assert_eq!(self.told[1], self.flipped);
        let mut seen = self.told[2].clone();
        let now = self.hosts[2].sample().sampled_table().unwrap().clone();
        seen.merge_differences(&self.last, &now);
        let mut all = seen.clone();
        all.merge(&self.flipped);
        assert_eq!(all, seen, "a flip was missed");
        self.last = now;
        self.flipped.clear();
        self.told.iter_mut().for_each(FrameSet::clear);
    }

    fn agree(&self) {
        let lists: Vec<Vec<PageRange>> =
            self.hosts.iter().map(|host| host.shared_regions().unwrap().collect()).collect();
        assert_eq!(lists[0], lists[1]);
        assert_eq!(lists[0], lists[2]);
        let pages = self.flags.iter().filter(|&&shared| shared).count() as u64;
        for host in &self.hosts {
            assert_eq!(host.shared_pages(), Ok(pages));
            assert_eq!(host.sample().shared_pages(), Ok(pages));
            for (frame, &shared) in (0..).zip(&self.flags) {
                let expected = if shared { Status::Shared } else { Status::Private };
                assert_eq!(host.status(Frame(frame)), Ok(expected), "frame {frame}");
            }
        }
    }
}

/// What may happen, as numbers: reports of pages behind the table, and now and then something else.
fn histories() -> impl Strategy<Value = Vec<(u8, u64, u64, bool)>> {
    vec(
        (0..20_u8, TABLE[1]..340_u64, prop_oneof![4 => 1..5_u64, 1 => 1..300_u64], any::<bool>()),
        0..60,
    )
}

proptest! {
    /// List, bitmap and donated table agree with one flag per page and with each other, through
    /// rounds, resets and moves at any point.
    #[test]
    fn three_designs_agree(ram_pages in 5..330_u64, events in histories()) {
        let mut three = Three::new(RamLayout::new(ram_pages * PAGE_SIZE).unwrap());
        for (kind, base, pages, shared) in events {
            match kind {
                0 => three.reset(),
                1 => three.moved(),
                2 | 3 => three.take_changes(),
                _ => {
                    let status = if shared { Status::Shared } else { Status::Private };
                    three.report(base, pages, status);
                }
            }
        }
        three.agree();
        three.take_changes();
    }

    /// Whatever a head says, it is refused or is the one right head; whatever bits say is an answer.
    #[test]
    fn any_table_is_refused_or_answers(
        ram_pages in 5..330_u64,
        damage in vec((0..30_usize, any::<u64>()), 0..4),
        bits in vec(any::<u64>(), 6),
    ) {
        let layout = RamLayout::new(ram_pages * PAGE_SIZE).unwrap();
        let pages = Pages::new(&layout);
        for (word, value) in pages.0[513..].iter().zip(&bits) {
            word.store(*value, Ordering::Relaxed);
        }
        for (at, value) in damage {
            pages.0[at].store(value, Ordering::Relaxed);
        }
        let head = pages.0[..3].iter().map(|word| word.load(Ordering::Relaxed));
        let right = head.eq([MAGIC, VERSION, DonatedTable::bytes_of_bits(&layout)]);
        let memory = Arc::<Pages>::clone(&pages);
        let table = DonatedTable::read(layout, memory, Frame(HEAD));
        prop_assert_eq!(table.is_ok(), right);
        let Ok(table) = table else { return Ok(()) };
        let sample = table.sample();
        for frame in 0..ram_pages {
            let page = PageRange::one(Frame(frame)).unwrap();
            prop_assert_eq!(table.first_shared(page).is_some(), sample.contains(Frame(frame)));
        }
        prop_assert_eq!(table.first_shared(layout.low()), sample.first_run(layout.low()));
    }
}

/// Memory that is different at each look.
#[derive(Debug)]
struct Shifting {
    pages: Arc<Pages>,
    looks: AtomicU64,
}

impl TableMemory for Shifting {
    fn read_words(&self, at: Gpa, words: &mut [u64]) -> bool {
        let there = self.pages.read_words(at, words);
        for word in words {
            let look = self.looks.fetch_add(1, Ordering::Relaxed);
            *word ^= look.wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23);
        }
        there
    }
}

/// A guest that writes its table all the time makes no walk of it endless, and no run empty.
#[test]
fn a_table_that_changes_while_it_is_read_harms_nobody() {
    let layout = RamLayout::new(4096 * PAGE_SIZE).unwrap();
    let pages = Pages::new(&layout);
    let table = DonatedTable::read(layout, Arc::<Pages>::clone(&pages), Frame(HEAD)).unwrap();
    let shifting = Shifting { pages, looks: AtomicU64::new(0) };
    let table = DonatedTable { memory: Arc::new(shifting), ..table };
    for _ in 0..200 {
        let mut last = Frame(0);
        for run in super::super::shared_in(&table, layout.low()) {
            assert!(run.base() >= last && run.limit() <= layout.low().limit(), "{run}");
            last = run.limit();
        }
        assert!(table.sample().count() <= layout.pages());
    }
}

fn donated(layout: RamLayout) -> (PageStatus, Arc<Pages>) {
    let mut status = PageStatus::new(layout, Design::Donated);
    status.offer_migration();
    status.write_migration_control(1).unwrap();
    let pages = Pages::new(&layout);
    status.write_table_register(NAME, Arc::<Pages>::clone(&pages)).unwrap();
    (status, pages)
}

fn report(status: &mut PageStatus, frame: u64, attributes: u64) {
    let args = [frame << 12, 1, attributes, 0, 0, 0];
    status.hypercall(KVM_HC_MAP_GPA_RANGE, &args, &mut |_| {}).unwrap();
}

/// What a guest reports and what its table says must be one: else nothing is believed, the reason
/// says which page, and a right table heals it.
#[test]
fn contradictions_are_named_and_can_be_healed() {
    let layout = RamLayout::new(16 << 20).unwrap();
    let (mut status, pages) = donated(layout);
    assert_eq!(status.migratable(), Ok(()));
    report(&mut status, 9, 0);
    let reason = status.migratable().unwrap_err().to_string();
    assert!(reason.contains("reported frame 0x9 shared while its own table"), "{reason}");
    assert!(status.shared_regions().is_err());
    assert!(status.may_share(layout.low()), "nothing can be ruled out");

    pages.mark(9, 10, Status::Shared);
    status.write_table_register(NAME, Arc::<Pages>::clone(&pages)).unwrap();
    assert_eq!((status.migratable(), status.shared_pages()), (Ok(()), Ok(3)));

    pages.mark(3, 4, Status::Private);
    report(&mut status, 3, 0x10);
    let reason = status.migratable().unwrap_err().to_string();
    assert!(reason.contains("took back frame 0x3 of the table"), "{reason}");
    status.write_table_register(NAME, pages).unwrap_err();
}

/// A table that is not where it was, or not what the list says, is not gone on with.
#[test]
fn a_table_that_does_not_come_along_is_a_contradiction() {
    let layout = RamLayout::new(16 << 20).unwrap();
    let (status, pages) = donated(layout);
    let bytes = status.to_bytes();
    let arrived = || PageStatus::from_bytes(&bytes, layout, Design::Donated).unwrap();
    let mut right = arrived();
    right.adopt_table(Arc::<Pages>::clone(&pages));
    assert_eq!(right.migratable(), Ok(()));
    pages.mark(70, 71, Status::Shared);
    let mut other = arrived();
    other.adopt_table(Arc::<Pages>::clone(&pages));
    let reason = other.migratable().unwrap_err().to_string();
    assert!(reason.contains("is not what the host that it came from said"), "{reason}");
    pages.0[0].store(0, Ordering::Relaxed);
    let mut none = arrived();
    none.adopt_table(pages);
    assert_eq!(none.migratable(), other.migratable());
}

/// The register exists only with this design; it takes a page and bit 0, or 0, and nothing else.
#[test]
fn the_register_takes_a_table_or_nothing() {
    let layout = RamLayout::new(16 << 20).unwrap();
    let pages = || Pages::new(&layout);
    let mut list = PageStatus::new(layout, Design::default());
    assert_eq!(list.read_table_register(), Err(BadTable::NotAsked));
    assert_eq!(list.write_table_register(0, pages()), Err(BadTable::NotAsked));
    let mut status = PageStatus::new(layout, Design::Donated);
    assert_eq!(status.read_table_register(), Ok(0x100));
    for value in [1 << 12, 2, 3, NAME | 2, NAME | 1 << 52, u64::MAX] {
        let refused = status.write_table_register(value, pages());
        assert_eq!(refused, Err(BadTable::ReservedBits { value }));
    }
    for base in [0xfff, 0x1000, 1 << 39] {
        let refused = status.write_table_register(base << 12 | 1, pages());
        assert_eq!(refused, Err(BadTable::OutsideRam { base: Frame(base) }));
    }
    status.write_table_register(NAME, pages()).unwrap();
    assert_eq!(status.read_table_register(), Ok(NAME | 0x100));
    status.write_table_register(0, pages()).unwrap();
    assert_eq!(status.shared_pages(), Err(Incomplete::NoTable));
}

/// A guest whose table is private, or that calls it so, is told no.
#[test]
fn a_table_must_be_shared_itself() {
    let layout = RamLayout::new(16 << 20).unwrap();
    let pages = Pages::new(&layout);
    pages.mark(3, 4, Status::Private);
    let memory = Arc::<Pages>::clone(&pages);
    let refused = DonatedTable::read(layout, memory, Frame(HEAD)).unwrap_err();
    assert_eq!(refused, BadTable::OwnPage { frame: Frame(3) });
}
