//! What the API socket answers, to whom, and what it does not put up with.

use std::fs::{Permissions, set_permissions, symlink_metadata};
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::sync::mpsc::TryRecvError;
use std::thread::yield_now;

use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::control::api::State;
use crate::control::{Client, ask};

/// A server, and the other end of the process's queue.
struct Served {
    path: PathBuf,
    board: Arc<StatusBoard>,
    process: Receiver<Event>,
    server: Server,
    _directory: TempDir,
}

fn serve() -> Served {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("api");
    let board = Arc::new(StatusBoard::new(State::Starting));
    let (events, process) = channel();
    let server = Server::start(&path, Arc::clone(&board), events).unwrap();
    Served { path, board, process, server, _directory: directory }
}

/// What comes back for these bytes, until the server hangs up.
fn send_bytes(path: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(path).unwrap();
    // The server may hang up in the middle.
    drop(stream.write_all(bytes));
    let mut answer = String::new();
    drop(stream.read_to_string(&mut answer));
    answer
}

fn next_request(process: &Receiver<Event>) -> (Request, Answer) {
    let event = process.recv_timeout(Duration::from_secs(10)).unwrap();
    let Event::Request(request, answer) = event else { panic!("{event:?}") };
    (request, answer)
}

/// Status is answered while the process does not listen at all.
#[test]
fn status_needs_no_process() {
    let served = serve();
    let response = ask(&served.path, &Request::Status).unwrap();
    let Response::Status(status) = response else { panic!("{response:?}") };
    assert_eq!(status.state, State::Starting);
    assert!(matches!(ask(&served.path, &Request::Cancel).unwrap(), Response::Refused { .. }));
    served.board.show(State::Migrating);
    let client = Client::ask(&served.path, &Request::Cancel).unwrap();
    while !served.board.is_cancelled() {
        yield_now();
    }
    served.board.show_running(None);
    assert_eq!(client.responses().next(None).unwrap(), Response::Accepted);
    assert!(matches!(served.process.try_recv(), Err(TryRecvError::Empty)));
}

/// The process's answers arrive one by one, and the connection ends with the last.
#[test]
fn the_process_answers_in_its_own_time() {
    let served = serve();
    let client = Client::ask(&served.path, &Request::Report).unwrap();
    let (request, answer) = next_request(&served.process);
    assert_eq!(request, Request::Report);
    let mut responses = client.responses();
    answer.give(Response::Accepted);
    assert_eq!(responses.next(None).unwrap(), Response::Accepted);
    answer.refuse("no");
    drop(answer);
    assert_eq!(responses.next(None).unwrap(), Response::Refused { reason: "no".to_owned() });
    let gone = responses.next(None).unwrap_err().to_string();
    assert!(gone.ends_with("ended without an answer"), "{gone}");
}

/// A process that goes away does not leave anybody waiting.
#[test]
fn a_gone_process_is_said() {
    let served = serve();
    let client = Client::ask(&served.path, &Request::Quit).unwrap();
    drop(next_request(&served.process));
    assert!(matches!(client.responses().next(None).unwrap(), Response::Error { .. }));
    drop(served.process);
    assert!(matches!(ask(&served.path, &Request::Quit).unwrap(), Response::Error { .. }));
}

/// What was answered last reaches its reader, though the process ends at once.
#[test]
fn the_last_words_are_delivered() {
    let served = serve();
    let client = Client::ask(&served.path, &Request::Quit).unwrap();
    let (_request, answer) = next_request(&served.process);
    answer.give(Response::Accepted);
    drop((answer, served.process, served.server));
    assert!(!served.path.exists());
    assert_eq!(client.responses().next(None).unwrap(), Response::Accepted);
}

