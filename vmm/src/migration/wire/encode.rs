//! Messages as bytes: bounded, one form per message. No I/O.
//!
//! A variable part is its length (4 bytes) and its bytes, except that what follows the last round
//! ([`Message::StatusList`], [`Message::State`]) ends with its bytes, however many there are.

use super::closing::Closing;
use super::fields::{
    CHAIN, MACHINE, PDH, ROOTS, SESSION, checked_abandoned, checked_connections, checked_objections,
};
use super::header::{FRAME_HEADER_LEN, FrameHeader};
use super::kind::{CERTIFICATES_BYTES_MAX, MACHINE_OFFER_BYTES_MAX};
use super::malformed::Malformed;
use super::message::{
    Abandoned, Assessment, Message, Objection, Offer, PlatformBytes, SessionBytes,
};
use super::reason::Reason;
use super::transfer::Transfer;
use super::word::{Say, Word};
use crate::machine::pinning::Pinned;

impl Message {
    /// The message as it travels, with its frame header.
    ///
    /// # Errors
    /// [`Malformed`] if a part is beyond its cap, which the peer would refuse.
    pub fn encode(&self) -> Result<Vec<u8>, Malformed> {
        let mut bytes = vec![0; FRAME_HEADER_LEN];
        let mut body = BodyWriter(&mut bytes);
        match self {
            Self::Offer(offer) | Self::Inquiry(offer) => body.offer(offer)?,
            Self::Accept { secret, platform } => {
                body.put(&secret.0);
                body.platform(platform.as_ref())?;
            }
            Self::Refuse { reason } => body.reason(reason),
            Self::Start { encryption } => body.session(encryption.as_ref())?,
            Self::Started => {}
            Self::Join { session, index, proof } => {
                body.put(&session.to_le_bytes());
                body.put(&index.to_le_bytes());
                body.put(&proof.0);
            }
            Self::RoundEnd(end) => {
                body.put(&end.round.to_le_bytes());
                body.put(&end.frames.to_le_bytes());
                body.put(&end.digest);
            }
            Self::RoundOk { round } => body.put(&round.to_le_bytes()),
            Self::StatusList(closing) | Self::State(closing) => body.closing(closing),
            Self::Word(word) => body.word(word),
            Self::Assessment(assessment) => body.assessment(assessment)?,
            Self::Building(Pinned { pages, of }) => {
                body.put(&pages.to_le_bytes());
                body.put(&of.to_le_bytes());
            }
        }
        let header = FrameHeader::new(self.kind(), bytes.len() - FRAME_HEADER_LEN)?;
        if let Some(room) = bytes.first_chunk_mut() {
            *room = header.encode();
        }
        Ok(bytes)
    }
}

/// What follows a frame header, as it is written.
struct BodyWriter<'a>(&'a mut Vec<u8>);

impl BodyWriter<'_> {
    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn part(&mut self, field: &'static str, bytes: &[u8], most: u32) -> Result<(), Malformed> {
        match u32::try_from(bytes.len()) {
            Ok(length) if length <= most => {
                self.put(&length.to_le_bytes());
                self.put(bytes);
                Ok(())
            }
            _ => Err(Malformed::FieldTooLong { field, length: bytes.len() as u64, most }),
        }
    }

    fn transfer(&mut self, transfer: Transfer) {
        self.put(&transfer.vm.0);
        self.put(&transfer.epoch.to_le_bytes());
    }

    fn reason(&mut self, reason: &Reason) {
        // Always within the cap, by its type.
        let length = u32::try_from(reason.as_str().len()).unwrap_or(0);
        self.put(&length.to_le_bytes());
        self.put(reason.as_str().as_bytes());
    }

    fn word(&mut self, word: &Word) {
        let Word { transfer, say, proof } = word;
        self.transfer(*transfer);
        self.put(&proof.0);
        match say {
            Say::Prepared | Say::Running | Say::Released => {}
            Say::Commit { is_last } => self.put(&[u8::from(*is_last)]),
            Say::NotRunning(because) => self.put(&[because.number()]),
            Say::Abandon(reason) => self.reason(reason),
        }
    }

    fn closing(&mut self, closing: &Closing) {
        self.put(&closing.session.to_le_bytes());
        self.put(&closing.round.to_le_bytes());
        self.put(&closing.digest);
        self.put(&closing.bytes);
    }

    fn offer(&mut self, offer: &Offer) -> Result<(), Malformed> {
        checked_connections(offer.connections)?;
        self.transfer(offer.transfer);
        self.put(&offer.session.to_le_bytes());
        self.put(&offer.connections.to_le_bytes());
        self.put(&[checked_abandoned(offer.abandoned.len())?]);
        for Abandoned { epoch, proof } in &offer.abandoned {
            self.put(&epoch.to_le_bytes());
            self.put(&proof.0);
        }
        self.part(MACHINE, &offer.machine, MACHINE_OFFER_BYTES_MAX)
    }

    fn platform(&mut self, platform: Option<&PlatformBytes>) -> Result<(), Malformed> {
        self.put(&[u8::from(platform.is_some())]);
        let Some(PlatformBytes { pdh, chain, roots }) = platform else { return Ok(()) };
        self.part(PDH, pdh, CERTIFICATES_BYTES_MAX)?;
        self.part(CHAIN, chain, CERTIFICATES_BYTES_MAX)?;
        self.part(ROOTS, roots, CERTIFICATES_BYTES_MAX)
    }

    fn assessment(&mut self, assessment: &Assessment) -> Result<(), Malformed> {
        let Assessment { objections, platform } = assessment;
        self.put(&[checked_objections(objections.len())?]);
        for Objection { subject, reason } in objections {
            self.reason(subject);
            self.reason(reason);
        }
        self.platform(platform.as_ref())
    }

    fn session(&mut self, encryption: Option<&SessionBytes>) -> Result<(), Malformed> {
        self.put(&[u8::from(encryption.is_some())]);
        let Some(SessionBytes { policy, pdh, session }) = encryption else { return Ok(()) };
        self.put(&policy.to_le_bytes());
        self.part(PDH, pdh, CERTIFICATES_BYTES_MAX)?;
        self.part(SESSION, session, CERTIFICATES_BYTES_MAX)
    }
}
