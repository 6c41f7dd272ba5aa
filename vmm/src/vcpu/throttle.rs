//! Slows a guest down: its vCPUs run for a moment, stay out of the guest for a while, and so on.
//!
//! If a guest writes its memory faster than its pages can be sent, the pages left never get fewer, unless it is slowed
//! down enough. All vCPUs stay out at the same time, so that none spins while it waits for one that is kept out.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use log::warn;

use super::crew::{Crew, KICK_AGAIN, Presence, Running, kick};
use super::stop::VcpuError;

/// How long the vCPUs run at a time. The percentage decides how long they stay out.
const RUN: Duration = Duration::from_millis(10);

/// The most that a guest can be slowed down by, in percent.
pub const THROTTLE_MAX_PERCENT: u32 = 99;

/// Slows vCPUs down as long as this lives.
#[derive(Debug)]
pub(super) struct Throttle {
    running: Arc<Running>,
    thread: Option<JoinHandle<()>>,
}

impl Throttle {
    /// Nothing is slowed down yet.
    pub(super) fn new(running: Arc<Running>) -> Self {
        Self { running, thread: None }
    }

    /// The vCPUs are out of the guest for `percent` of the time from now on; 0 ends that.
    pub(super) fn set(&mut self, percent: u32, crew: &Arc<Crew>) -> Result<(), VcpuError> {
        let percent = percent.min(THROTTLE_MAX_PERCENT);
        // Under the lock, so that a thread that is about to wait notices it.
        let alive = self.running.alive();
        self.running.throttle_percent.store(percent, Ordering::Release);
        self.running.changed.notify_all();
        drop(alive);
        if percent == 0 {
            self.end();
        } else if self.thread.is_none() {
            let (running, crew) = (Arc::clone(&self.running), Arc::clone(crew));
            let thread = Builder::new().name("throttle".to_owned());
            let spawned = thread.spawn(move || alternate(&running, &crew));
            self.thread = Some(spawned.map_err(VcpuError::Thread)?);
        }
        Ok(())
    }

    fn end(&mut self) {
        let ended = self.thread.take().map(JoinHandle::join);
        if matches!(ended, Some(Err(_))) {
            warn!("the thread that slows vCPUs down panicked");
        }
    }
}

/// The throttling thread: runs until the vCPUs are to end, or to have their full speed.
fn alternate(running: &Running, crew: &Crew) {
    while let Some(out) = time_out(running) {
        running.hold(out, crew);
        running.let_run(RUN);
    }
}

/// For how long vCPUs that have run for [`RUN`] stay out; `None`: not any more.
fn time_out(running: &Running) -> Option<Duration> {
    let percent = running.throttle_percent.load(Ordering::Acquire).min(THROTTLE_MAX_PERCENT);
    let is_over = percent == 0 || running.asked.load(Ordering::Acquire);
    (!is_over).then(|| RUN * percent / (100 - percent))
}

impl Running {
    /// Keeps all vCPUs out of the guest for `time`, or until [`time_out`] ends that.
    fn hold(&self, time: Duration, crew: &Crew) {
        let until = Instant::now() + time;
        let mut alive = self.alive();
        self.hold.store(true, Ordering::Release);
        while time_out(self).is_some() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            // A signal that arrives just before `KVM_RUN` interrupts nothing.
            let are_all_out = !alive.contains(&Presence::Here);
            if !are_all_out {
                kick(crew, &alive);
            }
            let step = if are_all_out { left } else { left.min(KICK_AGAIN) };
            let waited = self.changed.wait_timeout(alive, step);
            (alive, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        self.hold.store(false, Ordering::Release);
        self.changed.notify_all();
    }

    fn let_run(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut alive = self.alive();
        while time_out(self).is_some() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.changed.wait_timeout(alive, left);
            (alive, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    /// The share of time that is spent out of the guest is the one that was asked for.
    #[test]
    fn the_share_is_what_was_asked_for() {
        let running = Running::default();
        assert_eq!(time_out(&running), None);
        for (percent, out_ms) in [(20, 2), (50, 10), (80, 40), (99, 990), (100, 990)] {
            running.throttle_percent.store(percent, Ordering::Release);
            let out = time_out(&running).unwrap();
            assert_eq!(out.as_millis(), out_ms, "{percent} %");
        }
        running.asked.store(true, Ordering::Release);
        assert_eq!(time_out(&running), None, "a thread that is to end is not kept");
    }

    /// However much is asked for and taken back, no vCPU is held afterwards, and nothing hangs.
    #[test]
    fn what_is_taken_back_is_over() {
        let running = Arc::new(Running::default());
        let crew = Arc::new(Mutex::new(Vec::new()));
        let mut throttle = Throttle::new(Arc::clone(&running));
        for percent in [99, 20, 0, 0, 99, 100, 0] {
            throttle.set(percent, &crew).unwrap();
            assert_eq!(throttle.thread.is_some(), percent > 0);
        }
        assert!(!running.hold.load(Ordering::Acquire));
        // A vCPU that comes out while all are held waits, and goes on when that is taken back.
        throttle.set(99, &crew).unwrap();
        let mut alive = running.alive();
        while !running.hold.load(Ordering::Acquire) {
            alive = running.changed.wait_timeout(alive, KICK_AGAIN).unwrap().0;
        }
        drop(alive);
        running.set_presence(0, Presence::Here);
        let thread = {
            let running = Arc::clone(&running);
            std::thread::spawn(move || running.stay_out(0))
        };
        let mut alive = running.alive();
        while !alive.contains(&Presence::Held) {
            alive = running.changed.wait_timeout(alive, KICK_AGAIN).unwrap().0;
        }
        drop(alive);
        throttle.set(0, &crew).unwrap();
        thread.join().unwrap();
        assert_eq!(*running.alive(), [Presence::Here]);
    }
}
