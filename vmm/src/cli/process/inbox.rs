//! The queue of events that the process has not handled yet, also while a migration keeps it busy.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use log::warn;

use crate::control::api::{Request, Resolution, Response, State};
use crate::control::policy::{Admission, NOT_NOW, decide};
use crate::control::{Answer, Event, StatusBoard};
use crate::migration::watch::Wish;
use crate::migration::wire::Reason;
use crate::text::chain_of;
use crate::vcpu::Stop;

/// The process's queue. A request leaves it only if it can be done now. The others are answered here.
#[derive(Debug)]
pub(crate) struct Inbox {
    happened: Receiver<Event>,
    /// Has the state of the process.
    board: Arc<StatusBoard>,
    deferred: RefCell<Deferred>,
}

/// Events during a migration that are kept for afterwards.
#[derive(Debug, Default)]
struct Deferred {
    stops: VecDeque<Stop>,
    quit: bool,
    report: bool,
    /// A decision that is being carried out, and where its answer goes.
    decision: Option<(Resolution, Answer)>,
}

/// How a guest has ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum OwnEnd {
    /// It asked for a reset.
    Reset,
    /// It is gone; in words.
    Gone(String),
}

impl From<&Stop> for OwnEnd {
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
    /// The queue of what comes through `happened`, in order.
    pub(crate) fn new(happened: Receiver<Event>, board: Arc<StatusBoard>) -> Self {
        Self { happened, board, deferred: RefCell::default() }
    }

    /// Waits for the next event to handle.
    pub(crate) fn next(&self) -> Event {
        loop {
            let deferred = self.deferred.borrow_mut().take();
            let event = deferred.unwrap_or_else(|| self.happened.recv().unwrap_or(Event::Quit));
            if let Some(event) = self.take_up(event, false) {
                return event;
            }
        }
    }

    /// Waits for the next event to handle, until `deadline` if there is one. `None` if there is no event by then.
    pub(crate) fn next_by(&self, deadline: Option<Instant>) -> Option<Event> {
        let Some(deadline) = deadline else { return Some(self.next()) };
        loop {
            let deferred = self.deferred.borrow_mut().take();
            let left = deadline.saturating_duration_since(Instant::now());
            let event = match deferred.map_or_else(|| self.happened.recv_timeout(left), Ok) {
                Ok(event) => event,
                Err(RecvTimeoutError::Timeout) => return None,
                Err(RecvTimeoutError::Disconnected) => Event::Quit,
            };
            if let Some(event) = self.take_up(event, false) {
                return Some(event);
            }
        }
    }

    /// The event, if the process has to handle it; `None` if it is answered here.
    fn take_up(&self, event: Event, is_busy: bool) -> Option<Event> {
        let Event::Request(request, answer) = event else { return Some(event) };
        match decide(self.board.state(), is_busy, &request) {
            Admission::FromBoard => answer.give(self.board.answer(&request, Duration::ZERO)),
            Admission::Refuse(why) => answer.refuse(why),
            Admission::Do if request == Request::Quit => {
                answer.give(Response::Accepted);
                return Some(Event::Quit);
            }
            Admission::Do => return Some(Event::Request(request, answer)),
        }
        None
    }

    /// How the guest ended, if it did.
    pub(crate) fn stopped(&self) -> Option<Stop> {
        self.deferred.borrow_mut().stops.pop_front()
    }

    /// How the guest has ended during the migration that is over now, if it has. [`Inbox::next`] will return that event
    /// too.
    pub(crate) fn why_it_ended(&self) -> Option<OwnEnd> {
        // The guest's end may still be in the channel. This moves it to `deferred`, and a wish stays there too.
        let _for_later = self.wish();
        self.deferred.borrow().stops.front().map(OwnEnd::from)
    }

    /// Refuses the decision that was passed on: it cannot be carried out.
    pub(crate) fn refuse_decision(&self, why: &str) {
        if let Some((_, answer)) = self.deferred.borrow_mut().decision.take() {
            answer.refuse(why);
        }
    }

    /// The doubt is over, and has ended as if `as_if` had been decided: answers the decision that waits.
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

