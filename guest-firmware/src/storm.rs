//! Pseudo-random conversions, with every page's content checked before it changes.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::conversion::{Failure, Memory};
use crate::paging::Status;
use crate::ram::Pages;
use crate::scenario::{Storm, UNTIL_INPUT};
use crate::serial::line;
use crate::verdict::fail;
use crate::{pattern, serial};

/// Pages that one storm may cover.
pub(crate) const MAX_PAGES: usize = 16384;
/// Pages that one step changes at most.
const MAX_RUN: u64 = 8;

/// The seed that each page of the storm was last filled with.
static FILLED_WITH: [AtomicU64; MAX_PAGES] = [const { AtomicU64::new(0) }; MAX_PAGES];

/// What a storm did.
struct Report {
    /// Pages of this processor.
    pages: Pages,
    steps: u64,
    conversions: u64,
    /// Pages that are shared at the end.
    shared: usize,
}

/// This processor's part of a storm, and the line that tells of it.
pub(crate) fn run_here(memory: Memory, storm: &Storm, part: u64, parts: u64) {
    match run(memory, storm, part, parts) {
        Ok(Report { pages, steps, conversions, shared }) => line(format_args!(
            "storm: cpu={part} {pages} steps={steps} conversions={conversions} shared={shared} ok"
        )),
        Err(failure) => fail(format_args!("storm: cpu={part} {failure}")),
    }
}

/// Storms over this processor's part of the pages, which is `part` of `parts`.
fn run(memory: Memory, storm: &Storm, part: u64, parts: u64) -> Result<Report, Failure> {
    let share = storm.pages.count / parts;
    let offset = share * part;
    let pages = Pages {
        first: storm.pages.first + offset,
        count: if part + 1 == parts { storm.pages.count - offset } else { share },
    };
    // Several processors must not convert in place within one 2 MiB chunk: a page that one of them
    // wrote before its hypercall may lose its content when another's switches the chunk's view.
    let in_place = storm.in_place && parts == 1;
    let mut state = Storming { memory, all: storm.pages, in_place, conversions: 0 };
    let mut random = pattern::mix(storm.seed ^ part);
    state.fill(pages, random);
    let mut steps = 0;
    while pages.count > 0 && !is_over(storm, steps) {
        steps += 1;
        random = pattern::mix(random);
        let at = (random >> 8) % pages.count;
        let count = (1 + (random >> 4) % MAX_RUN).min(pages.count - at);
        state.step(Pages { first: pages.first + at, count }, random)?;
    }
    state.check(pages)?;
    let shared = |&frame: &u64| memory.map.status(frame) == Status::Shared;
    let shared = pages.frames().filter(shared).count();
    Ok(Report { pages, steps, conversions: state.conversions, shared })
}

/// Whether so many steps are enough.
fn is_over(storm: &Storm, steps: u64) -> bool {
    if storm.steps == UNTIL_INPUT { serial::has_input() } else { steps >= storm.steps }
}

struct Storming {
    memory: Memory,
    all: Pages,
    in_place: bool,
    conversions: u64,
}

impl Storming {
    /// Checks a run of pages, converts it (three times of four), and fills it again.
    fn step(&mut self, run: Pages, random: u64) -> Result<(), Failure> {
        self.check(run)?;
        let to = match self.memory.map.status(run.first) {
            Status::Private => Status::Shared,
            Status::Shared => Status::Private,
        };
        match random % 4 {
            0 => self.fill(run, random),
            1 if self.in_place => {
                self.memory.remap(run, to);
                self.fill(run, random);
                self.report(run, to)?;
                self.check(run)?;
            }
            _ => {
                self.memory.remap(run, to);
                self.report(run, to)?;
                self.fill(run, random);
            }
        }
        Ok(())
    }

    fn report(&mut self, run: Pages, to: Status) -> Result<(), Failure> {
        let answer = self.memory.report(run, to);
        self.conversions += 1;
        if answer.refused() { Err(Failure::Refused(run, answer)) } else { Ok(()) }
    }

    fn fill(&self, run: Pages, seed: u64) {
        pattern::fill(run, seed);
        run.frames().for_each(|frame| self.filled_with(frame).store(seed, Ordering::Relaxed));
    }

    fn check(&self, run: Pages) -> Result<(), Failure> {
        for frame in run.frames() {
            let seed = self.filled_with(frame).load(Ordering::Relaxed);
            pattern::check(Pages { first: frame, count: 1 }, seed)?;
        }
        Ok(())
    }

    fn filled_with(&self, frame: u64) -> &'static AtomicU64 {
        let at = usize::try_from(frame - self.all.first).unwrap_or(MAX_PAGES);
        FILLED_WITH.get(at).expect("a storm covers at most MAX_PAGES")
    }
}
