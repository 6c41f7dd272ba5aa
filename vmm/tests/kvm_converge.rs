//! Guests that are hard to move, and hostile destinations, as real processes.

use std::fs::remove_file;
use std::io::{Read, Write, pipe};
use std::os::unix::net::UnixListener;
use std::thread;
use std::time::Duration;

use sevferry::migration::wire::{Message, PlatformBytes, Reason, Secret};
use support::process::{Ended, Sevferry, asset};

/// Far beyond what any of these guests lives for.
const PATIENCE: Duration = Duration::from_secs(700);

/// What each destination here makes of chance.
const SECRET: Secret = Secret([7; 16]);

/// Rounds without an end.
const ROUNDS_IN_VAIN: u64 = 30;

const SEV: &str = "sev=software";

/// A firmware that takes a secure processor's time: pages go slower than the guest writes them.
const SLOW: &str = "sev=software,command_cost_us=500";

/// Writes 4 MiB again and again, and checks them.
const FAST: &str = "ready count=1 forever fill=8M+1000:9 check=8M+1000:9";

fn path(what: &str) -> String {
    std::env::temp_dir().join(format!("kvm_converge-{what}")).display().to_string()
}

/// Boots guest-firmware and waits until it counts.
fn run(name: &str, platform: &str, words: &str) -> Sevferry {
    let (kernel, api) = (asset("guest-firmware.elf"), path(name));
    let own = ["run", "--kernel", &kernel, "--cmdline", words, "--memory", "size=20M"];
    let more = ["--api-socket", &api, "--platform", platform];
    let mut guest = Sevferry::start(own.into_iter().chain(more)).within(PATIENCE);
    guest.wait_for("count: 1");
    guest
}

fn receive(name: &str) -> Sevferry {
    let listen = format!("unix:{}", path(name));
    let words = ["receive", "--listen", &listen, "--platform", SEV];
    let mut host = Sevferry::start(words).within(PATIENCE);
    host.wait_for("waiting for a guest");
    host
}

fn migrate(from: &str, to: &str, options: &str) -> Sevferry {
    let (api, to) = (path(from), format!("unix:{}", path(to)));
    let own = ["migrate", "--api-socket", &api, "--to", &to];
    Sevferry::start(own.into_iter().chain(options.split_whitespace())).within(PATIENCE)
}

fn ask(request: &str, of: &str) -> Ended {
    let api = path(of);
    let json = (request == "status").then_some("--json");
    Sevferry::start([request, "--api-socket", &api].into_iter().chain(json)).end().with_code(0)
}

/// The last line that `migrate --json` or `status --json` has printed.
#[track_caller]
fn last_line(ended: &Ended) -> serde_json::Value {
    let line = ended.out.lines().last().unwrap_or_default();
    let value = serde_json::from_str(line);
    assert!(value.is_ok(), "no JSON: {ended}");
    value.unwrap_or_default()
}

/// A guest that writes faster than its pages can be sent is not moved by any number of rounds, and is
/// when it is slowed down. Whoever cancels has it back at full speed.
#[test]
#[ignore = "needs KVM: scripts/test kvm_converge"]
fn a_guest_that_writes_too_fast_is_slowed_down() {
    let mut destination = receive("fast-b");
    let source = run("fast-a", SLOW, FAST);
    let mut in_vain = migrate("fast-a", "fast-b", "--no-throttle --downtime-ms 200 --json");
    in_vain.wait_for(&format!("\"round\":{ROUNDS_IN_VAIN}"));
    ask("cancel", "fast-a");
    let kept = in_vain.end().with_code(10);
    let summary = last_line(&kept);
    assert_eq!(summary["outcome"], "kept", "{kept}");
    assert_eq!(summary["throttle_percent_max"], 0, "{kept}");
    assert!(kept.out.contains("\"is_stalled\":true"), "{kept}");

    let mut given_up = migrate("fast-a", "fast-b", "--downtime-ms 200 --json");
    given_up.wait_for("\"throttle_percent\":20");
    ask("cancel", "fast-a");
    let kept = given_up.end().with_code(10);
    assert_eq!(last_line(&kept)["throttle_percent_max"], 20, "{kept}");
    let status = last_line(&ask("status", "fast-a"));
    assert_eq!(status["state"], "running", "{status}");
    assert_eq!(status["migration"]["throttle_percent"], 0, "{status}");

    let moved = migrate("fast-a", "fast-b", "--downtime-ms 200 --json").end().with_code(0);
    let summary = last_line(&moved);
    assert_eq!(summary["outcome"], "moved", "{moved}");
    let rounds = summary["rounds"].as_u64().unwrap_or(u64::MAX);
    assert!(rounds < ROUNDS_IN_VAIN, "{rounds} rounds; {moved}");
    assert!(summary["throttle_percent_max"].as_u64() >= Some(20), "{moved}");
    eprintln!("{rounds} rounds, slowed by up to {} %", summary["throttle_percent_max"]);
    let source = source.end().with_code(0);
    assert!(!source.out.contains("mismatch"), "{source}");
    // Its memory is right, also what it was writing.
    for _ in 0..3 {
        let checked = destination.wait_for("check: 0x800000");
        assert!(checked.contains(" ok"), "{checked}");
    }
}

