//! After the last round of a migration: compares every page and its status with the source's, byte for byte.
//!
//! Both hosts are in this process. What the software platform's memories hold, private pages too, is
//! read where no program of ours shows it: through the kernel, in the files behind them.
#![expect(clippy::panic, reason = "a migration that does not get as far as it must fails its test")]

use std::collections::BTreeMap;
use std::env::temp_dir;
use std::fs::{File, OpenOptions, create_dir_all, read_dir, read_link};
use std::io::Error as IoError;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::id;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use sevferry::encryption::{PageStatus, Status};
use sevferry::machine::config::ram_layout;
use sevferry::machine::{Config, RunningMachine};
use sevferry::migration::convergence::{Goal, TimeoutStrategy};
use sevferry::migration::destination::{Prepared, ReceiveConfig, Received, receive};
use sevferry::migration::destination::{Taken, take_over};
use sevferry::migration::handover::journal::{Journal, Side};
use sevferry::migration::source::Options;
use sevferry::migration::source::{Ended, send};
use sevferry::migration::watch::Sight;
use sevferry::migration::wire::{Transfer, VmId};
use sevferry::migration::{Endpoint, Listener, Lobby};
use sevferry::page::{Frame, PAGE_LEN, PageRange};
use support::guest::{Console, PATIENCE, as_sev, asset, firmware, software, type_line};

/// How long the memory of a guest that has moved may stay.
const GONE_WITHIN: Duration = Duration::from_secs(60);

/// One test at a time: a guest's memories are found among all of this process's.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The two memories of one guest of the software platform: S and P.
struct Memories {
    shared: File,
    private: File,
}

impl Memories {
    /// Those that this process has open besides `others`.
    fn besides(others: &[&Self]) -> Self {
        let find = |name| {
            let known: Vec<_> = others
                .iter()
                .flat_map(|guest| [&guest.shared, &guest.private])
                .map(inode)
                .collect();
            let deadline = Instant::now() + GONE_WITHIN;
            loop {
                let mut new = memory_files(name);
                new.retain(|inode, _| !known.contains(inode));
                if new.len() == 1 {
                    return new.into_values().next().expect("there is one");
                }
                // That of a guest that was moved before goes in its own time.
                assert!(Instant::now() < deadline, "{} new files named {name}", new.len());
                thread::park_timeout(Duration::from_millis(10));
            }
        };
        Self { shared: find("sevferry-shared"), private: find("sevferry-private") }
    }

    /// A page as the guest sees it if its status is `status`.
    fn page(&self, index: u64, status: Status) -> [u8; PAGE_LEN] {
        let mut page = [0; PAGE_LEN];
        let memory = if status == Status::Shared { &self.shared } else { &self.private };
        memory
            .read_exact_at(&mut page, index * PAGE_LEN as u64)
            .expect("all of RAM is in the file");
        page
    }
}

/// The files of that name, in memory, that this process has open.
fn memory_files(name: &str) -> BTreeMap<u64, File> {
    let mut files = BTreeMap::new();
    for entry in read_dir("/proc/self/fd").expect("a process has descriptors") {
        let path = entry.expect("a descriptor").path();
        // The descriptor that lists the others may be gone by now.
        let Ok(target) = read_link(&path) else { continue };
        if target == Path::new(&format!("/memfd:{name} (deleted)")) {
            let file = OpenOptions::new().read(true).write(true).open(&path).expect("our own file");
            files.insert(inode(&file), file);
        }
    }
    files
}

fn inode(file: &File) -> u64 {
    file.metadata().expect("an open file").ino()
}

/// Frames whose page or whose status is not the same on both sides.
fn differences(
    (source, status): (&Memories, &PageStatus),
    (destination, status_there): (&Memories, &PageStatus),
) -> Vec<Frame> {
    let frames = status.layout().ranges().flat_map(PageRange::frames);
    let differs = |&(index, frame): &(u64, Frame)| {
        let here = status.status(frame).expect("a whole record");
        let there = status_there.status(frame).expect("a whole record");
        here != there || source.page(index, here) != destination.page(index, there)
    };
    (0..).zip(frames).filter(differs).map(|(_, frame)| frame).collect()
}

/// Both ends of a migration, in this process.
struct Road {
    endpoint: Endpoint,
    listener: Listener,
    directory: PathBuf,
    source: Journal,
    transfer: Transfer,
}

impl Road {
    fn new(name: &str) -> Self {
        let directory = temp_dir().join(format!("kvm_equality-{}-{name}", id()));
        create_dir_all(&directory).expect("a directory for journals");
        let path = directory.join("socket").display().to_string();
        let endpoint = Endpoint::Unix { path };
        let transfer = Transfer { vm: VmId::random().expect("randomness"), epoch: 1 };
        Self {
            listener: Listener::bind(&endpoint).expect("a new socket"),
            endpoint,
            source: Journal::open(&directory, transfer.vm, Side::Source).expect("a new journal"),
            directory,
            transfer,
        }
    }
}

/// How a guest moved.
struct Moved {
    /// It runs at the destination.
    machine: RunningMachine,
    /// Its page status when neither side ran.
    status: PageStatus,
    rounds: u32,
}

