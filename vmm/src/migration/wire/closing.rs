//! What follows the last round, bound to where it belongs: the region list and the machine's state.
//!
//! Pages have their digests and rounds. These two messages decide what all pages mean, so they have a digest too:
//! else damage, or a mix-up of two migrations, could change them unnoticed.

use sha2::{Digest, Sha256};
use thiserror::Error;

use super::kind::{CLOSING_HEADER_LEN, Kind};

/// Bytes of a region list or a state, and where they belong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closing {
    /// As in the offer.
    pub session: u64,
    /// The last round, which it follows.
    pub round: u32,
    /// SHA-256 over kind (2 bytes), session (8), round (4), length (8), and the bytes.
    pub digest: [u8; 32],
    /// What it is about.
    pub bytes: Vec<u8>,
}

const _: () = assert!(CLOSING_HEADER_LEN == 8 + 4 + 32);

impl Closing {
    /// Of this kind, after `round` of `session`.
    #[must_use]
    pub fn new(kind: Kind, session: u64, round: u32, bytes: Vec<u8>) -> Self {
        let digest = digest(kind, session, round, &bytes);
        Self { session, round, digest, bytes }
    }

    /// The bytes, if they are of this kind and belong after `round` of `session`.
    ///
    /// # Errors
    /// [`BadClosing`] with what is wrong.
    pub fn open(self, kind: Kind, session: u64, round: u32) -> Result<Vec<u8>, BadClosing> {
        let what = name(kind);
        if self.session != session {
            return Err(BadClosing::Session { what, found: self.session, due: session });
        }
        if self.round != round {
            return Err(BadClosing::Round { what, found: self.round, due: round });
        }
        if self.digest != digest(kind, session, round, &self.bytes) {
            return Err(BadClosing::Damaged { what });
        }
        Ok(self.bytes)
    }
}

fn digest(kind: Kind, session: u64, round: u32, bytes: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update((kind as u16).to_le_bytes());
    hash.update(session.to_le_bytes());
    hash.update(round.to_le_bytes());
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
    hash.finalize().into()
}

fn name(kind: Kind) -> &'static str {
    if kind == Kind::StatusList { "the region list" } else { "the machine's state" }
}

/// What is wrong with a region list or a state before it is looked at.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum BadClosing {
    /// It belongs to another migration.
    #[error("{what} is of session {found:#x} where {due:#x} is due")]
    Session { what: &'static str, found: u64, due: u64 },
    /// It belongs after another round.
    #[error("{what} follows round {found} where {due} was the last")]
    Round { what: &'static str, found: u32, due: u32 },
    /// It is not what was sent.
    #[error("{what} was damaged on its way")]
    Damaged { what: &'static str },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever is changed, moved to another place or taken for the other is named.
    #[test]
    fn it_belongs_to_one_place() {
        let (list, state) = (Kind::StatusList, Kind::State);
        let closing = Closing::new(list, 7, 3, vec![1, 2, 3]);
        assert_eq!(closing.clone().open(list, 7, 3), Ok(vec![1, 2, 3]));
        let open = |kind, session, round| closing.clone().open(kind, session, round).unwrap_err();
        assert!(matches!(open(list, 8, 3), BadClosing::Session { found: 7, due: 8, .. }));
        assert!(matches!(open(list, 7, 4), BadClosing::Round { found: 3, due: 4, .. }));
        assert!(matches!(open(state, 7, 3), BadClosing::Damaged { .. }));
        for (field, bit) in (0..36).flat_map(|field| [(field, 0), (field, 7)]) {
            let mut damaged = closing.clone();
            let byte = match field {
                0..32 => &mut damaged.digest[field],
                _ => &mut damaged.bytes[field % 3],
            };
            *byte ^= 1 << bit;
            let refused = damaged.open(list, 7, 3);
            assert_eq!(refused, Err(BadClosing::Damaged { what: "the region list" }));
        }
        // Where one ends and another begins is bound too.
        let mut longer = closing;
        longer.bytes.push(0);
        assert_eq!(longer.open(list, 7, 3), Err(BadClosing::Damaged { what: "the region list" }));
    }
}
