//! Messages against golden bytes, cut short, stretched, inflated and at random.

use proptest::prelude::*;

use super::some_messages::{some_bytes, some_message};
use super::*;
use crate::machine::pinning::Pinned;

const TRANSFER: Transfer =
    Transfer { vm: VmId(*b"0123456789abcdef"), epoch: 0x0807_0605_0403_0201 };
const TRANSFER_HEX: &str = "30313233343536373839616263646566 0102030405060708";
const SECRET: Secret = Secret([0xab; 16]);
const PROOF: Proof = Proof([0xcd; 32]);

fn proof_hex() -> String {
    "cd".repeat(32)
}

/// What follows the last round; its digest is not looked at here.
fn closing(bytes: Vec<u8>) -> Closing {
    Closing { session: 0x1122_3344_5566_7788, round: 2, digest: [0x99; 32], bytes }
}

fn closing_hex(kind: &str, bytes: &str) -> String {
    let digest = "99".repeat(32);
    format!("53564659 0300 {kind}00 2e000000 8877665544332211 02000000 {digest} {bytes}")
}

/// Every message with its bytes: header (magic, version, kind, length), then what it carries.
fn golden() -> Vec<(Message, String)> {
    let bytes = |length: usize, byte: u8| vec![byte; length];
    let mut messages = vec![
        (
            Message::Offer(Offer {
                transfer: TRANSFER,
                session: 0x1122_3344_5566_7788,
                connections: 4,
                abandoned: vec![Abandoned { epoch: 2, proof: PROOF }],
                machine: bytes(3, 0xaa),
            }),
            format!(
                "53564659 0300 0100 52000000 {TRANSFER_HEX} 8877665544332211 0400 \
                 01 0200000000000000 {} 03000000 aaaaaa",
                proof_hex()
            ),
        ),
        (
            Message::Accept { secret: SECRET, platform: None },
            format!("53564659 0300 0200 11000000 {} 00", "ab".repeat(16)),
        ),
        (
            Message::Accept {
                secret: SECRET,
                platform: Some(PlatformBytes {
                    pdh: bytes(1, 0x11),
                    chain: bytes(2, 0x22),
                    roots: bytes(3, 0x33),
                }),
            },
            format!(
                "53564659 0300 0200 23000000 {} 01 01000000 11 02000000 2222 03000000 333333",
                "ab".repeat(16)
            ),
        ),
        (
            Message::Refuse { reason: Reason::new("no") },
            "53564659 0300 0300 06000000 02000000 6e6f".into(),
        ),
        (Message::Start { encryption: None }, "53564659 0300 0400 01000000 00".into()),
        (
            Message::Start {
                encryption: Some(SessionBytes {
                    policy: 0x21,
                    pdh: bytes(2, 0x44),
                    session: bytes(1, 0x55),
                }),
            },
            "53564659 0300 0400 10000000 01 21000000 02000000 4444 01000000 55".into(),
        ),
        (Message::Started, "53564659 0300 0500 00000000".into()),
        (
            Message::Join { session: 0x1122_3344_5566_7788, index: 3, proof: PROOF },
            format!("53564659 0300 0600 2a000000 8877665544332211 0300 {}", proof_hex()),
        ),
        (
            Message::RoundEnd(RoundEnd { round: 2, frames: 3, digest: [0x66; 32] }),
            format!("53564659 0300 0800 2c000000 02000000 0300000000000000 {}", "66".repeat(32)),
        ),
        (Message::RoundOk { round: 2 }, "53564659 0300 0900 04000000 02000000".into()),
        (Message::StatusList(closing(bytes(2, 0x77))), closing_hex("0a", "7777")),
        (Message::State(closing(bytes(2, 0x88))), closing_hex("0b", "8888")),
    ];
    messages.extend(golden_words());
    messages.extend(golden_inquiries());
    messages
}

/// Those of the handover.
fn golden_words() -> [(Message, String); 7] {
    [
        (Say::Prepared, "0c", "38", ""),
        (Say::Commit { is_last: false }, "0d", "39", "00"),
        (Say::Commit { is_last: true }, "0d", "39", "01"),
        (Say::Running, "0e", "38", ""),
        (Say::NotRunning(NotRunning::Crashed), "0f", "39", "03"),
        (Say::Abandon(Reason::new("no")), "10", "3e", "02000000 6e6f"),
        (Say::Released, "14", "38", ""),
    ]
    .map(|(say, kind, length, rest)| {
        let hex = proof_hex();
        let text = format!("53564659 0300 {kind}00 {length}000000 {TRANSFER_HEX} {hex} {rest}");
        (Message::Word(Word { transfer: TRANSFER, say, proof: PROOF }), text)
    })
}

