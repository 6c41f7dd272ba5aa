//! The header before each packet, and which offloads it may ask for.
//!
//! Pure data. What a driver writes there the kernel acts on, so it is checked here first, against
//! what was negotiated and against the packet; the kernel checks it again.

use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
};

/// Bytes of the header, as every driver of a modern device has it.
pub(super) const HEADER_BYTES: usize = 12;

/// Most bytes of a packet: what segmentation takes, in a frame with a VLAN tag.
pub(super) const PACKET_BYTES_MAX: usize = 65_535 + 18;

/// Bytes of an Ethernet header: less is no packet.
pub(super) const PACKET_BYTES_MIN: usize = 14;

/// `flags`: the checksum is to be filled in.
const NEEDS_CHECKSUM: u8 = 1;
/// `gso_type`: not to be cut up.
const WHOLE: u8 = 0;
const TCP4: u8 = 1;
const TCP6: u8 = 4;
/// `gso_type`, beside the others: with congestion marks.
const CONGESTION: u8 = 0x80;

/// Longest headers of a packet that is to be cut up: Ethernet with two tags, IP and TCP with options.
const HEADERS_MAX: u16 = 256;

/// One feature bit.
pub(super) const fn bit(feature: u32) -> u64 {
    1 << feature
}

/// What a driver accepts to leave undone in packets that it sends.
pub(super) const SENDING: u64 = bit(VIRTIO_NET_F_CSUM)
    | bit(VIRTIO_NET_F_HOST_TSO4)
    | bit(VIRTIO_NET_F_HOST_TSO6)
    | bit(VIRTIO_NET_F_HOST_ECN);

/// What a driver accepts to find undone in packets that it gets.
pub(super) const RECEIVING: u64 = bit(VIRTIO_NET_F_GUEST_CSUM)
    | bit(VIRTIO_NET_F_GUEST_TSO4)
    | bit(VIRTIO_NET_F_GUEST_TSO6)
    | bit(VIRTIO_NET_F_GUEST_ECN);

/// `struct virtio_net_hdr_v1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    pub(super) flags: u8,
    pub(super) kind: u8,
    pub(super) header_bytes: u16,
    pub(super) segment_bytes: u16,
    pub(super) checksum_start: u16,
    pub(super) checksum_offset: u16,
    /// Buffers that a received packet is in.
    pub(super) buffers: u16,
}

impl Header {
    pub(super) fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Self {
        let &[flags, kind, a, b, c, d, e, f, g, h, i, j] = bytes;
        Self {
            flags,
            kind,
            header_bytes: u16::from_le_bytes([a, b]),
            segment_bytes: u16::from_le_bytes([c, d]),
            checksum_start: u16::from_le_bytes([e, f]),
            checksum_offset: u16::from_le_bytes([g, h]),
            buffers: u16::from_le_bytes([i, j]),
        }
    }

    pub(super) fn to_bytes(self) -> [u8; HEADER_BYTES] {
        let [a, b] = self.header_bytes.to_le_bytes();
        let [c, d] = self.segment_bytes.to_le_bytes();
        let [e, f] = self.checksum_start.to_le_bytes();
        let [g, h] = self.checksum_offset.to_le_bytes();
        let [i, j] = self.buffers.to_le_bytes();
        [self.flags, self.kind, a, b, c, d, e, f, g, h, i, j]
    }

    /// The header for the kernel, of a packet of `packet_bytes` that the driver sends, which has
    /// accepted `features`. `None` if it asks for what it must not, or points out of the packet: the
    /// packet is dropped then.
    ///
    /// What the driver need not have filled in is zero in it, and so are flags that we do not know.
    pub(super) fn to_send(self, features: u64, packet_bytes: usize) -> Option<Self> {
        if self.flags & NEEDS_CHECKSUM == 0 {
            // Without a checksum to fill in there is nothing to cut up.
            return (self.kind == WHOLE).then(Self::default);
        }
        let end = usize::from(self.checksum_start) + usize::from(self.checksum_offset) + 2;
        if features & bit(VIRTIO_NET_F_CSUM) == 0 || end > packet_bytes {
            return None;
        }
        let (checksum_start, checksum_offset) = (self.checksum_start, self.checksum_offset);
        let whole =
            Self { flags: NEEDS_CHECKSUM, checksum_start, checksum_offset, ..Self::default() };
        if self.kind == WHOLE {
            return Some(whole);
        }
        let segmentation = match self.kind & !CONGESTION {
            TCP4 => bit(VIRTIO_NET_F_HOST_TSO4),
            TCP6 => bit(VIRTIO_NET_F_HOST_TSO6),
            _ => return None,
        };
        let congestion = if self.kind & CONGESTION == 0 { 0 } else { bit(VIRTIO_NET_F_HOST_ECN) };
        let needed = segmentation | congestion;
        if features & needed != needed || self.segment_bytes == 0 || end > HEADERS_MAX.into() {
            return None;
        }
        // A hint only, which the kernel wants to be in the packet.
        let header_bytes = self.header_bytes.min(HEADERS_MAX);
        let header_bytes = header_bytes.min(u16::try_from(packet_bytes).unwrap_or(u16::MAX));
        Some(Self { kind: self.kind, header_bytes, segment_bytes: self.segment_bytes, ..whole })
    }

