//! Connects on a thread of its own, so that the caller can give up although a name server or a host does not
//! answer. After that the thread makes no connection any more.

use std::io::{Error as IoError, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::endpoint::Endpoint;
use super::stream::Stream;

/// How long the look-up of a name may take. It does not count as the other host's time.
pub const LOOK_UP_MAX: Duration = Duration::from_secs(30);

/// A connection that is being made.
#[derive(Debug)]
pub(crate) struct Dialling {
    outcome: Receiver<Result<Stream, IoError>>,
    /// Whether the name has been found. The thread has the other reference.
    found: Arc<AtomicBool>,
    begun: Instant,
}

impl Dialling {
    /// Connects to `to`. Its host has `patience` to answer.
    ///
    /// # Errors
    /// If this host has no thread to give.
    pub(crate) fn start(to: &Endpoint, patience: Duration) -> Result<Self, IoError> {
        let to = to.clone();
        Self::start_with(move |found| Stream::connect(&to, patience, found))
    }

    fn start_with(
        connect: impl FnOnce(&dyn Fn() -> bool) -> Result<Stream, IoError> + Send + 'static,
    ) -> Result<Self, IoError> {
        let (tell, outcome) = channel();
        let found = Arc::new(AtomicBool::new(false));
        let wanted = Arc::downgrade(&found);
        let dial = move || {
            let is_wanted = || {
                wanted.upgrade().is_some_and(|found| {
                    found.store(true, Ordering::Relaxed);
                    true
                })
            };
            // Fails if the caller has given up. Then the connection is closed here.
            tell.send(connect(&is_wanted)).unwrap_or_default();
        };
        Builder::new().name("connect".to_owned()).spawn(dial)?;
        Ok(Self { outcome, found, begun: Instant::now() })
    }

    /// The connection, or the error; `None` if there is neither within `step`.
    pub(crate) fn outcome(&self, step: Duration) -> Option<Result<Stream, IoError>> {
        match self.outcome.recv_timeout(step) {
            Ok(outcome) => Some(outcome),
            Err(RecvTimeoutError::Disconnected) => {
                Some(Err(IoError::other("the thread that connects has ended")))
            }
            Err(RecvTimeoutError::Timeout) => {
                let is_late = self.begun.elapsed() > LOOK_UP_MAX;
                let late = || {
                    let seconds = LOOK_UP_MAX.as_secs();
                    let text = format!("no name server has said within {seconds} s where it is");
                    Err(IoError::new(ErrorKind::TimedOut, text))
                };
                (is_late && !self.found.load(Ordering::Relaxed)).then(late)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::unix::net::UnixListener;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn endpoint(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    /// What comes of it is told; a host that is not there is told by its error.
    #[test]
    fn the_outcome_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = endpoint(&format!("tcp:localhost:{}", listener.local_addr().unwrap().port()));
        let dialling = Dialling::start(&to, SOON).unwrap();
        let _connection = dialling.outcome(SOON).unwrap().unwrap();
        drop(listener);
        let refused = Dialling::start(&to, SOON).unwrap().outcome(SOON).unwrap().unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    }

    /// While there is no answer, the caller can check whether to give up. After it has given up, no connection is made
    /// to the name that is found at last.
    #[test]
    fn a_lookup_that_hangs_is_given_up() {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("b");
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let to = endpoint(&format!("unix:{}", path.display()));
        let ((answer, name_server), (done, over)) = (channel::<()>(), channel());
        let dialling = Dialling::start_with(move |found| {
            name_server.recv().unwrap();
            let outcome = Stream::connect(&to, SOON, found);
            done.send(outcome.as_ref().map(drop).map_err(IoError::kind)).unwrap();
            outcome
        });
        let dialling = dialling.unwrap();
        let begun = Instant::now();
        assert!(dialling.outcome(Duration::from_millis(20)).is_none());
        assert!(begun.elapsed() < SOON);
        drop(dialling);
        answer.send(()).unwrap();
        assert_eq!(over.recv_timeout(SOON).unwrap(), Err(ErrorKind::TimedOut));
        assert!(listener.accept().is_err(), "nobody connects after it was given up");
    }
}
