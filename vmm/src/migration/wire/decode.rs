//! Bytes as messages: total, bounded, one form per message. No I/O.
//!
//! `docs/protocol.md` has every message's layout; the tests have its golden bytes.

use std::str::from_utf8;

use super::closing::Closing;
use super::cursor::Reader;
use super::fields::{
    CHAIN, MACHINE, PDH, REASON, ROOTS, SESSION, checked_abandoned, checked_connections,
    checked_objections,
};
use super::header::FrameHeader;
use super::kind::{
    CERTIFICATES_BYTES_MAX, CLOSING_HEADER_LEN, CONNECTIONS_MAX, Kind, MACHINE_OFFER_BYTES_MAX,
};
use super::malformed::Malformed;
use super::message::{
    Abandoned, Assessment, Message, Objection, Offer, PlatformBytes, RoundEnd, SessionBytes,
};
use super::reason::{NotRunning, Reason};
use super::transfer::{Transfer, VmId};
use super::word::{Proof, Say, Secret, Word};
use crate::machine::pinning::Pinned;

impl Message {
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
