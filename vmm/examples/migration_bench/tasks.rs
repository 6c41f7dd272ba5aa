//! The tasks of the comparison, and who does each.

use std::path::Path;
use std::rc::Rc;

use super::contender::{Contender, Role};
use super::cost::{Result, Run};
use super::guest::{Guest, Load, write_noise};
use super::limits;
use super::process::time_start;

/// Does it once, with this port.
type Measure = Box<dyn FnMut(u16) -> Result<Run>>;

/// The VMMs that are here, sevferry among them.
pub(crate) type Contenders = Vec<Rc<dyn Contender>>;

/// One way to do a task, and what it cost.
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) role: Role,
    pub(crate) measure: Measure,
    pub(crate) runs: Vec<Run>,
}

impl Entry {
    fn limit(name: &str, mut work: impl FnMut() -> Result<Run> + 'static) -> Self {
        let measure = Box::new(move |_port| work());
        Self { name: name.to_owned(), role: Role::Limit, measure, runs: Vec::new() }
    }

    fn of(contender: &dyn Contender, measure: Measure) -> Self {
        Self { name: contender.name(), role: contender.role(), measure, runs: Vec::new() }
    }
}

/// What all do in turns.
pub(crate) struct Task {
    pub(crate) name: String,
    pub(crate) entries: Vec<Entry>,
}

/// RAM of a guest that only starts.
const START_RAM: u64 = 256 << 20;

/// Every task, for guests with so much RAM.
pub(crate) fn all(directory: &Path, ram: u64, contenders: &Contenders) -> Result<Vec<Task>> {
    let noise = directory.join("noise");
    let filled = ram / 4 * 3;
    write_noise(&noise, filled)?;
    let guest = |load| Guest::prepare(directory, ram, load, Some(&noise)).map(Rc::new);

    let mut tasks = Vec::new();
    let memcpy = Entry::limit("memcpy", move || limits::memcpy(filled));
    tasks.push(Task { name: "copying".to_owned(), entries: vec![memcpy] });

    let idle = guest(Load::Idle)?;
    for connections in [1, 2] {
        let name = format!("idle, connections: {connections}");
        let mut task = migration(name, &idle, connections, contenders);
        let raw = move || limits::loopback(connections.into(), filled);
        task.entries.insert(0, Entry::limit("raw TCP", raw));
        tasks.push(task);
    }
    for (megabytes, part) in [(80, 16), (800, 4)] {
        let writing = guest(Load::Writing { megabytes, part })?;
        tasks.push(migration(format!("writing {megabytes} MB/s"), &writing, 1, contenders));
    }
    let start = Rc::new(Guest::prepare(directory, START_RAM, Load::Idle, None)?);
    let entries = contenders.iter().map(|each| starting(each, &start)).collect();
    tasks.push(Task { name: "start, 256 MiB".to_owned(), entries });

    let sev = guest(Load::SevIdle)?;
    // Others have no software platform.
    let own: Contenders =
        contenders.iter().filter(|each| each.role() == Role::Sevferry).cloned().collect();
    for connections in [1, 2] {
        let mut task =
            migration(format!("SEV, connections: {connections}"), &sev, connections, &own);
        // Each page is sealed once and opened once.
        let crypto = Entry::limit("cryptography", move || limits::page_cryptography(2 * ram));
        task.entries.insert(0, crypto);
        tasks.push(task);
    }
    Ok(tasks)
}

fn migration(name: String, guest: &Rc<Guest>, connections: u8, by: &Contenders) -> Task {
    let entry = |contender: &Rc<dyn Contender>| {
        let (who, guest) = (contender.clone(), guest.clone());
        let measure = Box::new(move |port| who.migrate(&guest, connections, port));
        Entry::of(&**contender, measure)
    };
    Task { name, entries: by.iter().map(entry).collect() }
}

fn starting(contender: &Rc<dyn Contender>, guest: &Rc<Guest>) -> Entry {
    let (who, guest) = (contender.clone(), guest.clone());
    let api = guest.file(&format!("start-{}", who.name()));
    let measure = Box::new(move |_port| time_start(&guest, &mut who.boot(&guest, &api)));
    Entry::of(&**contender, measure)
}
