//! What a frame or a page frame holds, and how long each kind may be.

use crate::machine::MACHINE_BYTES_MAX;
use crate::page::RamLayout;

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

/// What the region list and the state have before them; see [`Closing`](super::Closing).
pub const CLOSING_HEADER_LEN: u32 = 44;

/// What a region list has before its regions.
const STATUS_HEADER_BYTES: u32 = 32;

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

    /// The kind of this number, if there is one.
    #[must_use]
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == number)
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

/// As [`Reason::BYTES_MAX`](super::Reason::BYTES_MAX).
const REASON_BYTES_MAX: u32 = 1024;

/// A page frame of 64 private pages.
const PAGES_LENGTH_MAX: u32 = 32 + 64 * (8 + 52 + 4096);

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
