//! Frames: the header before every message, and page frames, whose payload is never copied here.
//!
//! All numbers little-endian. Every frame:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic `SVFY` |
//! | 4 | 2 | version, [`VERSION`] |
//! | 6 | 2 | kind, [`Kind`] |
//! | 8 | 4 | bytes that follow |
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
//! | 36 | 8 | digest of the payload, [`PayloadDigest`] |
//! | 44 | 8 × count | frame numbers, strictly ascending |
//! | | 52 × count | private only: the packets' headers |
//! | | 4096 × count | shared and private only: the pages |
//!
//! The two headers are read and written apart from the payload, whose parts the caller keeps in
//! buffers of its own: [`FrameHeader::decode`], [`PagesHeader::decode`], [`Payload`].

use sha2::{Digest, Sha256};
use twox_hash::XxHash3_64;

use super::cursor::{Reader, Writer};
use super::malformed::Malformed;
use super::message::RoundEnd;
use crate::machine::MACHINE_BYTES_MAX;
use crate::page::{Frame, PAGE_SIZE, RamLayout};

/// The version that this program speaks, and the only one. Neither earlier one was released: version 1
/// had no digests of what follows the last round, version 2 no proofs, and no word on a machine that is
/// being made.
pub const VERSION: u16 = 3;

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"SVFY";

/// Bytes before every message.
pub const FRAME_HEADER_LEN: usize = 12;

/// Bytes between those and the payload of a page frame.
pub const PAGES_HEADER_LEN: usize = 32;

/// Both headers of a page frame, as they travel together.
pub const PAGES_HEAD_LEN: usize = FRAME_HEADER_LEN + PAGES_HEADER_LEN;

/// Pages in a page frame: 256 KiB, so that a frame is far longer than its headers, and a worker's
/// buffer still fits a second-level cache.
pub const PAGES_MAX: usize = 64;

/// Bytes of a packet's header (SEV API, `SEND_UPDATE_DATA`).
pub const PACKET_HEADER_LEN: usize = 52;

/// Page connections of one migration.
pub const CONNECTIONS_MAX: u16 = 128;

/// Bytes of a machine's offer.
pub const MACHINE_OFFER_BYTES_MAX: u32 = 1 << 20;
const _: () = assert!(MACHINE_OFFER_BYTES_MAX as usize == MACHINE_BYTES_MAX);

/// Bytes of a machine's state.
pub const STATE_BYTES_MAX: u32 = 1 << 20;
const _: () = assert!(STATE_BYTES_MAX as usize == MACHINE_BYTES_MAX);

/// Bytes of a region list: 262,144 regions, what 2 GiB of alternating pages come to; guests have
/// tens.
pub const STATUS_BYTES_MAX: u32 = (4 << 20) + STATUS_HEADER_BYTES;

/// Bytes of each group of certificates, and of a session buffer.
pub const CERTIFICATES_BYTES_MAX: u32 = 16 << 10;

/// What the region list and the state have before them; see [`super::closing::Closing`].
pub const CLOSING_HEADER_LEN: u32 = 44;

/// What a region list has before its regions.
const STATUS_HEADER_BYTES: u32 = 32;

/// A page, for lengths in memory.
const PAGE_LEN: usize = 4096;
const _: () = assert!(PAGE_LEN as u64 == PAGE_SIZE);

/// Bytes of a frame number.
const NUMBER_LEN: usize = 8;

/// The longest region list that a guest with this RAM can have: every other page.
#[must_use]
pub fn status_bytes_max(layout: &RamLayout) -> u32 {
    let regions: u64 = layout.ranges().map(|run| run.pages().div_ceil(2)).sum();
    let bytes = regions.saturating_mul(16).saturating_add(u64::from(STATUS_HEADER_BYTES));
    u32::try_from(bytes).map_or(STATUS_BYTES_MAX, |bytes| bytes.min(STATUS_BYTES_MAX))
}

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u16)]
#[expect(missing_docs, reason = "each is the message of the same name")]
pub enum Kind {
    Offer = 1,
    Accept = 2,
    Refuse = 3,
    Start = 4,
    Started = 5,
    Join = 6,
    Pages = 7,
    RoundEnd = 8,
    RoundOk = 9,
    StatusList = 10,
    State = 11,
    Prepared = 12,
    Commit = 13,
    Running = 14,
    NotRunning = 15,
    Abandon = 16,
    Inquiry = 17,
    Assessment = 18,
    Building = 19,
    Released = 20,
}

