//! Two hosts with a wire between them, and one guest: real processes, asked through their API.

use std::fs::read_dir;
use std::num::NonZeroU32;
use std::path::Path;
use std::process::id;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use sevferry::control::api::{Connections, MigrateRequest, Outcome, Request, Resolution};
use sevferry::control::api::{Response, State, StatusReply};
use sevferry::control::{Client, ask};

use super::relay::Relay;
use super::steps::Step;
use super::tape::{Tape, scenario};
use support::process::{Sevferry, asset};
use support::scratch::Scratch;

/// How long a state may take to come.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Seconds after which a silent peer counts as gone: usually more than the slowest host takes for
/// anything, and where silence is the fault, what a test can wait for.
const SILENCE_S: NonZeroU32 = NonZeroU32::new(30).unwrap();
const SHORT_SILENCE_S: NonZeroU32 = NonZeroU32::new(5).unwrap();

/// What a process says that waits for a guest.
const WAITING: &str = "waiting for a guest at";

const SEV: &str = "sev=software";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Two hosts, `a` and `b`. A host is where a process is, or was: its sockets and its journal.
pub(crate) struct Hosts {
    scratch: Scratch,
    pub(crate) tape: Tape,
    /// From `a` to `b`.
    pub(crate) wire: Relay,
    silence_s: NonZeroU32,
}

/// A sevferry process on one of them.
pub(crate) struct Vmm {
    pub(crate) process: Sevferry,
    host: &'static str,
    api: String,
}

/// A migration that was asked for.
pub(crate) struct Migration(Client);

impl Hosts {
    pub(crate) fn new() -> Self {
        Self::with_silence(SILENCE_S)
    }

    fn with_silence(silence_s: NonZeroU32) -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let scratch = Scratch::new(&format!("faults-{}-{number}", id()));
        let tape = Tape::at(&scratch.path("tape"));
        let wire = Relay::to(scratch.path("b"));
        Self { scratch, tape, wire, silence_s }
    }

    /// A guest at `a`, awaited at `b`.
    pub(crate) fn with_guest() -> (Self, Vmm, Vmm) {
        Self::new().started()
    }

    /// The same, where silence is the fault.
    pub(crate) fn with_impatient_guest() -> (Self, Vmm, Vmm) {
        Self::with_silence(SHORT_SILENCE_S).started()
    }

    fn started(self) -> (Self, Vmm, Vmm) {
        let b = self.receive("b");
        let a = self.run("a");
        (self, a, b)
    }

    fn start(&self, host: &'static str, own: &[&str], platform: &str) -> Vmm {
        let api = self.scratch.path(&format!("{host}.api"));
        let journal = self.journal(host);
        let serial = format!("file={}", self.scratch.path("tape"));
        let more = ["--api-socket", &api, "--journal", &journal, "--serial", &serial];
        let all = own.iter().copied().chain(more).chain(["--platform", platform]);
        Vmm { process: Sevferry::start(all), host, api: api.clone() }
    }

    pub(crate) fn journal(&self, host: &str) -> String {
        self.scratch.path(&format!("{host}.journal"))
    }

    /// Boots a guest, and waits until it says something.
    pub(crate) fn run(&self, host: &'static str) -> Vmm {
        self.run_on(host, SEV)
    }

    pub(crate) fn run_on(&self, host: &'static str, platform: &str) -> Vmm {
        let before = self.tape.guests();
        let (kernel, words) = (asset("guest-firmware.elf"), scenario());
        let own = ["run", "--kernel", &kernel, "--cmdline", &words, "--memory", "size=16M"];
        let vmm = self.start(host, &own, platform);
        self.tape.wait_for_guests(before + 1);
        vmm
    }

    /// Waits for a guest.
    pub(crate) fn receive(&self, host: &'static str) -> Vmm {
        self.receive_on(host, SEV)
    }

    pub(crate) fn receive_on(&self, host: &'static str, platform: &str) -> Vmm {
        let mut vmm = self.start_receiving(host, platform);
        vmm.process.wait_for(WAITING);
        vmm
    }

    /// The same, where the process before left a journal that says something.
    pub(crate) fn receive_again(&self, host: &'static str, journal_says: &str) -> Vmm {
        let mut vmm = self.start_receiving(host, SEV);
        vmm.process.wait_for(journal_says);
        vmm.process.wait_for(WAITING);
        vmm
    }

    fn start_receiving(&self, host: &'static str, platform: &str) -> Vmm {
        let (listen, silence) = (self.direct(host), self.silence_s.to_string());
        self.start(host, &["receive", "--listen", &listen, "--silence-s", &silence], platform)
    }

    /// A host's own socket, without the wire.
    fn direct(&self, host: &str) -> String {
        format!("unix:{}", self.scratch.path(host))
    }

    /// Where a host listens, without the wire.
    pub(crate) fn socket(&self, host: &str) -> String {
        self.scratch.path(host)
    }

    /// Waits until neither host has a journal left.
    #[track_caller]
    pub(crate) fn wait_for_no_journals(&self) {
        let until = Instant::now() + PATIENCE;
        let journals = || {
            let files = ["a", "b"].map(|host| read_dir(self.journal(host)));
            files.into_iter().flatten().flatten().count()
        };
        while journals() > 0 {
            assert!(Instant::now() < until, "{} journals are left", journals());
            park_timeout(LOOK_EVERY);
        }
    }

    /// Begins to move the guest from `a` to `b`, over the wire.
    pub(crate) fn migrate(&self, from: &Vmm) -> Migration {
        let client = self.ask_to_migrate(from);
        let accepted = client.responses().next(Some(PATIENCE)).unwrap();
        assert_eq!(accepted, Response::Accepted);
        Migration(client)
    }

    /// What is answered at once.
    pub(crate) fn try_to_migrate(&self, from: &Vmm) -> Response {
        self.ask_to_migrate(from).responses().next(Some(PATIENCE)).unwrap()
    }

    fn ask_to_migrate(&self, from: &Vmm) -> Client {
        let to = if from.host == "a" { self.wire.endpoint() } else { self.direct("a") };
        let request = MigrateRequest {
            to: to.parse().unwrap(),
            downtime_ms: MigrateRequest::default_downtime_ms(),
            timeout_s: MigrateRequest::default_timeout_s(),
            timeout_strategy: Default::default(),
            connections: Connections::try_from(2).unwrap(),
            silence_s: self.silence_s,
            allow_unchecked: false,
            throttle: true,
        };
        Client::ask(Path::new(&from.api), &Request::Migrate(request)).unwrap()
    }

    /// Begins to move it, and stops the wire at `step`.
    pub(crate) fn migrate_up_to(&self, step: Step, from: &Vmm) -> Migration {
        // Shown only if the test fails.
        eprintln!("{:?} does not arrive", step.message);
        self.wire.stop_at(step.message);
        let migration = self.migrate(from);
        self.wire.wait_for_stop();
        migration
    }

    /// A migration that nothing disturbs works, and the guest's memory is right.
    #[track_caller]
    pub(crate) fn moves(&self, from: Vmm, to: &Vmm) {
        self.migrate(&from).moved();
        from.process.end().with_code(0);
        to.has(State::Running);
        self.tape.goes_on();
    }
}