/// Whoever answers the next connection with these bytes, after the offer.
fn answer_once(at: &str, bytes: Vec<u8>) -> thread::JoinHandle<()> {
    let path = path(at);
    remove_file(&path).unwrap_or_default();
    let listener = UnixListener::bind(&path).expect("a new socket");
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("the source");
        let mut header = [0; 12];
        stream.read_exact(&mut header).expect("an offer");
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        stream.read_exact(&mut vec![0; length as usize]).expect("the rest of it");
        // The source may have had enough before all is said.
        stream.write_all(&bytes).unwrap_or_default();
        let _until_it_hangs_up = stream.read_to_end(&mut Vec::new());
        remove_file(&path).unwrap_or_default();
    })
}

/// Destinations that lie, steer the terminal or talk without end leave the guest where it is, with
/// exit code 10 and the error's name, and the next migration works.
#[test]
#[ignore = "needs KVM: scripts/test kvm_converge"]
fn destinations_that_lie_cost_nothing() {
    let words = "ready share=4M+64 fill=4M+64:7 count=24000 check=4M+64:7";
    let source = run("lies-a", SEV, words);
    let encode = |message: Message| message.encode().expect("a message");
    let refuse = |reason: &[u8]| {
        let mut bytes = encode(Message::Refuse { reason: Reason::default() });
        let len = u32::try_from(reason.len()).unwrap_or(u32::MAX);
        bytes[8..12].copy_from_slice(&(len + 4).to_le_bytes());
        bytes[12..].copy_from_slice(&len.to_le_bytes());
        bytes.extend(reason);
        bytes
    };
    let platform = |byte: u8| PlatformBytes {
        pdh: vec![byte; 2084],
        chain: vec![byte; 3 * 2084],
        roots: vec![byte; 3200],
    };
    let garbage = encode(Message::Accept { secret: SECRET, platform: Some(platform(0x5a)) });
    let answers = [
        (refuse(b"no\x1b[2J\x07pe\x9b\r"), "is not UTF-8 text"),
        (refuse("no\u{1b}[2J\u{7}pe\u{9b}\r\u{202e}".as_bytes()), "refused: no [2J pe"),
        (refuse(&vec![b'n'; 1 << 20]), "Refuse has 1048580 bytes; at most 1028 are allowed"),
        (b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), "does not speak this protocol"),
        (encode(Message::Started).repeat(10_000), "where an acceptance was due"),
        (encode(Message::Accept { secret: SECRET, platform: None }), "has no SEV platform"),
        (garbage, "the other host sent certificates that are none"),
        (Vec::new(), "has not sent an acceptance for 2 s"),
    ];
    for (bytes, said) in answers {
        let destination = answer_once("lies-b", bytes);
        let kept = migrate("lies-a", "lies-b", "--silence-s 2").end().with_code(10);
        assert!(kept.out.contains(said), "{said}: {kept}");
        let is_harmless = |char: char| char == '\n' || !char.is_control();
        let all = format!("{}{}", kept.out, kept.err);
        assert!(all.chars().all(is_harmless), "{all:?}");
        destination.join().expect("no panic");
        let status = last_line(&ask("status", "lies-a"));
        assert_eq!(status["state"], "running", "{status}");
    }
    let destination = receive("lies-b");
    migrate("lies-a", "lies-b", "").end().with_code(0);
    source.end().with_code(0);
    let ended = destination.end().with_code(0);
    assert_eq!(ended.out.lines().last(), Some("guest-firmware: PASS"), "{ended}");
}

/// A guest that ends of its own while it is moved is said to be gone, how it went, and by an exit code of
/// its own; one that only reboots runs on.
#[test]
#[ignore = "needs KVM: scripts/test kvm_converge"]
fn a_guest_that_ends_while_it_is_moved_is_gone() {
    for (then, options, code, said) in [
        ("poweroff", "", 14, "has ended: it powered off"),
        ("triple-fault", "", 14, "has ended: it crashed (triple fault)"),
        ("reboot", "--no-reboot", 14, "has ended: it was reset"),
        ("reboot", "", 10, "runs on here: the guest was reset, and boots again here"),
    ] {
        let (kernel, api) = (asset("guest-firmware.elf"), path("ends-a"));
        let words = format!("ready input then={then}");
        let own = ["run", "--kernel", &kernel, "--cmdline", &words, "--memory", "size=20M"];
        let more = ["--api-socket", &api, "--platform", SEV];
        let all = own.into_iter().chain(more).chain(options.split_whitespace());
        let (keys, mut keyboard) = pipe().expect("a pipe");
        let mut source = Sevferry::start_with_input(all, keys.into());
        source.wait_for("input: waiting");
        // Somebody who listens, and says nothing.
        let listening = UnixListener::bind(path("ends-b")).expect("a new socket");
        let mut migration = migrate("ends-a", "ends-b", "--json");
        migration.wait_for("\"phase\":\"offer\"");
        keyboard.write_all(b"x").expect("the guest reads");
        let ended = migration.end().with_code(code);
        let outcome = if code == 14 { "ended" } else { "kept" };
        let summary = last_line(&ended);
        assert_eq!(summary["outcome"], outcome, "{ended}");
        if code == 14 {
            source.end().with_code(if then == "triple-fault" { 11 } else { 0 }).saying(said);
        } else {
            source.wait_for(said);
            source.wait_for("input: waiting");
            ask("quit", "ends-a");
            source.end().with_code(0);
        }
        drop(listening);
        remove_file(path("ends-b")).expect("ours");
    }
}