impl Kind {
    /// Every kind, in the order of their numbers.
    pub const ALL: [Self; 20] = [
        Self::Offer,
        Self::Accept,
        Self::Refuse,
        Self::Start,
        Self::Started,
        Self::Join,
        Self::Pages,
        Self::RoundEnd,
        Self::RoundOk,
        Self::StatusList,
        Self::State,
        Self::Prepared,
        Self::Commit,
        Self::Running,
        Self::NotRunning,
        Self::Abandon,
        Self::Inquiry,
        Self::Assessment,
        Self::Building,
        Self::Released,
    ];

    fn from_number(number: u16) -> Result<Self, Malformed> {
        let known = Self::ALL.into_iter().find(|kind| *kind as u16 == number);
        known.ok_or(Malformed::UnknownKind { number })
    }

    /// The most bytes after the frame header.
    #[must_use]
    pub fn length_max(self) -> u32 {
        match self {
            Self::Offer | Self::Inquiry => {
                39 + ABANDONED_MAX * ABANDONED_BYTES + MACHINE_OFFER_BYTES_MAX
            }
            Self::Accept => SECRET_BYTES + PLATFORM_BYTES_MAX,
            Self::Assessment => 1 + OBJECTIONS_MAX * OBJECTION_BYTES_MAX + PLATFORM_BYTES_MAX,
            Self::Start => 13 + 2 * CERTIFICATES_BYTES_MAX,
            Self::Refuse => 4 + REASON_BYTES_MAX,
            Self::Abandon => WORD_BYTES + 4 + REASON_BYTES_MAX,
            Self::Started => 0,
            Self::Join => 10 + PROOF_BYTES,
            Self::Pages => PAGES_LENGTH_MAX,
            Self::RoundEnd => 44,
            Self::RoundOk => 4,
            Self::Building => 16,
            Self::StatusList => CLOSING_HEADER_LEN + STATUS_BYTES_MAX,
            Self::State => CLOSING_HEADER_LEN + STATE_BYTES_MAX,
            Self::Prepared | Self::Running | Self::Released => WORD_BYTES,
            Self::Commit | Self::NotRunning => WORD_BYTES + 1,
        }
    }
}

/// Earlier attempts that an offer speaks of.
pub const ABANDONED_MAX: u32 = 16;

/// An epoch and a proof.
const ABANDONED_BYTES: u32 = 8 + PROOF_BYTES;

/// The secret of a transfer.
const SECRET_BYTES: u32 = 16;

/// HMAC-SHA256.
const PROOF_BYTES: u32 = 32;

/// A transfer and a proof, before whatever else a word has.
const WORD_BYTES: u32 = 24 + PROOF_BYTES;

/// Reasons in one assessment.
pub const OBJECTIONS_MAX: u32 = 64;

/// A platform's certificates, or that there are none.
const PLATFORM_BYTES_MAX: u32 = 13 + 3 * CERTIFICATES_BYTES_MAX;

/// A subject and a reason.
const OBJECTION_BYTES_MAX: u32 = 2 * (4 + REASON_BYTES_MAX);

/// As [`super::message::Reason::BYTES_MAX`].
const REASON_BYTES_MAX: u32 = 1024;

/// A page frame of 64 private pages.
const PAGES_LENGTH_MAX: u32 = 32 + 64 * (8 + 52 + 4096);

/// What comes before every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    kind: Kind,
    length: u32,
}

impl FrameHeader {
    /// A header for `length` bytes.
    ///
    /// # Errors
    /// [`Malformed::TooLong`] if that kind may not be so long.
    pub fn new(kind: Kind, length: usize) -> Result<Self, Malformed> {
        let most = kind.length_max();
        match u32::try_from(length) {
            Ok(length) if length <= most => Ok(Self { kind, length }),
            _ => Err(Malformed::TooLong { kind, length: length as u64, most }),
        }
    }

