//! Requests and responses as lines: what is understood, and what is refused.

use serde_json::json;

use super::*;
use crate::devices::virtio::Condition;
use crate::migration::journal::Side;
use crate::migration::progress::Carried;
use crate::migration::wire::{Transfer, VmId};

const TRANSFER: Transfer = Transfer { vm: VmId([0xab; 16]), epoch: 2 };

fn migrate() -> MigrateRequest {
    MigrateRequest {
        to: "tcp:b:4444".parse().unwrap(),
        downtime_ms: NonZeroU32::new(20).unwrap(),
        timeout_s: NonZeroU32::new(7).unwrap(),
        timeout_strategy: TimeoutStrategy::Stop,
        connections: Connections::try_from(3).unwrap(),
        silence_s: NonZeroU32::new(5).unwrap(),
        throttle: false,
        allow_unchecked: true,
    }
}

fn inject() -> Request {
    let (packet_header, secret) = (Base64(vec![1; 52]), Base64(vec![2; 16]));
    Request::InjectSecret(InjectRequest { packet_header, secret, gpa: Some(0x1000) })
}

fn summary(outcome: Outcome) -> Summary {
    Summary {
        transfer: TRANSFER,
        side: Side::Source,
        outcome,
        rounds: 3,
        throttle_percent_max: 0,
        connections: 2,
        carried: Carried::default(),
        phases: Vec::new(),
        downtime_us: None,
    }
}

fn responses() -> Vec<Response> {
    let pages = PagesReply {
        shared: Some(3),
        private: None,
        record: "region list".to_owned(),
        record_bytes: 1056,
        not_migratable: Some("poisoned".to_owned()),
        doubts: vec!["none heard".to_owned()],
    };
    let progress = Progress::new(TRANSFER, Side::Source);
    let launch = Some(LaunchReply {
        policy: 0x21,
        c_bit: 51,
        api_major: 1,
        api_minor: 55,
        build_id: 1,
        launch_digest: "00ff".to_owned(),
        launch_measurement: "AAECAw==".to_owned(),
        measurement_verified: false,
    });
    let status = |state, pages, migration| {
        let (launch, process) = (launch.clone(), 7);
        let devices =
            vec![DeviceReport { slot: 1, kind: "rng".into(), condition: Condition::Broken }];
        let status = StatusReply { state, process, launch, pages, devices, migration };
        Response::Status(Box::new(status))
    };
    let reason = || "because".to_owned();
    let ended = |outcome| Response::Ended(Box::new(summary(outcome)));
    vec![
        status(State::InDoubt, None, Some(progress)),
        status(State::Running, Some(pages), None),
        Response::Report(json!({ "vcpus": 2 })),
        Response::Audited(AuditReply {
            tables: 9,
            unreported: 0,
            not_shared: 1,
            contradiction: Some("one".to_owned()),
        }),
        Response::Accepted,
        ended(Outcome::Moved),
        ended(Outcome::Kept(reason())),
        ended(Outcome::Ended(reason())),
        ended(Outcome::InDoubt(reason())),
        Response::Checked(vec![Hindrance::new(
            Side::Source,
            "policy",
            &BadConnections { count: 0 },
        )]),
        Response::Refused { reason: reason() },
        Response::Error { message: "two\nlines".to_owned() },
    ]
}

/// Everything survives the way, as exactly one line.
#[test]
fn lines_round_trip() {
    let resolve = [Resolution::Keep, Resolution::Discard].map(Request::Resolve);
    let asked = [Request::Migrate(migrate()), Request::Check(migrate()), inject()];
    let simple = [
        Request::Status,
        Request::Report,
        Request::Audit,
        Request::Continue,
        Request::Cancel,
        Request::Quit,
    ];
    let resize =
        [None, Some(1 << 40)].map(|size| Request::ResizeDisk { id: "disk0".to_owned(), size });
    for request in simple.into_iter().chain(resolve).chain(asked).chain(resize) {
        let line = request.to_line().unwrap();
        assert_eq!(line.iter().position(|&byte| byte == b'\n'), Some(line.len() - 1));
        assert_eq!(Request::from_line(&line).unwrap(), request);
    }
    for response in responses() {
        let line = response.to_line().unwrap();
        assert_eq!(line.iter().position(|&byte| byte == b'\n'), Some(line.len() - 1));
        assert_eq!(Response::from_line(&line).unwrap(), response);
    }
}

/// The form on the wire, which other programs write: it does not change by accident.
#[test]
fn requests_look_as_documented() {
    let line = |request: Request| String::from_utf8(request.to_line().unwrap()).unwrap();
    assert_eq!(line(Request::Status), "{\"version\":1,\"request\":\"status\"}\n");
    let resolve = line(Request::Resolve(Resolution::Keep));
    assert_eq!(resolve, "{\"version\":1,\"request\":{\"resolve\":\"keep\"}}\n");
    let resize = Request::ResizeDisk { id: "disk0".to_owned(), size: Some(1024) };
    let wanted = "{\"version\":1,\"request\":{\"resize_disk\":{\"id\":\"disk0\",\"size\":1024}}}\n";
    assert_eq!(line(resize), wanted);
    assert_eq!(
        line(inject()),
        format!(
            "{{\"version\":1,\"request\":{{\"inject_secret\":{{\"packet_header\":\"{}AQ==\",\
             \"secret\":\"AgICAgICAgICAgICAgICAg==\",\"gpa\":4096}}}}}}\n",
            "AQEB".repeat(17)
        )
    );
    assert_eq!(
        line(Request::Migrate(migrate())),
        "{\"version\":1,\"request\":{\"migrate\":{\"to\":\"tcp:b:4444\",\"downtime_ms\":20,\
         \"timeout_s\":7,\"timeout_strategy\":\"stop\",\"connections\":3,\
         \"silence_s\":5,\"throttle\":false,\"allow_unchecked\":true}}}\n"
    );
}

