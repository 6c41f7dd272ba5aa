//! How a waiting `sevferry receive` handles connections, without KVM.
#![expect(clippy::unwrap_used, reason = "what a test waits for in vain fails it")]

use std::fs::read_dir;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, prlimit};
use sevferry::migration::wire::{
    FRAME_HEADER_LEN, FrameHeader, Message, Say, Secret, Transfer, VmId, Word,
};
use support::process::Sevferry;
use vmm_sys_util::tempdir::TempDir;

/// Nothing here takes that long.
const SOON: Duration = Duration::from_secs(60);

/// A `sevferry receive` in a directory of its own, and where it listens.
fn receive(directory: &Path) -> (Sevferry, String) {
    let socket = directory.join("b").display().to_string();
    let listen = format!("unix:{socket}");
    let journals = directory.display().to_string();
    let arguments = ["receive", "--listen", &listen, "--serial", "null", "--journal", &journals];
    let mut host = Sevferry::start(arguments);
    host.wait_for("waiting for a guest");
    (host, socket)
}

fn connect(socket: &str) -> UnixStream {
    let stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    stream
}

/// The next message, or panics.
fn hear(stream: &mut UnixStream) -> Message {
    let mut header = [0; FRAME_HEADER_LEN];
    stream.read_exact(&mut header).unwrap();
    let header = FrameHeader::decode(&header).unwrap();
    let mut body = vec![0; header.length()];
    stream.read_exact(&mut body).unwrap();
    Message::decode(header, body).unwrap()
}

/// How many descriptors the process may have, from the next on.
fn limit(host: &Sevferry, most: Option<u64>) {
    let pid = Pid::from_raw(host.id().try_into().unwrap()).unwrap();
    let limit = Rlimit { current: most.or(Some(1024)), maximum: Some(1024) };
    prlimit(Some(pid), Resource::Nofile, limit).unwrap();
}

fn descriptors(host: &Sevferry) -> u64 {
    let open = read_dir(format!("/proc/{}/fd", host.id())).unwrap();
    open.count().try_into().unwrap()
}

/// Where descriptors are short, the oldest stranger makes room, and the wait goes on.
#[test]
fn a_host_without_descriptors_goes_on_waiting() {
    let directory = TempDir::new().unwrap();
    let (mut host, socket) = receive(directory.as_path());
    // Numbers below the limit may be free, so it is filled from below.
    limit(&host, Some(descriptors(&host) + 3));
    let mut strangers: Vec<_> = (0..12).map(|_| connect(&socket)).collect();
    host.wait_for("accepting a connection failed, and is tried again");
    let Message::Refuse { reason } = hear(&mut strangers[0]) else { panic!("a refusal") };
    assert!(reason.as_str().contains("too many connections at once"), "{reason}");
    limit(&host, None);
    let transfer = Transfer { vm: VmId([7; 16]), epoch: 1 };
    let mut source = connect(&socket);
    let commit = Word::new(&Secret([1; 16]), transfer, Say::Commit { is_last: false });
    source.write_all(&Message::Word(commit).encode().unwrap()).unwrap();
    let Message::Refuse { reason } = hear(&mut source) else { panic!("a refusal") };
    assert!(reason.as_str().contains("no proof that counts"), "{reason}");
    host.signal(Signal::TERM);
    let ended = host.end();
    assert_eq!(ended.code, Some(0), "{ended}");
}

/// Strangers who say a byte now and then do not keep the user from ending the wait.
#[test]
fn strangers_do_not_keep_the_user_waiting() {
    let directory = TempDir::new().unwrap();
    let (host, socket) = receive(directory.as_path());
    let mut strangers: Vec<_> = (0..20).map(|_| connect(&socket)).collect();
    for stranger in &mut strangers {
        stranger.write_all(b"SV").unwrap();
    }
    let asked = Instant::now();
    host.signal(Signal::TERM);
    let ended = host.end();
    assert_eq!(ended.code, Some(0), "{ended}");
    assert!(asked.elapsed() < SOON / 4, "{:?}", asked.elapsed());
}
