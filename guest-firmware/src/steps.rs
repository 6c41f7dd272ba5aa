//! The scenario, carried out: one function per word, one line per step.

use crate::acpi::Processors;
use crate::conversion::Memory;
use crate::descriptors::Descriptors;
use crate::paging::{Pool, Status};
use crate::ram::{PAGE_SIZE, Pages, Ram};
use crate::scenario::{self, Ring, Step, Storm};
use crate::secret::{Area, Secret};
use crate::serial::line;
use crate::verdict::{self, fail};
use crate::{cpu, fresh, pattern, ports, serial, smp, storm, symbols, table};

/// The machine that the scenario runs on.
pub(crate) struct Guest {
    pub(crate) ram: Ram,
    pub(crate) memory: Memory,
    pub(crate) pool: Pool,
    pub(crate) descriptors: Descriptors,
    pub(crate) processors: Processors,
}

impl Guest {
    /// Carries out the words of a command line.
    pub(crate) fn perform_all(&mut self, command_line: &str) {
        let mut words = command_line.split_ascii_whitespace();
        while let Some(word) = words.next() {
            match Step::parse(word) {
                Some(Step::Forever) => loop {
                    words.clone().for_each(|word| self.perform_word(word));
                },
                _ => self.perform_word(word),
            }
        }
    }

    fn perform_word(&mut self, word: &str) {
        match Step::parse(word) {
            Some(step) => self.perform(step),
            None => fail(format_args!("not understood: {word}")),
        }
    }

    fn perform(&mut self, step: Step<'_>) {
        match step {
            Step::Ready(ready) => self.ready(ready),
            Step::Convert { pages, to } => self.convert(pages, to, None),
            Step::ConvertInPlace { pages, to, seed } => self.convert(pages, to, Some(seed)),
            Step::Fill { pages, seed } => self.fill(pages, seed),
            Step::Check { pages, seed } => self.check(pages, seed),
            Step::Hypercall { call, ring, expected } => self.hypercall(call, ring, expected),
            Step::Alternate { pages, rounds } => self.alternate(pages, rounds),
            Step::Storm { storm, on } => self.storm(&storm, on),
            Step::Fresh { pages, passes } => self.fresh(pages, passes),
            Step::Donate { gpa } => self.donate(gpa),
            Step::Secret { expected } => secrets(expected),
            Step::NoSecret => no_secret(),
            Step::Count(limit) => (1..=limit).for_each(|i| line(format_args!("count: {i}"))),
            Step::Tables => self.tables(),
            Step::Input => {
                line(format_args!("input: waiting"));
                line(format_args!("input: {:#x}", serial::take_input()));
            }
            Step::Ports => match ports::check() {
                Ok(()) => line(format_args!("ports: ok")),
                Err(mismatch) => fail(format_args!("ports: {mismatch}")),
            },
            Step::Unemulated => {
                self.memory.map.add_device(smp::LOCAL_APIC);
                // A page of the hole for devices, beside the only one that there is.
                let address = smp::LOCAL_APIC + PAGE_SIZE;
                line(format_args!("unemulated: {address:#x}"));
                cpu::load_float(address);
                fail(format_args!("unemulated: it was emulated"));
            }
            Step::Cpus { expected } => self.cpus(expected),
            Step::Cpuid { leaf, subleaf } => cpuid(leaf, subleaf),
            Step::Then(end) => verdict::end_by(end),
            Step::Forever => fail(format_args!("forever: within what is repeated")),
        }
    }

    fn ready(&self, ready: bool) {
        match self.memory.platform.report_ready(ready) {
            true => line(format_args!("ready: {}", u8::from(ready))),
            false => line(format_args!("ready: skipped")),
        }
    }

