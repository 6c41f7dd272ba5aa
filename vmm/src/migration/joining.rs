//! Page connections introduce themselves; whoever else connects is turned away and keeps nobody waiting.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::time::{Duration, Instant};

use log::info;

use super::destination::DestinationError;
use super::frame::{CONNECTIONS_MAX, FRAME_HEADER_LEN, FrameHeader};
use super::message::{Message, Offer};
use super::placer::PagePlacer;
use super::transport::{Listener, Stream};

/// How long the source may take until all of its page connections have joined.
pub(super) const JOINING_MAX: Duration = Duration::from_secs(10);

/// How often connections that have not said all yet are looked at.
const LOOK_UP: Duration = Duration::from_millis(20);

/// Connections that may be about to say who they are; beyond, the oldest is closed.
const WAITING_MAX: usize = 2 * CONNECTIONS_MAX as usize;

/// A whole [`Message::Join`].
const JOIN_LEN: usize = FRAME_HEADER_LEN + 10;

/// Waits until every page connection has introduced itself.
pub(super) fn accept_connections(
    listener: &Listener,
    offer: &Offer,
    silence: Duration,
    stop: &mut dyn FnMut() -> bool,
) -> Result<Vec<PagePlacer>, DestinationError> {
    let deadline = Instant::now() + JOINING_MAX.min(silence);
    let mut joined: Vec<Option<PagePlacer>> = Vec::new();
    joined.resize_with(usize::from(offer.connections), || None);
    let mut waiting = VecDeque::new();
    while joined.iter().any(Option::is_none) {
        if stop() || Instant::now() > deadline {
            return Err(DestinationError::Connections { wanted: offer.connections });
        }
        if let Some(stream) = listener.accept(LOOK_UP)? {
            if waiting.len() == WAITING_MAX {
                waiting.pop_front();
            }
            waiting.push_back(Newcomer::new(stream));
        }
        for mut newcomer in std::mem::take(&mut waiting) {
            match newcomer.listen() {
                Heard::Join { session, index } if session == offer.session => {
                    if let Some(slot @ None) = joined.get_mut(usize::from(index)) {
                        *slot = Some(PagePlacer::new(newcomer.stream, offer.connections));
                    }
                }
                Heard::Nothing => waiting.push_back(newcomer),
                other @ (Heard::Join { .. } | Heard::Else) => {
                    info!("a connection that is no part of this migration was closed: {other:?}");
                }
            }
        }
    }
    Ok(joined.into_iter().flatten().collect())
}

/// A connection that has not said yet who it is.
struct Newcomer {
    stream: Stream,
    said: [u8; JOIN_LEN],
    len: usize,
}

/// What a newcomer has said.
#[derive(Debug)]
enum Heard {
    /// Not all of it yet.
    Nothing,
    /// Which connection of which session it is.
    Join { session: u64, index: u16 },
    /// Something else, or it is gone.
    Else,
}

impl Newcomer {
    fn new(stream: Stream) -> Self {
        Self { stream, said: [0; JOIN_LEN], len: 0 }
    }

    /// Takes what has come of its first message, and no byte more. Never waits.
    fn listen(&mut self) -> Heard {
        while let Some(rest @ [_, ..]) = self.said.get_mut(self.len..) {
            match self.stream.read(rest) {
                Ok(0) => return Heard::Else,
                Ok(count) => self.len += count,
                Err(cause) if cause.kind() == ErrorKind::WouldBlock => return Heard::Nothing,
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(_gone) => return Heard::Else,
            }
        }
        let Some((header, body)) = self.said.split_first_chunk() else { return Heard::Else };
        let message =
            FrameHeader::decode(header).and_then(|header| Message::decode(header, body.to_vec()));
        match message {
            Ok(Message::Join { session, index }) => Heard::Join { session, index },
            _ => Heard::Else,
        }
    }
}
