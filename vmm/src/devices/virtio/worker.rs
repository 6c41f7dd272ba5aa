//! The thread of a device: waits for doorbells and for the host, and lets the device work.

use std::io::Error as IoError;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};

use log::{debug, error};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Events taken at a time.
const EVENTS_MAX: usize = 16;

/// What a worker works for.
pub(super) trait Work: Send + Sync + 'static {
    /// The driver has rung the bell of this queue.
    fn rung(&self, queue: u16);

    /// This of the device's sources is readable.
    fn ready(&self, source: usize);
}

/// A running thread; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Worker {
    thread: Option<JoinHandle<()>>,
    end: EventFd,
}

impl Worker {
    /// Starts the thread `name`, which waits for `bells`, by queue, and for `sources`.
    ///
    /// # Errors
    /// If the host has no thread or descriptor to give.
    pub(super) fn start(
        name: String,
        bells: Vec<EventFd>,
        sources: &[RawFd],
        work: Arc<dyn Work>,
    ) -> Result<Self, IoError> {
        let (epoll, end) = (Epoll::new()?, EventFd::new(libc::EFD_NONBLOCK)?);
        let add = |descriptor: RawFd, events, token: usize| {
            let event = EpollEvent::new(events, token as u64);
            epoll.ctl(ControlOperation::Add, descriptor, event)
        };
        add(end.as_raw_fd(), EventSet::IN, 0)?;
        for (index, bell) in bells.iter().enumerate() {
            add(bell.as_raw_fd(), EventSet::IN, 1 + index)?;
        }
        let edge = EventSet::IN | EventSet::EDGE_TRIGGERED;
        for (index, source) in sources.iter().enumerate() {
            match add(*source, edge, 1 + bells.len() + index) {
                // A file that is always ready, or says that it is.
                Err(cause) if cause.raw_os_error() == Some(libc::EPERM) => {
                    debug!("{name}: source {index} cannot be waited for");
                }
                other => other?,
            }
        }
        let wait = move || wait(&epoll, &bells, &*work);
        let thread = Some(Builder::new().name(name).spawn(wait)?);
        Ok(Self { thread, end })
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let asked = self.end.write(1).is_ok();
        if let Some(thread) = self.thread.take().filter(|_| asked)
            && thread.join().is_err()
        {
            error!("the thread of a device panicked; please report it");
        }
    }
}

/// Until the end is asked for.
fn wait(epoll: &Epoll, bells: &[EventFd], work: &dyn Work) {
    let mut events = [EpollEvent::default(); EVENTS_MAX];
    loop {
        let count = match epoll.wait(-1, &mut events) {
            Ok(count) => count,
            Err(cause) if cause.raw_os_error() == Some(libc::EINTR) => continue,
            Err(cause) => return error!("a device stops: waiting for its driver: {cause}"),
        };
        for event in events.iter().take(count) {
            let Some(index) = usize::try_from(event.data()).ok().and_then(|at| at.checked_sub(1))
            else {
                return;
            };
            match bells.get(index) {
                Some(bell) => {
                    // Before the ring is looked at: what is rung after that is another event.
                    bell.read().unwrap_or_default();
                    work.rung(u16::try_from(index).unwrap_or(u16::MAX));
                }
                None => work.ready(index - bells.len()),
            }
        }
    }
}
