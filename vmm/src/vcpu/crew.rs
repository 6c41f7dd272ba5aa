//! The threads of a machine's vCPUs, and what they and their owner agree on.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use log::debug;
use vmm_sys_util::signal::{Killable, SIGRTMIN};

/// How long a kicked vCPU thread may take before it is kicked again: a signal that arrives just
/// before `KVM_RUN` interrupts nothing.
pub(super) const KICK_AGAIN: Duration = Duration::from_millis(1);

/// The threads, with the indices of their vCPUs, ascending. Locked after [`Running::alive`].
pub(super) type Crew = Mutex<Vec<(usize, JoinHandle<Option<VcpuFd>>)>>;

pub(super) fn threads(crew: &Crew) -> MutexGuard<'_, Vec<(usize, JoinHandle<Option<VcpuFd>>)>> {
    crew.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Brings those that are in the guest out of it.
pub(super) fn kick(crew: &Crew, alive: &[Presence]) {
    for (index, thread) in &*threads(crew) {
        if alive.get(*index) == Some(&Presence::Here)
            && let Err(cause) = thread.kill(SIGRTMIN())
        {
            debug!("kicking a vCPU: {cause}");
        }
    }
}

/// What the threads and their owner agree on.
#[derive(Debug, Default)]
pub(super) struct Running {
    /// Whether the threads are to end. Taken back only under the lock of `alive`, and a thread
    /// looks again under it before it ends: so the owner knows which threads have ended.
    pub(super) asked: AtomicBool,
    /// Whether vCPUs are to stay out of the guest for now.
    pub(super) hold: AtomicBool,
    /// How much the vCPUs are slowed down.
    pub(super) throttle_percent: AtomicU32,
    /// Where the threads are, by index.
    pub(super) alive: Mutex<Vec<Presence>>,
    pub(super) changed: Condvar,
}

/// Where a vCPU's thread is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Presence {
    /// It has ended.
    Gone,
    /// In the guest, or dealing with an exit.
    Here,
    /// It stays out of the guest until it may go on.
    Held,
}

impl Running {
    pub(super) fn alive(&self) -> MutexGuard<'_, Vec<Presence>> {
        self.alive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_presence(&self, index: usize, presence: Presence) {
        let mut all = self.alive();
        if all.len() <= index {
            all.resize(index + 1, Presence::Gone);
        }
        if let Some(one) = all.get_mut(index) {
            *one = presence;
        }
        self.changed.notify_all();
    }

    /// Waits for as long as vCPUs are held.
    pub(super) fn stay_out(&self, index: usize) {
        let may_enter = || !self.hold.load(Ordering::Acquire) || self.asked.load(Ordering::Acquire);
        if may_enter() {
            return;
        }
        self.set_presence(index, Presence::Held);
        let mut alive = self.alive();
        while !may_enter() {
            alive = self.changed.wait(alive).unwrap_or_else(PoisonError::into_inner);
        }
        drop(alive);
        self.set_presence(index, Presence::Here);
    }
}