/// Moves the guest; when all has arrived and neither side runs, compares them.
fn moved(machine: RunningMachine, console: &Console, mut road: Road, goal: Goal) -> Moved {
    let source = Memories::besides(&[]);
    let watch = machine.watch_pages().expect("an SEV guest");
    let options = Options {
        to: road.endpoint.clone(),
        connections: 2,
        goal,
        transfer: road.transfer,
        abandoned: Vec::new(),
        allow_unchecked: false,
        throttle: true,
        silence: PATIENCE,
    };
    let events = console.end_sender.clone();
    thread::scope(|scope| {
        let sender = scope.spawn(|| {
            let nobody = &mut |_: &Sight<'_>| None;
            send(machine, &options, &mut road.source, &events, nobody)
        });
        let platform = software();
        let output = console.output();
        let directory = road.directory.clone();
        let mut journal =
            move |vm| Journal::open(&directory, vm, Side::Destination).map_err(IoError::other);
        let mut host = ReceiveConfig {
            devices: &[],
            platform: Some(&platform),
            output: &output,
            journal: &mut journal,
            silence: PATIENCE,
        };
        let caller = Lobby::new(PATIENCE).hear(&road.listener, PATIENCE);
        let caller = caller.expect("the source").expect("an offer");
        let received = receive(caller, &road.listener, &mut host, &mut |_: &Sight<'_>| None);
        let Ok(Received::Guest(prepared)) = received else {
            panic!("{received:?}; {:?}; {}", sender.join(), console.transcript());
        };
        let destination = Memories::besides(&[&source]);
        let status = watch.status().expect("an SEV guest");
        let rounds = prepared.account.now().round;
        compare((&source, &status), (&destination, &prepared));
        let (listener, events) = (&road.listener, &console.end_sender);
        let taken = take_over(*prepared, listener, events, &mut |_: &Sight<'_>| None);
        let Ok(Taken::Runs(machine, _answering)) = taken else { panic!("{taken:?}") };
        let ended = sender.join().expect("no panic").expect("the guest is not lost");
        assert!(matches!(ended, Ended::Moved(_)), "{ended:?}");
        Moved { machine: *machine, status, rounds }
    })
}

/// Fails unless both sides are equal, and unless one changed byte would have been seen.
#[track_caller]
fn compare((source, status): (&Memories, &PageStatus), (there, prepared): (&Memories, &Prepared)) {
    let status_there = prepared.machine.page_status().expect("an SEV guest");
    let compare = || differences((source, status), (there, &status_there));
    assert_eq!(compare(), []);
    let probe = |frame: Frame| {
        let kind = status.status(frame).expect("a whole record");
        let memory = if kind == Status::Shared { &there.shared } else { &there.private };
        let (mut byte, at) = ([0], frame.0 * PAGE_LEN as u64 + 4095);
        memory.read_exact_at(&mut byte, at).expect("RAM below the device hole");
        memory.write_all_at(&[byte[0] ^ 1], at).expect("RAM below the device hole");
        assert_eq!(compare(), [frame], "one byte of a {kind} page differs");
        memory.write_all_at(&byte, at).expect("RAM below the device hole");
    };
    let shared = status.shared_regions().expect("a whole record").next().expect("a shared page");
    probe(shared.base());
    probe(Frame(shared.base().0 - 1));
    assert_eq!(compare(), []);
}

/// Rounds go on for a while, whatever the guest does, and then the guest is paused.
fn stop_after(timeout: Duration) -> Goal {
    Goal { downtime: Duration::ZERO, timeout, strategy: TimeoutStrategy::Stop }
}

/// A guest whose two processors convert and rewrite pages all the while, moved there and back: each
/// time all pages and the status of every frame are equal, and in the end the guest's own checks find
/// nothing wrong.
#[test]
#[ignore = "needs KVM: scripts/test kvm_equality"]
fn pages_that_change_status_all_the_while_arrive_equal() {
    let _alone = alone();
    let mut console = Console::new();
    let words = "ready cpus=2 share=10M+700 fill=10M+700:4 fill=4M+64:1 count=1 \
                 storm-smp=6M+800:3,input check=10M+700:4 check=4M+64:1 tables";
    let machine = console.boot(&firmware(words, 2, as_sev()));
    console.wait_for("count: 1");
    let goal = stop_after(Duration::from_secs(8));
    let Moved { machine, status, rounds } = moved(machine, &console, Road::new("there"), goal);
    let machine = moved(machine, &console, Road::new("back"), goal).machine;
    type_line(&machine, "");
    console.wait_for_pass();
    assert!(rounds > 2, "{rounds} rounds");
    let shared: Vec<_> = status.shared_regions().expect("a whole record").collect();
    assert!(shared.len() > 10, "the storm was under way: {shared:?}");
    let regions = machine.stop().sev.expect("an SEV guest").pages.region_count;
    let tables = console.seen.iter().filter(|(_, line)| line.starts_with("map: shared ")).count();
    assert_eq!(regions, tables as u64, "{}", console.transcript());
}

/// Debian while it hashes a file, counts, and shares a page again and again: all pages and the status
/// of every frame arrive equal.
#[test]
#[ignore = "needs KVM: scripts/test kvm_equality"]
fn linux_arrives_equal() {
    let _alone = alone();
    let mut console = Console::new();
    let kernel = ["vmlinuz-6.12", "vmlinuz-6.1"].map(asset).into_iter().find(|path| path.exists());
    let config = Config {
        kernel: kernel.expect("a kernel among the assets: scripts/fetch gets them"),
        initramfs: Some(asset("guest.cpio.gz")),
        cmdline: "console=ttyS0 sevferry.then=work sevferry.file_mib=4".to_owned(),
        ram: ram_layout(112 << 20).expect("a size of RAM"),
        ..firmware("", 1, as_sev())
    };
    let machine = console.boot(&config);
    console.wait_for("hash=1");
    console.wait_for("shared=");
    let goal = stop_after(Duration::from_secs(20));
    let Moved { machine, rounds, .. } = moved(machine, &console, Road::new("linux"), goal);
    assert!(rounds > 2, "{rounds} rounds");
    (0..3).for_each(|_| drop(console.wait_for("hash=")));
    console.wait_for("count=");
    console.wait_for("shared=");
    assert!(!console.transcript().contains("hash_wrong"), "{}", console.transcript());
    machine.stop();
}
