//! What has arrived at the destination: which pages, as what, and none twice in a round.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use thiserror::Error;
use zerocopy::FromZeros;

use crate::encryption::{Incomplete, PageStatus, Status};
use crate::migration::wire::PageKind;
use crate::page::{Frame, PageRange, RamLayout};

/// Frames in a word of the round's bitmap.
const WORD: usize = 64;

/// For every page of RAM, whether it arrived, as what it arrived last, and whether it arrived in this round: three
/// bits per page. The host has no memory for parts in which no page was marked.
#[derive(Debug)]
pub(crate) struct Arrivals {
    layout: RamLayout,
    arrived: Vec<AtomicU64>,
    /// It last arrived as private.
    private: Vec<AtomicU64>,
    this_round: Vec<AtomicU64>,
}

impl Arrivals {
    /// Nothing has arrived. `None` if this host has no memory to count a guest of this size.
    pub(crate) fn new(layout: RamLayout) -> Option<Self> {
        let words = usize::try_from(layout.pages()).ok()?.div_ceil(WORD);
        let bitmap = || AtomicU64::new_vec_zeroed(words).ok();
        Some(Self { layout, arrived: bitmap()?, private: bitmap()?, this_round: bitmap()? })
    }

    /// Marks a page that arrives. This must come before the page is written. True if no page arrived there before.
    pub(crate) fn mark(&self, frame: Frame, kind: PageKind) -> Result<bool, BadArrival> {
        let index = self.index(frame).ok_or(BadArrival::NotRam { frame })?;
        let words = (self.this_round.get(index / WORD), self.private.get(index / WORD));
        let ((Some(this_round), Some(private)), Some(arrived)) =
            (words, self.arrived.get(index / WORD))
        else {
            return Err(BadArrival::NotRam { frame });
        };
        let bit = 1 << (index % WORD);
        if this_round.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            return Err(BadArrival::Repeated { frame });
        }
        if kind == PageKind::Private {
            private.fetch_or(bit, Ordering::Relaxed);
        } else {
            private.fetch_and(!bit, Ordering::Relaxed);
        }
        Ok(arrived.fetch_or(bit, Ordering::Relaxed) & bit == 0)
    }

    /// The next round begins. No connection may place pages meanwhile.
    pub(crate) fn end_round(&self) {
        // Storing to every word would take memory for all frames, also if few have changed.
        for word in self.this_round.iter().filter(|word| word.load(Ordering::Relaxed) != 0) {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Checks that every page of RAM has arrived, and last as what `status` says it is. Without SEV (`None`) all
    /// pages are shared. The guest is paused meanwhile, so this compares whole words.
    pub(crate) fn check(&self, status: Option<&PageStatus>) -> Result<(), BadArrival> {
        let regions: &mut dyn Iterator<Item = PageRange> = match status {
            Some(status) => &mut status.shared_regions()?,
            None => &mut self.layout.ranges(),
        };
        let mut next = 0;
        for shared in regions.flat_map(|region| self.layout.clip(region)) {
            let (Some(from), Some(pages)) =
                (self.index(shared.base()), usize::try_from(shared.pages()).ok())
            else {
                return Err(BadArrival::NotRam { frame: shared.base() });
            };
            self.check_span(next..from, Status::Private)?;
            next = from + pages;
            self.check_span(from..next, Status::Shared)?;
        }
        let all = usize::try_from(self.layout.pages()).unwrap_or(usize::MAX);
        self.check_span(next..all, Status::Private)
    }

    /// Whether all frames with these places have arrived, last as `wanted`.
    fn check_span(&self, places: Range<usize>, wanted: Status) -> Result<(), BadArrival> {
        let mut place = places.start;
        while place < places.end {
            let (word, first) = (place / WORD, place % WORD);
            let count = (WORD - first).min(places.end - place);
            let mask = u64::MAX >> (WORD - count) << first;
            let arrived = word_of(&self.arrived, word);
            let as_wanted = match wanted {
                Status::Private => word_of(&self.private, word),
                Status::Shared => !word_of(&self.private, word),
            };
            let wrong = mask & !(arrived & as_wanted);
            if wrong != 0 {
                let bit = wrong.trailing_zeros();
                let at = (word * WORD) as u64 + u64::from(bit);
                let frame = self.layout.frame_of(at).unwrap_or(Frame(u64::MAX));
                if arrived & 1 << bit == 0 {
                    return Err(BadArrival::Missing { frame });
                }
                let arrived = match wanted {
                    Status::Private => Status::Shared,
                    Status::Shared => Status::Private,
                };
                return Err(BadArrival::Contradiction { frame, arrived, wanted });
            }
            place += count;
        }
        Ok(())
    }

    /// The place of `frame` among the frames of RAM.
    fn index(&self, frame: Frame) -> Option<usize> {
        usize::try_from(self.layout.index_of(frame)?).ok()
    }
}

fn word_of(bitmap: &[AtomicU64], word: usize) -> u64 {
    bitmap.get(word).map_or(0, |word| word.load(Ordering::Relaxed))
}

/// A page that must not have arrived, or that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadArrival {
    /// Outside guest RAM.
    #[error("the source sent frame {frame}, which is not guest RAM")]
    NotRam {
        /// The frame.
        frame: Frame,
    },
    /// Twice in one round.
    #[error("the source sent frame {frame} twice in one round")]
    Repeated {
        /// The frame.
        frame: Frame,
    },
    /// Not at all.
    #[error("the source never sent frame {frame}")]
    Missing {
        /// The frame.
        frame: Frame,
    },
    /// It last arrived as private and the region list says shared, or the other way round.
    #[error("the source sent frame {frame} as {arrived}, but its region list says {wanted}")]
    Contradiction {
        /// The frame.
        frame: Frame,
        /// As what it arrived last.
        arrived: Status,
        /// What the region list says.
        wanted: Status,
    },
    /// The region list does not say.
    #[error(transparent)]
    Incomplete(#[from] Incomplete),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::encryption::{MapGpaRange, Overflow};

    fn layout() -> RamLayout {
        RamLayout::new(1 << 20).unwrap()
    }

    fn all_arrived_as(kind: PageKind) -> Arrivals {
        let arrivals = Arrivals::new(layout()).unwrap();
        for frame in 0..256 {
            arrivals.mark(Frame(frame), kind).unwrap();
        }
        arrivals
    }

    /// A frame outside RAM, or the same frame twice in a round, is refused; a new round takes it.
    #[test]
    fn pages_arrive_inside_ram_and_once_a_round() {
        let arrivals = Arrivals::new(layout()).unwrap();
        let frame = Frame(256);
        assert_eq!(arrivals.mark(frame, PageKind::Zero), Err(BadArrival::NotRam { frame }));
        let frame = Frame(255);
        arrivals.mark(frame, PageKind::Zero).unwrap();
        assert_eq!(arrivals.mark(frame, PageKind::Private), Err(BadArrival::Repeated { frame }));
        arrivals.end_round();
        arrivals.mark(frame, PageKind::Private).unwrap();
    }

    /// RAM above the device hole follows RAM below it.
    #[test]
    fn the_device_hole_takes_no_place() {
        let arrivals = Arrivals::new(RamLayout::new((3 << 30) + (1 << 20)).unwrap()).unwrap();
        arrivals.mark(Frame(0x10_00ff), PageKind::Shared).unwrap();
        arrivals.mark(Frame(0x10_0100), PageKind::Shared).unwrap_err();
        arrivals.mark(Frame(0xf_ffff), PageKind::Shared).unwrap_err();
        assert_eq!(arrivals.index(Frame(0x10_0000)), Some(0xc_0000));
    }

    /// A page that is missing, or came last as what it is not, is named.
    #[test]
    fn the_end_is_held_against_the_region_list() {
        let mut status = PageStatus::new(layout(), Overflow::Promote);
        let arrivals = Arrivals::new(layout()).unwrap();
        let frame = Frame(0);
        assert_eq!(arrivals.check(Some(&status)), Err(BadArrival::Missing { frame }));
        let arrivals = all_arrived_as(PageKind::Private);
        arrivals.check(Some(&status)).unwrap();
        arrivals.check(None).unwrap_err();
        all_arrived_as(PageKind::Zero).check(None).unwrap();

        let range = PageRange::new(Frame(7), Frame(9)).unwrap();
        status.apply(MapGpaRange { range, status: Status::Shared }, &mut |_| ());
        let (arrived, wanted) = (Status::Private, Status::Shared);
        let frame = Frame(7);
        let contradiction = BadArrival::Contradiction { frame, arrived, wanted };
        assert_eq!(arrivals.check(Some(&status)), Err(contradiction));
        arrivals.end_round();
        arrivals.mark(Frame(7), PageKind::Shared).unwrap();
        arrivals.mark(Frame(8), PageKind::Zero).unwrap();
        arrivals.check(Some(&status)).unwrap();
    }

    /// The result of [`Arrivals::check`], found frame by frame.
    fn check_plainly(arrivals: &Arrivals, shared: &[PageRange]) -> Result<(), BadArrival> {
        let is_set = |bitmap: &[AtomicU64], index: usize| {
            bitmap[index / WORD].load(Ordering::Relaxed) >> (index % WORD) & 1 == 1
        };
        let frames = arrivals.layout.ranges().flat_map(PageRange::frames);
        for (index, frame) in frames.enumerate() {
            let of = |is_private| if is_private { Status::Private } else { Status::Shared };
            let wanted = of(!shared.iter().any(|region| region.contains(frame)));
            if !is_set(&arrivals.arrived, index) {
                return Err(BadArrival::Missing { frame });
            }
            let arrived = of(is_set(&arrivals.private, index));
            if arrived != wanted {
                return Err(BadArrival::Contradiction { frame, arrived, wanted });
            }
        }
        Ok(())
    }

    proptest! {
        /// Checking by whole words names the same frame as checking frame by frame, whatever pages are shared,
        /// missing, or arrived as another kind.
        #[test]
        fn checking_words_finds_what_checking_frames_finds(
            reported in prop::collection::vec((0_u64..256, 1_u64..80), 0..6),
            other in prop::option::of(0_u64..256),
            missing in prop::option::of(0_u64..256),
        ) {
            let mut status = PageStatus::new(layout(), Overflow::Promote);
            for (base, pages) in reported {
                let range = PageRange::new(Frame(base), Frame((base + pages).min(256))).unwrap();
                status.apply(MapGpaRange { range, status: Status::Shared }, &mut |_| ());
            }
            let shared: Vec<_> = status.shared_regions().unwrap().collect();
            let arrivals = Arrivals::new(layout()).unwrap();
            for frame in (0..256).filter(|&frame| Some(frame) != missing) {
                let is_shared = shared.iter().any(|region| region.contains(Frame(frame)));
                let kind = match is_shared == (Some(frame) != other) {
                    true => PageKind::Shared,
                    false => PageKind::Private,
                };
                arrivals.mark(Frame(frame), kind).unwrap();
            }
            prop_assert_eq!(arrivals.check(Some(&status)), check_plainly(&arrivals, &shared));
        }
    }
}
