//! `sevferry migrate`: has a guest moved, shows the progress, and says how it ended.

use std::io::Error as IoError;
use std::path::{Path, absolute};
use std::sync::mpsc::{RecvError, Sender, channel};
use std::thread::{Builder, park_timeout};
use std::time::Duration;

use log::debug;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use thiserror::Error;

use crate::cli::arguments::MigrateOptions;
use crate::cli::exit::ExitStatus;
use crate::cli::show::{Display, End};
use crate::control::api::{Outcome, Request, Response, State};
use crate::control::{Client, ClientError, PATIENCE, ask};
use crate::migration::{BadEndpoint, Endpoint};

/// How often to ask for the progress.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The user is told of a doubt after this many looks in a row that find one: every migration is in doubt for a moment.
const DOUBT_AFTER: u64 = 20;

/// What the user is told then.
const IN_DOUBT: &str = "the destination does not say whether the guest runs there; it is asked \
     again until it answers, or sevferry resolve decides at both hosts";

/// Said to a user after the second interrupt.
const GOES_ON: &str = "interrupted; the migration goes on until it is cancelled or over, and \
     sevferry status shows how it ends";

/// What happens while a migration is waited for.
#[derive(Debug)]
enum News {
    /// A response of the guest's process, or it is gone.
    Process(Result<Response, ClientError>),
    /// The present status.
    Status(Result<Response, ClientError>),
    /// The user wants to give up.
    Interrupted,
}

/// Asks for the migration and waits until it has ended.
///
/// # Errors
/// [`MigrateError`]: the migration did not begin, or it is not known how it ended.
pub(crate) fn migrate(options: &MigrateOptions) -> Result<ExitStatus, MigrateError> {
    let mut request = options.request.clone();
    request.to = as_the_process_sees(&request.to)?;
    let client = Client::ask(&options.api_socket, &Request::Migrate(request))?;
    let (news, heard) = channel();
    forward_interrupts(news.clone())?;
    // Other threads wait for the guest's process, so that this one notices interrupts.
    let (path, looks) = (options.api_socket.clone(), news.clone());
    start("status", move || watch(&path, &looks))?;
    start("process", move || listen_to(&client, &news))?;

    let mut display = Display::new(options.json);
    let (mut begun, mut doubtful, mut is_cancelled) = (false, 0_u64, false);
    loop {
        match heard.recv() {
            Ok(News::Process(Ok(Response::Accepted))) => begun = true,
            Ok(News::Process(answer)) => {
                let end = end_of(answer, begun)?;
                display.end(&end);
                return Ok(exit_of(end.outcome()));
            }
            Ok(News::Interrupted) if is_cancelled => {
                display.say(GOES_ON);
                return Ok(ExitStatus::GoesOn);
            }
            Ok(News::Interrupted) => {
                display.say("cancelling; interrupt again to stop waiting for that");
                is_cancelled = true;
                let path = options.api_socket.clone();
                // The end of the migration says how it went.
                let cancel = move || {
                    let answer = ask(&path, &Request::Cancel);
                    debug!("{answer:?}");
                };
                start("cancel", cancel)?;
            }
            Ok(News::Status(Ok(Response::Status(status)))) => {
                doubtful = if status.state == State::InDoubt { doubtful + 1 } else { 0 };
                if doubtful == DOUBT_AFTER {
                    display.say(IN_DOUBT);
                }
                display.show(&status);
            }
            // A look that fails does not matter: the process's own response is on its way.
            Ok(News::Status(other)) => debug!("no status: {other:?}"),
            // Does not happen: the listening thread sends a last message.
            Err(RecvError) => return Err(MigrateError::AnotherAnswer),
        }
    }
}

fn start(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), MigrateError> {
    let started = Builder::new().name(name.to_owned()).spawn(work);
    started.map(|_detached| ()).map_err(MigrateError::Thread)
}

