//! Page frames: golden bytes, sizes that contradict, order, digests.

use proptest::prelude::*;

use crate::encryption::{MapGpaRange, Overflow, PageStatus, Status};
use crate::migration::wire::Malformed;
use crate::migration::wire::{
    FRAME_HEADER_LEN, FrameHeader, Kind, PAGES_HEAD_LEN, PAGES_HEADER_LEN, PAGES_MAX, PageKind,
    PagesHeader, Payload, PayloadDigest, RoundDigest, STATUS_BYTES_MAX, decode_numbers,
    encode_numbers, status_bytes_max,
};
use crate::page::{Frame, PageRange, RamLayout};

const HEADER: PagesHeader = PagesHeader {
    session: 0x1122_3344_5566_7788,
    sequence: 5,
    round: 2,
    kind: PageKind::Private,
    count: 3,
    digest: 0x0102_0304_0506_0708,
};

fn decode(head: &[u8; PAGES_HEAD_LEN]) -> Result<PagesHeader, Malformed> {
    let (frame, rest) = head.split_first_chunk::<FRAME_HEADER_LEN>().unwrap();
    PagesHeader::decode(FrameHeader::decode(frame)?, rest.first_chunk().unwrap())
}

/// A page frame's head is what earlier builds wrote, and reads back the same.
#[test]
fn page_frames_have_their_golden_bytes() {
    let mut golden = Vec::new();
    golden.extend_from_slice(b"SVFY\x03\x00\x07\x00\xd4\x30\x00\x00");
    golden.extend_from_slice(b"\x88\x77\x66\x55\x44\x33\x22\x11");
    golden.extend_from_slice(b"\x05\x00\x00\x00\x00\x00\x00\x00");
    golden.extend_from_slice(b"\x02\x00\x00\x00\x02\x03\x00\x00");
    golden.extend_from_slice(b"\x08\x07\x06\x05\x04\x03\x02\x01");
    assert_eq!(HEADER.encode().as_slice(), golden);
    assert_eq!(decode(&HEADER.encode()), Ok(HEADER));
}

/// The sizes of the payload follow from kind and count alone.
#[test]
fn payloads_have_the_parts_of_their_kind() {
    let of = |kind| Payload::new(kind, 2);
    assert_eq!(of(PageKind::Shared), Payload { numbers: 16, packet_headers: 0, pages: 8192 });
    assert_eq!(of(PageKind::Zero), Payload { numbers: 16, packet_headers: 0, pages: 0 });
    assert_eq!(of(PageKind::Private), Payload { numbers: 16, packet_headers: 104, pages: 8192 });
    let most = Payload::new(PageKind::Private, PAGES_MAX).total() + PAGES_HEADER_LEN;
    assert_eq!(most, Kind::Pages.length_max() as usize);
}

/// Kinds, counts, reserved bits and lengths that make no sense are refused by name.
#[test]
fn page_frames_that_contradict_themselves_are_refused() {
    let with = |offset: usize, byte: u8| {
        let mut head = HEADER.encode();
        head[offset] = byte;
        decode(&head).unwrap_err()
    };
    assert_eq!(with(6, 5), Malformed::TooLong { kind: Kind::Started, length: 0x30d4, most: 0 });
    assert_eq!(with(6, 11), Malformed::NotPages { kind: Kind::State });
    assert_eq!(with(32, 3), Malformed::UnknownPageKind { number: 3 });
    assert_eq!(with(33, 0), Malformed::PageCount { count: 0 });
    assert_eq!(with(33, 65), Malformed::PageCount { count: 65 });
    assert_eq!(with(35, 1), Malformed::Reserved { found: 0x100 });
    for (offset, byte) in [(32, 0), (33, 2), (33, 4), (8, 0xd3)] {
        assert!(matches!(with(offset, byte), Malformed::PagesLength { .. }), "{offset} {byte}");
    }
}

/// Frame numbers ascend strictly, so that a page frame cannot name a page twice.
#[test]
fn frame_numbers_must_ascend() {
    let mut room = [Frame(0); PAGES_MAX];
    let mut read = |numbers: &[u64]| {
        let frames: Vec<_> = numbers.iter().copied().map(Frame).collect();
        let mut bytes = Vec::new();
        encode_numbers(&frames, &mut bytes);
        let read = decode_numbers(&bytes, &mut room).map(<[Frame]>::to_vec);
        (read, frames)
    };
    let (found, frames) = read(&[0, 7, u64::MAX]);
    assert_eq!(found, Ok(frames));
    assert_eq!(read(&[3, 3]).0, Err(Malformed::NotAscending { frame: Frame(3) }));
    assert_eq!(read(&[3, 2]).0, Err(Malformed::NotAscending { frame: Frame(2) }));
    let many: Vec<_> = (0..65).collect();
    assert_eq!(read(&many).0, Err(Malformed::Numbers { bytes: 520 }));
    let cut = decode_numbers(&[0; 15], &mut room).unwrap_err();
    assert_eq!(cut, Malformed::Numbers { bytes: 15 });
}

