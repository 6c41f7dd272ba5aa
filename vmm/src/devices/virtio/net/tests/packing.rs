//! Packets in buffers of any sizes, against a model that knows nothing but bytes.

use proptest::collection::vec;
use proptest::prelude::*;

use super::{MERGEABLE, NO_HEADER, packet, started};

/// What a driver finds: for each buffer that is used, the bytes in it.
///
/// Packets take whole buffers in order until header and packet fit; a packet for which there are not
/// enough waits, and with it all that follow.
fn model(packets: &[Vec<u8>], buffers: &[usize]) -> Vec<Vec<u8>> {
    let (mut used, mut next) = (Vec::new(), 0);
    for packet in packets {
        let needed = 12 + packet.len();
        let (mut room, first) = (0, next);
        while room < needed {
            let Some(buffer) = buffers.get(next) else { return used };
            room += buffer;
            next += 1;
        }
        let count = u16::try_from(next - first).unwrap();
        let header = [&NO_HEADER[..10], &count.to_le_bytes()].concat();
        let mut bytes = [header, packet.clone()].concat();
        for buffer in &buffers[first..next] {
            let rest = bytes.split_off(bytes.len().min(*buffer));
            used.push(std::mem::replace(&mut bytes, rest));
        }
    }
    used
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Any packets in any buffers, each of one to three pieces of memory: every byte is where it
    /// belongs, and no buffer is used that was not needed.
    #[test]
    fn packets_are_packed_as_the_model_says(
        lengths in vec(14_usize..9000, 1..8),
        buffers in vec(vec(1_u32..1800, 1..4), 1..40),
    ) {
        let buffers: Vec<Vec<u32>> =
            buffers.into_iter().filter(|pieces| pieces.iter().sum::<u32>() >= 12).collect();
        let (mut driver, wire) = started(MERGEABLE);
        let packets: Vec<_> =
            lengths.iter().enumerate().map(|(seed, length)| packet(seed, *length)).collect();
        for pieces in &buffers {
            driver.add(0, &[], pieces).unwrap();
        }
        driver.ring(0);
        for packet in &packets {
            wire.send(&NO_HEADER, packet);
        }
        let sizes: Vec<usize> =
            buffers.iter().map(|pieces| pieces.iter().sum::<u32>() as usize).collect();
        for expected in model(&packets, &sizes) {
            let returned = driver.wait(0).unwrap();
            prop_assert_eq!(returned.written as usize, expected.len());
            prop_assert_eq!(&returned.bytes[..expected.len()], &expected[..]);
        }
        driver.function().pause();
        prop_assert_eq!(driver.poll(0).unwrap(), None);
    }

    /// A packet to send goes out as it is, in whatever pieces it lies.
    #[test]
    fn a_packet_goes_out_from_any_pieces(cuts in vec(0_usize..3000, 0..12), length in 14_usize..3000) {
        let (mut driver, wire) = started(0);
        let bytes = [NO_HEADER.to_vec(), packet(3, length)].concat();
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<_> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
        driver.add(1, &pieces, &[]).unwrap();
        driver.ring(1);
        driver.wait(1).unwrap();
        prop_assert_eq!(wire.receive().1, packet(3, length));
    }
}
