//! Pages off one connection into guest RAM: every header checked before anything is written.
//!
//! Each connection has a [`PagePlacer`] on a thread of its own for the whole migration.

use std::io::{Error as IoError, ErrorKind};
use std::time::Duration;

use thiserror::Error;

use super::arrivals::{Arrivals, BadArrival};
use crate::encryption::Status;
use crate::memory::{GuestRam, RamError};
use crate::migration::account::Tally;
use crate::migration::net::{Stream, Wait};
use crate::migration::wire::{
    FRAME_HEADER_LEN, FrameHeader, Kind, Malformed, Message, PACKET_HEADER_LEN, PAGES_HEAD_LEN,
    PAGES_HEADER_LEN, PAGES_MAX, PageKind, PagesHeader, PayloadDigest, RoundDigest, RoundEnd,
    decode_numbers,
};
use crate::page::{Frame, PAGE_LEN, PageRange};
use crate::sev::receive::{ReceiveError, Receiving};

/// How often an idle connection checks whether to stop.
const IDLE_STEP: Duration = Duration::from_millis(200);

/// Bytes of all connections' page buffers together.
const BUFFERS_MAX: usize = 4 << 20;

/// A page frame's payload without its pages.
const LISTS_MAX: usize = PAGES_MAX * (size_of::<u64>() + PACKET_HEADER_LEN);

/// Where pages go, as all connections share it.
#[derive(Debug)]
pub(crate) struct PageTarget<'a> {
    pub(crate) ram: &'a GuestRam,
    pub(crate) arrivals: &'a Arrivals,
    /// Opens private pages; `None` for a plain VM, which has none.
    pub(crate) receiving: Option<&'a Receiving>,
    /// Random, from the offer.
    pub(crate) session: u64,
    /// Counts what arrives, which also shows that the source is alive.
    pub(crate) tally: &'a Tally,
    /// How long nothing at all may arrive.
    pub(crate) silence: Duration,
}

/// The receiving end of a page connection.
#[derive(Debug)]
pub(crate) struct PagePlacer {
    stream: Stream,
    sequence: u64,
    round: u32,
    digest: RoundDigest,
    /// The short parts: frame numbers, packets' headers, and the end of a round.
    lists: Vec<u8>,
    /// Pages, as many as a connection may hold at a time.
    pages: Vec<u8>,
}

impl PagePlacer {
    /// `stream` has said which connection it is, of so many.
    pub(crate) fn new(stream: Stream, connections: u16) -> Self {
        let pages = BUFFERS_MAX / PAGE_LEN / usize::from(connections).max(1);
        let pages = vec![0; pages.clamp(1, PAGES_MAX) * PAGE_LEN];
        let (digest, lists) = (RoundDigest::default(), vec![0; LISTS_MAX]);
        Self { stream, sequence: 0, round: 1, digest, lists, pages }
    }

    /// Another handle on the connection, so that another thread can end it.
    pub(crate) fn connection(&self) -> Result<Stream, IoError> {
        self.stream.try_clone()
    }

    /// Whether pages have arrived since the last round ended.
    pub(crate) fn is_in_a_round(&self) -> bool {
        self.digest.frames() > 0
    }

    /// Places pages until the round ends. `None` if the connection ends between rounds, or once `unwanted` returns
    /// true.
    pub(crate) fn place_round(
        &mut self,
        target: &PageTarget<'_>,
        unwanted: &dyn Fn() -> bool,
    ) -> Result<Option<RoundEnd>, PlacerError> {
        loop {
            while !self.stream.readable(IDLE_STEP)? {
                if unwanted() {
                    return Ok(None);
                }
            }
            let mut stop = unwanted;
            let taken = &target.tally.taken;
            let mut wait = Wait::new(target.silence, PAGES_HEAD_LEN, &mut stop).counting(taken);
            match self.place_frame(target, &mut wait) {
                // If it has an error of its own, that comes from having been given up.
                Ok(Placed::Pages) | Err(_) if unwanted() => return Err(PlacerError::Unwanted),
                Ok(Placed::Pages) => {}
                Ok(Placed::RoundEnd(end)) => return Ok(Some(end)),
                Ok(Placed::End) => return Ok(None),
                Err(cause) => return Err(cause),
            }
        }
    }

