//! What the command lines that move guests mean, and what is said to those that mean nothing.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::super::{ArgumentError, Arguments, PreflightGuest, PreflightOptions, Task};
use super::*;
use crate::machine::config::PlatformKind;
use crate::sev::software::Model;

fn parse(line: &str) -> Result<Task, ArgumentError> {
    let words = ["sevferry"].into_iter().chain(line.split(' ')).map(OsString::from);
    Arguments::parse(words).map(|arguments| arguments.task)
}

/// The first paragraph of what is printed.
fn refused(line: &str) -> String {
    let error = parse(line).unwrap_err().to_string();
    error.split("\n\n").next().unwrap().to_owned()
}

fn receive(line: &str) -> ReceiveOptions {
    let Task::Receive(options) = parse(&format!("receive {line}")).unwrap() else {
        panic!("another task: {line}")
    };
    options
}

fn migrate(line: &str) -> MigrateOptions {
    let Task::Migrate(options) = parse(&format!("migrate --api-socket s {line}")).unwrap() else {
        panic!("another task: {line}")
    };
    options
}

/// Where to listen is enough: the guest brings the rest.
#[test]
fn an_endpoint_is_enough_to_receive() {
    let options = receive("--listen tcp:0.0.0.0:4444");
    assert_eq!(options.listen.to_string(), "tcp:0.0.0.0:4444");
    assert_eq!((options.serial, options.platform), (Serial::Tty, None));
    assert_eq!(options.process.api_socket, None);
}

/// Every flag of a destination arrives.
#[test]
fn flags_make_a_destination() {
    let options = receive(
        "--listen unix:/b --serial null --platform sev=software,identity=d,command_cost_us=7 \
         --api-socket s --journal j --report=json",
    );
    let model = Model { command_cost: Duration::from_micros(7), ..Model::default() };
    let kind = PlatformKind::Software { identity: Some("d".into()), model };
    assert_eq!(options.platform, Some(ReceivingPlatform { kind }));
    assert_eq!(options.serial, Serial::Null);
    assert_eq!(options.process.api_socket, Some("s".into()));
    assert_eq!(options.process.journal, Some("j".into()));
    assert!(options.process.report.is_some());
}

/// The policy and the owner come with the guest: saying them here would be a mistake.
#[test]
fn a_destination_decides_no_policy() {
    let said = refused("receive --listen unix:/b --platform sev=software,policy=1");
    let keys = "write key=value,... with the keys sev, identity, command_cost_us, pin_cost_us, \
                kernel, asids, fail, cek_cert_file, ask_ark_file, write_back";
    assert!(said.ends_with(&format!("unknown key \"policy\"; {keys}")), "{said}");
}

/// Where to is enough: the rest has the defaults of the API.
#[test]
fn an_endpoint_is_enough_to_migrate() {
    let options = migrate("--to tcp:b:4444");
    assert_eq!((options.api_socket, options.json), (PathBuf::from("s"), false));
    let line = br#"{"version":1,"request":{"migrate":{"to":"tcp:b:4444"}}}"#;
    let Request::Migrate(defaults) = Request::from_line(line).unwrap() else {
        panic!("another request")
    };
    assert_eq!(options.request, defaults);
}

/// Every flag of a migration arrives.
#[test]
fn flags_make_a_migration() {
    let options = migrate(
        "--to unix:/b --downtime-ms 20 --timeout-s 7 --timeout-strategy stop --connections 128 \
         --no-throttle --allow-unchecked --json",
    );
    assert!(options.json);
    let request = options.request;
    assert_eq!((request.downtime_ms.get(), request.timeout_s.get()), (20, 7));
    assert_eq!(request.timeout_strategy, TimeoutStrategy::Stop);
    assert_eq!(request.connections.get(), 128);
    assert!(request.allow_unchecked && !request.throttle);
}

