//! What has arrived at the destination: which pages, as what, and none twice in a round.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

use thiserror::Error;

use super::frame::PageKind;
use crate::encryption::{Incomplete, PageStatus, Status};
use crate::page::{Frame, PageRange, RamLayout};

/// Frames in a word of the round's bitmap.
const WORD: usize = 64;

/// A page that never arrived.
const NOTHING: u8 = 0;

/// What arrived for every frame of RAM, last and in this round. Takes 9 bits per page.
#[derive(Debug)]
pub(super) struct Arrivals {
    layout: RamLayout,
    /// By compact index: [`NOTHING`] or a [`PageKind`] plus 1.
    kinds: Vec<AtomicU8>,
    this_round: Vec<AtomicU64>,
}

impl Arrivals {
    /// Nothing has arrived.
    pub(super) fn new(layout: RamLayout) -> Self {
        let pages = usize::try_from(layout.pages()).unwrap_or(usize::MAX);
        let kinds = (0..pages).map(|_| AtomicU8::new(NOTHING)).collect();
        let this_round = (0..pages.div_ceil(WORD)).map(|_| AtomicU64::new(0)).collect();
        Self { layout, kinds, this_round }
    }

    /// A page arrives; its place must be marked before it is written. True if it is the first that
    /// arrives there.
    pub(super) fn mark(&self, frame: Frame, kind: PageKind) -> Result<bool, BadArrival> {
        let index = self.index(frame).ok_or(BadArrival::NotRam { frame })?;
        let word = self.this_round.get(index / WORD).ok_or(BadArrival::NotRam { frame })?;
        let bit = 1 << (index % WORD);
        if word.fetch_or(bit, Ordering::Relaxed) & bit != 0 {
            return Err(BadArrival::Repeated { frame });
        }
        let slot = self.kinds.get(index).ok_or(BadArrival::NotRam { frame })?;
        Ok(slot.swap(kind as u8 + 1, Ordering::Relaxed) == NOTHING)
    }

    /// The next round begins; no connection may be placing pages.
    pub(super) fn end_round(&self) {
        for word in &self.this_round {
            word.store(0, Ordering::Relaxed);
        }
    }

    /// Whether every page of RAM has arrived, last as what `status` says it is. Without SEV
    /// (`None`) all are shared.
    pub(super) fn check(&self, status: Option<&PageStatus>) -> Result<(), BadArrival> {
        let mut shared_until = Frame(0);
        let mut regions = match status {
            Some(status) => status.shared_regions()?.collect::<Vec<PageRange>>(),
            None => self.layout.ranges().collect(),
        }
        .into_iter()
        .peekable();
        let frames = self.layout.ranges().flat_map(PageRange::frames);
        for (frame, kind) in frames.zip(&self.kinds) {
            if regions.peek().is_some_and(|region| region.base() == frame) {
                shared_until = regions.next().map_or(frame, PageRange::limit);
            }
            let wanted = if frame < shared_until { Status::Shared } else { Status::Private };
            let arrived = match kind.load(Ordering::Relaxed) {
                NOTHING => return Err(BadArrival::Missing { frame }),
                kind if kind == PageKind::Private as u8 + 1 => Status::Private,
                _ => Status::Shared,
            };
            if arrived != wanted {
                return Err(BadArrival::Contradiction { frame, arrived, wanted });
            }
        }
        Ok(())
    }

    /// The place of `frame` among the frames of RAM.
    fn index(&self, frame: Frame) -> Option<usize> {
        let mut before = 0;
        for run in self.layout.ranges() {
            if run.contains(frame) {
                return usize::try_from(before + (frame.0 - run.base().0)).ok();
            }
            before += run.pages();
        }
        None
    }
}

/// A page that must not have come, or has not.
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
    /// Last as something else than the region list says.
    #[error("the source sent frame {frame} as {arrived}, but its region list says {wanted}")]
    Contradiction {
        /// The frame.
        frame: Frame,
        /// As what it came last.
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
    use super::*;
    use crate::encryption::{MapGpaRange, Overflow};

    fn layout() -> RamLayout {
        RamLayout::new(1 << 20).unwrap()
    }

    fn all_arrived_as(kind: PageKind) -> Arrivals {
        let arrivals = Arrivals::new(layout());
        for frame in 0..256 {
            arrivals.mark(Frame(frame), kind).unwrap();
        }
        arrivals
    }

    /// A frame outside RAM, or the same frame twice in a round, is refused; a new round takes it.
    #[test]
    fn pages_arrive_inside_ram_and_once_a_round() {
        let arrivals = Arrivals::new(layout());
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
        let arrivals = Arrivals::new(RamLayout::new((3 << 30) + (1 << 20)).unwrap());
        arrivals.mark(Frame(0x10_00ff), PageKind::Shared).unwrap();
        arrivals.mark(Frame(0x10_0100), PageKind::Shared).unwrap_err();
        arrivals.mark(Frame(0xf_ffff), PageKind::Shared).unwrap_err();
        assert_eq!(arrivals.index(Frame(0x10_0000)), Some(0xc_0000));
    }

    /// A page that is missing, or came last as what it is not, is named.
    #[test]
    fn the_end_is_held_against_the_region_list() {
        let mut status = PageStatus::new(layout(), Overflow::Promote);
        let arrivals = Arrivals::new(layout());
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
}