    /// Reads the frame that has begun to arrive.
    fn place_frame(
        &mut self,
        target: &PageTarget<'_>,
        wait: &mut Wait<'_>,
    ) -> Result<Placed, PlacerError> {
        let mut head = [0; PAGES_HEAD_LEN];
        let short = || IoError::from(ErrorKind::InvalidData);
        let (frame_part, rest) = head.split_first_chunk_mut().ok_or_else(short)?;
        let pages_part = rest.first_chunk_mut::<PAGES_HEADER_LEN>().ok_or_else(short)?;
        let cut = PlacerError::Cut { round: self.round };
        if !self.stream.fill(frame_part, wait)? {
            return if self.is_in_a_round() { Err(cut) } else { Ok(Placed::End) };
        }
        let frame = FrameHeader::decode(frame_part)?;
        wait.expect(FRAME_HEADER_LEN + frame.length());
        if frame.kind() == Kind::RoundEnd {
            return self.end_round(frame, wait).map(Placed::RoundEnd);
        }
        if frame.kind() != Kind::Pages {
            return Err(PlacerError::Unexpected { kind: frame.kind() });
        }
        if !self.stream.fill(pages_part, wait)? {
            return Err(cut);
        }
        let header = PagesHeader::decode(frame, pages_part)?;
        self.check(&header, target)?;
        self.digest.add(&head);
        self.sequence += 1;
        self.place(&header, target, wait)?;
        Ok(Placed::Pages)
    }

    /// Reads `len` bytes into the buffer for what is short.
    fn fill_lists(&mut self, len: usize, wait: &mut Wait<'_>) -> Result<(), PlacerError> {
        let buffer = self.lists.get_mut(..len).ok_or(IoError::from(ErrorKind::InvalidData))?;
        let cut = PlacerError::Cut { round: self.round };
        if self.stream.fill(buffer, wait)? { Ok(()) } else { Err(cut) }
    }

    /// Reads the next `count` pages, no more than have room.
    fn fill_pages(&mut self, count: usize, wait: &mut Wait<'_>) -> Result<(), PlacerError> {
        let buffer = self.pages.get_mut(..count * PAGE_LEN);
        let buffer = buffer.ok_or(IoError::from(ErrorKind::InvalidData))?;
        let cut = PlacerError::Cut { round: self.round };
        if self.stream.fill(buffer, wait)? { Ok(()) } else { Err(cut) }
    }

