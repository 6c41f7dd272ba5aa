//! The lies of a source, one per row: what of the good stream is different, and what is said of it.

use sevferry::machine::MACHINE_VERSION;
use sevferry::machine::compatibility::MachineOffer;
use sevferry::migration::wire::Reason;
use sevferry::migration::wire::{FRAME_HEADER_LEN, Kind, PageKind, PayloadDigest};
use sevferry::migration::wire::{Say, Word};

use super::golden::{FILLED, FRAMES, Golden, NOBODYS, TRANSFER, content};
use super::script::{Channel, Closes, PageFrame, Script, Step, say};

/// A bad stream.
pub(crate) struct Row {
    /// Which of the bad inputs in `docs/hostile-peers.md`.
    pub(crate) input: u32,
    pub(crate) what: String,
    pub(crate) steps: Vec<Step>,
    /// What the error says.
    pub(crate) said: String,
}

/// What every row is made of.
pub(crate) struct Rows<'a> {
    pub(crate) golden: &'a Golden,
    pub(crate) rows: Vec<Row>,
}

impl Rows<'_> {
    pub(crate) fn add(&mut self, input: u32, what: &str, steps: Vec<Step>, said: &str) {
        self.rows.push(Row { input, what: what.to_owned(), steps, said: said.to_owned() });
    }

    /// The good script with a lie in it; all else, digests and lengths too, agrees with the lie.
    pub(crate) fn lie(
        &mut self,
        input: u32,
        what: &str,
        said: &str,
        lie: impl FnOnce(&mut Script),
    ) {
        let mut script = self.golden.script.clone();
        lie(&mut script);
        self.add(input, what, script.steps(), said);
    }

    /// The good script up to its `nth` message on a connection, whose bytes are then damaged.
    pub(crate) fn damage(
        &mut self,
        (input, what, said): (u32, &str, &str),
        (channel, nth): (Channel, usize),
        damage: impl FnOnce(&mut Vec<u8>),
    ) {
        let mut steps = self.golden.script.steps();
        let sends = steps.iter_mut().filter_map(|step| match step {
            Step::Send(to, bytes) if *to == channel => Some(bytes),
            Step::Send(..)
            | Step::Connect(_)
            | Step::Hear(_)
            | Step::Trickle(..)
            | Step::Close(_)
            | Step::CloseAll => None,
        });
        damage(sends.into_iter().nth(nth).expect("so many messages"));
        self.add(input, what, steps, said);
    }

    /// The good script, but the machine is offered otherwise.
    pub(crate) fn offer(
        &mut self,
        input: u32,
        what: &str,
        said: &str,
        lie: impl FnOnce(&mut MachineOffer),
    ) {
        self.lie(input, what, said, |script| {
            let mut offer = MachineOffer::from_bytes(&script.offer.machine).unwrap();
            lie(&mut offer);
            script.offer.machine = offer.to_bytes().unwrap();
        });
    }
}

/// The messages of the control connection, and the first of a page connection.
const OFFER: (Channel, usize) = (0, 0);
const START: (Channel, usize) = (0, 1);
const JOIN: (Channel, usize) = (1, 0);
const FIRST_ROUND: (Channel, usize) = (2, 1);