impl Migration {
    #[track_caller]
    fn outcome(self) -> Outcome {
        match self.0.responses().next(Some(PATIENCE)) {
            Ok(Response::Ended(summary)) => summary.outcome,
            other => panic!("the migration's end: {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn moved(self) {
        assert_eq!(self.outcome(), Outcome::Moved);
    }

    /// The guest runs on at its source; the reason.
    #[track_caller]
    pub(crate) fn was_kept(self) -> String {
        match self.outcome() {
            Outcome::Kept(reason) => reason,
            other @ (Outcome::Moved
            | Outcome::Ended(_)
            | Outcome::InDoubt(_)
            | Outcome::Failed(_)) => {
                panic!("not kept: {other:?}")
            }
        }
    }
}

impl Vmm {
    pub(crate) fn status(&self) -> StatusReply {
        match ask(Path::new(&self.api), &Request::Status) {
            Ok(Response::Status(status)) => *status,
            other => panic!("the status of {}: {other:?}", self.host),
        }
    }

    /// Waits until this is its state.
    #[track_caller]
    pub(crate) fn has(&self, state: State) {
        let until = Instant::now() + PATIENCE;
        loop {
            let now = self.status().state;
            if now == state {
                return;
            }
            assert!(Instant::now() < until, "{} is {now:?} and never {state:?}", self.host);
            park_timeout(LOOK_EVERY);
        }
    }

    #[track_caller]
    pub(crate) fn resolve(&self, resolution: Resolution) {
        let answer = ask(Path::new(&self.api), &Request::Resolve(resolution)).unwrap();
        assert_eq!(answer, Response::Accepted);
    }

    pub(crate) fn ask(&self, request: &Request) -> Response {
        ask(Path::new(&self.api), request).unwrap()
    }

    /// `kill -9`, and whatever still stands of its connections is reset.
    pub(crate) fn kill(self, wire: &Relay) {
        self.process.signal(Signal::KILL);
        assert_eq!(self.process.end().code, None);
        wire.cut();
    }

    /// From now on no file of this process may grow, or they may again: its journal's writes fail.
    pub(crate) fn limit_files(&self, limited: bool) {
        let pid = i32::try_from(self.process.id()).ok().and_then(Pid::from_raw);
        let current = limited.then_some(0);
        let limit = Rlimit { current, maximum: None };
        prlimit(pid, Resource::Fsize, limit).unwrap();
    }
}