/// Those of a pre-flight.
fn golden_inquiries() -> [(Message, String); 4] {
    let bytes = |length: usize, byte: u8| vec![byte; length];
    [
        (
            Message::Inquiry(Offer {
                transfer: TRANSFER,
                session: 0x1122_3344_5566_7788,
                connections: 4,
                abandoned: Vec::new(),
                machine: bytes(3, 0xaa),
            }),
            format!(
                "53564659 0300 1100 2a000000 {TRANSFER_HEX} 8877665544332211 0400 00 \
                 03000000 aaaaaa"
            ),
        ),
        (Message::Assessment(Assessment::default()), "53564659 0300 1200 02000000 00 00".into()),
        (
            Message::Assessment(Assessment {
                objections: vec![Objection::new("TSC", "no")],
                platform: Some(PlatformBytes {
                    pdh: bytes(1, 0x11),
                    chain: bytes(2, 0x22),
                    roots: bytes(3, 0x33),
                }),
            }),
            "53564659 0300 1200 21000000 01 03000000 545343 02000000 6e6f \
             01 01000000 11 02000000 2222 03000000 333333"
                .into(),
        ),
        (
            Message::Building(Pinned { pages: 0x0102, of: 0x0304 }),
            "53564659 0300 1300 10000000 0201000000000000 0403000000000000".into(),
        ),
    ]
}

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<_> = text.chars().filter(|char| !char.is_whitespace()).collect();
    let pairs = digits.chunks(2).map(|pair| pair.iter().collect::<String>());
    pairs.map(|pair| u8::from_str_radix(&pair, 16).unwrap()).collect()
}

/// One frame off the front of a stream, as a reader of a connection would take it.
fn decode(bytes: &[u8]) -> Result<Message, Malformed> {
    let missing = Malformed::Truncated {
        what: "a frame header",
        needed: FRAME_HEADER_LEN,
        left: bytes.len(),
    };
    let (header, body) = bytes.split_first_chunk::<FRAME_HEADER_LEN>().ok_or(missing)?;
    Message::decode(FrameHeader::decode(header)?, body.to_vec())
}

/// The bytes of every message are those that earlier builds wrote, and read back the same.
#[test]
fn every_message_has_its_golden_bytes() {
    for (message, text) in golden() {
        let bytes = message.encode().unwrap();
        assert_eq!(bytes, hex(&text), "{message:?}");
        assert_eq!(decode(&bytes), Ok(message));
    }
    let covered: Vec<_> = golden().iter().map(|(message, _)| message.kind()).collect();
    let missing = Kind::ALL.iter().find(|kind| **kind != Kind::Pages && !covered.contains(kind));
    assert_eq!(missing, None, "a kind of message has no golden bytes");
}

/// Whether a message ends with bytes of any length.
fn is_raw(message: &Message) -> bool {
    matches!(message, Message::StatusList(_) | Message::State(_))
}

/// A stream that ends anywhere inside a message is refused, whatever its header says.
#[test]
fn truncation_at_every_offset_is_refused() {
    for (message, text) in golden() {
        let bytes = hex(&text);
        for cut in 0..bytes.len() {
            let refused = decode(&bytes[..cut]).unwrap_err();
            assert!(matches!(refused, Malformed::Truncated { .. }), "{message:?}: {refused}");
            // The same with a header that owns up to the shorter length: only a message that
            // ends with bytes of any length has another reading.
            let Some(length) = cut.checked_sub(FRAME_HEADER_LEN) else { continue };
            let mut shorter = bytes[..cut].to_vec();
            shorter[8..12].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
            match decode(&shorter) {
                Ok(_) => assert!(is_raw(&message), "{message:?}"),
                Err(refused) => assert!(matches!(refused, Malformed::Truncated { .. })),
            }
        }
    }
}

