//! All that one guest writes to its serial port, wherever it runs: both hosts write to one pipe.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{CWD, FileType, Mode, mknodat};

/// How long the guest may write nothing of what is waited for.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a guest does before it repeats itself: shared and private contents that must stay. Most of its
/// RAM is shared and zero, which costs no time.
const BEGINNING: [&str; 4] = ["ready", "share=5M+2816", "fill=5M+64:7", "fill=2M+200:9"];

/// What it repeats: contents that change, and checks of everything.
const BLOCK: [(&str, &str); 8] = [
    ("fill=3M+40:1", "fill: 0x300000+40 seed=0x1"),
    ("count=3", "count: 1\ncount: 2\ncount: 3"),
    ("check=3M+40:1", "check: 0x300000+40 seed=0x1 ok"),
    ("fill=3M+40:2", "fill: 0x300000+40 seed=0x2"),
    ("count=2", "count: 1\ncount: 2"),
    ("check=3M+40:2", "check: 0x300000+40 seed=0x2 ok"),
    ("check=5M+64:7", "check: 0x500000+64 seed=0x7 ok"),
    ("check=2M+200:9", LAST_OF_BLOCK),
];

/// How each guest's first line begins.
const FIRST: &str = "guest-firmware: start ";

const LAST_OF_BLOCK: &str = "check: 0x200000+200 seed=0x9 ok";

/// The command line of a guest whose tape can be checked.
pub(crate) fn scenario() -> String {
    let repeated = BLOCK.iter().map(|(word, _)| *word);
    let words: Vec<_> = BEGINNING.into_iter().chain(["forever"]).chain(repeated).collect();
    words.join(" ")
}

/// What a guest has written.
pub(crate) struct Tape {
    written: Arc<(Mutex<String>, Condvar)>,
}

impl Tape {
    /// Makes a pipe at `path`, and listens to it.
    pub(crate) fn at(path: &str) -> Self {
        mknodat(CWD, path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("a new pipe");
        // Also open for writing, so that it never ends.
        let mut pipe: File = OpenOptions::new().read(true).write(true).open(path).unwrap();
        let written = Arc::new((Mutex::new(String::new()), Condvar::new()));
        let writing = Arc::clone(&written);
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(count @ 1..) = pipe.read(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..count]);
                let mut tape = writing.0.lock().unwrap_or_else(PoisonError::into_inner);
                tape.push_str(&text.replace('\r', ""));
                writing.1.notify_all();
            }
        });
        Self { written }
    }

    /// How many guests have begun.
    pub(crate) fn guests(&self) -> usize {
        self.lock().matches(FIRST).count()
    }

    /// Waits until so many guests have begun, and the last one repeats itself.
    #[track_caller]
    pub(crate) fn wait_for_guests(&self, count: usize) {
        self.wait_until("a guest has begun", |tape| {
            let last = tape.rfind(FIRST).and_then(|start| tape.get(start..)).unwrap_or_default();
            tape.matches(FIRST).count() >= count && last.contains("count: 1")
        });
    }

    /// Waits until the guest has checked everything once more, from the beginning to the end; then
    /// all that it ever wrote must be what one guest writes that never stopped, or ran twice.
    #[track_caller]
    pub(crate) fn goes_on(&self) {
        let blocks = |tape: &str| tape.matches(LAST_OF_BLOCK).count();
        let wanted = blocks(&self.lock()) + 2;
        let tape = self.wait_until("the guest goes on", |tape| blocks(tape) >= wanted);
        let of_this_guest = tape.rfind(FIRST).and_then(|start| tape.get(start..)).unwrap();
        // The last line may not be whole.
        let (whole, _) = of_this_guest.rsplit_once('\n').unwrap();
        let mut lines = whole.lines().skip(1);
        for word in BEGINNING {
            let line = lines.next().unwrap_or_default();
            let name = word.split('=').next().unwrap_or_default();
            assert!(line.starts_with(name) && !line.contains("ret=-"), "{word}: {line}");
        }
        let repeated = BLOCK.iter().flat_map(|(_, lines)| lines.lines()).cycle();
        for (line, expected) in lines.zip(repeated) {
            assert_eq!(line, expected, "{}", last_lines(&tape));
        }
    }

    fn lock(&self) -> MutexGuard<'_, String> {
        self.written.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[track_caller]
    fn wait_until(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let until = Instant::now() + PATIENCE;
        let mut tape = self.lock();
        while !is_so(&tape) {
            let left = until.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "waited until {what}:\n{}", last_lines(&tape));
            let waited = self.written.1.wait_timeout(tape, left);
            (tape, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        tape.clone()
    }
}

fn last_lines(tape: &str) -> String {
    let lines: Vec<_> = tape.lines().rev().take(40).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
