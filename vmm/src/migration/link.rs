//! The control connection: whole messages, with deadlines.

use std::io::{Error as IoError, ErrorKind, IoSlice};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::frame::{CLOSING_HEADER_LEN, FRAME_HEADER_LEN, FrameHeader, Kind, STATUS_BYTES_MAX};
use super::malformed::Malformed;
use super::message::{Message, Reason};
use super::transport::Stream;
use super::word::{Say, Word};

/// How long a message may take from its first byte to its last.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(10);

/// How often waiting for a message looks up.
const STEP: Duration = Duration::from_millis(50);

/// What may come next. Anything else is refused by its header, before there is memory for it;
/// only a refusal or an abandonment, which are short, may always come.
#[derive(Debug, Clone, Copy)]
pub(super) struct Due {
    what: &'static str,
    kinds: &'static [Kind],
    /// Of a region list, by the RAM of the guest.
    status_bytes_max: u32,
}

impl Due {
    /// From whoever connects to a host that receives guests.
    pub(super) const GREETING: Self =
        Self::new("its first message", &[Kind::Offer, Kind::Commit, Kind::Released, Kind::Inquiry]);
    /// First on a page connection.
    pub(super) const JOIN: Self = Self::new("its first message", &[Kind::Join]);
    pub(super) const ACCEPT: Self = Self::new("an acceptance", &[Kind::Accept]);
    pub(super) const START: Self = Self::new("a start", &[Kind::Start]);
    pub(super) const STARTED: Self = Self::new("a start", &[Kind::Started]);
    pub(super) const ROUND_OK: Self = Self::new("the end of a round", &[Kind::RoundOk]);
    pub(super) const REFUSAL: Self = Self::new("a reason", &[]);
    pub(super) const ASSESSMENT: Self = Self::new("an assessment", &[Kind::Assessment]);
    /// At the source.
    pub(super) const VERDICT: Self =
        Self::new("a word on the handover", &[Kind::Prepared, Kind::Running, Kind::NotRunning]);
    /// At the destination.
    pub(super) const COMMIT: Self = Self::new("a commit", &[Kind::Commit, Kind::Released]);

    const fn new(what: &'static str, kinds: &'static [Kind]) -> Self {
        Self { what, kinds, status_bytes_max: STATUS_BYTES_MAX }
    }

    /// After the last round, from the source of an SEV guest.
    pub(super) const fn region_list(status_bytes_max: u32) -> Self {
        // The state is refused later, by the name of what is missing.
        let due = Self::new("the region list", &[Kind::StatusList, Kind::State]);
        Self { status_bytes_max, ..due }
    }

    /// After that, or from the source of a plain VM at once.
    pub(super) const STATE: Self = Self::new("the state", &[Kind::State]);

    /// It has not come for all of `patience`.
    pub(super) fn silent(self, patience: Duration) -> LinkError {
        LinkError::Silent { wanted: self.what, patience }
    }

    pub(super) fn check(&self, header: FrameHeader) -> Result<(), LinkError> {
        let kind = header.kind();
        if !self.kinds.contains(&kind) && !matches!(kind, Kind::Refuse | Kind::Abandon) {
            return Err(LinkError::Unexpected { wanted: self.what });
        }
        let length = header.length().saturating_sub(CLOSING_HEADER_LEN as usize);
        let most = self.status_bytes_max;
        if kind == Kind::StatusList && length > most as usize {
            let length = length as u64;
            return Err(Malformed::TooLong { kind, length, most }.into());
        }
        Ok(())
    }
}

/// A control connection.
#[derive(Debug)]
pub(super) struct Link {
    stream: Stream,
}

