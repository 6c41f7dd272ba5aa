//! The wires of a bus whose guest is this process: for tests and benchmarks of devices.

use std::collections::BTreeMap;
use std::io::Error as IoError;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

use super::wires::{MsiMessage, Wires};

/// Interrupts that wait to be looked at, and doorbells that can be rung.
#[derive(Debug)]
pub struct InProcess {
    raised: Epoll,
    interrupts: Mutex<Vec<(EventFd, Option<MsiMessage>)>>,
    bells: Mutex<BTreeMap<u64, EventFd>>,
    routes: AtomicUsize,
}

impl InProcess {
    /// Wires that nothing is connected to.
    ///
    /// # Errors
    /// If the host has no descriptor to give.
    pub fn new() -> Result<Self, IoError> {
        Ok(Self {
            raised: Epoll::new()?,
            interrupts: Mutex::default(),
            bells: Mutex::default(),
            routes: AtomicUsize::new(0),
        })
    }

    /// The messages sent since the last call. Two of the same vector are one, as in an interrupt
    /// controller.
    #[must_use]
    pub fn sent(&self) -> Vec<MsiMessage> {
        let interrupts = lock(&self.interrupts);
        let sent = interrupts.iter().filter(|(interrupt, _)| interrupt.read().is_ok());
        sent.filter_map(|(_, message)| *message).collect()
    }

    /// Forgets the messages sent so far.
    pub fn clear(&self) {
        for (interrupt, _) in &*lock(&self.interrupts) {
            interrupt.read().unwrap_or_default();
        }
    }

    /// Waits until a message is there, or the time is over.
    pub fn wait(&self, patience: Duration) -> bool {
        let patience = i32::try_from(patience.as_millis()).unwrap_or(i32::MAX);
        let mut events = [EpollEvent::default()];
        self.raised.wait(patience, &mut events).is_ok_and(|raised| raised > 0)
    }

    /// Rings the bell at `address`, as a guest's write there does; false if none is attached.
    pub fn ring(&self, address: u64) -> bool {
        lock(&self.bells).get(&address).is_some_and(|bell| bell.write(1).is_ok())
    }

    /// Where bells are.
    #[must_use]
    pub fn bells(&self) -> Vec<u64> {
        lock(&self.bells).keys().copied().collect()
    }

    /// How often a message was routed.
    #[must_use]
    pub fn routes(&self) -> usize {
        self.routes.load(Ordering::Relaxed)
    }
}

impl Wires for InProcess {
    fn connect(&self, interrupt: &EventFd) -> Result<u32, IoError> {
        let mut interrupts = lock(&self.interrupts);
        let number = u32::try_from(interrupts.len()).map_err(IoError::other)?;
        let interrupt = interrupt.try_clone()?;
        let event = EpollEvent::new(EventSet::IN, u64::from(number));
        self.raised.ctl(ControlOperation::Add, interrupt.as_raw_fd(), event)?;
        interrupts.push((interrupt, None));
        Ok(number)
    }

    fn route(&self, number: u32, message: MsiMessage) -> Result<(), IoError> {
        self.routes.fetch_add(1, Ordering::Relaxed);
        let index = usize::try_from(number).map_err(IoError::other)?;
        let mut interrupts = lock(&self.interrupts);
        let interrupt = interrupts.get_mut(index).ok_or_else(|| IoError::other("no such one"))?;
        interrupt.1 = Some(message);
        Ok(())
    }

    fn attach(&self, bell: &EventFd, address: u64) -> Result<(), IoError> {
        let bell = bell.try_clone()?;
        let taken = || IoError::from_raw_os_error(libc::EEXIST);
        let mut bells = lock(&self.bells);
        if bells.contains_key(&address) {
            return Err(taken());
        }
        bells.insert(address, bell);
        Ok(())
    }

    fn detach(&self, _bell: &EventFd, address: u64) -> Result<(), IoError> {
        let gone = || IoError::from_raw_os_error(libc::ENOENT);
        lock(&self.bells).remove(&address).map(drop).ok_or_else(gone)
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
