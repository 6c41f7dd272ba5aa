//! Pages off one connection into guest RAM: every header checked before anything is written.
//!
//! Each connection has a [`PagePlacer`] on a thread of its own for the whole migration.

use std::io::{Error as IoError, ErrorKind};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use thiserror::Error;

use super::arrivals::{Arrivals, BadArrival};
use super::frame::{
    FRAME_HEADER_LEN, FrameHeader, Kind, PACKET_HEADER_LEN, PAGES_HEAD_LEN, PAGES_HEADER_LEN,
    PAGES_MAX, PageKind, PagesHeader, Payload, PayloadDigest, RoundDigest, decode_numbers,
};
use super::malformed::Malformed;
use super::message::{Message, RoundEnd};
use super::reception::Arrived;
use super::transport::Stream;
use crate::encryption::Status;
use crate::memory::{GuestRam, RamError};
use crate::page::{Frame, PageRange};
use crate::sev::receive::{ReceiveError, Receiving};

/// How long one frame may take from its first byte to its last.
pub(super) const FRAME_DEADLINE: Duration = Duration::from_secs(10);

/// How often an idle connection looks whether it is still wanted.
const IDLE_STEP: Duration = Duration::from_millis(200);

/// Bytes of a page.
const PAGE_LEN: usize = 4096;

/// Where pages go, as all connections share it.
#[derive(Debug)]
pub(super) struct Target<'a> {
    pub(super) ram: &'a GuestRam,
    pub(super) arrivals: &'a Arrivals,
    /// Opens private pages; `None` for a plain VM, which has none.
    pub(super) receiving: Option<&'a Receiving>,
    /// Random, from the offer.
    pub(super) session: u64,
    /// Counts what comes, which also shows that the source is alive.
    pub(super) arrived: &'a Arrived,
}

/// The receiving end of a page connection.
#[derive(Debug)]
pub(super) struct PagePlacer {
    stream: Stream,
    sequence: u64,
    round: u32,
    digest: RoundDigest,
    payload: Vec<u8>,
}

impl PagePlacer {
    /// `stream` has said which connection it is.
    pub(super) fn new(stream: Stream) -> Self {
        let room = Payload::new(PageKind::Private, PAGES_MAX).total();
        let payload = vec![0; room];
        Self { stream, sequence: 0, round: 1, digest: RoundDigest::default(), payload }
    }

    /// Places pages until the round ends; `None` if the connection ends instead, between rounds,
    /// or `unwanted` says so.
    pub(super) fn place_round(
        &mut self,
        target: &Target<'_>,
        unwanted: &dyn Fn() -> bool,
    ) -> Result<Option<RoundEnd>, PlacerError> {
        loop {
            while !self.stream.readable(IDLE_STEP)? {
                if unwanted() {
                    return Ok(None);
                }
            }
            let deadline = Instant::now() + FRAME_DEADLINE;
            let mut head = [0; PAGES_HEAD_LEN];
            let (frame_part, pages_part) = head.split_at_mut(FRAME_HEADER_LEN);
            if !self.stream.fill(frame_part, deadline)? {
                let idle = self.digest.frames() == 0;
                return if idle { Ok(None) } else { Err(PlacerError::Cut { round: self.round }) };
            }
            let frame = FrameHeader::decode(&as_array(frame_part))?;
            if frame.kind() == Kind::RoundEnd {
                return self.end_round(frame, deadline).map(Some);
            }
            if frame.kind() != Kind::Pages {
                return Err(PlacerError::Unexpected { kind: frame.kind() });
            }
            self.fill(pages_part.len(), deadline)?;
            pages_part.copy_from_slice(self.payload.get(..PAGES_HEADER_LEN).unwrap_or(&[]));
            let header = PagesHeader::decode(frame, &as_array(pages_part))?;
            self.check(&header, target)?;
            self.digest.add(&head);
            self.sequence += 1;
            self.place(&header, target, deadline)?;
        }
    }

    /// Reads `len` bytes into the payload buffer, which is as long as the longest payload.
    fn fill(&mut self, len: usize, deadline: Instant) -> Result<(), PlacerError> {
        let buffer = self.payload.get_mut(..len).ok_or(IoError::from(ErrorKind::InvalidData))?;
        if self.stream.fill(buffer, deadline)? {
            Ok(())
        } else {
            Err(PlacerError::Cut { round: self.round })
        }
    }

    /// The firmware's packets bind neither the session's order nor the round: these numbers do.
    fn check(&self, header: &PagesHeader, target: &Target<'_>) -> Result<(), PlacerError> {
        let wrong = |what, expected, found| PlacerError::OutOfOrder { what, expected, found };
        if header.session != target.session {
            return Err(wrong("session", target.session, header.session));
        }
        if header.sequence != self.sequence {
            return Err(wrong("sequence", self.sequence, header.sequence));
        }
        if header.round != self.round {
            return Err(wrong("round", self.round.into(), header.round.into()));
        }
        Ok(())
    }