/// Bytes after the end of a message are refused, not skipped.
#[test]
fn trailing_bytes_are_refused() {
    for (message, text) in golden() {
        let mut bytes = hex(&text);
        bytes.push(0);
        let extra = Malformed::Trailing { kind: message.kind(), extra: 1 };
        assert_eq!(decode(&bytes), Err(extra.clone()), "{message:?}");
        let length = u32::try_from(bytes.len() - FRAME_HEADER_LEN).unwrap();
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        let is_beyond_cap = length > message.kind().length_max();
        match decode(&bytes) {
            Ok(_) => assert!(is_raw(&message), "{message:?}"),
            Err(Malformed::TooLong { .. }) => assert!(is_beyond_cap, "{message:?}"),
            Err(refused) => assert_eq!(refused, extra),
        }
    }
}

/// A header that says less than the message has is refused, even if the message is right otherwise.
#[test]
fn a_header_must_know_its_length() {
    for (message, text) in golden() {
        let mut bytes = hex(&text);
        let Some(length) = (bytes.len() - FRAME_HEADER_LEN).checked_sub(1) else { continue };
        bytes[8..12].copy_from_slice(&u32::try_from(length).unwrap().to_le_bytes());
        let extra = Malformed::Trailing { kind: message.kind(), extra: 1 };
        assert_eq!(decode(&bytes), Err(extra), "{message:?}");
    }
}

