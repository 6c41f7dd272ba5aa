//! Digests over page frames: of a payload, and of a whole round on a connection.

use sha2::{Digest, Sha256};
use twox_hash::XxHash3_64;

use super::message::RoundEnd;
use super::pages::PAGES_HEAD_LEN;
use crate::page::PAGE_LEN;

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