/// The digest of a payload is fixed, and page by page it is the same as at once.
#[test]
fn payload_digests_are_fixed() {
    let (numbers, headers, pages) = ([1; 16], [2; 104], [3; 8192]);
    let at_once = PayloadDigest::of(&numbers, &headers, &pages);
    let in_parts = PayloadDigest::new(&numbers).and(&headers).and(&[3; 4096]).and(&[3; 4096]);
    assert_eq!(at_once, in_parts.value());
    assert_eq!(at_once, GOLDEN_DIGEST);
    // XXH3_64bits of nothing, with seed 0: the reference implementation's vector.
    assert_eq!(PayloadDigest::of(&[], &[], &[]), 0x2d06_8005_38d3_94c2);
}

/// What the first build of version 1 computed.
const GOLDEN_DIGEST: u64 = 0xaad1_daf1_b520_fbae;

/// A frame lost, repeated or exchanged in a round changes what ends the round.
#[test]
fn round_digests_see_losses_repeats_and_exchanges() {
    let heads: Vec<_> = (0..3).map(|n| PagesHeader { sequence: n, ..HEADER }.encode()).collect();
    let end = |order: &[usize]| {
        let mut digest = RoundDigest::default();
        for index in order {
            digest.add(&heads[*index]);
        }
        let end = digest.end(1);
        assert_eq!(digest.end(1), RoundDigest::default().end(1), "a new round starts from nothing");
        end
    };
    let good = end(&[0, 1, 2]);
    assert_eq!(good.frames, 3);
    for wrong in [&[0, 1][..], &[0, 2, 1], &[0, 1, 1], &[0, 1, 2, 2], &[]] {
        assert_ne!(end(wrong), good, "{wrong:?}");
    }
}

/// The longest list of any guest fits the cap that its RAM gives, and no more than 2 GiB's travels.
#[test]
fn region_lists_have_room_for_every_other_page() {
    let layout = RamLayout::new(32 * 4096).unwrap();
    let mut status = PageStatus::new(layout, Overflow::Promote);
    for frame in (0..32).step_by(2) {
        let range = PageRange::new(Frame(frame), Frame(frame + 1)).unwrap();
        status.apply(MapGpaRange { range, status: Status::Shared }, &mut |_| {});
    }
    assert_eq!(status.to_bytes().len(), status_bytes_max(&layout) as usize);
    assert_eq!(status_bytes_max(&RamLayout::new(2 << 30).unwrap()), STATUS_BYTES_MAX);
    assert_eq!(status_bytes_max(&RamLayout::new(1 << 50).unwrap()), STATUS_BYTES_MAX);
}

proptest! {
    /// A page frame's head at random is read or refused; what is read has one form.
    #[test]
    fn any_page_head_is_read_or_refused(
        noise in any::<[u8; PAGES_HEADER_LEN]>(),
        kind in 0..4_u8,
        count in 0..70_u8,
        reserved in prop::sample::select(vec![0, 0, 0, 1_u8]),
        off_by in -1..2_i32,
    ) {
        let mut bytes = noise;
        bytes[20..24].copy_from_slice(&[kind, count, reserved, 0]);
        let page_kind = [PageKind::Shared, PageKind::Zero, PageKind::Private];
        let total = page_kind.get(usize::from(kind)).map_or(0, |kind| {
            Payload::new(*kind, usize::from(count)).total()
        });
        let length = i32::try_from(PAGES_HEADER_LEN + total).unwrap() + off_by;
        let frame = FrameHeader::new(Kind::Pages, usize::try_from(length).unwrap());
        let Ok(frame) = frame else { return Ok(()) };
        let good = kind < 3 && (1..=64).contains(&count) && reserved == 0 && off_by == 0;
        match PagesHeader::decode(frame, &bytes) {
            Ok(header) => {
                prop_assert!(good);
                prop_assert_eq!(&header.encode()[..FRAME_HEADER_LEN], &frame.encode()[..]);
                prop_assert_eq!(&header.encode()[FRAME_HEADER_LEN..], &bytes[..]);
            }
            Err(refused) => prop_assert!(!good, "{refused}"),
        }
    }
}