/// What a migration cannot be is named with what it can be.
#[test]
fn wrong_migrations_are_named() {
    for (flags, said) in [
        (
            "--to b:1",
            "'--to <tcp:HOST:PORT|unix:PATH>': \"b:1\" names no kind of connection; write",
        ),
        ("--to unix:/b --connections 0", "0 connections; a migration has 1 to 128"),
        ("--to unix:/b --connections 129", "129 connections; a migration has 1 to 128"),
        ("--to unix:/b --connections two", "expected a number of connections"),
        ("--to unix:/b --timeout-strategy ignore", "expected cancel or stop"),
        ("--to unix:/b --downtime-ms 0", "--downtime-ms"),
        ("--to unix:/b --timeout-s 4294967296", "--timeout-s"),
        ("--json", "--to <tcp:HOST:PORT|unix:PATH>"),
    ] {
        let refused = refused(&format!("migrate --api-socket s {flags}"));
        assert!(refused.contains(said), "{refused}");
    }
    assert!(refused("migrate --to unix:/b").contains("--api-socket <PATH>"));
    assert!(refused("receive --listen b").contains("names no kind of connection"));
}

/// The small commands are the requests of the same names.
#[test]
fn small_commands_are_requests() {
    for (line, request) in [
        ("status --api-socket s", Request::Status),
        ("report --api-socket s", Request::Report),
        ("audit --api-socket s", Request::Audit),
        ("cancel --api-socket s", Request::Cancel),
        ("quit --api-socket s", Request::Quit),
        (
            "resize-disk --id a --api-socket s",
            Request::ResizeDisk { id: "a".to_owned(), size: None },
        ),
        (
            "resize-disk --id a --size 2M --api-socket s",
            Request::ResizeDisk { id: "a".to_owned(), size: Some(2 << 20) },
        ),
        ("resolve keep --api-socket s", Request::Resolve(Resolution::Keep)),
        ("resolve --api-socket s discard", Request::Resolve(Resolution::Discard)),
    ] {
        let Task::Ask(options) = parse(line).unwrap() else { panic!("another task: {line}") };
        assert_eq!(options.request, request);
    }
    assert!(refused("resolve --api-socket s both").contains("expected keep or discard"));
    assert!(refused("resolve --api-socket s").contains("<keep|discard>"));
}

fn check(line: &str) -> PreflightOptions {
    let Task::Preflight(options) = parse(format!("check --to unix:/b {line}").trim_end()).unwrap()
    else {
        panic!("another task: {line}")
    };
    *options
}

/// `check --to` is about a migration, of a guest that runs or of one that could; without it `check` is
/// about this host. What belongs to the other is refused.
#[test]
fn a_check_is_of_this_host_or_of_a_migration() {
    let options = check("--api-socket s --silence-s 5 --allow-unchecked --json");
    let MigrateRequest { to, silence_s, allow_unchecked, .. } = options.request;
    assert_eq!((to.to_string().as_str(), silence_s.get()), ("unix:/b", 5));
    assert!(allow_unchecked && options.json);
    assert!(matches!(options.guest, PreflightGuest::Running(path) if path.to_str() == Some("s")));

    let options = check("--cpus boot=2 --memory size=64M --platform sev=software,policy=0x31");
    let PreflightGuest::New(prospect) = options.guest else { panic!("a guest that runs") };
    assert_eq!((prospect.vcpus.get(), prospect.ram.bytes()), (2, 64 << 20));
    assert_eq!(prospect.sev.map(|sev| sev.policy.bits()), Some(0x31));
    let PreflightGuest::New(with) = check("--rng src=/dev/random").guest else { panic!("it runs") };
    assert_eq!(with.devices, [DeviceConfig::Rng { source: "/dev/random".into() }]);
    let PreflightGuest::New(plain) = check("").guest else { panic!("a guest that runs") };
    assert_eq!((plain.vcpus.get(), plain.ram.bytes(), plain.sev), (1, 512 << 20, None));
    assert_eq!(plain.devices, []);

    assert!(matches!(parse("check --json").unwrap(), Task::Check(_)));
    for (line, said) in [
        ("check --api-socket s", "--to"),
        ("check --allow-unchecked", "--to"),
        ("check --silence-s 5", "--to"),
        ("check --memory size=64M", "--to"),
        ("check --rng src=/dev/random", "--to"),
        ("check --to unix:/b --api-socket s --rng src=/dev/random", "cannot be used with"),
        ("check --to unix:/b --api-socket s --cpus boot=2", "cannot be used with"),
        ("check --to unix:/b --api-socket s --platform sev=software", "cannot be used with"),
        ("check --to b --api-socket s", "names no kind of connection"),
    ] {
        assert!(refused(line).contains(said), "{line}: {}", refused(line));
    }
}
