//! Pages out of guest RAM onto one connection: seal what is private, skip what is zero, send.
//!
//! Each connection has a [`PageSender`] on a thread of its own for a round. Nothing is allocated per
//! page: the buffers of a batch live as long as the connection.

use std::io::{Error as IoError, IoSlice};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::memory::{GuestRam, RamError};
use crate::migration::account::Tally;
use crate::migration::net::{Stream, Wait};
use crate::migration::wire::{
    Malformed, Message, PACKET_HEADER_LEN, PAGES_MAX, PageKind, PagesHeader, Payload,
    PayloadDigest, RoundDigest, RoundEnd, Secret, encode_numbers,
};
use crate::page::{Frame, FrameSet, PAGE_LEN, PageRange, RamLayout};
use crate::sev::send::{SendError, Sending};

/// Frames that a sender takes at a time: 2 MiB, enough that taking costs nothing.
const WINDOW_FRAMES: u64 = 512;

/// One round, as all its senders share it.
#[derive(Debug)]
pub(crate) struct Round<'a> {
    pub(crate) number: u32,
    pub(crate) ram: &'a GuestRam,
    /// Frames to send.
    pub(crate) frames: &'a FrameSet,
    /// Frames that were shared when the round began, after the dirty log was taken.
    pub(crate) shared: &'a FrameSet,
    /// Seals private pages; `None` for a plain VM, all of whose pages are shared.
    pub(crate) sending: Option<&'a Sending>,
    /// Set to stop early: the round is then of no use.
    pub(crate) stop: &'a AtomicBool,
    /// Where the next window starts, in frames of RAM.
    pub(crate) cursor: AtomicU64,
    /// What was sent so far.
    pub(crate) tally: &'a Tally,
}

impl Round<'_> {
    /// The next run of RAM that nobody has taken.
    fn take_window(&self) -> Option<PageRange> {
        let mut start = self.cursor.fetch_add(WINDOW_FRAMES, Ordering::Relaxed);
        let layout: RamLayout = self.ram.layout();
        // Windows do not cross from low to high RAM: low RAM, where there is high, is whole windows.
        for run in layout.ranges() {
            if start < run.pages() {
                let base = run.base().0 + start;
                let limit = Frame((base + WINDOW_FRAMES).min(run.limit().0));
                return PageRange::new(Frame(base), limit).ok();
            }
            start -= run.pages();
        }
        None
    }
}

/// The sending end of a page connection.
#[derive(Debug)]
pub(crate) struct PageSender {
    stream: Stream,
    /// How long the destination may take nothing.
    silence: Duration,
    session: u64,
    sequence: u64,
    digest: RoundDigest,
    shared: Batch,
    zero: Batch,
    private: Batch,
}

impl PageSender {
    /// Introduces the connection as `index` of `session`.
    pub(crate) fn join(
        mut stream: Stream,
        (session, index): (u64, u16),
        secret: &Secret,
        silence: Duration,
    ) -> Result<Self, SenderError> {
        let proof = secret.proof_of_join(session, index);
        // The first on its connection, which has room for it.
        stream.send_at_once(&Message::Join { session, index, proof }.encode()?)?;
        Ok(Self {
            stream,
            silence,
            session,
            sequence: 0,
            digest: RoundDigest::default(),
            shared: Batch::new(PageKind::Shared),
            zero: Batch::new(PageKind::Zero),
            private: Batch::new(PageKind::Private),
        })
    }

    /// Bytes of what was sent that the destination has not taken yet.
    pub(crate) fn not_taken(&self) -> usize {
        self.stream.not_taken()
    }

    /// Sends this connection's part of a round, then its end.
    pub(crate) fn send_round(&mut self, round: &Round<'_>) -> Result<RoundEnd, SenderError> {
        while let Some(window) = round.take_window() {
            if round.stop.load(Ordering::Relaxed) {
                return Err(SenderError::Stopped);
            }
            let mut rest = Some(window);
            while let Some(run) = rest.and_then(|rest| round.frames.first_run(rest)) {
                match round.sending {
                    None => self.add_shared(run, round)?,
                    Some(sending) => self.add_either(run, sending, round)?,
                }
                rest = PageRange::new(run.limit(), window.limit()).ok();
            }
        }
        for kind in [PageKind::Shared, PageKind::Zero, PageKind::Private] {
            self.flush(kind, round)?;
        }
        let end = self.digest.end(round.number);
        let message = Message::RoundEnd(end).encode()?;
        send(&mut self.stream, &mut [IoSlice::new(&message)], self.silence, round)?;
        Ok(end)
    }