    /// Pages beyond the RAM that the run starts in are reported, but not mapped or written.
    fn convert(&mut self, pages: Pages, to: Status, seed: Option<u64>) {
        let name = if to == Status::Shared { "share" } else { "private" };
        let mapped = self.ram.clip(pages);
        if !self.is_free(mapped) {
            return fail(format_args!("{name}: {pages} is in use"));
        }
        self.memory.map.split(mapped, &mut self.pool);
        self.memory.remap(mapped, to);
        let Some(seed) = seed else {
            let answer = self.memory.report(pages, to);
            // The content is unspecified until it is written through the new mapping.
            pattern::clear(mapped);
            let print = if answer.refused() { fail } else { line };
            return print(format_args!("{name}: {pages} {answer}"));
        };
        pattern::fill(mapped, seed);
        let answer = self.memory.report(pages, to);
        match pattern::check(mapped, seed) {
            Ok(()) if answer.refused() => {
                fail(format_args!("in-place-{name}: {pages} seed={seed:#x} {answer}"));
            }
            Ok(()) => line(format_args!("in-place-{name}: {pages} seed={seed:#x} {answer} ok")),
            Err(mismatch) => {
                fail(format_args!("in-place-{name}: {pages} seed={seed:#x} {answer} {mismatch}"));
            }
        }
    }

    /// Shares the pages of a table, writes what is shared by now into it, and names it.
    fn donate(&mut self, gpa: u64) {
        let limit = self.ram.limit();
        let pages = table::pages(gpa, limit);
        if !self.memory.platform.sev() {
            return line(format_args!("donate: skipped"));
        }
        if !self.is_usable("donate", pages) {
            return;
        }
        self.memory.map.split(pages, &mut self.pool);
        let answer = self.memory.convert(pages, Status::Shared);
        pattern::clear(pages);
        table::begin(gpa, limit);
        let shared = self.ram.runs().flat_map(Pages::frames);
        for frame in shared.filter(|&frame| self.memory.map.status(frame) == Status::Shared) {
            table::write(Pages { first: frame, count: 1 }, Status::Shared);
        }
        table::name(gpa);
        let print = if answer.refused() { fail } else { line };
        print(format_args!("donate: {pages} {answer}"));
    }

    fn fill(&self, pages: Pages, seed: u64) {
        if self.is_usable("fill", pages) {
            pattern::fill(pages, seed);
            line(format_args!("fill: {pages} seed={seed:#x}"));
        }
    }

    fn fresh(&self, pages: Pages, passes: u64) {
        if self.is_usable("fresh", pages) {
            line(format_args!("fresh: {pages} begins"));
            match fresh::run(pages, passes) {
                Ok(passes) => line(format_args!("fresh: {pages} passes={passes} ok")),
                Err(mismatch) => fail(format_args!("fresh: {pages} {mismatch}")),
            }
        }
    }

    fn check(&self, pages: Pages, seed: u64) {
        if self.is_usable("check", pages) {
            match pattern::check(pages, seed) {
                Ok(()) => line(format_args!("check: {pages} seed={seed:#x} ok")),
                Err(mismatch) => fail(format_args!("check: {pages} seed={seed:#x} {mismatch}")),
            }
        }
    }

    fn hypercall(&mut self, call: [u64; 3], ring: Ring, expected: Option<i64>) {
        let [rbx, rcx, rdx] = call;
        if !self.memory.platform.map_gpa_range {
            return line(format_args!("hypercall: skipped"));
        }
        let (cpl, rax) = match ring {
            Ring::Kernel => (0, cpu::map_gpa_range(rbx, rcx, rdx)),
            Ring::User => {
                self.memory.map.open_to_user(symbols::user_frame(), &mut self.pool);
                let task_stack = self.descriptors.task_stack(0);
                (3, cpu::map_gpa_range_from_user(call, task_stack))
            }
        };
        let made = format_args!("hypercall: cpl={cpl} rbx={rbx:#x} rcx={rcx:#x} rdx={rdx:#x}");
        match expected {
            Some(expected) if expected != rax => {
                fail(format_args!("{made} ret={rax} expected={expected}"));
            }
            _ => line(format_args!("{made} ret={rax}")),
        }
    }

    fn alternate(&mut self, pages: Pages, rounds: u64) {
        if !self.is_usable("alternate", pages) {
            return;
        }
        self.memory.map.split(pages, &mut self.pool);
        let start = cpu::ticks();
        match self.memory.alternate(pages, rounds) {
            Ok(conversions) => {
                let ticks = cpu::ticks().wrapping_sub(start);
                line(format_args!(
                    "alternate: {pages} rounds={rounds} conversions={conversions} ticks={ticks}"
                ));
            }
            Err(failure) => fail(format_args!("alternate: {pages} rounds={rounds} {failure}")),
        }
    }

