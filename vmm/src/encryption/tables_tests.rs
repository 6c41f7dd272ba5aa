//! Page tables of hand-made guests: honest, mistaken, hostile.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::encryption::{MapGpaRange, Overflow, Status};

const C_BIT: u8 = 47;
const C: u64 = 1 << C_BIT;
const ROOT: u64 = 0x1000;

fn layout() -> RamLayout {
    RamLayout::new(64 << 20).unwrap()
}

/// Tables by their address.
#[derive(Debug, Clone, Default)]
struct Memory(BTreeMap<u64, Vec<(usize, u64)>>);

impl Memory {
    /// Four levels down to the entries of a table at 0x4000, and large ones in that at 0x3000.
    fn with(pages: &[(usize, u64)], large: &[(usize, u64)]) -> Self {
        let mut memory = Self::default();
        memory.0.insert(ROOT, vec![(0, 0x2000 | C | PRESENT)]);
        memory.0.insert(0x2000, vec![(511, 0x3000 | PRESENT)]);
        let below = (3, 0x4000 | C | PRESENT);
        memory.0.insert(0x3000, large.iter().copied().chain([below]).collect());
        memory.0.insert(0x4000, pages.to_vec());
        memory
    }

    fn read(&self, frame: Frame) -> Result<[u64; ENTRIES], &'static str> {
        let mut table = [0; ENTRIES];
        for &(index, entry) in self.0.get(&frame.gpa().unwrap().0).ok_or("no table")? {
            table[index] = entry;
        }
        Ok(table)
    }

    fn walk(&self) -> Result<PageTables, Unwalked<&'static str>> {
        let mut tables = PageTables::new(layout(), C_BIT);
        tables.walk(ROOT | C | 0x18, 4, &mut |frame| self.read(frame)).map(|()| tables)
    }
}

fn reported(shared: &[u64]) -> PageStatus {
    let mut status = PageStatus::new(layout(), Overflow::Promote);
    for &frame in shared {
        let range = PageRange::one(Frame(frame)).unwrap();
        status.apply(MapGpaRange { range, status: Status::Shared }, &mut |_| {});
    }
    status
}

fn frames(set: &FrameSet) -> Vec<u64> {
    set.frames().map(|frame| frame.0).collect()
}

/// What is mapped without the C-bit must have been reported, and what was reported must be mapped so
/// at least once, or not at all.
#[test]
fn reports_are_held_against_the_tables() {
    let entry = |frame: u64, c: u64| frame << 12 | c | PRESENT;
    // Frames 20 and 21 private, 22 and 23 shared, 23 private too, 24 not present, 25 beyond RAM.
    let pages = [
        (0, entry(20, C)),
        (1, entry(21, C)),
        (2, entry(22, 0)),
        (3, entry(23, 0)),
        (4, entry(23, C)),
        (5, 24 << 12),
        (6, entry(0x10_0000, 0)),
    ];
    // 2 MiB at 8 MiB shared, 2 MiB at 4 MiB private.
    let large = [(0, 8 << 20 | LARGE | PRESENT), (1, 4 << 20 | C | LARGE | PRESENT)];
    let tables = Memory::with(&pages, &large).walk().unwrap();
    assert_eq!(tables.tables(), 4);
    let all: Vec<u64> = [22, 23].into_iter().chain(2048..2560).collect();
    assert!(tables.compare(&reported(&all)).unwrap().is_empty());
    // Pages that nothing maps may be either.
    assert!(tables.compare(&reported(&[all.as_slice(), &[24, 9000]].concat())).unwrap().is_empty());

    let one_too_many = tables.compare(&reported(&[&all[..], &[21, 1024]].concat())).unwrap();
    assert_eq!(
        (frames(&one_too_many.not_shared), one_too_many.unreported.count()),
        (vec![21, 1024], 0)
    );
    let said = one_too_many.to_string();
    assert!(
        said.starts_with("2 pages reported shared are mapped with the C-bit, from 0x15"),
        "{said}"
    );
    let one_too_few = tables.compare(&reported(&all[1..])).unwrap();
    assert_eq!((frames(&one_too_few.unreported), one_too_few.not_shared.count()), (vec![22], 0));
    let said = one_too_few.to_string();
    assert_eq!(said, "1 pages mapped without the C-bit were never reported, from 0x16");
    assert!(one_too_few.also_in(&one_too_many).is_empty());
    assert_eq!(one_too_few.also_in(&one_too_few), one_too_few);
}

/// Two vCPUs have tables of their own, and see one memory.
#[test]
fn the_tables_of_all_vcpus_count() {
    let memory = Memory::with(&[(0, 20 << 12 | C | PRESENT)], &[]);
    let mut tables = memory.walk().unwrap();
    assert_eq!(frames(&tables.compare(&reported(&[20])).unwrap().not_shared), [20]);
    let other = Memory(BTreeMap::from([
        (0x8000, vec![(7, 0x2000 | PRESENT), (8, 0x9000 | C | PRESENT)]),
        (0x9000, vec![(0, 0xa000 | C | PRESENT)]),
        (0xa000, vec![(0, 0xb000 | C | PRESENT)]),
        (0xb000, vec![(0, 20 << 12 | PRESENT)]),
    ]));
    tables.walk(0x8000, 4, &mut |frame| other.read(frame)).unwrap();
    assert_eq!(tables.tables(), 8, "the table at 0x2000 was walked already");
    assert!(tables.compare(&reported(&[20])).unwrap().is_empty());
}

/// A table that cannot be read ends the walk with the reason.
#[test]
fn an_unreadable_table_is_no_answer() {
    let mut memory = Memory::with(&[], &[]);
    memory.0.remove(&0x3000);
    assert!(matches!(memory.walk(), Err(Unwalked::Unreadable("no table"))));
}

proptest! {
    /// Whatever is in the tables, a walk reads each of them at most once a level, and ends.
    #[test]
    fn any_tables_are_walked_to_an_end(seed in any::<u64>(), c_bit in 0..80_u8) {
        let mut tables = PageTables::new(layout(), c_bit);
        let mut reads = 0_u64;
        let walked = tables.walk(seed, 5, &mut |frame| {
            reads += 1;
            let mut number = seed ^ frame.0;
            Ok::<_, ()>([(); ENTRIES].map(|()| {
                number = number.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                // Mostly within RAM, all kinds of entries.
                (number >> 20 & 0x3ff_ffff) | number >> 63 << 51
            }))
        });
        prop_assert!(walked.is_ok());
        prop_assert!(reads <= 5 * layout().pages());
        prop_assert_eq!(tables.tables(), reads);
    }
}
