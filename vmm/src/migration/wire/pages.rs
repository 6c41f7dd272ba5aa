//! Page frames: their header, and the parts of their payload, which is never copied here.
//!
//! A page frame ([`Kind::Pages`]) carries up to 64 pages of one kind:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 12 | 8 | session of the offer |
//! | 20 | 8 | sequence: counts the page frames of this connection from 0, across rounds |
//! | 28 | 4 | round, from 1 |
//! | 32 | 1 | [`PageKind`]: 0 shared, 1 zero, 2 private |
//! | 33 | 1 | count of pages, 1 to 64 |
//! | 34 | 2 | 0 |
//! | 36 | 8 | digest of the payload, [`PayloadDigest`](super::PayloadDigest) |
//! | 44 | 8 × count | frame numbers, strictly ascending |
//! | | 52 × count | private only: the packets' headers |
//! | | 4096 × count | shared and private only: the pages |
//!
//! The two headers are read and written apart from the payload, whose parts the caller keeps in
//! buffers of its own: [`FrameHeader::decode`], [`PagesHeader::decode`], [`Payload`].

use super::cursor::{Reader, Writer};
use super::header::{FRAME_HEADER_LEN, FrameHeader, MAGIC, VERSION};
use super::kind::{Kind, PageKind};
use super::malformed::Malformed;
use crate::page::{Frame, PAGE_LEN};

/// Bytes between those and the payload of a page frame.
pub const PAGES_HEADER_LEN: usize = 32;

/// Both headers of a page frame, as they travel together.
pub const PAGES_HEAD_LEN: usize = FRAME_HEADER_LEN + PAGES_HEADER_LEN;

/// Pages in a page frame: 256 KiB, so that a frame is far longer than its headers, and a worker's
/// buffer still fits a second-level cache.
pub const PAGES_MAX: usize = 64;

/// Bytes of a packet's header (SEV API, `SEND_UPDATE_DATA`).
pub const PACKET_HEADER_LEN: usize = 52;

/// Bytes of a frame number.
const NUMBER_LEN: usize = 8;

/// The part of a page frame's header after [`FrameHeader`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagesHeader {
    /// As in the offer.
    pub session: u64,
    /// Counts the page frames of this connection from 0.
    pub sequence: u64,
    /// From 1.
    pub round: u32,
    /// What the pages are.
    pub kind: PageKind,
    /// How many pages: 1 to [`PAGES_MAX`].
    pub count: u8,
    /// [`PayloadDigest`](super::PayloadDigest) of what follows.
    pub digest: u64,
}

impl PagesHeader {
    /// The sizes of what follows.
    #[must_use]
    pub fn payload(&self) -> Payload {
        Payload::new(self.kind, usize::from(self.count))
    }

    /// Both headers as they travel, before the payload.
    #[must_use]
    pub fn encode(&self) -> [u8; PAGES_HEAD_LEN] {
        let mut bytes = [0; PAGES_HEAD_LEN];
        let mut writer = Writer(&mut bytes);
        let length = PAGES_HEADER_LEN + self.payload().total();
        writer.put(&MAGIC);
        writer.put(&VERSION.to_le_bytes());
        writer.put(&(Kind::Pages as u16).to_le_bytes());
        // Within the cap: a count has 8 bits and a page at most 4,156 bytes.
        writer.put(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        writer.put(&self.session.to_le_bytes());
        writer.put(&self.sequence.to_le_bytes());
        writer.put(&self.round.to_le_bytes());
        writer.put(&[self.kind as u8, self.count, 0, 0]);
        writer.put(&self.digest.to_le_bytes());
        bytes
    }

    /// Reads what follows a [`FrameHeader`] of [`Kind::Pages`]. The payload is then exactly
    /// [`PagesHeader::payload`].
    ///
    /// # Errors
    /// [`Malformed`] for another kind of frame, an unknown kind of page, a count outside 1 to 64, or a length that
    /// is not that of so many pages.
    pub fn decode(frame: FrameHeader, bytes: &[u8; PAGES_HEADER_LEN]) -> Result<Self, Malformed> {
        if frame.kind() != Kind::Pages {
            return Err(Malformed::NotPages { kind: frame.kind() });
        }
        let mut reader = Reader::new("a page frame's header", bytes);
        let (session, sequence, round) = (reader.u64()?, reader.u64()?, reader.u32()?);
        let kind = match reader.u8()? {
            0 => PageKind::Shared,
            1 => PageKind::Zero,
            2 => PageKind::Private,
            number => return Err(Malformed::UnknownPageKind { number }),
        };
        let count = reader.u8()?;
        if !(1..=PAGES_MAX).contains(&usize::from(count)) {
            return Err(Malformed::PageCount { count });
        }
        let reserved = reader.u16()?;
        if reserved != 0 {
            return Err(Malformed::Reserved { found: reserved });
        }
        let header = Self { session, sequence, round, kind, count, digest: reader.u64()? };
        let needed = PAGES_HEADER_LEN + header.payload().total();
        if frame.length() != needed {
            return Err(Malformed::PagesLength { kind, count, length: frame.length(), needed });
        }
        Ok(header)
    }
}

/// How many bytes each part of a page frame's payload has, in the order in which they travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    /// The frame numbers.
    pub numbers: usize,
    /// The packets' headers; private pages only.
    pub packet_headers: usize,
    /// The pages; none for zero pages.
    pub pages: usize,
}

impl Payload {
    /// Of `count` pages.
    #[must_use]
    pub fn new(kind: PageKind, count: usize) -> Self {
        let (packet_header, page) = match kind {
            PageKind::Shared => (0, PAGE_LEN),
            PageKind::Zero => (0, 0),
            PageKind::Private => (PACKET_HEADER_LEN, PAGE_LEN),
        };
        Self {
            numbers: count * NUMBER_LEN,
            packet_headers: count * packet_header,
            pages: count * page,
        }
    }

    /// All of it.
    #[must_use]
    pub fn total(self) -> usize {
        self.numbers + self.packet_headers + self.pages
    }
}

/// Appends frame numbers as they travel.
pub fn encode_numbers(frames: &[Frame], into: &mut Vec<u8>) {
    into.extend(frames.iter().flat_map(|frame| frame.0.to_le_bytes()));
}

/// Reads frame numbers into `into` and returns them.
///
/// # Errors
/// [`Malformed`] if there are more than [`PAGES_MAX`], or they do not ascend.
pub fn decode_numbers<'a>(
    bytes: &[u8],
    into: &'a mut [Frame; PAGES_MAX],
) -> Result<&'a [Frame], Malformed> {
    let (numbers, rest) = bytes.as_chunks::<NUMBER_LEN>();
    let count = numbers.len();
    let room = into.get_mut(..count).filter(|_| rest.is_empty());
    let room = room.ok_or(Malformed::Numbers { bytes: bytes.len() })?;
    let mut previous = None;
    for (slot, number) in room.iter_mut().zip(numbers) {
        let frame = Frame(u64::from_le_bytes(*number));
        if previous.is_some_and(|previous| frame <= previous) {
            return Err(Malformed::NotAscending { frame });
        }
        previous = Some(frame);
        *slot = frame;
    }
    Ok(room)
}
