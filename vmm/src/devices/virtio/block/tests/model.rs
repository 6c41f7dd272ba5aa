//! A disk against the stupidest one: bytes in a vector.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

const SECTORS: u64 = 32;

/// A request of a driver, right or wrong.
#[derive(Debug, Clone)]
enum Step {
    Read { sector: u64, bytes: u32 },
    Write { sector: u64, bytes: u32, fill: u8 },
    Zero { kind: u32, ranges: Vec<(u64, u32)> },
    Flush,
}

fn step() -> impl Strategy<Value = Step> {
    let sector = || prop_oneof![8 => 0..SECTORS + 2, 1 => any::<u64>()];
    let bytes = || prop_oneof![8 => (0_u32..20).prop_map(|count| count * 512), 1 => 0_u32..9000];
    let ranges = vec((sector(), 0_u32..20), 1..4);
    prop_oneof![
        (sector(), bytes()).prop_map(|(sector, bytes)| Step::Read { sector, bytes }),
        (sector(), bytes(), 1_u8..).prop_map(|(sector, bytes, fill)| Step::Write {
            sector,
            bytes,
            fill
        }),
        (prop_oneof![Just(DISCARD), Just(WRITE_ZEROES)], ranges)
            .prop_map(|(kind, ranges)| Step::Zero { kind, ranges }),
        Just(Step::Flush),
    ]
}

/// Where in the model it is, if it is a request of whole sectors on the disk.
fn place(sector: u64, bytes: u64) -> Option<std::ops::Range<usize>> {
    let from = usize::try_from(sector.checked_mul(512)?).ok()?;
    let end = from.checked_add(usize::try_from(bytes).ok()?)?;
    (bytes.is_multiple_of(512) && end <= usize::try_from(SECTORS * 512).ok()?).then_some(from..end)
}

fn check(guest: &mut Guest, model: &mut [u8], step: &Step) {
    match step {
        Step::Read { sector, bytes } => {
            let (status, read) = guest.request(IN, *sector, &[], &[*bytes]);
            match place(*sector, u64::from(*bytes)) {
                Some(range) => assert_eq!((status, &read[..]), (OK, &model[range])),
                None => assert_eq!(status, IOERR),
            }
        }
        Step::Write { sector, bytes, fill } => {
            let data = pattern(*fill, *bytes as usize);
            let (status, _) = guest.request(OUT, *sector, &data, &[]);
            match place(*sector, u64::from(*bytes)) {
                Some(range) => {
                    assert_eq!(status, OK);
                    model[range].copy_from_slice(&data);
                }
                None => assert_eq!(status, IOERR),
            }
        }
        Step::Zero { kind, ranges } => {
            let bytes: Vec<u8> =
                ranges.iter().flat_map(|&(at, count)| range(at, count, 0)).collect();
            let (status, _) = guest.request(*kind, 0, &bytes, &[]);
            let places = ranges.iter().map(|&(at, count)| place(at, u64::from(count) * 512));
            match places.collect::<Option<Vec<_>>>() {
                Some(places) => {
                    assert_eq!(status, OK);
                    places.into_iter().for_each(|place| model[place].fill(0));
                }
                None => assert_eq!(status, IOERR),
            }
        }
        Step::Flush => assert_eq!(guest.request(FLUSH, 0, &[], &[]).0, OK),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// Whatever is asked, the disk answers as a vector of bytes would, and holds the same in the end.
    #[test]
    fn a_disk_is_a_vector_of_bytes(steps in vec(step(), 1..40)) {
        let image = Image::of(SECTORS);
        let mut guest = Guest::on(&image);
        let mut model = vec![0; usize::try_from(SECTORS * 512).unwrap()];
        for step in &steps {
            check(&mut guest, &mut model, step);
        }
        prop_assert_eq!(image.bytes(), model);
        prop_assert!(!guest.is_broken());
    }
}
