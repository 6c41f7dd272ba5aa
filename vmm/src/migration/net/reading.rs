//! Reads one message off a connection, in whatever pieces it arrives. Never waits, and reads no byte of the next.

use std::io::{ErrorKind, Read};

use super::due::{Due, LinkError};
use super::stream::Stream;
use crate::migration::wire::{FRAME_HEADER_LEN, FrameHeader, Message};

/// How much is read at a time.
pub(crate) const STEP: usize = 64 << 10;

/// What has arrived of a message.
#[derive(Debug)]
pub(crate) struct Reading {
    /// Bytes that have come.
    said: usize,
    head: [u8; FRAME_HEADER_LEN],
    /// Its whole length, once the header is there.
    header: Option<FrameHeader>,
    body: Vec<u8>,
    /// Whether memory is taken only for bytes that have arrived.
    is_sparing: bool,
}

impl Reading {
    /// Nothing has arrived. Memory for the message is taken when its header has arrived and is due.
    pub(crate) fn new() -> Self {
        let head = [0; FRAME_HEADER_LEN];
        Self { said: 0, head, header: None, body: Vec::new(), is_sparing: false }
    }

    /// The same for a connection that is not identified: memory is taken only for bytes that have arrived, whatever
    /// length its header promises.
    pub(crate) fn sparing() -> Self {
        Self { is_sparing: true, ..Self::new() }
    }

    /// Bytes that have come.
    pub(crate) fn said(&self) -> usize {
        self.said
    }

    /// Bytes of the whole message, as far as that is known.
    pub(crate) fn len(&self) -> usize {
        FRAME_HEADER_LEN + self.header.map_or(0, FrameHeader::length)
    }

    /// Bytes that are held.
    pub(crate) fn held(&self) -> usize {
        self.body.len()
    }

    /// Reads some of what has arrived. Returns the message if it is complete; the next call begins the next one.
    pub(crate) fn take(
        &mut self,
        stream: &mut Stream,
        due: Due,
    ) -> Result<Option<Message>, LinkError> {
        while let Some(rest @ [_, ..]) = self.head.get_mut(self.said..) {
            match read(stream, rest)? {
                None => return Ok(None),
                Some(count) => self.said += count,
            }
        }
        let header = FrameHeader::decode(&self.head)?;
        due.check(header)?;
        self.header = Some(header);
        let missing = header.length().saturating_sub(self.body.len());
        let step = missing.min(STEP);
        if step > 0 {
            let before = self.body.len();
            // The header's length has its cap.
            self.body.reserve_exact(if self.is_sparing { step } else { missing });
            self.body.resize(before + step, 0);
            let count = read(stream, self.body.get_mut(before..).unwrap_or_default());
            let count = count?.unwrap_or(0);
            self.body.truncate(before + count);
            self.said += count;
        }
        if self.body.len() < header.length() {
            return Ok(None);
        }
        let whole = std::mem::replace(self, Self { is_sparing: self.is_sparing, ..Self::new() });
        Ok(Some(Message::decode(header, whole.body)?))
    }
}

/// Reads what there is; `None` if there is nothing yet.
fn read(stream: &mut Stream, into: &mut [u8]) -> Result<Option<usize>, LinkError> {
    loop {
        match stream.read(into) {
            Ok(0) => return Err(LinkError::Lost(ErrorKind::UnexpectedEof.into())),
            Ok(count) => return Ok(Some(count)),
            Err(cause) if cause.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
            Err(cause) => return Err(LinkError::Lost(cause)),
        }
    }
}
