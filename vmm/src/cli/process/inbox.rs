//! What has happened and was not dealt with yet, also while a migration keeps the owner busy.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Instant;

use log::warn;

use crate::control::api::{Request, Resolution, Response, State};
use crate::control::{Answer, Event, StatusBoard};
use crate::machine::chain_of;
use crate::vcpu::Stop;

/// What is said to those who want anything else in a doubt.
const DOUBT: &str = "the other host may run the guest; `sevferry resolve` decides that first";

/// The owner's queue.
#[derive(Debug)]
pub(crate) struct Inbox {
    happened: Receiver<Event>,
    deferred: RefCell<Deferred>,
}

/// What happened during a migration, for afterwards.
#[derive(Debug, Default)]
struct Deferred {
    stops: VecDeque<Stop>,
    quit: bool,
    report: bool,
    /// A decision that is being carried out, and who waits for that.
    decision: Option<(Resolution, Answer)>,
}

/// What a migration that is under way must heed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Interruption {
    /// The guest powered off, was reset, or failed: it is not moved. [`Inbox::next`] tells how.
    GuestStopped,
    /// The user wants to end the process; [`Inbox::next`] says so too.
    Quit,
    /// The user wants the guest to stay.
    Cancelled,
    /// The user decides a handover that is in doubt; told once.
    Resolved(Resolution),
}

/// How a guest has ended of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It asked for a reset.
    Reset,
    /// It is gone; in words.
    Gone(String),
}

impl From<&Stop> for Ended {
    fn from(stop: &Stop) -> Self {
        match stop {
            Stop::Reset => Self::Reset,
            Stop::PowerOff => Self::Gone("it powered off".to_owned()),
            Stop::TripleFault => Self::Gone("it crashed (triple fault)".to_owned()),
            Stop::Failed(cause) => Self::Gone(chain_of(cause)),
        }
    }
}

impl Inbox {
    /// What comes through `happened`, in order.
    pub(crate) fn new(happened: Receiver<Event>) -> Self {
        Self { happened, deferred: RefCell::default() }
    }

    /// Waits for what is to be dealt with next.
    pub(crate) fn next(&self) -> Event {
        let deferred = self.deferred.borrow_mut().take();
        deferred.unwrap_or_else(|| self.happened.recv().unwrap_or(Event::Quit))
    }

    /// Waits for what is to be dealt with next, until `deadline` if there is one; `None` if nothing
    /// has come by then.
    pub(crate) fn next_by(&self, deadline: Option<Instant>) -> Option<Event> {
        let Some(deadline) = deadline else { return Some(self.next()) };
        let deferred = self.deferred.borrow_mut().take();
        deferred.or_else(|| {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.happened.recv_timeout(left) {
                Ok(event) => Some(event),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => Some(Event::Quit),
            }
        })
    }

    /// How the guest ended, if it did.
    pub(crate) fn stopped(&self) -> Option<Stop> {
        self.deferred.borrow_mut().stops.pop_front()
    }

    /// How the guest of a migration that is over has ended meanwhile, if it has; [`Inbox::next`] tells
    /// the owner.
    pub(crate) fn why_it_ended(&self, board: &StatusBoard) -> Option<Ended> {
        // What has not been looked at yet may be the guest's end.
        let _heeded_by_the_owner = self.interruption(board);
        self.deferred.borrow().stops.front().map(Ended::from)
    }

    /// The decision that was passed on cannot be carried out.
    pub(crate) fn refuse_decision(&self, why: &str) {
        if let Some((_, answer)) = self.deferred.borrow_mut().decision.take() {
            answer.refuse(why);
        }
    }

    /// The doubt is over, and ended as if this had been decided.
    pub(crate) fn settle_decision(&self, as_if: Resolution) {
        match self.deferred.borrow_mut().decision.take() {
            Some((wanted, answer)) if wanted == as_if => answer.give(Response::Accepted),
            Some((_, answer)) => answer.refuse(match as_if {
                Resolution::Keep => "too late: the guest runs here",
                Resolution::Discard => "too late: the guest is the other host's",
            }),
            None => {}
        }
    }

