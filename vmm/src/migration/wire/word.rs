//! The words that decide who owns a guest, and the proof that makes each of them count.
//!
//! The destination makes a secret for each transfer and sends it once, when it accepts. From then on a word about
//! that transfer counts only with a proof: HMAC-SHA256 under the secret, over the word. The secret itself is never
//! sent again, because a source in doubt connects to the destination's address, and anyone may listen there by then.
//!
//! There is no nonce: a word that was true stays true, so a peer that repeats it does no harm.

use std::fmt::{Debug, Display, Formatter, Result as FmtResult};
use std::str::FromStr;

use getrandom::Error as RandomError;
use hmac::Mac;
use subtle::ConstantTimeEq;

use super::kind::Kind;
use super::reason::{NotRunning, Reason};
use super::transfer::Transfer;
use crate::sev::session::Key;

/// What only the two sides of a transfer know.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Secret(pub [u8; 16]);

impl Secret {
    /// For a new transfer.
    ///
    /// # Errors
    /// [`RandomError`] if the system has no randomness.
    pub fn random() -> Result<Self, RandomError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// The proof that a page connection is the source's.
    #[must_use]
    pub fn proof_of_join(&self, session: u64, index: u16) -> Proof {
        let (session, index) = (session.to_le_bytes(), index.to_le_bytes());
        self.proof(Kind::Join, &[&session, &index])
    }

    fn proof_of_word(&self, transfer: Transfer, say: &Say) -> Proof {
        let detail = match say {
            Say::Commit { is_last } => u8::from(*is_last),
            Say::NotRunning(because) => because.number(),
            // The reason is for people. It decides nothing, so the proof leaves it out.
            Say::Abandon(_) | Say::Prepared | Say::Running | Say::Released => 0,
        };
        self.proof(say.kind(), &[&transfer.vm.0, &transfer.epoch.to_le_bytes(), &[detail]])
    }

    /// No lengths are needed between the parts: each kind's parts have fixed lengths.
    fn proof(&self, kind: Kind, parts: &[&[u8]]) -> Proof {
        let mut mac = Key::from_bytes(self.0).hmac();
        mac.update(&(kind as u16).to_le_bytes());
        parts.iter().for_each(|part| mac.update(part));
        Proof(mac.finalize().into_bytes().into())
    }
}

/// The secret itself is never shown.
impl Debug for Secret {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str("Secret")
    }
}

/// The proof that the sender of a message knows the transfer's secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Proof(pub [u8; 32]);

impl Proof {
    /// Whether both are equal, in constant time.
    #[must_use]
    pub fn is(&self, due: &Self) -> bool {
        self.0.ct_eq(&due.0).into()
    }
}

/// What the two sides say about the owner of the guest.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Say {
    /// Destination: everything is loaded and checked; the guest is paused here.
    Prepared,
    /// Source: the guest is yours. It is also the first message of a connection that is made to repeat it.
    Commit {
        /// Whether the source has lost its own copy, so that the destination's is the last.
        is_last: bool,
    },
    /// Destination: the guest runs here.
    Running,
    /// Destination, to a [`Say::Commit`]: the guest does not run here.
    NotRunning(NotRunning),
    /// Source: the guest is mine. Never said about a guest that the destination may run.
    Abandon(Reason),
    /// Source: I know what became of the guest, nothing of it is left here, and I do not ask again.
    Released,
}

impl Say {
    /// What it is called on the wire.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Prepared => Kind::Prepared,
            Self::Commit { .. } => Kind::Commit,
            Self::Running => Kind::Running,
            Self::NotRunning(_) => Kind::NotRunning,
            Self::Abandon(_) => Kind::Abandon,
            Self::Released => Kind::Released,
        }
    }
}

/// A word as it travels.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Word {
    /// Which guest and attempt it is about.
    pub transfer: Transfer,
    /// What is said.
    pub say: Say,
    /// That one of the two sides says it.
    pub proof: Proof,
}

impl Word {
    /// Said by a side of `transfer`.
    #[must_use]
    pub fn new(secret: &Secret, transfer: Transfer, say: Say) -> Self {
        let proof = secret.proof_of_word(transfer, &say);
        Self { transfer, say, proof }
    }

    /// Whether its sender knows `secret`.
    #[must_use]
    pub fn is_proven(&self, secret: &Secret) -> bool {
        self.proof.is(&secret.proof_of_word(self.transfer, &self.say))
    }
}

/// As it is written in a journal.
impl Display for Secret {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl FromStr for Secret {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let is_hex = text.len() == 32 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u128::from_str_radix(text, 16).ok().filter(|_| is_hex);
        number.map(|number| Self(number.to_be_bytes())).ok_or(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::wire::VmId;

    const TRANSFER: Transfer = Transfer { vm: VmId([7; 16]), epoch: 3 };
    const SECRET: Secret = Secret([0x5a; 16]);

    fn all() -> Vec<Word> {
        let says = [
            Say::Prepared,
            Say::Commit { is_last: false },
            Say::Commit { is_last: true },
            Say::Running,
            Say::NotRunning(NotRunning::GivenBack),
            Say::NotRunning(NotRunning::Discarded),
            Say::NotRunning(NotRunning::JournalFailed),
            Say::NotRunning(NotRunning::Crashed),
            Say::Abandon(Reason::new("no")),
            Say::Released,
        ];
        let other_vm = Transfer { vm: VmId([8; 16]), ..TRANSFER };
        let transfers = [TRANSFER, Transfer { epoch: 4, ..TRANSFER }, other_vm];
        let said = |say: &Say| transfers.map(|transfer| Word::new(&SECRET, transfer, say.clone()));
        says.iter().flat_map(said).collect()
    }

    /// A proof proves one word and no other: not another guest's or attempt's, not the same with
    /// another detail, and not what the other side says, thrown back.
    #[test]
    fn a_proof_is_of_one_word() {
        let words = all();
        for (number, word) in words.iter().enumerate() {
            assert!(word.is_proven(&SECRET));
            assert!(!word.is_proven(&Secret([0x5b; 16])), "{word:?} by another secret");
            for (other, another) in words.iter().enumerate() {
                let forged = Word { proof: another.proof, ..word.clone() };
                assert_eq!(forged.is_proven(&SECRET), number == other, "{forged:?}");
            }
            for bit in 0..256 {
                let mut spoilt = word.clone();
                spoilt.proof.0[bit / 8] ^= 1 << (bit % 8);
                assert!(!spoilt.is_proven(&SECRET), "{word:?}, bit {bit}");
            }
        }
        assert!(!SECRET.proof_of_join(1, 2).is(&SECRET.proof_of_join(1, 3)));
        assert!(!SECRET.proof_of_join(1, 2).is(&SECRET.proof_of_join(2, 2)));
    }

    /// Secrets differ, are never shown by chance, and read back from a journal.
    #[test]
    fn a_secret_is_kept_and_not_shown() {
        let secret = Secret::random().unwrap();
        assert_ne!(secret, Secret::random().unwrap());
        assert_eq!(format!("{secret:?}"), "Secret");
        assert_eq!(secret.to_string().parse(), Ok(secret));
        for bad in ["", "0", &"0".repeat(33), &"g".repeat(32), &format!("+{}", "0".repeat(31))] {
            assert_eq!(bad.parse::<Secret>(), Err(()), "{bad}");
        }
    }
}