/// A packet's header has its length; what it says is the firmware's business.
#[test]
fn a_packet_has_a_header() {
    let Request::InjectSecret(request) = inject() else { panic!("another request") };
    assert_eq!(request.packet().unwrap().bytes(), 16);
    for len in [0, 51, 53] {
        let request = InjectRequest { packet_header: Base64(vec![0; len]), ..request.clone() };
        assert_eq!(request.packet().unwrap_err(), BadHeader(len));
    }
}

/// Only the destination must be named.
#[test]
fn a_migration_has_defaults() {
    let line = br#"{"version":1,"request":{"migrate":{"to":"unix:/b"}}}"#;
    let Request::Migrate(request) = Request::from_line(line).unwrap() else {
        panic!("another request")
    };
    assert_eq!(request.to.to_string(), "unix:/b");
    let goal = Goal {
        downtime: Duration::from_millis(300),
        timeout: Duration::from_secs(3600),
        strategy: TimeoutStrategy::Cancel,
    };
    assert_eq!(request.goal(), goal);
    assert_eq!(request.connections, Connections::default());
    assert_eq!(request.silence_s.get(), 30);
    assert!(request.throttle && !request.allow_unchecked);
}

/// What is not exactly a request is refused, with the reason.
#[test]
fn what_is_not_a_request_is_refused() {
    let migrate = |fields: &str| {
        format!(r#"{{"version":1,"request":{{"migrate":{{"to":"unix:/b"{fields}}}}}}}"#)
    };
    let deep = format!(r#"{{"version":1,"request":{}"#, "[".repeat(50_000));
    for (line, said) in [
        ("", "EOF"),
        ("status", "expected value"),
        (r#"{"request":"status"}"#, "missing field `version`"),
        (r#"{"version":1}"#, "missing field `request`"),
        (r#"{"version":-1,"request":"status"}"#, "invalid value: integer `-1`"),
        (r#"{"version":1,"request":"fly"}"#, "unknown variant `fly`"),
        (r#"{"version":1,"request":"status"} {}"#, "trailing characters"),
        (r#"{"version":1,"request":"status","x":1}"#, "unknown field `x`"),
        (r#"{"version":1,"version":1,"request":"status"}"#, "duplicate field `version`"),
        (r#"{"version":1,"request":{"status":1}}"#, "invalid type"),
        (r#"{"version":1,"request":{"migrate":{}}}"#, "missing field `to`"),
        (r#"{"version":1,"request":{"inject_secret":{"packet_header":"AA=="}}}"#, "field `secret`"),
        (
            r#"{"version":1,"request":{"inject_secret":{"packet_header":"AA==","secret":"-"}}}"#,
            "Invalid symbol",
        ),
        (r#"{"version":1,"request":{"resolve":"both"}}"#, "unknown variant `both`"),
        (r#"{"version":1,"request":{"migrate":{"to":"b"}}}"#, "write tcp:HOST:PORT or unix:PATH"),
        (&migrate(r#","tls":true"#), "unknown field `tls`"),
        (&migrate(r#","downtime_ms":0"#), "expected a nonzero u32"),
        (&migrate(r#","timeout_s":4294967296"#), "expected a nonzero u32"),
        (&migrate(r#","timeout_strategy":"ignore""#), "unknown variant `ignore`"),
        (&migrate(r#","connections":0"#), "0 connections; a migration has 1 to 128"),
        (&migrate(r#","connections":129"#), "129 connections; a migration has 1 to 128"),
        (&migrate(r#","connections":257"#), "257 connections; a migration has 1 to 128"),
        (&deep, "EOF while parsing"),
        ("{\"version\":1,\"request\":\"\u{0}\"}", "control character"),
    ] {
        let refused = Request::from_line(line.as_bytes()).unwrap_err().to_string();
        assert!(refused.contains(said), "{line:.80}: {refused}");
    }
    let refused = Request::from_line(b"\xff\xfe").unwrap_err().to_string();
    assert!(refused.contains("expected value"), "{refused}");
}

/// A newer program is told that it is newer, whatever else its line says.
#[test]
fn another_version_is_named() {
    let line = br#"{"version":2,"request":{"teleport":{}},"urgent":true}"#;
    let refused = Request::from_line(line).unwrap_err().to_string();
    assert_eq!(
        refused,
        "version 2 of the API; this program speaks version 1: use the same sevferry on both ends \
         of the socket"
    );
}

/// A report may be of any shape, but not so deep that reading it overflows the stack.
#[test]
fn deep_answers_are_refused() {
    let (open, close) = ("[".repeat(50_000), "]".repeat(50_000));
    let line = format!(r#"{{"version":1,"response":{{"report":{open}{close}}}}}"#);
    let refused = Response::from_line(line.as_bytes()).unwrap_err().to_string();
    assert!(refused.contains("recursion limit exceeded"), "{refused}");
}
