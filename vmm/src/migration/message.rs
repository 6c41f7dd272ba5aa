//! What the two sides of a migration say to each other, as plain data; `codec.rs` makes bytes of it.

use std::fmt::{Debug, Display, Formatter, Result as FmtResult};
use std::str::FromStr;

use getrandom::Error as RandomError;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

use super::closing::Closing;
use super::frame::Kind;
use super::word::{Proof, Say, Secret, Word};
use crate::machine::pinning::Pinned;

/// Which guest: random, chosen at its launch, and kept wherever it moves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(pub [u8; 16]);

impl VmId {
    /// A new guest's identity.
    ///
    /// # Errors
    /// [`RandomError`] if the system has no randomness.
    pub fn random() -> Result<Self, RandomError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }
}

impl Display for VmId {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Debug for VmId {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "VmId({self})")
    }
}

impl Serialize for VmId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VmId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl FromStr for VmId {
    type Err = BadVmId;

    fn from_str(text: &str) -> Result<Self, BadVmId> {
        let bad = || BadVmId { text: text.chars().take(40).collect() };
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let number = u128::from_str_radix(text, 16).map_err(|_not_hex| bad())?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// Text that is no guest's identity.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not the identity of a guest: 32 hexadecimal digits are")]
pub struct BadVmId {
    /// The text, cut at 40 characters.
    text: String,
}

/// One attempt to move one guest. Whoever owns the guest counts its attempts, so that nothing said
/// in one attempt is taken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Transfer {
    /// The guest.
    pub vm: VmId,
    /// Counts the attempts to move it; grows with each, on whichever host.
    pub epoch: u64,
}

impl Display for Transfer {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "guest {}, epoch {}", self.vm, self.epoch)
    }
}

/// Every message except page frames, whose header is [`super::frame::PagesHeader`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Source, first on the control connection: this guest, for you?
    Offer(Offer),
    /// Destination: yes; this is my platform.
    Accept {
        /// What makes words about this transfer count from now on.
        secret: Secret,
        /// `None`: a guest without SEV is welcome.
        platform: Option<PlatformBytes>,
    },
    /// Either side, before the handover: no, and why. Ends the migration.
    Refuse {
        /// For people.
        reason: Reason,
    },
    /// Source: begin to receive.
    Start {
        /// `None` for a guest without SEV.
        encryption: Option<SessionBytes>,
    },
    /// Destination: begun; page connections may join.
    Started,
    /// Source, first on each page connection.
    Join {
        /// The session of the [`Offer`].
        session: u64,
        /// Which of the offered connections, from 0.
        index: u16,
        /// [`Secret::proof_of_join`].
        proof: Proof,
    },
    /// Source, on every page connection: the round is over here.
    RoundEnd(RoundEnd),
    /// Destination, on the control connection: the round arrived whole on all connections.
    RoundOk {
        /// The round, from 1.
        round: u32,
    },
    /// Source, after the last round: `PageStatus::to_bytes`.
    StatusList(Closing),
    /// Source: the machine's state.
    State(Closing),
    /// Either side, about who owns the guest.
    Word(Word),
    /// Source, instead of an [`Message::Offer`]: would you take this guest? Nothing follows from it.
    Inquiry(Offer),
    /// Destination, to an inquiry; it waits for the next caller then.
    Assessment(Assessment),
    /// Destination, before it accepts or assesses: the guest's memory is being pinned.
    Building(Pinned),
}

impl Message {
    /// What it is called on the wire.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Offer(_) => Kind::Offer,
            Self::Accept { .. } => Kind::Accept,
            Self::Refuse { .. } => Kind::Refuse,
            Self::Start { .. } => Kind::Start,
            Self::Started => Kind::Started,
            Self::Join { .. } => Kind::Join,
            Self::RoundEnd(_) => Kind::RoundEnd,
            Self::RoundOk { .. } => Kind::RoundOk,
            Self::StatusList(_) => Kind::StatusList,
            Self::State(_) => Kind::State,
            Self::Word(word) => word.say.kind(),
            Self::Inquiry(_) => Kind::Inquiry,
            Self::Assessment(_) => Kind::Assessment,
            Self::Building(_) => Kind::Building,
        }
    }
}

impl From<Word> for Message {
    fn from(word: Word) -> Self {
        Self::Word(word)
    }
}

/// What the source has to move, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Which guest, which attempt.
    pub transfer: Transfer,
    /// Random; every page connection and page frame repeats it.
    pub session: u64,
    /// How many page connections will join: 1 to [`super::frame::CONNECTIONS_MAX`].
    pub connections: u16,
    /// Earlier attempts whose copy of this guest is of no use any more, wherever it is: up to
    /// [`super::frame::ABANDONED_MAX`].
    pub abandoned: Vec<Abandoned>,
    /// The serial form of the machine's offer (`machine::compatibility`).
    pub machine: Vec<u8>,
}

impl Offer {
    /// What the offer says of earlier attempts, as it would have been said by itself.
    pub fn abandons(&self) -> impl Iterator<Item = Word> + '_ {
        self.abandoned.iter().map(|abandoned| {
            let transfer = Transfer { epoch: abandoned.epoch, ..self.transfer };
            Word { transfer, say: Say::Abandon(Reason::default()), proof: abandoned.proof }
        })
    }
}

