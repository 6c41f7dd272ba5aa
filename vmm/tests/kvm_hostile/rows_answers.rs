//! The lies of a destination: what of the good answers is different, and what the source says of it.

use sevferry::migration::wire::{CERTIFICATES_BYTES_MAX, Kind};
use sevferry::migration::wire::{Message, NotRunning, PlatformBytes, Reason, Transfer, VmId};
use sevferry::migration::wire::{Say, Secret, Word};

use super::answers::{Step, accept, answer, before, good, say, word};
use super::golden::one_of_each;

/// The answers of a good destination of a plain VM, in the order in which they are said.
pub(crate) const ACCEPT: usize = 0;
pub(crate) const STARTED: usize = 1;
pub(crate) const ROUND_OK: usize = 2;
pub(crate) const LAST_ROUND_OK: usize = 3;
pub(crate) const PREPARED: usize = 4;
pub(crate) const RUNNING: usize = 5;

/// All that are said before the guest is given away.
pub(crate) const ANSWERS: [usize; 5] = [ACCEPT, STARTED, ROUND_OK, LAST_ROUND_OK, PREPARED];

/// What a destination does with the guest of this transfer.
pub(crate) type Steps = Box<dyn Fn(Transfer) -> Vec<Step>>;

/// A bad destination.
pub(crate) struct Row {
    /// The row of the table in `docs/hostile-peers.md`.
    pub(crate) input: &'static str,
    pub(crate) what: String,
    pub(crate) steps: Steps,
    /// What the source says, and what the user is told.
    pub(crate) said: String,
}

/// The rows so far.
struct Rows(Vec<Row>);