    /// What the migration must heed now, without waiting. In doubt that is a decision and nothing
    /// else: a process that ended then might take the only copy of the guest with it.
    ///
    /// Requests that need an idle owner are refused here, so that nobody waits for hours.
    pub(crate) fn interruption(&self, board: &StatusBoard) -> Option<Interruption> {
        let mut deferred = self.deferred.borrow_mut();
        let in_doubt = board.state() == State::InDoubt;
        while let Ok(event) = self.happened.try_recv() {
            match event {
                Event::Stopped(stop) => deferred.stops.push_back(stop),
                Event::Quit if in_doubt => warn!("{DOUBT}"),
                Event::Quit => deferred.quit = true,
                Event::Report => deferred.report = true,
                Event::Request(Request::Quit, answer) if !in_doubt => {
                    answer.give(Response::Accepted);
                    deferred.quit = true;
                }
                Event::Request(Request::Resolve(resolution), answer) if in_doubt => {
                    if let Some((_, earlier)) = deferred.decision.replace((resolution, answer)) {
                        earlier.refuse("somebody else has decided meanwhile");
                    }
                    return Some(Interruption::Resolved(resolution));
                }
                Event::Request(request, answer) => respond_while_busy(&request, &answer, board),
            }
        }
        if in_doubt {
            None
        } else if !deferred.stops.is_empty() {
            Some(Interruption::GuestStopped)
        } else if deferred.quit {
            Some(Interruption::Quit)
        } else {
            board.is_cancelled().then_some(Interruption::Cancelled)
        }
    }
}

impl Deferred {
    fn take(&mut self) -> Option<Event> {
        if let Some(stop) = self.stops.pop_front() {
            return Some(Event::Stopped(stop));
        }
        for (happened, event) in [(&mut self.quit, Event::Quit), (&mut self.report, Event::Report)]
        {
            if *happened {
                *happened = false;
                return Some(event);
            }
        }
        None
    }
}

