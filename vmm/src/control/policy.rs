//! Decides what is done with a request: a pure function of the process's state, called when the request is taken up.
//!
//! | state | report, continue, secret | audit, migrate, check, resize | cancel | resolve | quit |
//! |---|---|---|---|---|---|
//! | starting, waiting, receiving, moved | refused | refused | refused | refused | done |
//! | paused | done | refused | refused | refused | done |
//! | running | report only | done | refused | refused | done |
//! | running, and asking another host | refused | refused | refused | refused | done |
//! | migrating | refused | refused | from the board | refused | done |
//! | in doubt | refused | refused | refused | done | refused |
//!
//! A status comes from the board at any moment.

use super::api::{Request, State};

/// What is done with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It needs no guest: the status board answers it, however busy the process is.
    FromBoard,
    /// The process does it.
    Do,
    /// It cannot be done now; why, and what to do about it.
    Refuse(&'static str),
}

/// The reason to refuse a request if there is no better one.
pub const NOT_NOW: &str = "the guest is busy";

const IN_DOUBT: &str = "the other host may run the guest; `sevferry resolve` decides that first";
const NOT_YET: &str = "the guest does not run yet; sevferry continue lets it run";
const MIGRATING: &str = "a migration is under way; `sevferry status` shows how far";

/// Whether a request must wait for the process. The server answers the others itself.
#[must_use]
pub fn needs_process(request: &Request) -> bool {
    !matches!(request, Request::Status | Request::Cancel)
}

/// What is done with `request` in `state`. A busy process does something that it does not interrupt for a request.
/// While its guest runs, that is a question to another host.
#[must_use]
pub fn decide(state: State, is_busy: bool, request: &Request) -> Admission {
    use Admission::{Do, FromBoard, Refuse};
    match (request, state) {
        (Request::Status, _) | (Request::Cancel, State::Migrating) => FromBoard,
        (Request::Cancel, _) => Refuse(why_not_cancelled(state)),
        (Request::Resolve(_), State::InDoubt) => Do,
        (Request::Resolve(_), _) => Refuse(why_not_resolved(state)),
        (Request::Quit, State::InDoubt) => Refuse(IN_DOUBT),
        (Request::Quit, _) => Do,
        (Request::Continue | Request::InjectSecret(_) | Request::Report, State::Paused) => Do,
        (Request::Continue, State::Running) => Refuse("the guest runs already"),
        (Request::InjectSecret(_), State::Running) => Refuse(
            "the guest runs already: it takes secrets only before, so start it with --paused",
        ),
        (
            Request::Report
            | Request::Audit
            | Request::Migrate(_)
            | Request::Check(_)
            | Request::ResizeDisk { .. },
            State::Running,
        ) if !is_busy => Do,
        (
            Request::Report
            | Request::Audit
            | Request::InjectSecret(_)
            | Request::Continue
            | Request::Migrate(_)
            | Request::Check(_)
            | Request::ResizeDisk { .. },
            _,
        ) => Refuse(why_busy(state)),
    }
}

impl Admission {
    /// Why the request is refused, if it is.
    #[must_use]
    pub fn refusal(self) -> Option<&'static str> {
        match self {
            Self::Refuse(why) => Some(why),
            Self::FromBoard | Self::Do => None,
        }
    }
}

fn why_busy(state: State) -> &'static str {
    match state {
        State::Starting => "the guest is being started, or has ended; `sevferry status` shows it",
        State::Paused => NOT_YET,
        State::Running => "another host is being asked about the guest; try again",
        State::Waiting => "there is no guest yet",
        State::Receiving => "the guest is still arriving; `sevferry status` shows how far",
        State::InDoubt => IN_DOUBT,
        State::Migrating | State::Moved => MIGRATING,
    }
}

fn why_not_cancelled(state: State) -> &'static str {
    match state {
        State::InDoubt => {
            "the handover is in doubt, and the other host may run the guest; `sevferry resolve` \
             decides"
        }
        State::Moved => "the guest runs on another host",
        State::Waiting | State::Receiving => {
            "a migration is cancelled at its source; `sevferry quit` ends this process"
        }
        State::Starting | State::Paused | State::Running | State::Migrating => {
            "no migration is under way"
        }
    }
}

