//! A process that waits for a guest, without KVM: its sockets, its signals, and readers that do not read its messages.
#![expect(clippy::unwrap_used, reason = "what a test waits for in vain fails it")]

use std::fs::{read_dir, symlink_metadata};
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use sevferry::control::api::{Request, Response, State};
use sevferry::control::ask;
use sevferry::migration::wire::{Message, Reason};
use support::process::Sevferry;
use support::terminal::Terminal;
use support::unread::Unread;
use vmm_sys_util::tempdir::TempDir;

/// Signals that end a program which does not know them, and `SIGRTMIN` and two.
const ENDING: [i32; 13] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGHUP,
    libc::SIGQUIT,
    libc::SIGUSR2,
    libc::SIGALRM,
    libc::SIGVTALRM,
    libc::SIGPROF,
    libc::SIGIO,
    libc::SIGXCPU,
    libc::SIGPWR,
    libc::SIGSTKFLT,
    37,
];

/// Where the sockets of one test are.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.as_path().join(name)
    }

    /// The arguments of `sevferry receive` that listens at `name`, and serves the API at `api`.
    fn receive(&self, name: &str) -> Vec<String> {
        let (listen, api) = (self.path(name), self.path("api"));
        let listen = format!("unix:{}", listen.display());
        let arguments = ["receive", "--listen", &listen, "--api-socket", api.to_str().unwrap()];
        arguments.map(str::to_owned).to_vec()
    }

    fn receive_silently(&self, name: &str) -> Vec<String> {
        [self.receive(name), vec!["--serial=null".to_owned()]].concat()
    }

    /// Waits until the process at `api` is in this state.
    fn wait_for(&self, state: State) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match ask(&self.path("api"), &Request::Status) {
                Ok(Response::Status(status)) if status.state == state => return,
                other => assert!(Instant::now() < deadline, "not {state:?}: {other:?}"),
            }
            yield_now();
        }
    }

    #[track_caller]
    fn assert_empty(&self) {
        let left: Vec<_> = read_dir(self.0.as_path()).unwrap().collect();
        assert!(left.is_empty(), "{left:?} are left");
    }
}

/// Of many that start at the same moment on the socket that a killed one has left, one serves it; the
/// others say so, and end.
#[test]
fn one_of_many_serves_a_stale_socket() {
    for _ in 0..3 {
        let place = Place::new();
        drop(UnixListener::bind(place.path("api")).unwrap());
        let start = |number| Sevferry::start(place.receive_silently(&format!("listen-{number}")));
        let started: Vec<_> = (0..8).map(start).collect();
        let mut serving = Vec::new();
        for mut process in started {
            if process.wait_for("sevferry: ").contains("waiting for a guest") {
                serving.push(process);
            } else {
                process.end().with_code(1).saying("another process serves it");
            }
        }
        assert_eq!(serving.len(), 1, "processes that believe that they serve the socket");
        let served = serving.remove(0);
        let answer = ask(&place.path("api"), &Request::Status).unwrap();
        let Response::Status(status) = &answer else { panic!("{answer:?}") };
        assert_eq!(status.process, served.id());
        served.signal(Signal::TERM);
        served.end().with_code(0);
        place.assert_empty();
    }
}

/// Whatever the umask, nobody else may connect, neither to ask nor to send a guest.
#[test]
fn sockets_are_their_users_alone() {
    for umask in ["000", "022", "277"] {
        let place = Place::new();
        let arguments = place.receive_silently("listen");
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        let mut process = Sevferry::start_with_umask(umask, &arguments);
        process.wait_for("waiting for a guest");
        for name in ["listen", "api"] {
            let mode = symlink_metadata(place.path(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o600, "{name} under {umask}");
        }
        process.signal(Signal::TERM);
        process.end().with_code(0);
        place.assert_empty();
    }
}

/// Every signal that would end it at once ends it in order: the terminal is as it was, and no socket is
/// left.
#[test]
fn every_signal_that_ends_it_leaves_nothing_behind() {
    for signal in ENDING {
        let place = Place::new();
        let terminal = Terminal::open();
        let before = terminal.modes();
        let mut process = Sevferry::start_with_input(place.receive("listen"), terminal.input());
        process.wait_for("waiting for a guest");
        assert_ne!(terminal.modes(), before, "the terminal is not raw");
        let kill = format!("kill -{signal} {}", process.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success(), "{kill}");
        process.end().with_code(0);
        assert_eq!(terminal.modes(), before, "after signal {signal}");
        place.assert_empty();
    }
}

/// A process whose messages nobody reads answers, and ends when it is told to.
#[test]
fn messages_that_nobody_reads_keep_nobody() {
    for signal in [Some(Signal::TERM), Some(Signal::INT), None] {
        let place = Place::new();
        let process = Unread::start(true, place.receive_silently("listen"));
        place.wait_for(State::Waiting);
        let report = ask(&place.path("api"), &Request::Report).unwrap();
        assert!(matches!(report, Response::Refused { .. }), "{report:?}");
        match signal {
            Some(signal) => process.signal(signal),
            None => {
                let quit = ask(&place.path("api"), &Request::Quit).unwrap();
                assert_eq!(quit, Response::Accepted);
            }
        }
        assert_eq!(process.end(), Some(0));
        place.assert_empty();
    }
}

/// Whoever connects again and again, and has a text of its own printed each time, has it printed once
/// a second; the others are counted.
#[test]
fn a_strangers_words_do_not_fill_the_log() {
    const CALLS: usize = 300;
    let place = Place::new();
    let mut process = Sevferry::start(place.receive_silently("listen"));
    process.wait_for("waiting for a guest");
    let begun = Instant::now();
    let reason = Reason::new(&"n".repeat(Reason::BYTES_MAX));
    let words = Message::Refuse { reason }.encode().unwrap();
    for _ in 0..CALLS {
        let mut stream = UnixStream::connect(place.path("listen")).unwrap();
        stream.write_all(&words).unwrap();
        // It hangs up when it has heard that, having said that it is sorry.
        let _heard = stream.read_to_end(&mut Vec::new());
    }
    process.signal(Signal::TERM);
    let ended = process.end().with_code(0);
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap();
    let said: Vec<_> = ended.err.lines().filter(|line| line.contains("nnn")).collect();
    assert!(said.len() <= seconds + 3, "{} lines in {seconds} s", said.len());
    let more = |line: &&str| {
        let (_, more) = line.split_once(" (and ")?;
        more.split_once(" more like it)")?.0.parse::<usize>().ok()
    };
    let counted: usize = said.iter().filter_map(more).sum();
    assert_eq!(said.len() + counted, CALLS, "{ended}");
}