impl Rows {
    fn add(
        &mut self,
        (input, what, said): (&'static str, &str, &str),
        steps: impl Fn(Transfer) -> Vec<Step> + 'static,
    ) {
        let (what, said) = (what.to_owned(), said.to_owned());
        self.0.push(Row { input, what, steps: Box::new(steps), said });
    }

    /// Good up to the `nth` answer, then these steps instead.
    fn instead(
        &mut self,
        row: (&'static str, &str, &str),
        nth: usize,
        steps: impl Fn(Transfer) -> Vec<Step> + 'static,
    ) {
        self.add(row, move |transfer| {
            [before(&good(transfer, None), nth), steps(transfer)].concat()
        });
    }

    /// The `nth` answer is damaged.
    fn damage(
        &mut self,
        row: (&'static str, &str, &str),
        nth: usize,
        damage: impl Fn(&mut Vec<u8>) + 'static,
    ) {
        self.instead(row, nth, move |transfer| {
            let mut bytes = answer(&good(transfer, None), nth);
            damage(&mut bytes);
            vec![Step::Say(0, bytes)]
        });
    }
}

/// Answers that are no messages.
pub(crate) fn of_frames() -> Vec<Row> {
    let mut rows = Rows(Vec::new());
    for nth in ANSWERS {
        let lost = "the connection to the other host was lost";
        rows.instead(("D1", "gone without an answer", lost), nth, |_| vec![Step::CloseAll]);
        let magic = "does not speak this protocol";
        rows.instead(("D2", "another protocol", magic), nth, |_| {
            vec![Step::Say(0, b"HTTP/1.1 200 OK\r\n\r\n".to_vec())]
        });
        let version = "speaks version 65535 of the protocol";
        rows.damage(("D3", "another version", version), nth, |bytes| bytes[4..6].fill(0xff));
        let kind = "a frame is of kind 65535, which does not exist";
        rows.damage(("D4", "a kind that is none", kind), nth, |bytes| bytes[6..8].fill(0xff));
        let length = "has 4294967295 bytes; at most";
        rows.damage(("D6", "the longest length there is", length), nth, |bytes| {
            bytes[8..12].fill(0xff);
        });
        rows.instead(
            ("D6", "a refusal of a megabyte", "a frame of kind Refuse has 1048576"),
            nth,
            |_| {
                let mut refuse = refusal(b"no");
                refuse[8..12].copy_from_slice(&(1_u32 << 20).to_le_bytes());
                refuse.resize(12 + (1 << 20), b'n');
                vec![Step::Say(0, refuse)]
            },
        );
        rows.instead(
            ("D7", "a refusal that is no text", "a reason is not UTF-8 text"),
            nth,
            |_| vec![Step::Say(0, refusal(b"\xff\xfe\x80"))],
        );
        rows.instead(
            ("D8", "a refusal that steers the terminal", "refused: no [2Jpe ]0;x "),
            nth,
            |_| vec![Step::Say(0, refusal("no\x1b[2Jpe\r]0;x\x07\u{202e}".as_bytes()))],
        );
    }
    rows.damage(
        ("D5", "a byte after a message", "has 5 bytes; at most 4 are allowed"),
        ROUND_OK,
        |bytes| {
            bytes[8..12].copy_from_slice(&5_u32.to_le_bytes());
            bytes.push(0);
        },
    );
    rows.damage(("D5", "a message that is too short", "ends too early"), ROUND_OK, |bytes| {
        bytes[8..12].copy_from_slice(&3_u32.to_le_bytes());
        bytes.pop();
    });
    rows.damage(("D9", "neither yes nor no", "is 7, which is neither 0 nor 1"), ACCEPT, |bytes| {
        bytes[28] = 7;
    });
    rows.0
}

/// A refusal with any bytes as its reason.
fn refusal(reason: &[u8]) -> Vec<u8> {
    let mut bytes = Message::Refuse { reason: Reason::new("") }.encode().unwrap();
    let len = u32::try_from(reason.len()).unwrap();
    bytes[8..12].copy_from_slice(&(4 + len).to_le_bytes());
    bytes[12..16].copy_from_slice(&len.to_le_bytes());
    bytes.extend(reason);
    bytes
}

/// Messages in a place that is not theirs.
pub(crate) fn of_order() -> Vec<Row> {
    let mut rows = Rows(Vec::new());
    for nth in ANSWERS {
        let due = answer(&good(super::golden::TRANSFER, None), nth);
        for (kind, message) in one_of_each() {
            if message[6..8] == due[6..8] {
                continue;
            }
            let said = if [Kind::Refuse, Kind::Abandon].contains(&kind) {
                "no reason"
            } else if [Kind::Running, Kind::NotRunning].contains(&kind) && nth == PREPARED {
                "before it was given"
            } else if kind == Kind::Building && nth == ACCEPT {
                // Of another guest: it is due, and no news.
                "it does not get on"
            } else {
                "the other host sent something else where"
            };
            let what = format!("{kind:?} where something else is due");
            rows.instead(("D10", &what, said), nth, move |_| vec![Step::Say(0, message.clone())]);
        }
    }
    let early = "the other host answered before it was asked";
    for nth in [ACCEPT, STARTED, ROUND_OK, LAST_ROUND_OK] {
        rows.instead(("D11", "two answers at once", early), nth, move |transfer| {
            let steps = good(transfer, None);
            // In one piece: both are there when the first is read.
            vec![Step::Say(0, [answer(&steps, nth), answer(&steps, nth + 1)].concat())]
                .into_iter()
                .chain([Step::Accept(1), Step::Accept(2)])
                .collect()
        });
    }
    for round in [0, 2, u32::MAX] {
        let said = "something else where the end of this round was due";
        rows.instead(("D12", "the end of another round", said), ROUND_OK, move |_| {
            vec![say(&Message::RoundOk { round })]
        });
    }
    let other = |transfer: Transfer| Transfer { epoch: transfer.epoch - 1, ..transfer };
    let said = "the destination got ready for another migration";
    rows.instead(("D13", "ready for another attempt", said), PREPARED, move |transfer| {
        vec![say(&word(other(transfer), Say::Prepared))]
    });
    rows.instead(("D13", "ready for another guest", said), PREPARED, |transfer| {
        vec![say(&word(Transfer { vm: VmId([0xee; 16]), ..transfer }, Say::Prepared))]
    });
    let said = "cannot prove that it is ready";
    rows.instead(("D13", "ready, without the secret", said), PREPARED, |transfer| {
        vec![say(&Word::new(&Secret([0xee; 16]), transfer, Say::Prepared).into())]
    });
    let said = "before it was given";
    rows.instead(("D14", "it runs uncommitted", said), PREPARED, |transfer| {
        vec![say(&word(transfer, Say::Running))]
    });
    rows.instead(("D14", "it was discarded uncommitted", said), PREPARED, |transfer| {
        vec![say(&word(transfer, Say::NotRunning(NotRunning::Discarded)))]
    });
    let said = "certificates for a guest without SEV";
    rows.instead(("D15", "a platform for a plain VM", said), ACCEPT, |_| {
        vec![say(&accept(Some(Default::default())))]
    });
    rows.0
}

/// Connections that end, or are not what they seem.
pub(crate) fn of_connections() -> Vec<Row> {
    let mut rows = Rows(Vec::new());
    let sending = "sending pages to the destination";
    rows.instead(("D16", "a page connection that is closed", sending), ROUND_OK, |_| Vec::new());
    let last = rows.0.last_mut().unwrap();
    last.steps = Box::new(|transfer| {
        let steps = good(transfer, None);
        let accepted = steps.iter().position(|step| matches!(step, Step::Accept(2))).unwrap();
        [&steps[..accepted], &[Step::AcceptStalled(2), Step::Close(2)]].concat()
    });
    let lost = "the connection to the other host was lost";
    rows.instead(("D16", "control ends in a round", lost), ROUND_OK, |_| vec![Step::Close(0)]);
    rows.instead(
        ("D17", "a flood of ends of rounds", "answered before it was asked"),
        ROUND_OK,
        |_| {
            let ok = Message::RoundOk { round: 1 }.encode().unwrap();
            vec![Step::Flood(ok.repeat(1000))]
        },
    );
    rows.0
}

/// Platforms that an SEV guest must not be sent to, and what is said of them.
pub(crate) fn of_certificates(
    own: &PlatformBytes,
) -> Vec<(String, Option<PlatformBytes>, &'static str)> {
    let none = "the destination has no SEV platform";
    let malformed = "the other host sent certificates that are none";
    let mut rows = vec![
        ("no platform".to_owned(), None, none),
        ("no certificate".to_owned(), Some(PlatformBytes::default()), malformed),
    ];
    let parts: [fn(&mut PlatformBytes) -> &mut Vec<u8>; 3] =
        [|bytes| &mut bytes.pdh, |bytes| &mut bytes.chain, |bytes| &mut bytes.roots];
    for (number, part) in parts.into_iter().enumerate() {
        let mut add = |what: String, said, spoil: &dyn Fn(&mut Vec<u8>)| {
            let mut platform = own.clone();
            spoil(part(&mut platform));
            rows.push((format!("part {number}, {what}"), Some(platform), said));
        };
        let len = part(&mut own.clone()).len();
        for cut in [0, 1, len / 2, len - 1] {
            add(format!("cut to {cut} bytes"), malformed, &|bytes| bytes.truncate(cut));
        }
        add("a byte too many".to_owned(), malformed, &|bytes| bytes.push(0));
        // A version, a key, its signatures: malformed, or a link of the chain does not hold.
        for at in [&[0][..], &[16], &[100], &[1060, 1580]] {
            let said = "certificates that are none|refused before anything was sent";
            add(format!("bytes {at:?}"), said, &|bytes| {
                for &at in at {
                    bytes[at] ^= 0x40;
                }
            });
        }
    }
    let mut garbage = own.clone();
    garbage.pdh.fill(0x5a);
    rows.push(("a PDH of garbage".to_owned(), Some(garbage), malformed));
    let most = CERTIFICATES_BYTES_MAX as usize;
    let long = PlatformBytes { pdh: vec![1; most], chain: vec![2; most], roots: vec![3; most] };
    rows.push(("the longest parts".to_owned(), Some(long), malformed));
    rows
}