    fn place(
        &mut self,
        header: &PagesHeader,
        target: &Target<'_>,
        deadline: Instant,
    ) -> Result<(), PlacerError> {
        let parts = header.payload();
        self.fill(parts.total(), deadline)?;
        let payload = self.payload.get(..parts.total()).unwrap_or_default();
        let (numbers, rest) = payload.split_at(parts.numbers);
        let (packet_headers, pages) = rest.split_at(parts.packet_headers);
        if PayloadDigest::of(numbers, packet_headers, pages) != header.digest {
            return Err(PlacerError::Damaged { sequence: header.sequence });
        }
        let mut frames = [Frame(0); PAGES_MAX];
        let frames = decode_numbers(numbers, &mut frames)?;
        let (packet_headers, _) = packet_headers.as_chunks::<PACKET_HEADER_LEN>();
        let (pages, _) = pages.as_chunks::<PAGE_LEN>();
        if header.round == 1 {
            populate(target, frames, header.kind);
        }
        for (index, &frame) in frames.iter().enumerate() {
            let first = target.arrivals.mark(frame, header.kind)?;
            match (header.kind, pages.get(index), packet_headers.get(index)) {
                // RAM that nobody has written yet is zero, and stays untouched.
                (PageKind::Zero, ..) if first => {}
                (PageKind::Zero, ..) => write(target, frame, &[0; PAGE_LEN])?,
                (PageKind::Shared, Some(page), _) => write(target, frame, page)?,
                (PageKind::Private, Some(page), Some(packet)) => open(target, frame, packet, page)?,
                (PageKind::Shared | PageKind::Private, ..) => {
                    return Err(PlacerError::NotRam { frame });
                }
            }
        }
        let arrived = target.arrived;
        let (pages, bytes) = (frames.len() as u64, (PAGES_HEAD_LEN + parts.total()) as u64);
        match header.kind {
            PageKind::Shared => arrived.shared.fetch_add(pages, Ordering::Relaxed),
            PageKind::Zero => arrived.zero.fetch_add(pages, Ordering::Relaxed),
            PageKind::Private => arrived.private.fetch_add(pages, Ordering::Relaxed),
        };
        arrived.bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn end_round(
        &mut self,
        frame: FrameHeader,
        deadline: Instant,
    ) -> Result<RoundEnd, PlacerError> {
        self.fill(frame.length(), deadline)?;
        let bytes = self.payload.get(..frame.length()).unwrap_or_default();
        let Message::RoundEnd(theirs) = Message::decode(frame, bytes)? else {
            return Err(PlacerError::Unexpected { kind: frame.kind() });
        };
        let ours = self.digest.end(self.round);
        if ours != theirs {
            return Err(PlacerError::Digest {
                round: self.round,
                ours: ours.frames,
                theirs: theirs.frames,
            });
        }
        self.round = self.round.saturating_add(1);
        Ok(ours)
    }
}

/// A run of pages comes that the host has not mapped yet: it had better be mapped at once.
fn populate(target: &Target<'_>, frames: &[Frame], kind: PageKind) {
    let status = match kind {
        PageKind::Zero => return,
        PageKind::Shared => Status::Shared,
        PageKind::Private => Status::Private,
    };
    let Some((first, last)) = frames.first().zip(frames.last()) else { return };
    let run = PageRange::new(*first, Frame(last.0.saturating_add(1)));
    if let Ok(run) = run
        && run.pages() == frames.len() as u64
    {
        target.ram.populate(run, status);
    }
}

/// A shared page, where the host may see it.
fn write(target: &Target<'_>, frame: Frame, page: &[u8; PAGE_LEN]) -> Result<(), PlacerError> {
    Ok(target.ram.write_pages(one(frame)?, page)?)
}

fn one(frame: Frame) -> Result<PageRange, PlacerError> {
    PageRange::new(frame, Frame(frame.0.saturating_add(1)))
        .map_err(|_last| PlacerError::NotRam { frame })
}

/// A private page, by the firmware.
fn open(
    target: &Target<'_>,
    frame: Frame,
    packet: &[u8; PACKET_HEADER_LEN],
    page: &[u8; PAGE_LEN],
) -> Result<(), PlacerError> {
    let receiving = target.receiving.ok_or(PlacerError::PlainVm { frame })?;
    let address = target.ram.user_address(one(frame)?)?;
    receiving.open(address, packet, page).map_err(|cause| PlacerError::Open { frame, cause })
}

/// `bytes`, which has `N` of them.
fn as_array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    if bytes.len() == N {
        array.copy_from_slice(bytes);
    }
    array
}

/// Why pages could not be placed.
#[derive(Debug, Error)]
pub enum PlacerError {
    /// The connection.
    #[error("receiving pages from the source")]
    Receive(#[from] IoError),
    /// The connection ended inside a round.
    #[error("a page connection ended in the middle of round {round}")]
    Cut {
        /// The round.
        round: u32,
    },
    /// Not a frame.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Another message than pages.
    #[error("a page connection carried a frame of kind {kind:?}")]
    Unexpected {
        /// Its kind.
        kind: Kind,
    },
    /// A frame of another session, or repeated, or lost.
    #[error("a page frame has {what} {found} where {expected} is due")]
    OutOfOrder {
        /// Which number.
        what: &'static str,
        /// What it had to be.
        expected: u64,
        /// What it is.
        found: u64,
    },
    /// The payload is not what its header says.
    #[error("page frame {sequence} was damaged on its way")]
    Damaged {
        /// Which frame of its connection.
        sequence: u64,
    },
    /// The frames of a round are not those that were sent.
    #[error(
        "round {round} does not add up: {ours} page frames arrived, {theirs} were sent, or other ones"
    )]
    Digest {
        /// The round.
        round: u32,
        /// Frames that arrived.
        ours: u64,
        /// Frames that were sent.
        theirs: u64,
    },
    /// A page at a wrong place.
    #[error(transparent)]
    Arrival(#[from] BadArrival),
    /// A place that is not RAM.
    #[error("frame {frame} is not guest RAM")]
    NotRam {
        /// The frame.
        frame: Frame,
    },
    /// A place that is not RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A private page for a guest that has none.
    #[error("frame {frame} came as private, but the guest is a plain VM")]
    PlainVm {
        /// The frame.
        frame: Frame,
    },
    /// The firmware refused it.
    #[error("opening private frame {frame}")]
    Open {
        /// The frame.
        frame: Frame,
        /// Why.
        #[source]
        cause: ReceiveError,
    },
}