    /// What follows.
    #[must_use]
    pub fn kind(self) -> Kind {
        self.kind
    }

    /// How many bytes follow; never more than [`Kind::length_max`], so a buffer of this size may
    /// be allocated.
    #[must_use]
    pub fn length(self) -> usize {
        self.length as usize
    }

    /// The header as it travels.
    #[must_use]
    pub fn encode(self) -> [u8; FRAME_HEADER_LEN] {
        let mut bytes = [0; FRAME_HEADER_LEN];
        let mut writer = Writer(&mut bytes);
        writer.put(&MAGIC);
        writer.put(&VERSION.to_le_bytes());
        writer.put(&(self.kind as u16).to_le_bytes());
        writer.put(&self.length.to_le_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`Malformed`] for another magic, another version, an unknown kind, or a length beyond its cap.
    pub fn decode(bytes: &[u8; FRAME_HEADER_LEN]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("a frame header", bytes);
        let magic = reader.array()?;
        if magic != MAGIC {
            return Err(Malformed::Magic { magic });
        }
        let version = reader.u16()?;
        if version != VERSION {
            return Err(Malformed::Version { theirs: version, ours: VERSION });
        }
        let kind = Kind::from_number(reader.u16()?)?;
        let length = reader.u32()?;
        let most = kind.length_max();
        if length > most {
            return Err(Malformed::TooLong { kind, length: u64::from(length), most });
        }
        Ok(Self { kind, length })
    }
}

/// What the pages of a page frame are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum PageKind {
    /// Shared: the bytes as they are.
    Shared = 0,
    /// Shared and all zero: no bytes.
    Zero = 1,
    /// Private: packets made by the firmware.
    Private = 2,
}

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
    /// [`PayloadDigest`] of what follows.
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
        if frame.kind != Kind::Pages {
            return Err(Malformed::NotPages { kind: frame.kind });
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
            return Err(Malformed::PagesLength { kind, count, length: frame.length, needed });
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

/// The digest of a page frame's payload: XXH3 of the frame numbers, then of the packets' headers
/// (private pages only), then of each page, each seeded with the result of the one before. It
/// catches damage; it authenticates nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PayloadDigest(u64);

impl PayloadDigest {
    /// Of the frame numbers.
    #[must_use]
    pub fn new(numbers: &[u8]) -> Self {
        Self(XxHash3_64::oneshot(numbers))
    }

    /// With the packets' headers, or one more page.
    #[must_use]
    pub fn and(self, part: &[u8]) -> Self {
        Self(XxHash3_64::oneshot_with_seed(self.0, part))
    }

    /// Of a whole payload in memory; `packet_headers` and `pages` are empty where there are none.
    #[must_use]
    pub fn of(numbers: &[u8], packet_headers: &[u8], pages: &[u8]) -> u64 {
        let mut digest = Self::new(numbers);
        if !packet_headers.is_empty() {
            digest = digest.and(packet_headers);
        }
        pages.chunks(PAGE_LEN).fold(digest, Self::and).value()
    }

    /// For the header.
    #[must_use]
    pub fn value(self) -> u64 {
        self.0
    }
}

/// Runs over both headers of every page frame of a connection in a round, on both sides, so that a
/// frame lost, repeated or exchanged shows at the end of the round.
#[derive(Debug, Clone, Default)]
pub struct RoundDigest {
    hash: Sha256,
    frames: u64,
}

impl RoundDigest {
    /// Takes in the headers of the next page frame.
    pub fn add(&mut self, head: &[u8; PAGES_HEAD_LEN]) {
        self.hash.update(head);
        self.frames = self.frames.saturating_add(1);
    }

    /// Page frames taken in since the round began.
    #[must_use]
    pub fn frames(&self) -> u64 {
        self.frames
    }

    /// Ends `round` and begins anew.
    pub fn end(&mut self, round: u32) -> RoundEnd {
        let ended = std::mem::take(self);
        RoundEnd { round, frames: ended.frames, digest: ended.hash.finalize().into() }
    }
}