    /// Checks session, sequence and round: the firmware's packets bind none of them.
    fn check(&self, header: &PagesHeader, target: &PageTarget<'_>) -> Result<(), PlacerError> {
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

    /// Takes a frame's payload. Pages go where they belong as they come; a frame whose digest is
    /// not theirs is noticed at its end, and the guest is dropped with them.
    fn place(
        &mut self,
        header: &PagesHeader,
        target: &PageTarget<'_>,
        wait: &mut Wait<'_>,
    ) -> Result<(), PlacerError> {
        let parts = header.payload();
        let lists = parts.numbers + parts.packet_headers;
        self.fill_lists(lists, wait)?;
        let (numbers, packets) =
            self.lists.get(..lists).unwrap_or_default().split_at(parts.numbers);
        let mut digest = PayloadDigest::new(numbers);
        if !packets.is_empty() {
            digest = digest.and(packets);
        }
        let mut frames = [Frame(0); PAGES_MAX];
        let frames = decode_numbers(numbers, &mut frames)?;
        let mut packet_headers = [[0; PACKET_HEADER_LEN]; PAGES_MAX];
        let (packets, _) = packets.as_chunks::<PACKET_HEADER_LEN>();
        packet_headers.iter_mut().zip(packets).for_each(|(to, from)| *to = *from);
        if header.kind == PageKind::Zero {
            place_zeros(target, frames)?;
        } else {
            let run = run_of(frames);
            if header.round == 1
                && let Some(run) = run
            {
                populate(target, run, header.kind);
            }
            digest = match run {
                Some(run) if header.kind == PageKind::Shared => {
                    self.place_run(digest, run, target, wait)?
                }
                _ => {
                    self.place_each(digest, (header.kind, frames, &packet_headers), target, wait)?
                }
            };
        }
        if digest.value() != header.digest {
            return Err(PlacerError::Damaged { sequence: header.sequence });
        }
        let bytes = PAGES_HEAD_LEN + header.payload().total();
        target.tally.count(header.kind, header.count, bytes);
        Ok(())
    }

    /// Shared pages that are one run: they are read into guest RAM directly, without another copy.
    fn place_run(
        &mut self,
        digest: PayloadDigest,
        run: PageRange,
        target: &PageTarget<'_>,
        wait: &mut Wait<'_>,
    ) -> Result<PayloadDigest, PlacerError> {
        for frame in run.frames() {
            target.arrivals.mark(frame, PageKind::Shared)?;
        }
        let memory = target.ram.slice(run)?;
        let cut = PlacerError::Cut { round: self.round };
        if !self.stream.fill_memory(&memory, wait)? {
            return Err(cut);
        }
        let (mut digest, mut page) = (digest, [0; PAGE_LEN]);
        for offset in (0..memory.len()).step_by(PAGE_LEN) {
            let here = memory.subslice(offset, PAGE_LEN);
            here.map_err(|_never| IoError::from(ErrorKind::InvalidData))?.copy_to(&mut page);
            digest = digest.and(&page);
        }
        Ok(digest)
    }

    /// Other pages: private ones, and shared ones that are not one run.
    fn place_each(
        &mut self,
        digest: PayloadDigest,
        (kind, frames, packets): (PageKind, &[Frame], &[[u8; PACKET_HEADER_LEN]]),
        target: &PageTarget<'_>,
        wait: &mut Wait<'_>,
    ) -> Result<PayloadDigest, PlacerError> {
        let at_a_time = self.pages.len() / PAGE_LEN;
        let mut digest = digest;
        for (frames, packets) in frames.chunks(at_a_time).zip(packets.chunks(at_a_time)) {
            self.fill_pages(frames.len(), wait)?;
            let (pages, _) = self.pages.as_chunks::<PAGE_LEN>();
            for ((&frame, page), packet) in frames.iter().zip(pages).zip(packets) {
                digest = digest.and(page);
                target.arrivals.mark(frame, kind)?;
                match kind {
                    PageKind::Private => open(target, frame, packet, page)?,
                    PageKind::Shared | PageKind::Zero => write(target, frame, page)?,
                }
            }
        }
        Ok(digest)
    }

    fn end_round(
        &mut self,
        frame: FrameHeader,
        wait: &mut Wait<'_>,
    ) -> Result<RoundEnd, PlacerError> {
        self.fill_lists(frame.length(), wait)?;
        let bytes = self.lists.get(..frame.length()).unwrap_or_default();
        let Message::RoundEnd(theirs) = Message::decode(frame, bytes.to_vec())? else {
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

/// What has arrived.
enum Placed {
    /// A frame of pages.
    Pages,
    /// The round's end.
    RoundEnd(RoundEnd),
    /// The connection's end, between rounds.
    End,
}

/// All of `frames`, which ascend, if they are one run.
fn run_of(frames: &[Frame]) -> Option<PageRange> {
    let (first, last) = frames.first().zip(frames.last())?;
    let run = PageRange::new(*first, Frame(last.0.checked_add(1)?)).ok()?;
    (run.pages() == frames.len() as u64).then_some(run)
}

/// Maps a run of pages at once, before they are written one by one: the host has not mapped them yet.
fn populate(target: &PageTarget<'_>, run: PageRange, kind: PageKind) {
    match kind {
        PageKind::Zero => {}
        PageKind::Shared => target.ram.populate(run, Status::Shared),
        PageKind::Private => target.ram.populate(run, Status::Private),
    }
}

/// Zero pages: nothing but their frame numbers has arrived.
fn place_zeros(target: &PageTarget<'_>, frames: &[Frame]) -> Result<(), PlacerError> {
    for &frame in frames {
        // RAM that was never written is zero already.
        if !target.arrivals.mark(frame, PageKind::Zero)? {
            write(target, frame, &[0; PAGE_LEN])?;
        }
    }
    Ok(())
}

/// Writes a shared page, in the host's view.
fn write(target: &PageTarget<'_>, frame: Frame, page: &[u8; PAGE_LEN]) -> Result<(), PlacerError> {
    Ok(target.ram.write_pages(one(frame)?, page)?)
}

fn one(frame: Frame) -> Result<PageRange, PlacerError> {
    PageRange::one(frame).map_err(|_last| PlacerError::NotRam { frame })
}

/// Has the firmware decrypt a private page into its place.
fn open(
    target: &PageTarget<'_>,
    frame: Frame,
    packet: &[u8; PACKET_HEADER_LEN],
    page: &[u8; PAGE_LEN],
) -> Result<(), PlacerError> {
    let receiving = target.receiving.ok_or(PlacerError::PlainVm { frame })?;
    let address = target.ram.user_address(one(frame)?)?;
    receiving.open(address, packet, page).map_err(|cause| PlacerError::Open { frame, cause })
}

/// Why pages could not be placed.
#[derive(Debug, Error)]
pub enum PlacerError {
    /// The connection.
    #[error("receiving pages from the source")]
    Receive(#[from] IoError),
    /// All is there, or nothing more is wanted.
    #[error("a page connection went on after the last round")]
    Unwanted,
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
