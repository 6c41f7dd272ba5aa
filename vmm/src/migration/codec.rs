//! Messages as bytes: total, bounded, one form per message. No I/O.
//!
//! A variable part is its length (4 bytes) and its bytes, except that what follows the last round
//! ([`Message::StatusList`], [`Message::State`]) ends with its bytes, however many there are.
//! `docs/protocol.md` has every message's layout; the tests have its golden bytes.

use std::str::from_utf8;

use super::closing::Closing;
use super::cursor::Reader;
use super::frame::{
    ABANDONED_MAX, CERTIFICATES_BYTES_MAX, CLOSING_HEADER_LEN, CONNECTIONS_MAX, FRAME_HEADER_LEN,
    FrameHeader, Kind, MACHINE_OFFER_BYTES_MAX, OBJECTIONS_MAX,
};
use super::malformed::Malformed;
use super::message::{
    Abandoned, Assessment, Message, NotRunning, Objection, Offer, PlatformBytes, Reason, RoundEnd,
    SessionBytes, Transfer, VmId,
};
use super::word::{Proof, Say, Secret, Word};
use crate::machine::pinning::Pinned;

impl Message {
    /// The message as it travels, with its frame header.
    ///
    /// # Errors
    /// [`Malformed`] if a part is beyond its cap, which the peer would refuse.
    pub fn encode(&self) -> Result<Vec<u8>, Malformed> {
        let mut bytes = vec![0; FRAME_HEADER_LEN];
        let mut body = Body(&mut bytes);
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

    /// Reads the bytes after `header`: [`FrameHeader::length`] of them.
    ///
    /// # Errors
    /// [`Malformed`] unless they are exactly such a message. Long parts are not held twice.
    pub fn decode(header: FrameHeader, body: Vec<u8>) -> Result<Self, Malformed> {
        let kind = header.kind();
        if body.len() < header.length() {
            let (needed, left) = (header.length() - body.len(), 0);
            return Err(Malformed::Truncated { what: "a message", needed, left });
        }
        if body.len() > header.length() {
            return Err(Malformed::Trailing { kind, extra: body.len() - header.length() });
        }
        let mut reader = Reader::new("a message", &body);
        let message = match kind {
            Kind::Offer => Self::Offer(read_offer(&mut reader)?),
            Kind::Accept => {
                let secret = Secret(reader.array()?);
                Self::Accept { secret, platform: read_platform(&mut reader)? }
            }
            Kind::Refuse => Self::Refuse { reason: read_reason(&mut reader)? },
            Kind::Start => Self::Start { encryption: read_session(&mut reader)? },
            Kind::Started => Self::Started,
            Kind::Join => {
                let (session, index) = (reader.u64()?, read_index(&mut reader)?);
                Self::Join { session, index, proof: Proof(reader.array()?) }
            }
            Kind::Pages => return Err(Malformed::Pages),
            Kind::RoundEnd => {
                let (round, frames) = (reader.u32()?, reader.u64()?);
                Self::RoundEnd(RoundEnd { round, frames, digest: reader.array()? })
            }
            Kind::RoundOk => Self::RoundOk { round: reader.u32()? },
            Kind::StatusList => return read_closing(body).map(Self::StatusList),
            Kind::State => return read_closing(body).map(Self::State),
            Kind::Prepared => read_word(&mut reader, |_| Ok(Say::Prepared))?,
            Kind::Commit => read_word(&mut reader, read_commit)?,
            Kind::Running => read_word(&mut reader, |_| Ok(Say::Running))?,
            Kind::NotRunning => {
                read_word(&mut reader, |r| read_not_running(r).map(Say::NotRunning))?
            }
            Kind::Abandon => read_word(&mut reader, |r| read_reason(r).map(Say::Abandon))?,
            Kind::Released => read_word(&mut reader, |_| Ok(Say::Released))?,
            Kind::Inquiry => Self::Inquiry(read_offer(&mut reader)?),
            Kind::Assessment => Self::Assessment(read_assessment(&mut reader)?),
            Kind::Building => Self::Building(read_pinned(&mut reader)?),
        };
        match reader.rest().len() {
            0 => Ok(message),
            extra => Err(Malformed::Trailing { kind, extra }),
        }
    }
}

/// What follows a frame header, as it is written.
struct Body<'a>(&'a mut Vec<u8>);

impl Body<'_> {
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

const MACHINE: &str = "the machine's offer";
const PDH: &str = "the PDH certificate";
const CHAIN: &str = "the platform's certificate chain";
const ROOTS: &str = "the vendor's certificates";
const SESSION: &str = "the session buffer";
const REASON: &str = "the reason";

fn read_part<'a>(
    reader: &mut Reader<'a>,
    field: &'static str,
    most: u32,
) -> Result<&'a [u8], Malformed> {
    let length = reader.u32()?;
    if length > most {
        return Err(Malformed::FieldTooLong { field, length: u64::from(length), most });
    }
    reader.take(length as usize)
}

fn read_pinned(reader: &mut Reader<'_>) -> Result<Pinned, Malformed> {
    let (pages, of) = (reader.u64()?, reader.u64()?);
    if pages <= of {
        return Ok(Pinned { pages, of });
    }
    Err(Malformed::Value { field: "the number of pinned pages", found: pages })
}

