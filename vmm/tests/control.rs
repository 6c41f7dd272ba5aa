//! The commands that ask the process of a guest, and that process's answers, without KVM.
#![expect(clippy::unwrap_used, clippy::panic, reason = "what a test waits for in vain fails it")]

use std::env::current_dir;
use std::fs::read_dir;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::yield_now;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, from_str, json};
use sevferry::control::api::{
    MigrateRequest, Outcome, Progress, Request, Response, State, Summary,
};
use sevferry::control::{Answer, Event, Server, StatusBoard};
use sevferry::migration::handover::journal::Side;
use sevferry::migration::progress::{Carried, Phase};
use sevferry::migration::wire::{Transfer, VmId};
use support::process::{Ended, Sevferry};
use support::unread::Unread;
use vmm_sys_util::tempdir::TempDir;

const TRANSFER: Transfer = Transfer { vm: VmId([0xab; 16]), epoch: 2 };

/// A process that owns a guest, played by the test.
struct Owner {
    board: Arc<StatusBoard>,
    happened: Receiver<Event>,
    _server: Server,
    directory: TempDir,
}

impl Owner {
    fn start() -> Self {
        let directory = TempDir::new().unwrap();
        let board = Arc::new(StatusBoard::new(State::Starting));
        let (events, happened) = channel();
        let server = Server::start(&socket(&directory), Arc::clone(&board), events).unwrap();
        board.show_running(None);
        Self { board, happened, _server: server, directory }
    }

    /// Starts `sevferry migrate`, and has its request.
    fn asked_to_migrate(&self, options: &[&str]) -> (Sevferry, MigrateRequest, Answer) {
        let path = socket(&self.directory);
        let arguments = ["migrate", "--to", "tcp:b:1", "--api-socket", path.to_str().unwrap()];
        let asker = Sevferry::start(arguments.into_iter().chain(options.iter().copied()));
        let event = self.happened.recv_timeout(Duration::from_secs(60)).unwrap();
        let Event::Request(Request::Migrate(request), answer) = event else { panic!("{event:?}") };
        (asker, request, answer)
    }

    fn begin(&self, answer: &Answer) {
        let mut progress = Progress::new(TRANSFER, Side::Source);
        (progress.phase, progress.round) = (Phase::Rounds, 2);
        self.board.show_migration(State::Migrating, Arc::new(Mutex::new(progress)));
        answer.give(Response::Accepted);
    }
}

fn socket(directory: &TempDir) -> PathBuf {
    directory.as_path().join("api")
}

fn ended(outcome: Outcome) -> Response {
    Response::Ended(Box::new(Summary {
        transfer: TRANSFER,
        side: Side::Source,
        outcome,
        rounds: 3,
        throttle_percent_max: 0,
        connections: 2,
        carried: Carried::default(),
        phases: Vec::new(),
        downtime_us: None,
    }))
}

fn because() -> String {
    "the dog ate it".to_owned()
}

fn ask(command: &str, api_socket: &Path) -> Ended {
    let options = ["--api-socket", api_socket.to_str().unwrap()];
    Sevferry::start(command.split(' ').chain(options)).end()
}

/// A destination that waits for its guest can be asked, and ended; it leaves no socket behind.
#[test]
fn a_waiting_destination_answers() {
    let directory = TempDir::new().unwrap();
    let api_socket = socket(&directory);
    let listen = format!("unix:{}", directory.as_path().join("listen").display());
    let receive = ["receive", "--serial", "null", "--listen", &listen];
    let mut destination =
        Sevferry::start(receive.into_iter().chain(["--api-socket", api_socket.to_str().unwrap()]));
    destination.wait_for("waiting for a guest");

    let status = ask("status", &api_socket).with_code(0);
    let process = format!("(process {})", destination.id());
    assert_eq!(status.out, format!("guest: none yet; waiting for one {process}\n"));
    let status: Value = from_str(&ask("status --json", &api_socket).with_code(0).out).unwrap();
    let expected = json!({
        "state": "waiting", "process": destination.id(), "launch": null, "pages": null,
        "devices": [], "migration": null,
    });
    assert_eq!(status, expected);
    ask("cancel", &api_socket).with_code(1).saying("cancelled at its source");
    ask("report", &api_socket).with_code(1).saying("there is no guest yet");
    ask("resolve keep", &api_socket).with_code(1).saying("no handover is in doubt");
    ask("quit", &api_socket).with_code(0);
    destination.end().with_code(0);
    assert_eq!(read_dir(directory.as_path()).unwrap().count(), 0, "files are left");
}

/// A destination that was killed leaves its sockets; the next one at the same API socket starts.
#[test]
fn a_killed_process_is_replaced() {
    let directory = TempDir::new().unwrap();
    let api_socket = socket(&directory);
    let start = |listen: &str| {
        let listen = format!("unix:{}", directory.as_path().join(listen).display());
        let receive = ["receive", "--serial", "null", "--listen", &listen, "--api-socket"];
        Sevferry::start(receive.into_iter().chain([api_socket.to_str().unwrap()]))
    };
    let mut killed = start("one");
    killed.wait_for("waiting for a guest");
    start("two").end().with_code(1).saying("another process serves it");
    killed.signal(Signal::KILL);
    assert_eq!(killed.end().code, None);
    ask("status", &api_socket).with_code(1).saying("its process was killed");
    let mut next = start("two");
    next.wait_for("waiting for a guest");
    next.signal(Signal::TERM);
    next.end().with_code(0);
    ask("status", &api_socket).with_code(1).saying("does the guest run with --api-socket?");
}