/// What is not one request is answered with what is wrong, and the next client is served.
#[test]
fn nonsense_is_answered() {
    let served = serve();
    let long = vec![b' '; REQUEST_BYTES_MAX + 1];
    let two = [Request::Status.to_line().unwrap(), Request::Status.to_line().unwrap()].concat();
    for (bytes, said) in [
        (b"hello\n".as_slice(), "not understood"),
        (b"\n", "not understood"),
        (b"\xff\n", "not understood"),
        (b"GET /api/v1/vm.info HTTP/1.1\r\n", "not understood"),
        (
            br#"{"version":9,"request":"status"}
"#,
            "version 9",
        ),
        (&long, "more than 65536 bytes"),
        (&two, "more than one request"),
    ] {
        let answer = send_bytes(&served.path, bytes);
        assert!(answer.contains(r#"{"error":"#) && answer.contains(said), "{answer}");
        assert!(matches!(ask(&served.path, &Request::Status), Ok(Response::Status(_))));
    }
}

/// A line that never ends is given up after the time allowed for all of it, and others are served
/// meanwhile.
#[test]
fn a_slow_client_is_given_up() {
    let served = serve();
    let mut slow = UnixStream::connect(&served.path).unwrap();
    let start = Instant::now();
    let mut answer = [0; 4096];
    slow.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let count = loop {
        // A byte now and then does not buy more time.
        drop(slow.write_all(b" "));
        if let Ok(count) = slow.read(&mut answer) {
            break count;
        }
        assert!(matches!(ask(&served.path, &Request::Status), Ok(Response::Status(_))));
        assert!(start.elapsed() < PATIENCE * 3);
    };
    let answer = String::from_utf8_lossy(&answer[..count]);
    assert!(answer.contains("no whole line came in time"), "{answer}");
    assert!(start.elapsed() >= PATIENCE);
}

/// A bounded number of clients is served at once; the next is told so, and is served later.
#[test]
fn too_many_clients_are_turned_away() {
    let served = serve();
    let idle: Vec<_> = (0..CONNECTIONS_MAX)
        .map(|_| {
            let client = Client::ask(&served.path, &Request::Report).unwrap();
            (client, next_request(&served.process))
        })
        .collect();
    let response = ask(&served.path, &Request::Status).unwrap();
    let Response::Refused { reason } = response else { panic!("{response:?}") };
    assert!(reason.starts_with("busy"), "{reason}");
    for (client, (_request, answer)) in idle {
        drop(answer);
        client.responses().next(None).unwrap();
    }
    wait_until_served(&served.path);
}

fn wait_until_served(path: &Path) {
    let deadline = Instant::now() + PATIENCE;
    while !matches!(ask(path, &Request::Status).unwrap(), Response::Status(_)) {
        assert!(Instant::now() < deadline, "still busy");
    }
}

/// Clients that connect and say nothing do not add up, and when they have gone others are served.
#[test]
fn silent_clients_do_not_add_up() {
    let served = serve();
    let silent: Vec<_> = (0..300).map(|_| UnixStream::connect(&served.path).unwrap()).collect();
    let answer = send_bytes(&served.path, b"");
    assert!(answer.contains("busy"), "{answer}");
    drop(silent);
    wait_until_served(&served.path);
}

/// The socket is its user's alone.
#[test]
fn the_socket_is_private() {
    let served = serve();
    let mode = symlink_metadata(&served.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let (root, one, two) = (Uid::ROOT, Uid::from_raw(1000), Uid::from_raw(1001));
    assert!(is_permitted(one, one) && is_permitted(root, one) && is_permitted(root, root));
    assert!(!is_permitted(two, one) && !is_permitted(one, root));
}

/// Another user is refused even where the file system lets it in. Only root can try.
#[test]
fn another_user_is_refused() {
    if !geteuid().is_root() {
        eprintln!("not tried: only root can become another user");
        return;
    }
    let served = serve();
    let directory = served.path.parent().unwrap();
    set_permissions(directory, Permissions::from_mode(0o755)).unwrap();
    set_permissions(&served.path, Permissions::from_mode(0o666)).unwrap();
    let script = "use Socket; socket(S, AF_UNIX, SOCK_STREAM, 0); \
                  connect(S, sockaddr_un($ARGV[0])) or die $!; print <S>";
    let path = served.path.to_str().unwrap();
    let other = Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups", "perl", "-e", script, path])
        .output()
        .unwrap();
    let (said, wrong) = (other.stdout.escape_ascii(), other.stderr.escape_ascii());
    let said = said.to_string();
    assert!(said.contains("only the user who runs this guest"), "{said} {wrong}");
}

/// Two processes do not serve one socket.
#[test]
fn a_served_socket_is_not_taken_over() {
    let served = serve();
    let (events, _owner) = channel();
    let second = Server::start(&served.path, Arc::clone(&served.board), events).unwrap_err();
    assert!(matches!(second, ServerError::Socket { cause: NoSocket::InUse, .. }), "{second}");
    assert!(matches!(ask(&served.path, &Request::Status), Ok(Response::Status(_))));
}

/// A process that cannot be asked is named, with what may be the reason.
#[test]
fn clients_say_what_to_do() {
    let directory = TempDir::new().unwrap();
    let path = directory.as_path().join("api");
    let refused = |path: &Path| ask(path, &Request::Status).unwrap_err().to_string();
    let said = refused(&path);
    assert!(said.ends_with("does the guest run with --api-socket?"), "{said}");
    drop(UnixListener::bind(&path).unwrap());
    assert!(refused(&path).starts_with("nobody serves"), "{}", refused(&path));
    let listener = UnixListener::bind(directory.as_path().join("other")).unwrap();
    let client = Client::ask(&directory.as_path().join("other"), &Request::Status).unwrap();
    let (mut odd, _address) = listener.accept().unwrap();
    odd.write_all(b"HTTP/1.1 400\r\n\r\n").unwrap();
    let said = client.responses().next(None).unwrap_err().to_string();
    assert!(said.ends_with("is none of sevferry's"), "{said}");
}
