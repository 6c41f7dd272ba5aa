//! What the two hosts of a migration say to each other, as plain data; `encode.rs` and `decode.rs` make bytes of it.

use serde::{Deserialize, Serialize};

use super::closing::Closing;
use super::kind::Kind;
use super::reason::Reason;
use super::transfer::Transfer;
use super::word::{Proof, Say, Secret, Word};
use crate::machine::pinning::Pinned;

/// Every message except page frames, whose header is [`PagesHeader`](super::PagesHeader).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Message {
    /// Source, first on the control connection: offers the guest.
    Offer(Offer),
    /// Destination: accepts the guest, and names its platform.
    Accept {
        /// The key of the proofs of all words about this transfer from now on.
        secret: Secret,
        /// `None` for a guest without SEV.
        platform: Option<PlatformBytes>,
    },
    /// Either side, before the handover: refuses, and says why. It ends the migration.
    Refuse {
        /// For people.
        reason: Reason,
    },
    /// Source: tells the destination to begin.
    Start {
        /// `None` for a guest without SEV.
        encryption: Option<SessionBytes>,
    },
    /// Destination: it has begun, and page connections may join.
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
    /// Source, on every page connection: the round is over on this connection.
    RoundEnd(RoundEnd),
    /// Destination, on the control connection: the round arrived completely on all connections.
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
    /// Source, instead of an [`Message::Offer`]: asks whether the destination would take the guest, and no more.
    Inquiry(Offer),
    /// Destination: answers an inquiry. Then it waits for the next connection.
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

/// The guest that the source offers, and how it would send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Which guest, which attempt.
    pub transfer: Transfer,
    /// Random; every page connection and page frame repeats it.
    pub session: u64,
    /// How many page connections will join: 1 to [`CONNECTIONS_MAX`](super::CONNECTIONS_MAX).
    pub connections: u16,
    /// Earlier attempts. Copies of the guest that they have left anywhere are useless. Up to
    /// [`ABANDONED_MAX`](super::ABANDONED_MAX).
    pub abandoned: Vec<Abandoned>,
    /// The serial form of the machine's offer (`machine::compatibility`).
    pub machine: Vec<u8>,
}

impl Offer {
    /// The earlier attempts as words: each as if it had been said by itself.
    pub fn abandons(&self) -> impl Iterator<Item = Word> + '_ {
        self.abandoned.iter().map(|abandoned| {
            let transfer = Transfer { epoch: abandoned.epoch, ..self.transfer };
            Word { transfer, say: Say::Abandon(Reason::default()), proof: abandoned.proof }
        })
    }
}

/// A [`Say::Abandon`] that may not have arrived when it was said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abandoned {
    /// Which attempt to move the guest.
    pub epoch: u64,
    /// Its proof.
    pub proof: Proof,
}

impl Abandoned {
    /// For an attempt whose secret is known.
    #[must_use]
    pub fn new(secret: &Secret, transfer: Transfer) -> Self {
        let word = Word::new(secret, transfer, Say::Abandon(Reason::default()));
        Self { epoch: transfer.epoch, proof: word.proof }
    }
}

/// The destination's answer to an inquiry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Assessment {
    /// Every reason why it would refuse the guest, up to [`OBJECTIONS_MAX`](super::OBJECTIONS_MAX).
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

/// What a connection carried in a round; see [`RoundDigest`](super::RoundDigest).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoundEnd {
    /// The round, from 1.
    pub round: u32,
    /// Page frames on this connection in this round.
    pub frames: u64,
    /// SHA-256 over their headers.
    pub digest: [u8; 32],
}