/// The exit code says where the guest is, and the summary how it came there.
#[test]
fn the_exit_code_says_where_the_guest_is() {
    let owner = Owner::start();
    for (outcome, code, said) in [
        (Outcome::Moved, 0, "moved: the guest runs at the destination\n"),
        (Outcome::Kept(because()), 10, "not moved: the guest runs on here: the dog ate it\n"),
        (Outcome::Ended(because()), 14, "not moved: the guest has ended: the dog ate it\n"),
        (Outcome::InDoubt(because()), 12, "in doubt: the dog ate it\n"),
        (Outcome::Failed(because()), 1, "failed: the dog ate it\n"),
    ] {
        let (mut asker, _request, answer) = owner.asked_to_migrate(&[]);
        owner.begin(&answer);
        asker.wait_for("sevferry: 0.0 s, rounds, round 2, left 0 private and 0 shared pages");
        answer.give(ended(outcome));
        let end = asker.end().with_code(code);
        assert!(end.out.starts_with(said), "{end}");
        assert!(end.out.contains("rounds    3 over 2 connections"), "{end}");
        owner.board.show_running(None);
    }
    let (asker, _request, answer) = owner.asked_to_migrate(&[]);
    answer.refuse(because());
    asker.end().with_code(10).saying("not moved, the guest runs on: the dog ate it");
}

/// A process that is gone before it has begun has moved nothing; after that nobody can know.
#[test]
fn a_lost_owner_is_a_doubt_only_after_the_beginning() {
    let owner = Owner::start();
    let (asker, _request, answer) = owner.asked_to_migrate(&[]);
    drop(answer);
    asker.end().with_code(1).saying("the guest ended before it was asked");
    let (asker, _request, answer) = owner.asked_to_migrate(&[]);
    owner.begin(&answer);
    drop(answer);
    asker.end().with_code(12).saying("ended without an answer").saying("sevferry status");
}

/// `--json` prints each status, then how it ended.
#[test]
fn json_is_one_object_per_line() {
    let owner = Owner::start();
    let (mut asker, _request, answer) = owner.asked_to_migrate(&["--json"]);
    owner.begin(&answer);
    asker.wait_for("\"migrating\"");
    answer.give(ended(Outcome::Kept(because())));
    let end = asker.end().with_code(10);
    let lines: Vec<Value> = end.out.lines().map(|line| from_str(line).unwrap()).collect();
    let (last, statuses) = lines.split_last().unwrap();
    assert_eq!((&last["outcome"], &last["reason"]), (&json!("kept"), &json!(because())));
    assert!(!statuses.is_empty(), "{end}");
    for status in statuses {
        assert_eq!(
            (&status["state"], &status["migration"]["round"]),
            (&json!("migrating"), &json!(2))
        );
    }

    let (asker, _request, answer) = owner.asked_to_migrate(&["--json"]);
    answer.refuse(because());
    let end = asker.end().with_code(10);
    let last: Value = from_str(end.out.lines().last().unwrap()).unwrap();
    assert_eq!(last, json!({ "outcome": "kept", "reason": because() }));
}

/// Ctrl-C cancels the migration, and waits for its end; a second signal, and it waits no longer: its
/// exit code says that the migration goes on.
#[test]
fn an_interrupt_cancels() {
    let owner = Owner::start();
    for patient in [true, false] {
        let (mut asker, _request, answer) = owner.asked_to_migrate(&["--json"]);
        owner.begin(&answer);
        asker.wait_for("\"migrating\"");
        asker.signal(Signal::INT);
        while !owner.board.is_cancelled() {
            yield_now();
        }
        if patient {
            owner.board.show_running(None);
            answer.give(ended(Outcome::Kept(because())));
            asker.end().with_code(10);
        } else {
            asker.wait_for("cancelling");
            asker.signal(Signal::TERM);
            asker.end().with_code(13).saying("the migration goes on");
        }
    }
}

/// Whoever asks for a migration and reads nothing of it hears how it ended, by the exit code.
#[test]
fn a_migration_ends_though_nobody_reads_how_it_goes() {
    let owner = Owner::start();
    let path = socket(&owner.directory);
    let arguments = ["migrate", "--to", "tcp:b:1", "--api-socket", path.to_str().unwrap()];
    for json in [&[][..], &["--json"]] {
        let asker = Unread::start(true, arguments.iter().chain(json));
        let event = owner.happened.recv_timeout(Duration::from_secs(60)).unwrap();
        let Event::Request(Request::Migrate(_), answer) = event else { panic!("{event:?}") };
        owner.begin(&answer);
        answer.give(ended(Outcome::Kept(because())));
        assert_eq!(asker.end(), Some(10));
        owner.board.show_running(None);
    }
}

/// A relative path is relative to who gives it, not to the process of the guest.
#[test]
fn a_relative_destination_is_made_absolute() {
    let owner = Owner::start();
    let (asker, request, answer) = owner.asked_to_migrate(&["--connections", "3"]);
    assert_eq!((request.to.to_string().as_str(), request.connections.get()), ("tcp:b:1", 3));
    answer.refuse(because());
    asker.end().with_code(10);

    let path = socket(&owner.directory);
    let arguments = ["migrate", "--to", "unix:b", "--api-socket", path.to_str().unwrap()];
    let asker = Sevferry::start(arguments);
    let event = owner.happened.recv_timeout(Duration::from_secs(60)).unwrap();
    let Event::Request(Request::Migrate(request), answer) = event else { panic!("{event:?}") };
    let here = current_dir().unwrap();
    assert_eq!(request.to.to_string(), format!("unix:{}", here.join("b").display()));
    answer.refuse(because());
    asker.end().with_code(10);
}
