//! The steps of a migration: every message, in its order, as `docs/protocol.md` lists them.

use sevferry::migration::wire::Kind;

/// Who owns the guest while a message is on its way, which decides what a fault leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The source; the destination has not all of it.
    Arriving,
    /// The source; the destination has all of it, and waits.
    Prepared,
    /// The source's journal says `committed`; the destination does not know.
    Committed,
    /// The destination.
    Owned,
}

/// A message of the protocol.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Step {
    pub(crate) message: Kind,
    pub(crate) stage: Stage,
}

const fn step(message: Kind, stage: Stage) -> Step {
    Step { message, stage }
}

/// Every message of a migration that nothing disturbs.
pub(crate) const STEPS: [Step; 13] = [
    step(Kind::Offer, Stage::Arriving),
    step(Kind::Accept, Stage::Arriving),
    step(Kind::Start, Stage::Arriving),
    step(Kind::Started, Stage::Arriving),
    step(Kind::Join, Stage::Arriving),
    step(Kind::Pages, Stage::Arriving),
    step(Kind::RoundEnd, Stage::Arriving),
    step(Kind::RoundOk, Stage::Arriving),
    step(Kind::StatusList, Stage::Arriving),
    step(Kind::State, Stage::Arriving),
    step(Kind::Prepared, Stage::Prepared),
    step(Kind::Commit, Stage::Committed),
    step(Kind::Running, Stage::Owned),
];
