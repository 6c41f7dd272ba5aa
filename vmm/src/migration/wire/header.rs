//! The header before every message and every page frame.
//!
//! All numbers little-endian. Every frame:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic `SVFY` |
//! | 4 | 2 | version, [`VERSION`] |
//! | 6 | 2 | kind, [`Kind`] |
//! | 8 | 4 | bytes that follow |

use super::cursor::{Reader, Writer};
use super::kind::Kind;
use super::malformed::Malformed;

/// The version that this program speaks, and the only one. Neither earlier one was released: version 1
/// had no digests of what follows the last round, version 2 no proofs, and no word on a machine that is
/// being made.
pub const VERSION: u16 = 3;

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"SVFY";

/// Bytes before every message.
pub const FRAME_HEADER_LEN: usize = 12;

/// What comes before every message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    kind: Kind,
    length: u32,
}

impl FrameHeader {
    /// A header for `length` bytes.
    ///
    /// # Errors
    /// [`Malformed::TooLong`] if that kind may not be so long.
    pub fn new(kind: Kind, length: usize) -> Result<Self, Malformed> {
        let most = kind.length_max();
        match u32::try_from(length) {
            Ok(length) if length <= most => Ok(Self { kind, length }),
            _ => Err(Malformed::TooLong { kind, length: length as u64, most }),
        }
    }

    /// What follows.
    #[must_use]
    pub fn kind(self) -> Kind {
        self.kind
    }

    /// How many bytes follow; never more than [`Kind::length_max`], so a buffer of this size may
    /// be allocated.
    #[must_use]
    pub fn length(self) -> usize {
        self.length as usize
    }

    /// The header as it travels.
    #[must_use]
    pub fn encode(self) -> [u8; FRAME_HEADER_LEN] {
        let mut bytes = [0; FRAME_HEADER_LEN];
        let mut writer = Writer(&mut bytes);
        writer.put(&MAGIC);
        writer.put(&VERSION.to_le_bytes());
        writer.put(&(self.kind as u16).to_le_bytes());
        writer.put(&self.length.to_le_bytes());
        bytes
    }

    /// Reads a header.
    ///
    /// # Errors
    /// [`Malformed`] for another magic, another version, an unknown kind, or a length beyond its cap.
    pub fn decode(bytes: &[u8; FRAME_HEADER_LEN]) -> Result<Self, Malformed> {
        let mut reader = Reader::new("a frame header", bytes);
        let magic = reader.array()?;
        if magic != MAGIC {
            return Err(Malformed::Magic { magic });
        }
        let version = reader.u16()?;
        if version != VERSION {
            return Err(Malformed::Version { theirs: version, ours: VERSION });
        }
        let number = reader.u16()?;
        let kind = Kind::from_number(number).ok_or(Malformed::UnknownKind { number })?;
        let length = reader.u32()?;
        let most = kind.length_max();
        if length > most {
            return Err(Malformed::TooLong { kind, length: u64::from(length), most });
        }
        Ok(Self { kind, length })
    }
}
