//! The lies of a source about an SEV guest: its session, its packets, its region list.

use std::iter::repeat_with;

use sevferry::machine::compatibility::MachineOffer;
use sevferry::migration::wire::SessionBytes;
use sevferry::migration::wire::{PageKind, PayloadDigest};

use super::golden::{FILLED, FRAMES, Golden, PRIVATE, content, other_session, regions};
use super::rows::{Row, Rows};
use super::script::{PageFrame, Script};

/// The session and the packets, which the platform checks.
pub(crate) fn of_the_platform(golden: &Golden) -> Vec<Row> {
    let mut rows = Rows { golden, rows: Vec::new() };
    for bit in 0..32 {
        let said = "what the source sent is not what it offered";
        rows.lie(32, "another policy than was offered", said, |script| {
            session(script).policy ^= 1 << bit;
        });
        // Bits that no policy may have are refused with the offer, the others by the platform:
        // the session's MAC is over the policy.
        let said = if is_policy(golden, bit) { "the keys of the guest" } else { "policy" };
        rows.lie(32, "another policy, offered too", said, |script| {
            session(script).policy ^= 1 << bit;
            flip_offered(script, bit);
        });
    }
    let keys = "taking the keys of the guest that is being sent";
    // The public key's coordinates: AMD's SEV API, the body of a certificate.
    for (what, at) in [("x", 20), ("y", 92)] {
        rows.lie(35, &format!("a DH key off its curve: {what}"), keys, |script| {
            session(script).pdh[at] ^= 1;
        });
    }
    rows.lie(35, "a DH key at the origin", keys, |script| session(script).pdh[20..164].fill(0));
    rows.lie(35, "a DH key of another curve", keys, |script| session(script).pdh[16] ^= 3);
    rows.lie(35, "a certificate that is none", "the source's PDH certificate", |script| {
        session(script).pdh.truncate(100);
    });
    for at in [0, 16, 32, 64, 100, 127] {
        rows.lie(37, "a session with a bit changed", keys, |script| {
            session(script).session[at] ^= 1;
        });
    }
    rows.lie(37, "a session that is too long", "a session of 129 bytes", |script| {
        session(script).session.push(0);
    });
    rows.lie(37, "another migration's session", "opening private frame", |script| {
        script.session = Some(other_session());
    });
    let opening = "opening private frame";
    for (input, what, at) in [
        (17, "the flag of compressed packets", 0),
        (38, "a bit of an initial vector", 4),
        (38, "a bit of a MAC", 20),
        (38, "the last bit of a MAC", 51),
    ] {
        rows.lie(input, what, opening, |script| {
            script.frame(1, PageKind::Private).packets[0][at] ^= 1;
        });
    }
    rows.lie(38, "a bit of a packet", opening, |script| {
        script.frame(0, PageKind::Private).pages[1][4095] ^= 0x80;
    });
    rows.lie(33, "no session", "what the source sent is not what it offered", |script| {
        script.session = None;
    });
    rows.lie(
        33,
        "an SEV guest offered as a plain VM",
        "this host cannot run the machine",
        |script| {
            offered(script, |offer| offer.sev = None);
        },
    );
    rows.rows
}

/// The region list, and pages that contradict it.
pub(crate) fn of_regions(golden: &Golden) -> Vec<Row> {
    let mut rows = Rows { golden, rows: Vec::new() };
    let apart = "out of order";
    for (what, said, list) in [
        ("unsorted", apart, vec![(10, 12), (4, 6)]),
        ("overlapping", apart, vec![(4, 6), (5, 7)]),
        ("adjacent", apart, vec![(4, 6), (6, 7)]),
        ("the same twice", apart, vec![(4, 6), (4, 6)]),
        ("empty", "the empty region", vec![(4, 4)]),
        ("from end to begin", "the empty region", vec![(6, 4)]),
        ("half in RAM", "which is not all RAM", vec![(4, FRAMES + 1)]),
        ("out of RAM", "which is not all RAM", vec![(FRAMES, FRAMES + 1)]),
        ("to the end of all numbers", "which is not all RAM", vec![(4, u64::MAX)]),
    ] {
        rows.lie(44, what, said, |script| script.status = Some(regions(&list)));
    }
    let counted = |count: u64| {
        let mut list = regions(&[(4, 6)]);
        list[24..32].copy_from_slice(&count.to_le_bytes());
        list
    };
    rows.lie(44, "more regions than come", "not 16 for each of 2", |script| {
        script.status = Some(counted(2));
    });
    rows.lie(44, "more regions than fit into RAM", "at most 2048 are accepted", |script| {
        script.status = Some(counted(u64::MAX));
    });
    let long: Vec<_> = repeat_with(|| (4, 6)).take(3000).collect();
    rows.lie(44, "more bytes than RAM can need", "at most 32800 are allowed", |script| {
        script.status = Some(regions(&long));
    });
    rows.lie(7, "a region and a half", "not 16 for each of", |script| {
        script.status.as_mut().unwrap().truncate(56);
    });
    // Bits 0 and 2 of the flags: poisoned, ready.
    for (what, said, flags) in [
        ("of a guest that is not ready", "the guest has not declared itself ready", 2),
        ("that is incomplete", "the record of shared pages is incomplete", 7),
    ] {
        rows.lie(44, what, said, |script| {
            let mut list = regions(&[]);
            list[10] = flags;
            script.status = Some(list);
        });
    }
    rows.lie(44, "no region list", "is not what it offered", |script| script.status = None);
    let private = PRIVATE[5];
    rows.lie(45, "a private page listed as shared", "but its region list says shared", |script| {
        script.status = Some(regions(&[(4, 40), (private, FRAMES)]));
    });
    rows.lie(45, "a shared page listed as private", "but its region list says private", |script| {
        script.status = Some(regions(&[(4, 40), (private + 2, FRAMES)]));
    });
    rows.lie(46, "the list as it was a round before", "but its region list says", |script| {
        script.rounds[1][1].frames.push(PageFrame::zero([PRIVATE[4]]));
    });
    rows.lie(26, "a page as private and as shared in a round", "twice in one round", |script| {
        let page = content(FILLED[0]);
        script.rounds[1][1].frames.push(PageFrame::shared([(2, page)]));
    });
    rows.lie(28, "two packets exchanged on their way", "was damaged on its way", |script| {
        let frame = script.frame(0, PageKind::Private);
        let numbers: Vec<_> =
            frame.numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let (packets, pages) = (frame.packets.as_flattened(), frame.pages.as_flattened());
        let digest = PayloadDigest::of(&numbers, packets, pages);
        frame.digest = Some(digest);
        frame.packets.swap(0, 1);
        frame.pages.swap(0, 1);
    });
    rows.rows
}

fn session(script: &mut Script) -> &mut SessionBytes {
    script.session.as_mut().expect("an SEV guest")
}

fn offered(script: &mut Script, lie: impl FnOnce(&mut MachineOffer)) {
    let mut offer = MachineOffer::from_bytes(&script.offer.machine).unwrap();
    lie(&mut offer);
    script.offer.machine = offer.to_bytes().unwrap();
}

fn flip_offered(script: &mut Script, bit: u32) {
    offered(script, |offer| offer.sev.as_mut().unwrap().policy ^= 1 << bit);
}

/// Whether the guest's policy with `bit` flipped is one.
fn is_policy(golden: &Golden, bit: u32) -> bool {
    let mut policy = 0;
    offered(&mut golden.script.clone(), |offer| policy = offer.sev.unwrap().policy);
    sevferry::sev::Policy::new(policy ^ 1 << bit).is_ok()
}