fn why_not_resolved(state: State) -> &'static str {
    match state {
        State::Paused => "no handover is in doubt: the guest does not run yet",
        State::Running => "no handover is in doubt: the guest runs here",
        State::Starting
        | State::Migrating
        | State::Waiting
        | State::Receiving
        | State::InDoubt
        | State::Moved => "no handover is in doubt",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::api::{
        Base64, Connections, InjectRequest, MigrateRequest, Resolution, TimeoutStrategy,
    };

    /// One request of each kind, in the order of the table's columns.
    fn requests() -> [Request; 11] {
        let secret = InjectRequest {
            packet_header: Base64(Vec::new()),
            secret: Base64(Vec::new()),
            gpa: None,
        };
        let migration = MigrateRequest {
            to: "tcp:b:1".parse().unwrap(),
            downtime_ms: MigrateRequest::default_downtime_ms(),
            timeout_s: MigrateRequest::default_timeout_s(),
            timeout_strategy: TimeoutStrategy::default(),
            connections: Connections::default(),
            silence_s: MigrateRequest::default_silence_s(),
            throttle: true,
            allow_unchecked: false,
        };
        [
            Request::Status,
            Request::Report,
            Request::Audit,
            Request::InjectSecret(secret),
            Request::Continue,
            Request::Migrate(migration.clone()),
            Request::Check(migration),
            Request::Cancel,
            Request::Resolve(Resolution::Keep),
            Request::Quit,
            Request::ResizeDisk { id: "disk0".to_owned(), size: None },
        ]
    }

    /// Every state with every request: `b` from the board, `d` done, `-` refused.
    #[test]
    fn every_request_has_its_answer_in_every_state() {
        for (state, is_busy, row) in [
            //                        status, report, audit, secret, continue,
            //                        migrate, check, cancel, resolve, quit, resize
            (State::Starting, true, "b--------d-"),
            (State::Paused, false, "bd-dd----d-"),
            (State::Running, false, "bdd--dd--dd"),
            (State::Running, true, "b--------d-"),
            (State::Migrating, true, "b------b-d-"),
            (State::Waiting, true, "b--------d-"),
            (State::Receiving, true, "b--------d-"),
            (State::InDoubt, true, "b-------d--"),
            (State::Moved, true, "b--------d-"),
        ] {
            let decided = requests().map(|request| match decide(state, is_busy, &request) {
                Admission::FromBoard => 'b',
                Admission::Do => 'd',
                Admission::Refuse(_) => '-',
            });
            assert_eq!(decided.iter().collect::<String>(), row, "{state:?}, busy: {is_busy}");
        }
    }

    /// A refusal says what stands in the way, and what to do where something can be done.
    #[test]
    fn a_refusal_fits_its_state() {
        for (state, is_busy, column, words) in [
            (State::Starting, true, 1, "being started"),
            (State::Paused, false, 5, "sevferry continue"),
            (State::Paused, false, 8, "does not run yet"),
            (State::Running, false, 3, "--paused"),
            (State::Running, false, 4, "runs already"),
            (State::Running, false, 8, "the guest runs here"),
            (State::Running, true, 5, "another host is being asked"),
            (State::Migrating, true, 6, "sevferry status"),
            (State::Waiting, true, 1, "no guest yet"),
            (State::Receiving, true, 7, "sevferry quit"),
            (State::InDoubt, true, 7, "sevferry resolve"),
            (State::InDoubt, true, 9, "sevferry resolve"),
        ] {
            let request = &requests()[column];
            let refusal = decide(state, is_busy, request).refusal().unwrap_or_default();
            assert!(refusal.contains(words), "{state:?} {request:?}: {refusal}");
        }
    }

    /// What the server answers itself never waits for the process, in any state.
    #[test]
    fn the_process_is_asked_for_nothing_that_the_server_answers() {
        use State::{InDoubt, Migrating, Moved, Paused, Receiving, Running, Starting, Waiting};
        for request in requests().iter().filter(|request| !needs_process(request)) {
            for state in [Starting, Paused, Running, Migrating, Waiting, Receiving, InDoubt, Moved]
            {
                assert_ne!(decide(state, true, request), Admission::Do, "{state:?} {request:?}");
            }
        }
    }
}