/// Another program, another version and an unknown kind are told apart, both versions named.
#[test]
fn foreign_headers_are_named() {
    let good = Message::Started.encode().unwrap();
    let with = |offset: usize, value: u16| {
        let mut bytes = good.clone();
        bytes[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
        decode(&bytes).unwrap_err()
    };
    assert_eq!(with(0, 0), Malformed::Magic { magic: [0, 0, b'F', b'Y'] });
    for theirs in [0, 1, 2, u16::MAX] {
        assert_eq!(with(4, theirs), Malformed::Version { theirs, ours: 3 });
    }
    let text = with(4, 1).to_string();
    assert!(text.contains("version 3") && text.contains("version 1"), "{text}");
    for number in [0, 21, u16::MAX] {
        assert_eq!(with(6, number), Malformed::UnknownKind { number });
    }
}

/// A length beyond the cap is refused from the header alone, before there is a body to allocate.
#[test]
fn length_bombs_are_refused_by_the_header() {
    for kind in Kind::ALL {
        let mut bytes = [0; FRAME_HEADER_LEN];
        bytes[..4].copy_from_slice(b"SVFY");
        bytes[4] = 3;
        bytes[6] = u8::try_from(kind as u16).unwrap();
        for length in [kind.length_max() + 1, u32::MAX] {
            bytes[8..].copy_from_slice(&length.to_le_bytes());
            let refused = FrameHeader::decode(&bytes).unwrap_err();
            let (length, most) = (u64::from(length), kind.length_max());
            assert_eq!(refused, Malformed::TooLong { kind, length, most });
        }
        bytes[8..].copy_from_slice(&kind.length_max().to_le_bytes());
        assert_eq!(FrameHeader::decode(&bytes).unwrap().length(), kind.length_max() as usize);
    }
}

/// A part that claims more than its cap, or more than there is, is refused.
#[test]
fn length_bombs_inside_a_message_are_refused() {
    let mut bytes = hex(&golden()[0].1);
    let at = FRAME_HEADER_LEN + 75;
    bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
    let refused = decode(&bytes).unwrap_err();
    assert!(matches!(refused, Malformed::FieldTooLong { length: 0xffff_ffff, .. }), "{refused}");
    bytes[at..at + 4].copy_from_slice(&MACHINE_OFFER_BYTES_MAX.to_le_bytes());
    assert!(matches!(decode(&bytes), Err(Malformed::Truncated { .. })));
}

/// What the peer would refuse is not sent.
#[test]
fn nothing_beyond_a_cap_is_encoded() {
    let state = Message::State(closing(vec![0; Kind::State.length_max() as usize - 43]));
    assert!(matches!(state.encode(), Err(Malformed::TooLong { kind: Kind::State, .. })));
    let pdh = vec![0; CERTIFICATES_BYTES_MAX as usize + 1];
    let platform = Some(PlatformBytes { pdh, ..PlatformBytes::default() });
    let accept = Message::Accept { secret: SECRET, platform };
    assert!(matches!(accept.encode(), Err(Malformed::FieldTooLong { .. })));
    let objections = vec![Objection::new("", ""); 65];
    let assessment = Message::Assessment(Assessment { objections, platform: None });
    assert!(matches!(assessment.encode(), Err(Malformed::Value { found: 65, .. })));
    for (connections, attempts) in [(0, 0), (129, 0), (1, 17)] {
        let abandoned = vec![Abandoned { epoch: 1, proof: PROOF }; attempts];
        let machine = Vec::new();
        let offer = Offer { transfer: TRANSFER, session: 1, connections, abandoned, machine };
        assert!(matches!(Message::Offer(offer).encode(), Err(Malformed::Value { .. })));
    }
}

/// More pages pinned than there are is no news.
#[test]
fn more_than_all_cannot_be_pinned() {
    let [.., (_, golden)] = golden_inquiries();
    let mut bytes = hex(&golden);
    bytes[FRAME_HEADER_LEN + 1] = 4;
    assert!(matches!(decode(&bytes), Err(Malformed::Value { found: 0x0402, .. })));
}

/// Numbers without meaning are refused: connections, flags, reasons, and text that is none.
#[test]
fn values_without_meaning_are_refused() {
    let refused = |index: usize, offset: usize, value: &[u8]| {
        let mut bytes = hex(&golden()[index].1);
        let at = FRAME_HEADER_LEN + offset;
        bytes[at..at + value.len()].copy_from_slice(value);
        decode(&bytes).unwrap_err()
    };
    for (index, offset, value, meant) in [
        (0, 32, &[0, 0][..], 0),
        (0, 32, &[129, 0], 129),
        (7, 8, &[128, 0], 128),
        (0, 34, &[17], 17),
        (16, 56, &[4], 4),
        (20, 0, &[65], 65),
    ] {
        let refused = refused(index, offset, value);
        assert!(matches!(refused, Malformed::Value { found, .. } if found == meant), "{refused}");
    }
    assert!(matches!(refused(1, 16, &[2]), Malformed::NotABool { found: 2, .. }));
    assert!(matches!(refused(13, 56, &[2]), Malformed::NotABool { found: 2, .. }));
    assert!(matches!(refused(4, 0, &[255]), Malformed::NotABool { found: 255, .. }));
    assert_eq!(refused(3, 4, &[0xff]), Malformed::NotText);
}

/// Everything that follows a header, read as its kind says.
fn read_frame(header: FrameHeader, body: &[u8]) -> Result<(), Malformed> {
    if header.kind() != Kind::Pages {
        return Message::decode(header, body.to_vec()).map(|_message| ());
    }
    let Some(head) = body.first_chunk::<PAGES_HEADER_LEN>() else { return Ok(()) };
    let pages = PagesHeader::decode(header, head)?;
    assert_eq!(pages.payload().total() + PAGES_HEADER_LEN, header.length());
    Ok(())
}

proptest! {
    /// Every message reads back as it was written.
    #[test]
    fn messages_read_back_as_written(message in some_message()) {
        prop_assert_eq!(decode(&message.encode().unwrap()), Ok(message));
    }

    /// Bytes at random, behind a good header or none, are read or refused, without a panic; what
    /// is read has only one form.
    #[test]
    fn any_bytes_are_read_or_refused(
        kind in prop::sample::select(Kind::ALL.to_vec()),
        body in some_bytes(),
        noise in any::<[u8; FRAME_HEADER_LEN]>(),
        is_noise in prop::bool::weighted(0.1),
    ) {
        let noise = FrameHeader::decode(&noise).ok().filter(|_| is_noise);
        let made = FrameHeader::new(kind, body.len()).ok();
        let Some(header) = noise.or(made) else { return Ok(()) };
        let is_read = read_frame(header, &body).is_ok();
        if is_read && header.kind() != Kind::Pages {
            let message = Message::decode(header, body.clone()).unwrap();
            let again = message.encode().unwrap();
            prop_assert!(again.len() <= body.len() + FRAME_HEADER_LEN + 2 * Reason::BYTES_MAX);
            prop_assert_eq!(decode(&again), Ok(message));
        }
    }

    /// A golden message with a few bytes changed is read or refused, without a panic.
    #[test]
    fn damaged_messages_are_read_or_refused(
        index in 0..golden().len(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = hex(&golden()[index].1);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if let Some((header, body)) = bytes.split_first_chunk()
            && let Ok(header) = FrameHeader::decode(header)
        {
            prop_assert!(header.length() <= header.kind().length_max() as usize);
            drop(read_frame(header, body));
        }
    }
}
