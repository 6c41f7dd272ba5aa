//! Every policy against every state of a destination's chain, cell by cell, and `docs/policy.md`, which
//! is this table in short.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::read_to_string;
use std::path::Path;

use super::{Target, certificates, name, rome};
use crate::sev::certificate::Certificate;
use crate::sev::launch::Launched;
use crate::sev::send::SendError;
use crate::sev::session::random_secret_key;
use crate::sev::software::fixture::Fixture;
use crate::sev::target::{PlatformCertificates, RefusedTarget, refusals};
use crate::sev::{Policy, SevStatus};

/// A destination's chain, and the source that looks at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Chain {
    /// Of a software platform, seen from another.
    Of(Target),
    /// Good, but of older firmware.
    OldApi,
    /// A real chip's, seen from a software platform.
    HardwareFromSoftware,
    /// A software platform's, seen from a real chip.
    SoftwareFromHardware,
}

/// With the words of the document.
const CHAINS: [(Chain, &str); 11] = [
    (Chain::Of(Target::Good), "good, of the same owner"),
    (Chain::Of(Target::OtherOwner), "good, of another owner"),
    (Chain::OldApi, "good, of older firmware"),
    (Chain::Of(Target::SelfMadePdh), "a PDH that nobody signed"),
    (Chain::Of(Target::BrokenPdh), "a PDH that is no key"),
    (Chain::Of(Target::WrongCek), "another chip's CEK"),
    (Chain::Of(Target::UnsignedCek), "a CEK that nobody signed"),
    (Chain::Of(Target::WrongAsk), "another vendor's ASK and ARK"),
    (Chain::Of(Target::WrongOca), "an OCA that signed nothing"),
    (Chain::HardwareFromSoftware, "hardware, from software"),
    (Chain::SoftwareFromHardware, "software, from hardware"),
];

/// The API of every software platform, of the one that is older, and one that none has.
const API: u32 = 0x3701_0000;
const OLD_API: (u8, u8) = (1, 51);
const NEWER_API: u32 = 0x3801_0000;

/// The policies of the document's columns.
const COLUMNS: [(u32, &str); 6] = [
    (Policy::SEV, "SEV"),
    (Policy::SEV | Policy::DOMAIN, "SEV, DOMAIN"),
    (Policy::SEV | API, "SEV, API >= 1.55"),
    (Policy::DOMAIN, "DOMAIN"),
    (0, "neither"),
    (Policy::SEV | Policy::NOSEND, "SEV, NOSEND"),
];

/// Whatever is wrong, by the names of [`RefusedTarget`], thought out a second time.
fn expected(policy: u32, chain: Chain) -> Vec<&'static str> {
    let (chip, owner) = (policy & Policy::SEV != 0, policy & Policy::DOMAIN != 0);
    let is = |target| chain == Chain::Of(target);
    let crosses = matches!(chain, Chain::HardwareFromSoftware | Chain::SoftwareFromHardware);
    let old = matches!(chain, Chain::OldApi | Chain::HardwareFromSoftware);
    let too_old = match policy & 0xffff_0000 {
        0 => false,
        API => old,
        _ => true,
    };
    let all = [
        (policy & Policy::NOSEND != 0, "NoSend"),
        (is(Target::BrokenPdh), "Pdh"),
        ((chip || owner) && (is(Target::BrokenPdh) || is(Target::SelfMadePdh)), "PdhByPek"),
        (chip && is(Target::WrongCek), "PekByCek"),
        (chip && (is(Target::UnsignedCek) || is(Target::WrongAsk)), "CekByAsk"),
        (chip && (crosses || is(Target::WrongAsk)), "Root"),
        (owner && is(Target::WrongOca), "PekByOca"),
        (owner && (crosses || is(Target::WrongOca) || is(Target::OtherOwner)), "Domain"),
        (too_old, "Api"),
        (!chip, "Unattested"),
    ];
    all.into_iter().filter(|(holds, _)| *holds).map(|(_, name)| name).collect()
}

/// What the firmware says to `SEND_START`, if the program does not keep it from being asked.
fn expected_of_firmware(program: &[&str]) -> Option<SevStatus> {
    match *program.iter().find(|name| **name != "Unattested")? {
        "NoSend" | "Domain" | "Api" => Some(SevStatus::POLICY_FAILURE),
        "Pdh" => Some(SevStatus::INVALID_CERTIFICATE),
        _ => Some(SevStatus::BAD_SIGNATURE),
    }
}

/// The platforms of the table.
struct Hosts {
    source: Fixture,
    chains: Vec<(Chain, PlatformCertificates)>,
    software: PlatformCertificates,
    hardware: PlatformCertificates,
}

