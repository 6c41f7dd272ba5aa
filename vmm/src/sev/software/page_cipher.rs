//! Seals and opens the pages of one transfer of a guest. All threads of the transfer share it.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::sev::SevStatus;
use crate::sev::packet::{PacketHeader, PacketKeys, Purpose};
use crate::sev::session::{TransportKeys, random};

/// Counter blocks that one packet may use, as a power of two: 16 KiB.
const BLOCKS_SHIFT: u32 = 10;

/// Seals or opens pages.
#[derive(Debug)]
pub(super) struct PageCipher {
    keys: PacketKeys,
    prefix: [u8; 8],
    sealed: AtomicU64,
}

impl PageCipher {
    pub(super) fn new(keys: &TransportKeys) -> Result<Self, SevStatus> {
        let prefix = random().map_err(|_no_randomness| SevStatus::HW_PLATFORM)?;
        Ok(Self { keys: PacketKeys::new(keys), prefix, sealed: AtomicU64::new(0) })
    }

    /// Encrypts a page, or a part of one, in place.
    pub(super) fn seal(&self, bytes: &mut [u8]) -> PacketHeader {
        self.keys.seal(Purpose::Page, self.next_iv(), bytes)
    }

    /// Decrypts a page, or a part of one, in place.
    pub(super) fn open(&self, header: &PacketHeader, bytes: &mut [u8]) -> Result<(), SevStatus> {
        self.keys.open(Purpose::Page, header, bytes)
    }

    /// Where the next packet's counter starts. Random bytes for each packet would cost a system call,
    /// and could overlap; these cannot: packet n owns blocks n * 2^10 to (n + 1) * 2^10 - 1 after the
    /// prefix, a packet has at most 2^8 blocks, n repeats only after 2^54 packets, and the keys belong
    /// to this transfer alone. The prefix is there because hardware's counters look random too.
    fn next_iv(&self) -> [u8; 16] {
        let packet = self.sealed.fetch_add(1, Ordering::Relaxed);
        let mut iv = [0; 16];
        let (prefix, blocks) = iv.split_at_mut(8);
        prefix.copy_from_slice(&self.prefix);
        blocks.copy_from_slice(&(packet << BLOCKS_SHIFT).to_be_bytes());
        iv
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No two packets of a transfer share a block of keystream, whatever the thread.
    #[test]
    fn counters_never_overlap() {
        let transfer = PageCipher::new(&TransportKeys::random().unwrap()).unwrap();
        let take = || (0..500).map(|_| u128::from_be_bytes(transfer.next_iv())).collect::<Vec<_>>();
        let mut starts = std::thread::scope(|scope| {
            let others = [scope.spawn(take), scope.spawn(take)];
            others.map(|thread| thread.join().unwrap()).concat()
        });
        starts.sort_unstable();
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] >= 1 << BLOCKS_SHIFT));
    }
}
