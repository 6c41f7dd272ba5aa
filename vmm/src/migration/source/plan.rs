//! Decides when to pause the guest and when to give up, from what each round has measured.

use std::time::{Duration, Instant};

use super::options::Options;
use crate::migration::account::{Account, Tally};
use crate::migration::convergence::{Convergence, Decision, GaveUp, Left, MeasuredRound, Share};
use crate::migration::handover::journal::Side;
use crate::migration::progress::Carried;

/// One attempt's account, and the decisions that follow from it.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) account: Account,
    convergence: Convergence,
    connections: u16,
    /// How long the destination may be silent.
    silence: Duration,
    /// Pages sent, and time spent on sealing, when the last round ended.
    before: (Carried, Duration),
}

impl Plan {
    pub(crate) fn new(options: &Options) -> Self {
        let (transfer, connections) = (options.transfer, options.connections);
        Self {
            account: Account::new(Instant::now(), transfer, Side::Source, connections),
            convergence: Convergence::new(options.goal),
            connections,
            silence: options.silence,
            before: (Carried::default(), Duration::ZERO),
        }
    }

    /// Whether the time is over in the middle of a round.
    pub(crate) fn check(&self) -> Result<(), GaveUp> {
        match self.account.paused_for() {
            None => self.convergence.check(self.account.elapsed()),
            Some(paused) => self.convergence.check_pause(paused, self.silence),
        }
    }

    /// A round took `elapsed`, and `left` changed meanwhile.
    pub(crate) fn end_round(&mut self, tally: &Tally, elapsed: Duration, left: Left) -> Decision {
        let (now, sealed) = (tally.carried(), tally.sealing());
        let (before, sealed_before) = self.before;
        let sealing = (sealed - sealed_before) / u32::from(self.connections.max(1));
        let round = MeasuredRound {
            private: Share { pages: now.private_pages - before.private_pages, took: sealing },
            shared: Share {
                pages: now.shared_pages - before.shared_pages,
                took: elapsed.saturating_sub(sealing),
            },
        };
        self.before = (now, sealed);
        let decision = self.convergence.decide(self.account.elapsed(), &round, left);
        let downtime = self.convergence.expected_downtime();
        self.account.expect(self.convergence.rates(), downtime, self.convergence.is_stalled());
        self.account.changed(left.private_pages.saturating_add(left.shared_pages), elapsed);
        decision
    }
}