    /// The present wish about the migration, or whatever else keeps the process busy. Never waits. In doubt only a
    /// decision counts: if the process ended then, the only copy of the guest might be lost.
    ///
    /// Requests that need an idle process are refused here, so that no client waits for hours.
    pub(crate) fn wish(&self) -> Option<Wish> {
        let mut deferred = self.deferred.borrow_mut();
        while let Ok(event) = self.happened.try_recv() {
            match self.take_up(event, true) {
                None => {}
                Some(Event::Stopped(stop)) => deferred.stops.push_back(stop),
                Some(Event::Quit) => {
                    match decide(self.board.state(), true, &Request::Quit).refusal() {
                        Some(why) => warn!("{why}"),
                        None => deferred.quit = true,
                    }
                }
                Some(Event::Report) => deferred.report = true,
                Some(Event::Request(Request::Resolve(resolution), answer)) => {
                    if let Some((_, earlier)) = deferred.decision.replace((resolution, answer)) {
                        earlier.refuse("somebody else has decided meanwhile");
                    }
                    return Some(Wish::Resolve(resolution));
                }
                Some(Event::Request(_, answer)) => answer.refuse(NOT_NOW),
            }
        }
        let why = if self.board.state() == State::InDoubt {
            return None;
        } else if !deferred.stops.is_empty() {
            "the guest stopped"
        } else if deferred.quit {
            "sevferry is to end"
        } else if self.board.is_cancelled() {
            "the user cancelled it"
        } else {
            return None;
        };
        Some(Wish::Cancel(Reason::new(why)))
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

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    fn migrating(state: State) -> (Sender<Event>, Inbox, Arc<StatusBoard>) {
        let (events, happened) = channel();
        let board = Arc::new(StatusBoard::new(state));
        (events, Inbox::new(happened, Arc::clone(&board)), board)
    }

    /// What is wished, in words.
    fn wished(inbox: &Inbox) -> Option<String> {
        inbox.wish().map(|wish| match wish {
            Wish::Cancel(reason) => reason.to_string(),
            Wish::Resolve(resolution) => format!("{resolution:?}"),
        })
    }

    fn cancel(why: &str) -> Option<String> {
        Some(why.to_owned())
    }

    fn ask(events: &Sender<Event>, request: Request) -> impl Fn() -> Response {
        let (answer, answers) = Answer::channel();
        events.send(Event::Request(request, answer)).unwrap();
        move || answers.try_recv().unwrap()
    }

    /// A guest that stops during its migration is told to the migration again and again, and
    /// once more afterwards, before anything else.
    #[test]
    fn a_stop_is_kept_for_later() {
        let (events, inbox, _board) = migrating(State::Migrating);
        assert_eq!(wished(&inbox), None);
        for event in [Event::Report, Event::Report, Event::Quit, Event::Stopped(Stop::Reset)] {
            events.send(event).unwrap();
        }
        for _ in 0..2 {
            assert_eq!(wished(&inbox), cancel("the guest stopped"));
        }
        assert!(matches!(inbox.next(), Event::Stopped(Stop::Reset)));
        assert_eq!(wished(&inbox), cancel("sevferry is to end"));
        assert!(matches!(inbox.next(), Event::Quit));
        assert!(matches!(inbox.next(), Event::Report));
        assert_eq!(wished(&inbox), None);
    }

    /// The end of a guest during its migration is known before its event is taken, also if no wish was asked for since.
    #[test]
    fn the_end_of_a_guest_is_known_when_its_migration_is_over() {
        let gone = |how: &str| Some(OwnEnd::Gone(how.to_owned()));
        for (stop, known) in [
            (Stop::PowerOff, gone("it powered off")),
            (Stop::TripleFault, gone("it crashed (triple fault)")),
            (Stop::Reset, Some(OwnEnd::Reset)),
        ] {
            let (events, inbox, _board) = migrating(State::Migrating);
            assert_eq!(inbox.why_it_ended(), None);
            events.send(Event::Quit).unwrap();
            events.send(Event::Stopped(stop)).unwrap();
            assert_eq!(inbox.why_it_ended(), known);
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
        assert_eq!(wished(&inbox), cancel("the user cancelled it"));
    }

    /// What needs an idle process is refused at once; quitting is accepted and heeded.
    #[test]
    fn a_busy_process_refuses() {
        let (events, inbox, _board) = migrating(State::Migrating);
        let report = ask(&events, Request::Report);
        let resolve = ask(&events, Request::Resolve(Resolution::Keep));
        assert_eq!(wished(&inbox), None);
        for response in [report(), resolve()] {
            assert!(matches!(response, Response::Refused { .. }), "{response:?}");
        }
        let quit = ask(&events, Request::Quit);
        assert_eq!(wished(&inbox), cancel("sevferry is to end"));
        assert_eq!(quit(), Response::Accepted);
    }

    /// `resolve` decides only when there is a doubt, and once; the client hears how it ended.
    #[test]
    fn a_decision_is_answered_when_it_is_carried_out() {
        let refused = |response| matches!(response, Response::Refused { .. });
        for (as_if, accepted) in [(Resolution::Discard, true), (Resolution::Keep, false)] {
            let (events, inbox, _board) = migrating(State::InDoubt);
            let resolve = ask(&events, Request::Resolve(Resolution::Discard));
            let resolved = Some("Discard".to_owned());
            assert_eq!(wished(&inbox), resolved);
            assert_eq!(wished(&inbox), None);
            inbox.settle_decision(as_if);
            assert_eq!(refused(resolve()), !accepted);
        }
        let (events, inbox, _board) = migrating(State::InDoubt);
        let first = ask(&events, Request::Resolve(Resolution::Keep));
        assert!(wished(&inbox).is_some());
        let second = ask(&events, Request::Resolve(Resolution::Discard));
        assert!(wished(&inbox).is_some());
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
        assert_eq!(wished(&inbox), None);
        assert!(matches!(quit(), Response::Refused { .. }));
        let resolve = ask(&events, Request::Resolve(Resolution::Keep));
        let resolved = Some("Keep".to_owned());
        assert_eq!(wished(&inbox), resolved);
        inbox.settle_decision(Resolution::Keep);
        assert_eq!(resolve(), Response::Accepted);
    }
}
