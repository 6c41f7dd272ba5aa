//! The control connection: whole messages, with deadlines.

use std::io::{Error as IoError, ErrorKind, IoSlice};
use std::time::{Duration, Instant};

use thiserror::Error;

use super::frame::{FRAME_HEADER_LEN, FrameHeader};
use super::malformed::Malformed;
use super::message::{Message, Reason};
use super::transport::Stream;

/// How long a message may take from its first byte to its last.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(10);

/// How often waiting for a message looks up.
const STEP: Duration = Duration::from_millis(50);

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

    /// Waits for a message for up to `patience`; `None` if none began, or `look_up` said stop.
    pub(super) fn receive(
        &mut self,
        patience: Duration,
        look_up: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Message>, LinkError> {
        let until = Instant::now() + patience;
        while !self.stream.readable(STEP.min(patience)).map_err(LinkError::Lost)? {
            if look_up() || Instant::now() > until {
                return Ok(None);
            }
        }
        self.read().map(Some)
    }

    /// The next message, which must begin to arrive within `patience`.
    ///
    /// # Errors
    /// [`LinkError`]; [`LinkError::Refused`] if the peer refuses or gives up.
    pub(super) fn answer(
        &mut self,
        wanted: &'static str,
        patience: Duration,
    ) -> Result<Message, LinkError> {
        match self.receive(patience, &mut || false)? {
            None => Err(LinkError::Silent { wanted, patience }),
            Some(Message::Refuse { reason } | Message::Abandon { reason, .. }) => {
                Err(LinkError::Refused(reason))
            }
            Some(message) => Ok(message),
        }
    }

    /// Reads the message that has begun to arrive.
    pub(super) fn read(&mut self) -> Result<Message, LinkError> {
        let deadline = Instant::now() + MESSAGE_DEADLINE;
        let mut header = [0; FRAME_HEADER_LEN];
        if !self.stream.fill(&mut header, deadline).map_err(LinkError::Lost)? {
            return Err(LinkError::Lost(ErrorKind::UnexpectedEof.into()));
        }
        let header = FrameHeader::decode(&header)?;
        // The header's length has its cap.
        let mut bytes = vec![0; header.length()];
        if !bytes.is_empty() && !self.stream.fill(&mut bytes, deadline).map_err(LinkError::Lost)? {
            return Err(LinkError::Lost(ErrorKind::UnexpectedEof.into()));
        }
        Ok(Message::decode(header, &bytes)?)
    }

    /// Another handle on the connection, for a thread of its own.
    pub(super) fn try_clone(&self) -> Result<Self, IoError> {
        self.stream.try_clone().map(Self::new)
    }

    /// The connection itself, when it turns out to be another kind of connection.
    pub(super) fn into_stream(self) -> Stream {
        self.stream
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