    /// Adds pages of an SEV guest, each as private or shared.
    fn add_either(
        &mut self,
        run: PageRange,
        sending: &Sending,
        round: &Round<'_>,
    ) -> Result<(), SenderError> {
        for frame in run.frames() {
            let one = PageRange::one(frame).map_err(|_last_frame| SenderError::Read { frame })?;
            if round.shared.contains(frame) {
                self.add_shared(one, round)?;
            } else {
                let (header, page) = self.private.slot().ok_or(SenderError::Read { frame })?;
                let address = round.ram.user_address(one)?;
                let begun = Instant::now();
                sending
                    .seal(address, header, page)
                    .map_err(|cause| SenderError::Seal { frame, cause })?;
                round.tally.sealed(begun.elapsed());
                self.private.frames.push(frame);
                self.flush_if_full(PageKind::Private, round)?;
            }
        }
        Ok(())
    }

    /// Adds pages that the host may see. Pages that are not zero are copied in runs: page by page the copy takes
    /// twice as long, because the processor fetches ahead only within one copy.
    fn add_shared(&mut self, run: PageRange, round: &Round<'_>) -> Result<(), SenderError> {
        let mut rest = Some(run);
        while let Some(here) = rest {
            let room = here.base().0.saturating_add(self.shared.room());
            let mut filled = here.base();
            // The first bytes of most pages show that they are not zero. A page that the guest writes meanwhile is sent
            // again.
            while filled.0 < here.limit().0.min(room) && !is_zero(filled, round)? {
                filled = Frame(filled.0 + 1);
            }
            if let Ok(filled) = PageRange::new(here.base(), filled) {
                let pages =
                    self.shared.slots(filled).ok_or(SenderError::Read { frame: here.base() })?;
                round.ram.read_pages(filled, pages)?;
                self.shared.frames.extend(filled.frames());
                self.flush_if_full(PageKind::Shared, round)?;
            } else {
                self.zero.frames.push(filled);
                filled = Frame(filled.0 + 1);
                self.flush_if_full(PageKind::Zero, round)?;
            }
            rest = PageRange::new(filled, here.limit()).ok();
        }
        Ok(())
    }

    fn flush_if_full(&mut self, kind: PageKind, round: &Round<'_>) -> Result<(), SenderError> {
        if self.batch(kind).frames.len() == PAGES_MAX { self.flush(kind, round) } else { Ok(()) }
    }

    fn batch(&mut self, kind: PageKind) -> &mut Batch {
        match kind {
            PageKind::Shared => &mut self.shared,
            PageKind::Zero => &mut self.zero,
            PageKind::Private => &mut self.private,
        }
    }

    fn flush(&mut self, kind: PageKind, round: &Round<'_>) -> Result<(), SenderError> {
        let batch = match kind {
            PageKind::Shared => &mut self.shared,
            PageKind::Zero => &mut self.zero,
            PageKind::Private => &mut self.private,
        };
        let Ok(count @ 1..) = u8::try_from(batch.frames.len()) else { return Ok(()) };
        batch.numbers.clear();
        encode_numbers(&batch.frames, &mut batch.numbers);
        let (packet_headers, pages) = batch.filled();
        let digest = PayloadDigest::of(&batch.numbers, packet_headers, pages);
        let header = PagesHeader {
            session: self.session,
            sequence: self.sequence,
            round: round.number,
            kind,
            count,
            digest,
        };
        let head = header.encode();
        let parts = [head.as_slice(), &batch.numbers, packet_headers, pages];
        send(&mut self.stream, &mut parts.map(IoSlice::new), self.silence, round)?;
        self.digest.add(&head);
        self.sequence += 1;
        round.tally.count(kind, count, parts.iter().map(|part| part.len()).sum());
        batch.frames.clear();
        Ok(())
    }
}