    fn storm(&mut self, storm: &Storm, on: scenario::Processors) {
        if !self.is_usable("storm", storm.pages) {
            return;
        }
        if storm.pages.count > storm::MAX_PAGES as u64 {
            return fail(format_args!("storm: more than {} pages", storm::MAX_PAGES));
        }
        // Before the others start: only page entries change then.
        self.memory.map.split(storm.pages, &mut self.pool);
        match on {
            scenario::Processors::First => storm::run_here(self.memory, storm, 0, 1),
            scenario::Processors::All => self.start_processors(Some(storm), None),
        }
    }

    fn cpus(&mut self, expected: Option<u64>) {
        self.start_processors(None, expected);
    }

    fn start_processors(&mut self, storm: Option<&Storm>, expected: Option<u64>) {
        self.memory.map.add_device(smp::LOCAL_APIC);
        let listed = self.processors.count();
        let expected = expected.unwrap_or(listed);
        let up = smp::start(self.memory, self.descriptors, self.processors, storm);
        let print = if up == expected { line } else { fail };
        print(format_args!("cpus: up={up} of={expected}"));
    }

    fn tables(&self) {
        if !self.memory.platform.sev() {
            return line(format_args!("map: skipped"));
        }
        let (mut runs, mut pages) = (0_u64, 0);
        let mut run = Pages::default();
        let mut end_run = |run: Pages| {
            if run.count > 0 {
                let shared = run.frames();
                line(format_args!("map: shared {:#x}..{:#x}", shared.start, shared.end));
                runs += 1;
                pages += run.count;
            }
        };
        for frame in self.ram.runs().flat_map(Pages::frames) {
            if self.memory.map.status(frame) == Status::Private {
                continue;
            }
            if run.frames().end == frame {
                run.count += 1;
            } else {
                end_run(run);
                run = Pages { first: frame, count: 1 };
            }
        }
        end_run(run);
        line(format_args!("map: runs={runs} pages={pages}"));
    }

    /// Whether pages can be filled: all RAM, and none of them in use. Prints why not.
    fn is_usable(&self, name: &str, pages: Pages) -> bool {
        if !self.ram.holds(pages) {
            fail(format_args!("{name}: {pages} is not all RAM"));
            return false;
        }
        let free = self.is_free(pages);
        if !free {
            fail(format_args!("{name}: {pages} is in use"));
        }
        free
    }

    /// Whether this program leaves the pages to the scenario.
    fn is_free(&self, pages: Pages) -> bool {
        let own = Pages::between(&(symbols::image().start..self.pool.limit()));
        let used = [own.frames(), smp::AP_PAGES.frames()];
        let pages = pages.frames();
        used.iter().all(|used| pages.end <= used.start || used.end <= pages.start)
    }
}

/// Lists the secrets of the guest's owner, among which `expected` must be, if given.
fn secrets(expected: Option<&str>) {
    let Some(area) = Area::find() else {
        return fail(format_args!("secret: no table names a place"));
    };
    let base = area.base;
    let Some(bytes) = area.table_bytes() else {
        return fail(format_args!("secret: none at {base:#x}"));
    };
    line(format_args!("secret: {base:#x}+{bytes}"));
    for Secret { guid, bytes, .. } in area.secrets(bytes) {
        line(format_args!("secret: {guid} bytes={bytes}"));
    }
    if let Some(expected) = expected {
        match area.secrets(bytes).find(|secret| secret.is(expected)) {
            Some(secret) => line(format_args!("secret: {} ok", secret.guid)),
            None => fail(format_args!("secret: none of them is what was expected")),
        }
    }
}

fn no_secret() {
    match Area::find().and_then(Area::table_bytes) {
        None => line(format_args!("no-secret: ok")),
        Some(bytes) => fail(format_args!("no-secret: there is a table of {bytes} bytes")),
    }
}

fn cpuid(leaf: u32, subleaf: u32) {
    let found = cpu::cpuid(leaf, subleaf);
    let (eax, ebx, ecx, edx) = (found.eax, found.ebx, found.ecx, found.edx);
    line(format_args!(
        "cpuid: leaf={leaf:#x} subleaf={subleaf:#x} eax={eax:#x} ebx={ebx:#x} ecx={ecx:#x} edx={edx:#x}"
    ));
}