fn read_bool(reader: &mut Reader<'_>, field: &'static str) -> Result<bool, Malformed> {
    match reader.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        found => Err(Malformed::NotABool { field, found }),
    }
}

fn read_transfer(reader: &mut Reader<'_>) -> Result<Transfer, Malformed> {
    Ok(Transfer { vm: VmId(reader.array()?), epoch: reader.u64()? })
}

fn read_reason(reader: &mut Reader<'_>) -> Result<Reason, Malformed> {
    let most = u32::try_from(Reason::BYTES_MAX).unwrap_or(u32::MAX);
    let bytes = read_part(reader, REASON, most)?;
    from_utf8(bytes).map(Reason::new).map_err(|_position| Malformed::NotText)
}

fn checked_connections(connections: u16) -> Result<u16, Malformed> {
    if (1..=CONNECTIONS_MAX).contains(&connections) {
        return Ok(connections);
    }
    Err(Malformed::Value { field: "the number of connections", found: u64::from(connections) })
}

fn read_index(reader: &mut Reader<'_>) -> Result<u16, Malformed> {
    let index = reader.u16()?;
    if index < CONNECTIONS_MAX {
        return Ok(index);
    }
    Err(Malformed::Value { field: "the index of a connection", found: u64::from(index) })
}

fn read_offer(reader: &mut Reader<'_>) -> Result<Offer, Malformed> {
    Ok(Offer {
        transfer: read_transfer(reader)?,
        session: reader.u64()?,
        connections: checked_connections(reader.u16()?)?,
        abandoned: read_abandoned(reader)?,
        machine: read_part(reader, MACHINE, MACHINE_OFFER_BYTES_MAX)?.to_vec(),
    })
}

fn checked_abandoned(count: usize) -> Result<u8, Malformed> {
    let known = u8::try_from(count).ok().filter(|&count| u32::from(count) <= ABANDONED_MAX);
    known.ok_or(Malformed::Value { field: "the number of earlier attempts", found: count as u64 })
}

fn read_abandoned(reader: &mut Reader<'_>) -> Result<Vec<Abandoned>, Malformed> {
    let count = checked_abandoned(reader.u8()?.into())?;
    (0..count)
        .map(|_| Ok(Abandoned { epoch: reader.u64()?, proof: Proof(reader.array()?) }))
        .collect()
}

fn read_word<'a>(
    reader: &mut Reader<'a>,
    say: impl FnOnce(&mut Reader<'a>) -> Result<Say, Malformed>,
) -> Result<Message, Malformed> {
    let (transfer, proof) = (read_transfer(reader)?, Proof(reader.array()?));
    Ok(Message::Word(Word { transfer, say: say(reader)?, proof }))
}

fn read_commit(reader: &mut Reader<'_>) -> Result<Say, Malformed> {
    Ok(Say::Commit { is_last: read_bool(reader, "whether a copy is the last")? })
}

/// Its bytes may be megabytes: they stay where they are.
fn read_closing(mut body: Vec<u8>) -> Result<Closing, Malformed> {
    let mut reader = Reader::new("a message", &body);
    let (session, round, digest) = (reader.u64()?, reader.u32()?, reader.array()?);
    body.drain(..CLOSING_HEADER_LEN as usize);
    Ok(Closing { session, round, digest, bytes: body })
}

fn checked_objections(count: usize) -> Result<u8, Malformed> {
    let known = u8::try_from(count).ok().filter(|&count| u32::from(count) <= OBJECTIONS_MAX);
    known.ok_or(Malformed::Value { field: "the number of objections", found: count as u64 })
}

fn read_assessment(reader: &mut Reader<'_>) -> Result<Assessment, Malformed> {
    let count = checked_objections(reader.u8()?.into())?;
    let objections = (0..count)
        .map(|_| Ok(Objection { subject: read_reason(reader)?, reason: read_reason(reader)? }))
        .collect::<Result<_, Malformed>>()?;
    Ok(Assessment { objections, platform: read_platform(reader)? })
}

fn read_platform(reader: &mut Reader<'_>) -> Result<Option<PlatformBytes>, Malformed> {
    if !read_bool(reader, "whether certificates follow")? {
        return Ok(None);
    }
    Ok(Some(PlatformBytes {
        pdh: read_part(reader, PDH, CERTIFICATES_BYTES_MAX)?.to_vec(),
        chain: read_part(reader, CHAIN, CERTIFICATES_BYTES_MAX)?.to_vec(),
        roots: read_part(reader, ROOTS, CERTIFICATES_BYTES_MAX)?.to_vec(),
    }))
}

fn read_session(reader: &mut Reader<'_>) -> Result<Option<SessionBytes>, Malformed> {
    if !read_bool(reader, "whether a session follows")? {
        return Ok(None);
    }
    Ok(Some(SessionBytes {
        policy: reader.u32()?,
        pdh: read_part(reader, PDH, CERTIFICATES_BYTES_MAX)?.to_vec(),
        session: read_part(reader, SESSION, CERTIFICATES_BYTES_MAX)?.to_vec(),
    }))
}

fn read_not_running(reader: &mut Reader<'_>) -> Result<NotRunning, Malformed> {
    let number = reader.u8()?;
    let known = NotRunning::ALL.get(usize::from(number)).copied();
    known.ok_or(Malformed::Value { field: "why a guest does not run", found: u64::from(number) })
}
