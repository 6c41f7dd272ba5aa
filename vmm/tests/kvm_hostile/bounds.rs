//! However much a source says, the destination holds guest RAM and 16 MiB at most.

use sevferry::encryption::{Overflow, PageStatus};
use sevferry::machine::compatibility::MachineOffer;
use sevferry::migration::wire::{Kind, STATUS_BYTES_MAX};
use sevferry::migration::wire::{Message, PlatformBytes, SessionBytes};
use sevferry::page::RamLayout;

use super::golden::{self, Golden, content, regions};
use super::memory::peak_of;
use super::peer::Bench;
use super::script::{PageFrame, Part, Script, Step};

/// What the destination may hold besides guest RAM, which is mapped and not counted.
const EXTRA_BYTES_MAX: usize = 16 << 20;

/// Runs the streams one by one; no other test runs meanwhile.
#[track_caller]
fn assert_bounded(golden: &Golden, streams: Vec<(&str, Vec<Step>)>) {
    let _alone = Bench::alone();
    let bench = Bench::unlocked(golden.platform.clone());
    let mut wrong = Vec::new();
    for (what, steps) in streams {
        let peak = peak_of(|| drop(bench.attempt(&steps)));
        eprintln!("{what}: {} KiB", peak >> 10);
        if peak > EXTRA_BYTES_MAX {
            wrong.push(format!("{what}: {peak} bytes"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn lie(golden: &Golden, lie: impl FnOnce(&mut Script)) -> Vec<Step> {
    let mut script = golden.script.clone();
    lie(&mut script);
    script.steps()
}

fn described(golden: &Golden, machine: Vec<u8>) -> Vec<Step> {
    lie(golden, |script| script.offer.machine = machine)
}

/// A frame of the longest length of its kind, with as many bytes as it says.
fn longest(kind: Kind) -> Vec<u8> {
    let mut frame = Message::Started.encode().unwrap();
    frame[6..8].copy_from_slice(&(kind as u16).to_le_bytes());
    frame[8..12].copy_from_slice(&kind.length_max().to_le_bytes());
    frame.resize(12 + kind.length_max() as usize, 0);
    frame
}

/// The golden script with another amount of RAM and 128 page connections, each of which sends a
/// whole frame of pages.
fn wide(golden: &Golden, ram_bytes: u64) -> Script {
    let mut script = golden.script.clone();
    let mut offer = MachineOffer::from_bytes(&script.offer.machine).unwrap();
    offer.ram_bytes = ram_bytes;
    script.offer.machine = offer.to_bytes().unwrap();
    script.offer.connections = 128;
    let part = |index: u64| {
        let pages = (0..64).map(|page| (1024 + index * 64 + page, content(page)));
        // The last 64 MiB of what has only 16 are not RAM.
        let frames = if ram_bytes > 128 << 20 { vec![PageFrame::shared(pages)] } else { vec![] };
        Part { frames, said_frames: None }
    };
    script.rounds = vec![(0..128).map(part).collect()];
    script
}

/// Page status of every other page, as far as the list may go.
fn alternating(ram_bytes: u64) -> Vec<u8> {
    let pages = RamLayout::new(ram_bytes).unwrap().pages();
    let most = u64::from(STATUS_BYTES_MAX - 32) / 16;
    let list: Vec<_> = (0..pages / 2).take(most as usize).map(|at| (2 * at, 2 * at + 1)).collect();
    regions(&list)
}

/// Streams that ask for memory, of whatever guest.
fn streams(golden: &Golden, ram_bytes: u64) -> Vec<(&'static str, Vec<Step>)> {
    let first = |bytes| vec![Step::Connect(0), Step::Send(0, bytes)];
    let mut streams = vec![("a good stream", golden.script.steps())];
    for kind in Kind::ALL {
        streams.push(("the longest first message", first(longest(kind))));
    }
    let head = b"\x82\xa7version\x01";
    let list = |name: &[u8], element: u8| {
        // Not an array: a megabyte of stack is too much for a test's thread.
        let elements = vec![element; 0x0f_ff00];
        [head, name, &[0xdd, 0, 0x0f, 0xff, 0], elements.as_slice()].concat()
    };
    streams.push(("a million empty CPUID tables", described(golden, list(b"\xa5cpuid", 0x90))));
    streams.push(("a million MSRs", described(golden, list(b"\xa4msrs", 1))));
    let msrs = lie(golden, |script| {
        let mut offer = MachineOffer::from_bytes(&script.offer.machine).unwrap();
        offer.msrs = (0..1024).map(|index| 0xf000_0000 + index).collect();
        script.offer.machine = offer.to_bytes().unwrap();
    });
    streams.push(("a thousand MSRs that are none", msrs));
    let blob = || vec![7; 16 << 10];
    let session = SessionBytes { policy: 0, pdh: blob(), session: blob() };
    streams.push(("a long session", lie(golden, |script| script.session = Some(session))));
    let state = list(b"\xa5vcpus", 0x90);
    streams.push(("a million vCPUs", lie(golden, |script| script.state = state)));
    let mut script = wide(golden, ram_bytes);
    script.status = Some(alternating(ram_bytes));
    script.state.resize(1 << 20, 0);
    streams.push(("128 connections and all that comes after", script.steps()));
    let mut steps = script.steps();
    let again = steps[steps.len() - 2].clone();
    let at = steps.len() - 1;
    steps.splice(at..at, vec![again; 16]);
    streams.push(("region lists without end", steps));
    streams
}

/// A guest whose page status alone would be larger than the bound: what is kept of each page is
/// little, and only of pages that came.
#[test]
#[ignore = "needs /dev/kvm: scripts/test kvm_hostile"]
fn a_source_cannot_make_the_destination_hold_more() {
    let golden = golden::plain();
    assert_bounded(golden, streams(golden, 32 << 30));
}

/// With a platform there is more to take: certificates, sessions, packets, and a region list that is
/// read.
#[test]
#[ignore = "needs KVM: scripts/test kvm_hostile"]
fn a_source_of_an_sev_guest_cannot_either() {
    let golden = golden::sev();
    let mut streams = streams(golden, 2 << 30);
    let platform = PlatformBytes { pdh: vec![7; 16 << 10], ..PlatformBytes::default() };
    let accept = Message::Accept { secret: golden::NOBODYS, platform: Some(platform) };
    let accept = accept.encode().unwrap();
    streams.push(("certificates", vec![Step::Connect(0), Step::Send(0, accept)]));
    let layout = RamLayout::new(2 << 30).unwrap();
    let list = PageStatus::from_bytes(&alternating(2 << 30), layout, Overflow::Promote);
    assert!(list.is_ok(), "{list:?}");
    assert_bounded(golden, streams);
}