/// Asks for the status now and then.
fn watch(path: &Path, news: &Sender<News>) {
    loop {
        park_timeout(LOOK_EVERY);
        if news.send(News::Status(ask(path, &Request::Status))).is_err() {
            return;
        }
    }
}

/// What the last response of the guest's process means.
fn end_of(answer: Result<Response, ClientError>, begun: bool) -> Result<End, MigrateError> {
    match answer {
        Ok(Response::Ended(summary)) => Ok(End::Told(summary)),
        Ok(Response::Refused { reason }) => Ok(End::Untold(Outcome::Kept(reason))),
        Ok(Response::Error { message }) => Err(MigrateError::Failed { message }),
        Ok(
            Response::Accepted
            | Response::Status(_)
            | Response::Report(_)
            | Response::Audited(_)
            | Response::Checked(_),
        ) => Err(MigrateError::AnotherAnswer),
        Err(cause) if begun => {
            let reason = format!(
                "{cause}; if the guest runs at the destination, `sevferry status` says so there"
            );
            Ok(End::Untold(Outcome::InDoubt(reason)))
        }
        Err(cause) => Err(cause.into()),
    }
}

fn exit_of(outcome: &Outcome) -> ExitStatus {
    match outcome {
        Outcome::Moved => ExitStatus::Success,
        Outcome::Kept(_) => ExitStatus::Stayed,
        Outcome::Ended(_) => ExitStatus::GuestEnded,
        Outcome::InDoubt(_) => ExitStatus::InDoubt,
        Outcome::Failed(_) => ExitStatus::Failure,
    }
}

/// The guest's process may run in another directory than this command.
///
/// # Errors
/// [`BadDirectory`].
pub(crate) fn as_the_process_sees(to: &Endpoint) -> Result<Endpoint, BadDirectory> {
    match to {
        Endpoint::Tcp { .. } => Ok(to.clone()),
        Endpoint::Unix { path } => {
            let path = absolute(path).map_err(BadDirectory::Unknown)?;
            Ok(format!("unix:{}", path.display()).parse()?)
        }
    }
}

/// Passes on the responses of the guest's process, up to the last.
fn listen_to(client: &Client, news: &Sender<News>) {
    let mut responses = client.responses();
    let mut patience = Some(PATIENCE);
    loop {
        let response = responses.next(patience);
        let more = matches!(response, Ok(Response::Accepted));
        if news.send(News::Process(response)).is_err() || !more {
            return;
        }
        // No deadline here: the migration's own timeout ends it.
        patience = None;
    }
}

fn forward_interrupts(news: Sender<News>) -> Result<(), MigrateError> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).map_err(MigrateError::Signals)?;
    let forward = move || {
        for _signal in signals.forever() {
            if news.send(News::Interrupted).is_err() {
                return;
            }
        }
    };
    start("signals", forward)
}

/// Why a socket's path means nothing to the guest's process.
#[derive(Debug, Error)]
pub(crate) enum BadDirectory {
    /// A relative path, relative to nothing.
    #[error("finding the directory that the destination's socket is in")]
    Unknown(#[source] IoError),
    /// Too long, once it is absolute.
    #[error(transparent)]
    Endpoint(#[from] BadEndpoint),
}

/// Why the guest was not moved, or why that is not known.
#[derive(Debug, Error)]
pub(crate) enum MigrateError {
    /// The guest's process does not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The guest's process could not.
    #[error("the guest's process answers: {message}")]
    Failed {
        /// What it says.
        message: String,
    },
    /// An answer to another question.
    #[error("the guest's process gives an answer to something else; is it the same sevferry?")]
    AnotherAnswer,
    /// Where the destination's socket is.
    #[error(transparent)]
    Directory(#[from] BadDirectory),
    /// No signal handlers.
    #[error("preparing for signals")]
    Signals(#[source] IoError),
    /// The host has no thread to give.
    #[error("starting a thread")]
    Thread(#[source] IoError),
}
