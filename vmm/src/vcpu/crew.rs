//! The threads of a machine's vCPUs, and the state that they share with the thread that has the machine.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_ioctls::VcpuFd;
use log::debug;
use vmm_sys_util::signal::{Killable, SIGRTMIN};

/// Time between two kicks of a vCPU thread. One may not be enough: a signal that arrives just before `KVM_RUN`
/// interrupts nothing.
pub(super) const KICK_AGAIN: Duration = Duration::from_millis(1);

/// The threads, with the indices of their vCPUs, ascending. Locked after [`Running::alive`].
pub(super) type Crew = Mutex<Vec<(usize, JoinHandle<Option<VcpuFd>>)>>;

pub(super) fn threads(crew: &Crew) -> MutexGuard<'_, Vec<(usize, JoinHandle<Option<VcpuFd>>)>> {
    crew.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the threads that are in the guest leave it.
pub(super) fn kick(crew: &Crew, alive: &[Presence]) {
    for (index, thread) in &*threads(crew) {
        if alive.get(*index) == Some(&Presence::Here)
            && let Err(cause) = thread.kill(SIGRTMIN())
        {
            debug!("kicking a vCPU: {cause}");
        }
    }
}

/// The state that the threads share with the thread that has the machine.
#[derive(Debug, Default)]
pub(super) struct Running {
    /// Whether the threads are to end. It is taken back only under the lock of `alive`, and a thread checks it again
    /// under that lock before it ends. So it is known which threads have ended.
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