/// Frames and messages: nothing here depends on what the guest is.
pub(crate) fn of_frames(golden: &Golden) -> Vec<Row> {
    let mut rows = Rows { golden, rows: Vec::new() };
    let lost = "the connection to the other host was lost";
    rows.add(1, "nothing at all", vec![Step::Connect(0), Step::CloseAll], lost);
    let http = b"GET / HTTP/1.1\r\nHost: b\r\n\r\n".to_vec();
    let steps = vec![Step::Connect(0), Step::Send(0, http)];
    rows.add(2, "another protocol", steps, "does not speak this protocol");
    for version in [0_u16, 1, 2, u16::MAX] {
        let said = format!("speaks version {version} of the protocol and this program version 3");
        let bytes = version.to_le_bytes();
        rows.damage((3, "another version", &said), OFFER, |frame| {
            frame[4..6].copy_from_slice(&bytes);
        });
    }
    rows.offer(3, "a machine of another version", "a machine in version 9", |offer| {
        offer.version = 9;
    });
    let beyond = u16::try_from(Kind::ALL.len()).unwrap() + 1;
    for kind in [0, beyond, u16::MAX] {
        let said = format!("a frame is of kind {kind}, which does not exist");
        for place in [OFFER, START, FIRST_ROUND] {
            let bytes = kind.to_le_bytes();
            rows.damage((4, "a kind that is none", &said), place, |frame| {
                frame[6..8].copy_from_slice(&bytes);
            });
        }
    }
    for (place, kind) in [(OFFER, "Offer"), (START, "Start"), (FIRST_ROUND, "Pages")] {
        let said = format!("a frame of kind {kind} has 4294967295 bytes; at most");
        rows.damage((6, "the longest length there is", &said), place, |frame| {
            frame[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        });
    }
    rows.damage(
        (7, "a length that is not its pages'", "has 12345 bytes; 12344 are needed"),
        FIRST_ROUND,
        |frame| {
            frame[8] ^= 1;
        },
    );
    rows.damage((13, "a byte after a message", "1 bytes after its end"), START, |frame| {
        frame[8] += 1;
        frame.push(0);
    });
    rows.rows
}

/// Connections: how many, how they begin, how they end.
pub(crate) fn of_connections(golden: &Golden) -> Vec<Row> {
    let mut rows = Rows { golden, rows: Vec::new() };
    for connections in [0, 129, u16::MAX] {
        let said = format!("the number of connections is {connections}");
        rows.damage((16, "a wrong number of connections", &said), OFFER, |frame| {
            let at = FRAME_HEADER_LEN + 32;
            frame[at..at + 2].copy_from_slice(&connections.to_le_bytes());
        });
    }
    let mut steps = golden.script.steps();
    steps.truncate(steps.len() - 4);
    let abandon =
        || say(&Word::new(&NOBODYS, TRANSFER, Say::Abandon(Reason::new("tired\x07"))).into());
    rows.add(
        18,
        "abandoned, twice",
        [steps, vec![abandon(), abandon()]].concat(),
        "gave up: tired ",
    );
    rows.damage(
        (11, "the end in the middle of a page", "unexpected end of file"),
        FIRST_ROUND,
        |frame| {
            frame.truncate(5000);
        },
    );
    let last = rows.rows.last_mut().unwrap();
    let at = last.steps.iter().position(|step| matches!(step, Step::Hear(Kind::RoundOk)));
    last.steps.insert(at.unwrap(), Step::CloseAll);
    let private = PageFrame::private([(4, [0; 52], content(FILLED[0]))]);
    rows.lie(26, "a private page for a plain VM", "but the guest is a plain VM", |script| {
        script.rounds[1][0].frames.push(private);
    });
    rows.damage((15, "joined with garbage", "page connections came"), JOIN, |frame| frame[0] = 0);
    rows.rows
}

/// What describes the machine.
pub(crate) fn of_machines(golden: &Golden) -> Vec<Row> {
    let mut rows = Rows { golden, rows: Vec::new() };
    let mut described = |what: &str, said: &str, machine: Vec<u8>| {
        rows.lie(8, what, said, |script| script.offer.machine = machine);
    };
    let deep = [&b"\x82\xa7version\x01\xa4deep"[..], &[0x91; 100_000]].concat();
    described("100,000 lists in each other", "depth limit exceeded", deep);
    described("a mebibyte of spaces", "reading a machine", vec![b' '; 1 << 20]);
    let open = |before: &[u8], rest: &[u8]| [before, b"\xa5cpuid", rest].concat();
    let version = u8::try_from(MACHINE_VERSION).expect("a small number");
    let head = &[&b"\x82\xa7version"[..], &[version]].concat();
    let most = open(head, &[0xdd, 255, 255, 255, 255]);
    described("four milliards of CPUID tables, and none", "reading a machine", most);
    let tables = [&[0xdd, 0, 0x0f, 0, 0][..], &[0x90; 0x0f_0000]].concat();
    described("a million empty CPUID tables", "at most 256 elements", open(head, &tables));
    let state = &golden.script.state;
    let at = state.windows(6).position(|word| word == b"\xa5vcpus").unwrap() + 6;
    let counted = [&state[..at], &[0xdd, 255, 255, 255, 255], &[0; 10]].concat();
    let lies = [
        (9, "four milliards of vCPUs in ten bytes", "reading a machine", counted),
        (9, "no state", "reading a machine", Vec::new()),
        (13, "a byte after the state", "1 bytes after it", [state.as_slice(), &[0]].concat()),
        (9, "half a state", "reading a machine", state[..state.len() / 2].to_vec()),
    ];
    for (input, what, said, state) in lies {
        rows.lie(input, what, said, |script| script.state = state);
    }
    let sizes = [
        (0, "0 bytes of memory; a machine needs at least"),
        (1 << 52, "bytes of memory; a machine has at most 8 TiB"),
        (u64::MAX, "bytes of memory; a machine has at most 8 TiB"),
        ((16 << 20) + 1, "are not whole pages"),
    ];
    for (bytes, said) in sizes {
        rows.offer(31, "RAM of no machine's size", said, |offer| offer.ram_bytes = bytes);
    }
    rows.offer(31, "no vCPU", "0 vCPUs; a machine has 1 to 8", |offer| offer.cpuid.clear());
    let said = "the state of 1 vCPUs came for a machine that was offered with 2";
    rows.lie(40, "fewer vCPUs than offered", said, |script| {
        let mut offer = MachineOffer::from_bytes(&script.offer.machine).unwrap();
        let table = offer.cpuid[0].clone();
        offer.cpuid.push(table);
        script.offer.machine = offer.to_bytes().unwrap();
    });
    rows.offer(40, "an MSR that was not offered", "which was not offered", |offer| {
        offer.msrs.truncate(1);
    });
    rows.offer(40, "an MSR that is none", "KVM here has no MSR", |offer| offer.msrs.push(0x1bad));
    rows.rows
}

/// Pages: where they go, and how often.
pub(crate) fn of_pages(golden: &Golden) -> Vec<Row> {
    let mut rows = Rows { golden, rows: Vec::new() };
    for number in [FRAMES, 0xc_0000, 0xf_ffff, 1 << 40, 1 << 52, u64::MAX >> 12, u64::MAX] {
        let input = match number {
            FRAMES => 19,
            0xc_0000 | 0xf_ffff => 20,
            _ => 21,
        };
        for kind in [PageKind::Zero, PageKind::Shared] {
            rows.lie(input, "a page that is not in RAM", "is not guest RAM", |script| {
                *script.frame(1, kind).numbers.last_mut().unwrap() = number;
            });
        }
    }
    rows.lie(
        20,
        "a page in the device hole of a guest that has one",
        "is not guest RAM",
        |script| {
            let mut offer = MachineOffer::from_bytes(&script.offer.machine).unwrap();
            offer.ram_bytes = 4 << 30;
            script.offer.machine = offer.to_bytes().unwrap();
            script.frame(0, PageKind::Zero).numbers = vec![0xc_0000];
        },
    );
    rows.lie(23, "no page", "a page frame has 0 pages", |script| {
        script.frame(0, PageKind::Zero).numbers.clear();
    });
    rows.lie(23, "65 pages", "a page frame has 65 pages", |script| {
        script.frame(0, PageKind::Zero).numbers = (1000..1065).collect();
    });
    rows.lie(24, "a page twice in a frame", "they must ascend", |script| {
        script.frame(0, PageKind::Zero).numbers[1] = 4;
        script.frame(0, PageKind::Zero).numbers[0] = 4;
    });
    for part in [0, 1] {
        rows.lie(24, "a page twice in a round", "twice in one round", |script| {
            script.rounds[1][part].frames.push(PageFrame::zero([300]));
        });
    }
    rows.lie(25, "a page that never comes", "never sent frame 0x12c", |script| {
        for frame in script.rounds.iter_mut().flatten().flat_map(|part| &mut part.frames) {
            frame.numbers.retain(|number| *number != 300);
        }
        script.rounds[1][1].frames.retain(|frame| !frame.numbers.is_empty());
    });
    rows.lie(25, "no page at all", "never sent frame 0", |script| script.rounds.clear());
    rows.rows
}

/// Pages on their way: which frame they are in, and which round.
pub(crate) fn of_rounds(golden: &Golden) -> Vec<Row> {
    let mut rows = Rows { golden, rows: Vec::new() };
    rows.lie(27, "a frame of another round", "has round 1 where 2 is due", |script| {
        script.frame(1, PageKind::Shared).round = Some(1);
    });
    rows.lie(27, "a frame again", "has sequence 0 where", |script| {
        script.frame(1, PageKind::Shared).sequence = Some(0);
    });
    rows.lie(27, "a frame of another migration", "has session 7 where", |script| {
        script.frame(1, PageKind::Shared).session = Some(7);
    });
    rows.lie(28, "two pages exchanged on their way", "was damaged on its way", |script| {
        let frame = script.frame(0, PageKind::Shared);
        let numbers: Vec<_> =
            frame.numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let pages = frame.pages.as_flattened();
        frame.digest = Some(PayloadDigest::of(&numbers, &[], pages));
        frame.pages.swap(0, 1);
    });
    rows.lie(
        28,
        "a page frame lost on its way",
        "round 2 does not add up: 1 page frames",
        |script| {
            let part = &mut script.rounds[1][1];
            part.frames.pop();
            part.said_frames = Some(2);
        },
    );
    let other = |closes: Closes| move |script: &mut Script| script.closes = closes;
    let session = Closes { session: 1, ..Closes::default() };
    rows.lie(27, "a state of another migration", "is of session 0x5e551010 where", other(session));
    for round in [0, 1, 3] {
        let closes = Closes { round: Some(round), ..Closes::default() };
        let said = format!("follows round {round} where 2 was the last");
        rows.lie(27, "a state of another moment", &said, other(closes));
    }
    let flipped = Closes { flipped: Some(Kind::State), ..Closes::default() };
    rows.lie(
        28,
        "a bit of the state",
        "the machine's state was damaged on its way",
        other(flipped),
    );
    if golden.script.status.is_some() {
        let flipped = Closes { flipped: Some(Kind::StatusList), ..Closes::default() };
        let said = "the region list was damaged on its way";
        rows.lie(28, "a bit of the region list", said, other(flipped));
    }
    rows.lie(29, "more pages in a round than there are", "twice in one round", |script| {
        let again: Vec<_> = script.rounds[0][1].frames.clone();
        script.rounds[0][1].frames.extend(again);
    });
    rows.rows
}