fn respond_while_busy(request: &Request, answer: &Answer, board: &StatusBoard) {
    match request {
        Request::Status => answer.give(board.status()),
        Request::Cancel => answer.give(board.cancel()),
        Request::Resolve(_) => answer.refuse("no handover is in doubt"),
        Request::Report
        | Request::Audit
        | Request::InjectSecret(_)
        | Request::Continue
        | Request::Migrate(_)
        | Request::Check(_)
        | Request::Quit => {
            answer.refuse(match board.state() {
                State::Waiting => "there is no guest yet",
                State::Receiving => "the guest is still arriving; `sevferry status` shows how far",
                State::InDoubt => DOUBT,
                State::Running => "another host is being asked about the guest; try again",
                State::Starting | State::Paused | State::Migrating | State::Moved => {
                    "a migration is under way; `sevferry status` shows how far"
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::time::Duration;

    use super::*;

    fn migrating(state: State) -> (Sender<Event>, Inbox, StatusBoard) {
        let (events, happened) = channel();
        let board = StatusBoard::new(state);
        (events, Inbox::new(happened), board)
    }

    fn ask(events: &Sender<Event>, request: Request) -> impl Fn() -> Response {
        let (answer, answers) = Answer::channel();
        events.send(Event::Request(request, answer)).unwrap();
        move || answers.try_recv().unwrap()
    }

    /// A guest that stops during its migration is told to the migration again and again, and to
    /// the owner afterwards, before anything else.
    #[test]
    fn a_stop_is_kept_for_the_owner() {
        let (events, inbox, board) = migrating(State::Migrating);
        assert_eq!(inbox.interruption(&board), None);
        for event in [Event::Report, Event::Report, Event::Quit, Event::Stopped(Stop::Reset)] {
            events.send(event).unwrap();
        }
        for _ in 0..2 {
            assert_eq!(inbox.interruption(&board), Some(Interruption::GuestStopped));
        }
        assert!(matches!(inbox.next(), Event::Stopped(Stop::Reset)));
        assert_eq!(inbox.interruption(&board), Some(Interruption::Quit));
        assert!(matches!(inbox.next(), Event::Quit));
        assert!(matches!(inbox.next(), Event::Report));
        assert_eq!(inbox.interruption(&board), None);
    }

    /// How a guest ended during its migration is known before the owner takes it, also when nobody has
    /// looked since.
    #[test]
    fn the_end_of_a_guest_is_known_when_its_migration_is_over() {
        let gone = |how: &str| Some(Ended::Gone(how.to_owned()));
        for (stop, known) in [
            (Stop::PowerOff, gone("it powered off")),
            (Stop::TripleFault, gone("it crashed (triple fault)")),
            (Stop::Reset, Some(Ended::Reset)),
        ] {
            let (events, inbox, board) = migrating(State::Migrating);
            assert_eq!(inbox.why_it_ended(&board), None);
            events.send(Event::Quit).unwrap();
            events.send(Event::Stopped(stop)).unwrap();
            assert_eq!(inbox.why_it_ended(&board), known);
            assert!(matches!(inbox.next(), Event::Stopped(_)));
            assert!(matches!(inbox.next(), Event::Quit));
        }
    }

    /// Waiting with a deadline ends with nothing when that has passed, and with what came before it.
    #[test]
    fn a_wait_may_have_a_deadline() {
        let (events, inbox, _board) = migrating(State::Paused);
        assert!(inbox.next_by(Some(Instant::now())).is_none());
        events.send(Event::Report).unwrap();
        let later = Some(Instant::now() + Duration::from_secs(60));
        assert!(matches!(inbox.next_by(later), Some(Event::Report)));
        events.send(Event::Report).unwrap();
        assert!(matches!(inbox.next_by(None), Some(Event::Report)));
        drop(events);
        assert!(matches!(inbox.next_by(later), Some(Event::Quit)));
    }

    /// Cancelling comes by the board, as the server does it.
    #[test]
    fn a_migration_hears_that_it_is_cancelled() {
        let (_events, inbox, board) = migrating(State::Migrating);
        assert_eq!(board.cancel(), Response::Accepted);
        assert_eq!(inbox.interruption(&board), Some(Interruption::Cancelled));
    }

    /// What needs an idle owner is refused at once; quitting is accepted and heeded.
    #[test]
    fn a_busy_owner_refuses() {
        let (events, inbox, board) = migrating(State::Migrating);
        let report = ask(&events, Request::Report);
        let resolve = ask(&events, Request::Resolve(Resolution::Keep));
        assert_eq!(inbox.interruption(&board), None);
        for response in [report(), resolve()] {
            assert!(matches!(response, Response::Refused { .. }), "{response:?}");
        }
        let quit = ask(&events, Request::Quit);
        assert_eq!(inbox.interruption(&board), Some(Interruption::Quit));
        assert_eq!(quit(), Response::Accepted);
    }

    /// `resolve` decides only when there is a doubt, and once; who asked hears how it ended.
    #[test]
    fn a_decision_is_answered_when_it_is_carried_out() {
        let refused = |response| matches!(response, Response::Refused { .. });
        for (as_if, accepted) in [(Resolution::Discard, true), (Resolution::Keep, false)] {
            let (events, inbox, board) = migrating(State::InDoubt);
            let resolve = ask(&events, Request::Resolve(Resolution::Discard));
            let resolved = Some(Interruption::Resolved(Resolution::Discard));
            assert_eq!(inbox.interruption(&board), resolved);
            assert_eq!(inbox.interruption(&board), None);
            inbox.settle_decision(as_if);
            assert_eq!(refused(resolve()), !accepted);
        }
        let (events, inbox, board) = migrating(State::InDoubt);
        let first = ask(&events, Request::Resolve(Resolution::Keep));
        assert!(inbox.interruption(&board).is_some());
        let second = ask(&events, Request::Resolve(Resolution::Discard));
        assert!(inbox.interruption(&board).is_some());
        inbox.refuse_decision("the journal is full");
        assert!(refused(first()) && refused(second()));
    }

    /// In doubt, quitting and cancelling are not heeded, whether they came before or after.
    #[test]
    fn a_doubt_is_not_ended_by_quitting() {
        let (events, inbox, board) = migrating(State::Migrating);
        assert_eq!(board.cancel(), Response::Accepted);
        board.show(State::InDoubt);
        events.send(Event::Quit).unwrap();
        let quit = ask(&events, Request::Quit);
        assert_eq!(inbox.interruption(&board), None);
        assert!(matches!(quit(), Response::Refused { .. }));
        let resolve = ask(&events, Request::Resolve(Resolution::Keep));
        let resolved = Some(Interruption::Resolved(Resolution::Keep));
        assert_eq!(inbox.interruption(&board), resolved);
        inbox.settle_decision(Resolution::Keep);
        assert_eq!(resolve(), Response::Accepted);
    }
}