fn is_zero(frame: Frame, round: &Round<'_>) -> Result<bool, SenderError> {
    let one = PageRange::one(frame).map_err(|_last_frame| SenderError::Read { frame })?;
    Ok(round.ram.is_zero(one)?)
}

/// Sends a frame, unless the round is given up meanwhile.
fn send(
    stream: &mut Stream,
    parts: &mut [IoSlice<'_>],
    silence: Duration,
    round: &Round<'_>,
) -> Result<(), SenderError> {
    let len = parts.iter().map(|part| part.len()).sum();
    let mut stop = || round.stop.load(Ordering::Relaxed);
    let sent = stream.send(parts, &mut Wait::new(silence, len, &mut stop));
    sent.map_err(|cause| if stop() { SenderError::Stopped } else { cause.into() })
}

/// Pages of one kind on their way into one frame. They are read, or sealed, right into their places.
#[derive(Debug)]
struct Batch {
    kind: PageKind,
    /// Frame numbers of the pages so far.
    frames: Vec<Frame>,
    numbers: Vec<u8>,
    /// Places for a full frame; of use for private pages.
    packet_headers: Vec<[u8; PACKET_HEADER_LEN]>,
    /// Places for a full frame; none for zero pages.
    pages: Vec<[u8; PAGE_LEN]>,
}

impl Batch {
    fn new(kind: PageKind) -> Self {
        let places = if kind == PageKind::Zero { 0 } else { PAGES_MAX };
        Self {
            kind,
            frames: Vec::with_capacity(PAGES_MAX),
            numbers: Vec::with_capacity(PAGES_MAX * size_of::<u64>()),
            packet_headers: vec![[0; PACKET_HEADER_LEN]; places],
            pages: vec![[0; PAGE_LEN]; places],
        }
    }

    /// How many more pages have a place.
    fn room(&self) -> u64 {
        self.pages.len().saturating_sub(self.frames.len()) as u64
    }

    /// The places of the next pages, as many as `run` has.
    fn slots(&mut self, run: PageRange) -> Option<&mut [u8]> {
        let (next, count) = (self.frames.len(), usize::try_from(run.pages()).ok()?);
        Some(self.pages.get_mut(next..next + count)?.as_flattened_mut())
    }

    /// The place of the next page.
    fn slot(&mut self) -> Option<(&mut [u8; PACKET_HEADER_LEN], &mut [u8; PAGE_LEN])> {
        let next = self.frames.len();
        Some((self.packet_headers.get_mut(next)?, self.pages.get_mut(next)?))
    }

    /// The packet headers and pages so far, as they travel.
    fn filled(&self) -> (&[u8], &[u8]) {
        let parts = Payload::new(self.kind, self.frames.len());
        let headers = self.packet_headers.as_flattened().get(..parts.packet_headers);
        let pages = self.pages.as_flattened().get(..parts.pages);
        (headers.unwrap_or_default(), pages.unwrap_or_default())
    }
}

/// Why pages could not be sent.
#[derive(Debug, Error)]
pub enum SenderError {
    /// The round was given up.
    #[error("the round was given up")]
    Stopped,
    /// The connection.
    #[error("sending pages to the destination")]
    Send(#[from] IoError),
    /// The host has no thread to give.
    #[error("starting a thread for a connection")]
    Thread(#[source] IoError),
    /// A message of ours beyond its own cap.
    #[error(transparent)]
    Encode(#[from] Malformed),
    /// The firmware.
    #[error("sealing private frame {frame}")]
    Seal {
        /// The frame.
        frame: Frame,
        /// Why.
        #[source]
        cause: SendError,
    },
    /// Not RAM, though the set of frames said so.
    #[error("reading frame {frame} of guest RAM")]
    Read {
        /// The frame.
        frame: Frame,
    },
    /// Not RAM, though the set of frames said so.
    #[error(transparent)]
    Ram(#[from] RamError),
}