/// A [`Say::Abandon`] that may not have been heard when it was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abandoned {
    /// Of which attempt to move the guest.
    pub epoch: u64,
    /// Its proof.
    pub proof: Proof,
}

impl Abandoned {
    /// The attempt of this transfer, whose secret is known.
    #[must_use]
    pub fn new(secret: &Secret, transfer: Transfer) -> Self {
        let word = Word::new(secret, transfer, Say::Abandon(Reason::default()));
        Self { epoch: transfer.epoch, proof: word.proof }
    }
}

/// What a destination thinks of a guest that it is asked about.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Assessment {
    /// Every reason why it would refuse the guest, up to [`super::frame::OBJECTIONS_MAX`].
    pub objections: Vec<Objection>,
    /// Its platform's certificates, for a guest with SEV, as in [`Message::Accept`].
    pub platform: Option<PlatformBytes>,
}

/// One reason why a guest would not be moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Objection {
    /// What it is about, in a word or two.
    pub subject: Reason,
    /// For people.
    pub reason: Reason,
}

impl Objection {
    /// `reason` to refuse, because of `subject`.
    #[must_use]
    pub fn new(subject: &str, reason: &str) -> Self {
        Self { subject: Reason::new(subject), reason: Reason::new(reason) }
    }
}

/// A platform's certificates, in AMD's formats, not parsed yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PlatformBytes {
    /// The PDH certificate.
    pub pdh: Vec<u8>,
    /// PEK, OCA and CEK certificates, one after the other.
    pub chain: Vec<u8>,
    /// ASK and ARK certificates, one after the other.
    pub roots: Vec<u8>,
}

/// What the destination's firmware needs to derive the transport keys, not parsed yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SessionBytes {
    /// The guest's policy.
    pub policy: u32,
    /// The source's PDH certificate.
    pub pdh: Vec<u8>,
    /// The session buffer.
    pub session: Vec<u8>,
}

/// What a connection carried in a round; see [`super::frame::RoundDigest`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundEnd {
    /// The round, from 1.
    pub round: u32,
    /// Page frames on this connection in this round.
    pub frames: u64,
    /// SHA-256 over their headers.
    pub digest: [u8; 32],
}

/// Why a destination does not run a guest that it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotRunning {
    /// It never ran the guest and has it no more: its journal could not be written, or the process
    /// that had the guest is gone.
    GivenBack,
    /// It never ran the guest, was told to discard it, and has.
    Discarded,
    /// It could not write its journal. It keeps the guest, which is the last copy, and tries again.
    JournalFailed,
    /// It owned the guest and has crashed since: the guest is gone there.
    Crashed,
}

impl NotRunning {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 4] =
        [Self::GivenBack, Self::Discarded, Self::JournalFailed, Self::Crashed];

    /// On the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::GivenBack => 0,
            Self::Discarded => 1,
            Self::JournalFailed => 2,
            Self::Crashed => 3,
        }
    }

    /// Whether the destination has no copy, and never ran it: the source's is as good as ever.
    #[must_use]
    pub fn gives_back(self) -> bool {
        matches!(self, Self::GivenBack | Self::Discarded)
    }
}

impl Display for NotRunning {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str(match self {
            Self::GivenBack => "the destination could not keep the guest, and never ran it",
            Self::Discarded => "the destination was told to discard the guest, and has",
            Self::JournalFailed => "the destination could not write its journal; it keeps trying",
            Self::Crashed => "the destination owned the guest and has crashed since",
        })
    }
}

/// Words for people, from a peer that is not trusted: short and without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize)]
#[serde(from = "String")]
pub struct Reason(String);

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

impl Reason {
    /// Bytes of the longest.
    pub const BYTES_MAX: usize = 1024;

    /// `text` with what steers a terminal replaced, cut at [`Reason::BYTES_MAX`].
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut kept = String::new();
        for char in text.chars().map(|char| if is_harmless(char) { char } else { ' ' }) {
            if kept.len() + char.len_utf8() > Self::BYTES_MAX {
                break;
            }
            kept.push(char);
        }
        Self(kept)
    }

    /// The words.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Neither a control character, nor one that changes the direction or place of others, nor one that
/// is not seen (Unicode's `Bidi_Control` and most of `Cf`, and the separators of lines).
fn is_harmless(char: char) -> bool {
    let is_format = matches!(
        char,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    );
    !char.is_control() && !is_format
}

impl Display for Reason {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An identity reads back from its text, and nothing else does.
    #[test]
    fn identities_are_32_hexadecimal_digits() {
        let vm = VmId(*b"0123456789abcdef");
        assert_eq!(vm.to_string().parse(), Ok(vm));
        for bad in ["", "0", "+0000000000000000000000000000000", &"0".repeat(33), &"g".repeat(32)] {
            assert!(bad.parse::<VmId>().is_err(), "{bad}");
        }
    }

    /// A peer cannot fill the terminal, nor steer it.
    #[test]
    fn reasons_are_short_and_harmless() {
        assert_eq!(Reason::new("no\x1b[2Jpe\n").as_str(), "no [2Jpe ");
        assert_eq!(Reason::new("a\u{202e}b\u{2066}c\u{9b}d\u{2028}e").as_str(), "a b c d e");
        let long = Reason::new(&"ü".repeat(600));
        assert_eq!(long.as_str(), "ü".repeat(512));
        assert_eq!(Reason::new(long.as_str()), long);
    }
}