    /// The header for the driver, which has accepted `features`, of a packet that came in `buffers`
    /// of its buffers. `None` if it could not understand the packet: the host may have made it before
    /// it knew what the driver accepts.
    pub(super) fn to_deliver(self, features: u64, buffers: u16) -> Option<Self> {
        let takes = |feature| features & bit(feature) != 0;
        let segmented = match self.kind & !CONGESTION {
            WHOLE => true,
            TCP4 => takes(VIRTIO_NET_F_GUEST_TSO4),
            TCP6 => takes(VIRTIO_NET_F_GUEST_TSO6),
            _ => false,
        };
        let congestion = self.kind & CONGESTION == 0 || takes(VIRTIO_NET_F_GUEST_ECN);
        let checksum = takes(VIRTIO_NET_F_GUEST_CSUM);
        if !segmented || !congestion || (self.flags & NEEDS_CHECKSUM != 0 && !checksum) {
            return None;
        }
        let flags = if checksum { self.flags } else { 0 };
        Some(Self { flags, buffers, ..self })
    }
}

/// The kernel's flags (`TUN_F_...`) for what a driver takes.
pub(super) fn offloads(features: u64) -> u32 {
    let pairs = [
        (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
        (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
        (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
        (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
    ];
    // The kernel has no segments without checksums.
    if features & bit(VIRTIO_NET_F_GUEST_CSUM) == 0 {
        return 0;
    }
    let taken = pairs.into_iter().filter(|&(feature, _)| features & bit(feature) != 0);
    taken.fold(0, |flags, (_, flag)| flags | flag)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: u64 = SENDING | RECEIVING;

    fn segmented() -> Header {
        Header {
            flags: NEEDS_CHECKSUM,
            kind: TCP4,
            header_bytes: 54,
            segment_bytes: 1448,
            checksum_start: 34,
            checksum_offset: 16,
            buffers: 0,
        }
    }

    /// What is sound goes to the kernel as it is.
    #[test]
    fn a_sound_header_is_sent() {
        assert_eq!(segmented().to_send(ALL, 60_000), Some(segmented()));
        let plain = Header { flags: 0, kind: WHOLE, ..segmented() };
        assert_eq!(plain.to_send(0, 60), Some(Header::default()));
    }

    /// A header that asks for more than was accepted, or points out of its packet, is not sent.
    #[test]
    fn a_header_that_lies_is_not_sent() {
        let lies = [
            ("no checksum for segments", Header { flags: 0, ..segmented() }, ALL, 60_000),
            ("not accepted", segmented(), 0, 60_000),
            ("no segmentation accepted", segmented(), bit(VIRTIO_NET_F_CSUM), 60_000),
            ("segments of nothing", Header { segment_bytes: 0, ..segmented() }, ALL, 60_000),
            ("UDP", Header { kind: 3, ..segmented() }, ALL, 60_000),
            ("unknown", Header { kind: 0x7f, ..segmented() }, ALL, 60_000),
            ("checksum behind the end", segmented(), ALL, 51),
            ("sum wraps", Header { checksum_start: 0xffff, ..segmented() }, ALL, 60_000),
            ("long headers", Header { checksum_start: 300, ..segmented() }, ALL, 60_000),
        ];
        for (what, header, features, bytes) in lies {
            assert_eq!(header.to_send(features, bytes), None, "{what}");
        }
    }

    /// A driver finds nothing undone that it has not accepted.
    #[test]
    fn a_driver_gets_only_what_it_takes() {
        assert_eq!(segmented().to_deliver(0, 1), None);
        let taken = segmented().to_deliver(ALL, 3);
        assert_eq!(taken, Some(Header { buffers: 3, ..segmented() }));
        // The host says that a checksum was right; without the feature it says nothing.
        let valid = Header { flags: 2, ..Header::default() };
        assert_eq!(valid.to_deliver(0, 1), Some(Header { buffers: 1, ..Header::default() }));
        assert_eq!(offloads(ALL), 0xf);
        assert_eq!(offloads(ALL & !bit(VIRTIO_NET_F_GUEST_CSUM)), 0);
    }

    proptest! {
        /// Whatever a driver writes: what the kernel gets stays in the packet and in what was accepted.
        #[test]
        fn nothing_points_out_of_the_packet(
            bytes: [u8; HEADER_BYTES],
            features: u64,
            length in PACKET_BYTES_MIN..PACKET_BYTES_MAX,
        ) {
            let header = Header::from_bytes(&bytes);
            prop_assert_eq!(header.to_bytes(), bytes);
            if let Some(sent) = header.to_send(features, length) {
                let end = usize::from(sent.checksum_start) + usize::from(sent.checksum_offset);
                prop_assert!(sent.flags & !NEEDS_CHECKSUM == 0);
                prop_assert!(sent.flags == 0 || end + 2 <= length);
                prop_assert!(sent.kind == WHOLE || sent.segment_bytes > 0 && sent.flags != 0);
                prop_assert!(usize::from(sent.header_bytes) <= length);
                prop_assert_eq!(sent.to_send(features, length), Some(sent));
            }
        }
    }
}