impl Hosts {
    fn new() -> Self {
        let oca = random_secret_key().unwrap();
        let (source, peer) = (Fixture::owned_by(&oca), Fixture::owned_by(&oca));
        let (stranger, older) = (Fixture::new(), Fixture::of_api(&oca, OLD_API));
        let made = |chain| match chain {
            Chain::Of(target) => certificates(target, &peer, &stranger),
            Chain::OldApi => older.certificates(),
            Chain::HardwareFromSoftware => rome(),
            Chain::SoftwareFromHardware => peer.certificates(),
        };
        let chains = CHAINS.map(|(chain, _)| (chain, made(chain))).to_vec();
        Self { software: source.certificates(), source, chains, hardware: rome() }
    }

    fn refusals(&self, policy: u32, at: usize) -> Vec<RefusedTarget> {
        let (chain, target) = &self.chains[at];
        let software = *chain != Chain::SoftwareFromHardware;
        let own = if software { &self.software } else { &self.hardware };
        refusals(target, Policy::new(policy).unwrap(), own)
    }

    /// Where a guest of this policy can be launched: not with SEV-ES, nor for newer firmware.
    fn launched(&self, policy: u32) -> Option<Launched> {
        let launching = self.source.initialised().start(Policy::new(policy).unwrap(), None);
        let can = policy & Policy::ES == 0 && policy & 0xffff_0000 != NEWER_API;
        assert_eq!(launching.is_ok(), can, "{policy:#x}");
        Some(launching.ok()?.measure().unwrap().finish().unwrap())
    }
}

fn send_start(
    launched: Launched,
    to: &PlatformCertificates,
    pdh: Certificate,
) -> (Launched, Option<SevStatus>) {
    match launched.start_send(to, pdh) {
        Ok(sending) => (sending.cancel().unwrap(), None),
        Err(refused) => {
            let SendError::Start(cause) = refused.cause else { panic!("{}", refused.cause) };
            (refused.launched, cause.status())
        }
    }
}

/// Each of the 64 combinations of flags, with each API minimum, against each chain: what the program
/// says, all of it, and what the firmware says if it is asked all the same. The explicit switch for
/// weak policies lets through what is [`RefusedTarget::Unattested`] and nothing else.
#[test]
fn every_cell_of_the_policy_table() {
    let hosts = Hosts::new();
    let mut cells = 0;
    for policy in (0..64).flat_map(|flags| [flags, flags | API, flags | NEWER_API]) {
        let mut launched = hosts.launched(policy);
        for (at, (chain, target)) in hosts.chains.iter().enumerate() {
            let found = hosts.refusals(policy, at);
            let names: Vec<_> = found.iter().map(name).collect();
            let expected = expected(policy, *chain);
            assert_eq!(names, expected, "{policy:#x} {chain:?}");
            // The firmware of a real chip cannot be asked.
            if *chain != Chain::SoftwareFromHardware
                && let Some(guest) = launched.take()
            {
                let (guest, status) = send_start(guest, target, hosts.software.pdh);
                assert_eq!(status, expected_of_firmware(&expected), "{policy:#x} {chain:?}");
                launched = Some(guest);
            }
            cells += 1;
        }
    }
    assert_eq!(cells, 64 * 3 * 11);
}

/// The table of the document, and the messages in it.
fn rendered(hosts: &Hosts) -> String {
    let mut text = String::from("| destination's chain |");
    let mut messages = BTreeMap::new();
    COLUMNS.iter().for_each(|(_, words)| write!(text, " {words} |").unwrap());
    text.push_str(&format!("\n|---|{}\n", "---|".repeat(COLUMNS.len())));
    for (at, (_, words)) in CHAINS.iter().enumerate() {
        write!(text, "| {words} |").unwrap();
        for (policy, _) in COLUMNS {
            let refused = hosts.refusals(policy, at);
            let names: Vec<_> = refused.iter().map(name).collect();
            let cell = match &names[..] {
                [] => "moves".to_owned(),
                [only] if only == "Unattested" => "if allowed".to_owned(),
                all => all.join(", "),
            };
            write!(text, " {cell} |").unwrap();
            for refused in refused {
                let status = expected_of_firmware(&[&name(&refused)]);
                let status = status.map_or("accepts".to_owned(), |status| format!("`{status}`"));
                messages.entry(name(&refused)).or_insert((refused.to_string(), status));
            }
        }
        text.push('\n');
    }
    text.push_str("\n| | what is said | the firmware, if it is asked |\n|---|---|---|\n");
    for (name, (message, status)) in messages {
        writeln!(text, "| {name} | {message} | {status} |").unwrap();
    }
    text
}

/// The document says what the program does. If this fails and the program is right, put what is printed
/// between the document's two marks.
#[test]
fn the_document_has_the_same_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/policy.md");
    let document = read_to_string(path).unwrap();
    let (_, rest) = document.split_once("<!-- table -->\n").expect("the first mark");
    let (table, _) = rest.split_once("<!-- end of table -->").expect("the second mark");
    let now = rendered(&Hosts::new());
    assert!(table == now, "docs/policy.md is out of date; now it is\n{now}");
}