impl Link {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream }
    }

    /// Sends one message.
    pub(super) fn send(&mut self, message: &Message) -> Result<(), LinkError> {
        let bytes = message.encode()?;
        self.stream.send(&mut [IoSlice::new(&bytes)]).map_err(LinkError::Lost)
    }

    /// Waits for what is due for up to `patience`; `None` if nothing began, or `look_up` said stop.
    pub(super) fn receive(
        &mut self,
        due: Due,
        patience: Duration,
        look_up: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Message>, LinkError> {
        let until = Instant::now() + patience;
        while !self.stream.readable(STEP.min(patience)).map_err(LinkError::Lost)? {
            if look_up() || Instant::now() > until {
                return Ok(None);
            }
        }
        self.read(due).map(Some)
    }

    /// Sends a message that has an answer.
    ///
    /// # Errors
    /// [`LinkError::Refused`] if the peer has refused or given up meanwhile; [`LinkError::Early`] if
    /// it has said anything else, which can only be an answer to what it has not read.
    pub(super) fn ask(&mut self, message: &Message) -> Result<(), LinkError> {
        self.nothing_said()?;
        self.send(message)
    }

    /// Whatever has arrived by now came too early.
    ///
    /// # Errors
    /// As [`Link::ask`].
    pub(super) fn nothing_said(&mut self) -> Result<(), LinkError> {
        if !self.stream.readable(Duration::ZERO).map_err(LinkError::Lost)? {
            return Ok(());
        }
        match self.read(Due::REFUSAL) {
            Ok(
                Message::Refuse { reason } | Message::Word(Word { say: Say::Abandon(reason), .. }),
            ) => Err(LinkError::Refused(reason)),
            Ok(_) | Err(LinkError::Unexpected { .. }) => Err(LinkError::Early),
            Err(cause) => Err(cause),
        }
    }

    /// The next message, which must begin to arrive within `patience`.
    ///
    /// # Errors
    /// [`LinkError`]; [`LinkError::Refused`] if the peer refuses or gives up.
    pub(super) fn answer(&mut self, due: Due, patience: Duration) -> Result<Message, LinkError> {
        let answer = self.answer_unless(due, patience, &mut || false)?;
        answer.ok_or_else(|| due.silent(patience))
    }

    /// [`Link::answer`], or `None` once `stop` says so.
    pub(super) fn answer_unless(
        &mut self,
        due: Due,
        patience: Duration,
        stop: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Message>, LinkError> {
        let mut stopped = false;
        let mut look_up = || {
            stopped = stop();
            stopped
        };
        match self.receive(due, patience, &mut look_up)? {
            None if stopped => Ok(None),
            None => Err(due.silent(patience)),
            Some(
                Message::Refuse { reason } | Message::Word(Word { say: Say::Abandon(reason), .. }),
            ) => Err(LinkError::Refused(reason)),
            Some(message) => Ok(Some(message)),
        }
    }

    /// Reads the message that has begun to arrive.
    fn read(&mut self, due: Due) -> Result<Message, LinkError> {
        let deadline = Instant::now() + MESSAGE_DEADLINE;
        let mut header = [0; FRAME_HEADER_LEN];
        if !self.stream.fill(&mut header, deadline).map_err(LinkError::Lost)? {
            return Err(LinkError::Lost(ErrorKind::UnexpectedEof.into()));
        }
        let header = FrameHeader::decode(&header)?;
        due.check(header)?;
        // The header's length has its cap.
        let mut bytes = vec![0; header.length()];
        if !bytes.is_empty() && !self.stream.fill(&mut bytes, deadline).map_err(LinkError::Lost)? {
            return Err(LinkError::Lost(ErrorKind::UnexpectedEof.into()));
        }
        Ok(Message::decode(header, bytes)?)
    }

    /// Nothing more is read here, by any handle; whoever waits to read stops.
    pub(super) fn stop_reading(&self) {
        self.stream.stop_reading();
    }

    /// The connection, of which nothing was read beyond what was received.
    pub(super) fn into_stream(self) -> Stream {
        self.stream
    }

    /// Another handle on the connection, for a thread of its own.
    pub(super) fn try_clone(&self) -> Result<Self, IoError> {
        self.stream.try_clone().map(Self::new)
    }
}

/// Why there is no message.
#[derive(Debug, Error)]
pub enum LinkError {
    /// The connection is gone, or silent.
    #[error("the connection to the other host was lost")]
    Lost(#[source] IoError),
    /// What came is no message.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// The peer wants no more.
    #[error("the other host refused: {0}")]
    Refused(Reason),
    /// The peer stopped answering.
    #[error("the other host has not sent {wanted} for {} s", patience.as_secs())]
    Silent {
        /// What had to come.
        wanted: &'static str,
        /// How long.
        patience: Duration,
    },
    /// An answer to what was not asked yet.
    #[error("the other host answered before it was asked")]
    Early,
    /// Out of order.
    #[error("the other host sent something else where {wanted} was due")]
    Unexpected {
        /// What had to come.
        wanted: &'static str,
    },
}

impl LinkError {
    pub(super) fn unexpected(wanted: &'static str) -> Self {
        Self::Unexpected { wanted }
    }
}
