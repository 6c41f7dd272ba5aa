//! vCPUs: one thread each, from the first instruction to the event that ends the machine.
//!
//! ```text
//! spawn -> Running --(power-off, reset, triple fault, failure)--> Stopped
//!   ^         \------(asked: flag, then signal until answered)--/   |
//!   \--------------(paused: every exit finished)---------------------/
//! ```

pub mod cpuid;
mod crew;
mod exit;
mod msrs;
mod run_page;
mod state;
mod stop;
mod throttle;
mod xsave;

use std::fmt::{Debug, Formatter, Result as FmtResult};
use std::io::Error as IoError;
use std::mem::take;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::Sender;
use std::sync::{Arc, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use libc::{EAGAIN, EINTR, c_int, c_void, siginfo_t};
use log::{debug, warn};
use thiserror::Error;
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crew::{Crew, KICK_AGAIN, Presence, Running, kick, threads};
use exit::act;
pub use exit::{Board, MSR_AMD64_SEV};
pub use msrs::{MSRS_MAX, MsrError, state_msrs};
pub use state::{StateError, VcpuState};
pub use stop::{Stop, VcpuError};
pub use throttle::THROTTLE_MAX_PERCENT;
use throttle::Throttle;

/// How long all vCPUs together may take to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// All vCPUs of a machine, running.
pub struct Vcpus {
    crew: Arc<Crew>,
    starter: Starter,
    throttle: Throttle,
}

/// What it takes to start a vCPU thread.
struct Starter {
    board: Arc<Board>,
    /// Called when a vCPU stops by itself.
    stopped: Arc<dyn Fn(Stop) + Send + Sync>,
    running: Arc<Running>,
}

impl Debug for Vcpus {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "Vcpus({})", threads(&self.crew).len())
    }
}

impl Vcpus {
    /// Starts a thread for each vCPU. The first vCPU that stops by itself sends that on `events`.
    ///
    /// # Errors
    /// [`VcpuError::Thread`] if the host has no thread to give.
    pub fn spawn<E: From<Stop> + Send + 'static>(
        vcpus: Vec<VcpuFd>,
        board: &Arc<Board>,
        events: &Sender<E>,
    ) -> Result<Self, VcpuError> {
        prepare_kick()
            .map_err(|cause| VcpuError::Thread(IoError::from_raw_os_error(cause.errno())))?;
        let events = events.clone();
        let stopped = move |stop: Stop| {
            debug!("a vCPU stops: {stop:?}");
            if events.send(stop.into()).is_err() {
                debug!("nobody waits for it");
            }
        };
        let starter = Starter {
            board: Arc::clone(board),
            stopped: Arc::new(stopped),
            running: Arc::default(),
        };
        let throttle = Throttle::new(Arc::clone(&starter.running));
        let started = Self { crew: Arc::default(), starter, throttle };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            match started.starter.start(index, vcpu) {
                Ok(thread) => threads(&started.crew).push((index, thread)),
                Err(cause) => {
                    started.stop();
                    return Err(VcpuError::Thread(cause));
                }
            }
        }
        Ok(started)
    }

    /// Stops all vCPUs and waits until their threads have ended, or `STOP_PATIENCE` is over. From here on the guest's
    /// output is lost if nothing reads it.
    pub fn stop(mut self) {
        self.starter.board.ports.cut_output();
        if !self.end_threads() {
            warn!("a vCPU did not stop within {} s; left behind", STOP_PATIENCE.as_secs());
            return;
        }
        for (_, thread) in self.take_threads() {
            if thread.join().is_err() {
                warn!("a vCPU thread panicked");
            }
        }
    }

    /// Pauses all vCPUs: each is outside the guest, with every exit finished, so that its state is complete.
    /// [`Vcpus::resume`] or [`Vcpus::spawn`] lets them go on, and the guest does not notice.
    ///
    /// # Errors
    /// [`PauseError`]. After [`PauseError::Busy`] the guest runs on.
    pub fn pause(&mut self) -> Result<Vec<VcpuFd>, PauseError> {
        if !self.end_threads() {
            return Err(match self.go_on() {
                Ok(()) => PauseError::Busy,
                Err(cause) => PauseError::Resume(cause),
            });
        }
        let join = |(_, thread): (usize, JoinHandle<_>)| thread.join().ok().flatten();
        let vcpus: Option<Vec<_>> = self.take_threads().into_iter().map(join).collect();
        vcpus.ok_or(PauseError::Stopped)
    }

    /// Lets `vcpus`, which [`Vcpus::pause`] has paused, go on.
    ///
    /// # Errors
    /// [`VcpuError::Thread`] if the host has no thread to give; the guest is lost then.
    pub fn resume(&mut self, vcpus: Vec<VcpuFd>) -> Result<(), VcpuError> {
        self.starter.running.asked.store(false, Ordering::Release);
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let thread = self.starter.start(index, vcpu).map_err(VcpuError::Thread)?;
            threads(&self.crew).push((index, thread));
        }
        Ok(())
    }

    /// Slows the guest down: its vCPUs are out of it for `percent` of the time, at most
    /// [`THROTTLE_MAX_PERCENT`], until another percentage is set; 0 ends that.
    ///
    /// # Errors
    /// [`VcpuError::Thread`] if the host has no thread to give.
    pub fn throttle(&mut self, percent: u32) -> Result<(), VcpuError> {
        self.throttle.set(percent, &self.crew)
    }

    fn take_threads(&mut self) -> Vec<(usize, JoinHandle<Option<VcpuFd>>)> {
        take(&mut *threads(&self.crew))
    }

    /// Asks all threads to end and waits; false if one does not within [`STOP_PATIENCE`].
    fn end_threads(&mut self) -> bool {
        if let Err(cause) = self.throttle(0) {
            debug!("{cause}");
        }
        let running = &self.starter.running;
        running.asked.store(true, Ordering::Release);
        let deadline = Instant::now() + STOP_PATIENCE;
        let is_there = |alive: &[Presence]| alive.iter().any(|one| *one != Presence::Gone);
        let mut alive = running.alive();
        while is_there(&alive) && Instant::now() < deadline {
            kick(&self.crew, &alive);
            let waited = running.changed.wait_timeout(alive, KICK_AGAIN);
            (alive, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        !is_there(&alive)
    }

    /// After [`Vcpus::end_threads`] has failed: takes the request back, and starts the threads again that have ended.
    fn go_on(&mut self) -> Result<(), VcpuError> {
        let alive = self.starter.running.alive();
        self.starter.running.asked.store(false, Ordering::Release);
        let is_alive = alive.clone();
        drop(alive);
        for (index, thread) in self.take_threads() {
            if is_alive.get(index).is_some_and(|one| *one != Presence::Gone) {
                threads(&self.crew).push((index, thread));
            } else if let Some(vcpu) = thread.join().ok().flatten() {
                let again = self.starter.start(index, vcpu).map_err(VcpuError::Thread)?;
                threads(&self.crew).push((index, again));
            }
        }
        Ok(())
    }
}

impl Starter {
    fn start(&self, index: usize, vcpu: VcpuFd) -> Result<JoinHandle<Option<VcpuFd>>, IoError> {
        let running = Arc::clone(&self.running);
        running.set_presence(index, Presence::Here);
        let alive = Alive { index, running };
        let thread = Thread { index, vcpu, board: Arc::clone(&self.board), alive };
        let stopped = Arc::clone(&self.stopped);
        Builder::new().name(format!("vcpu{index}")).spawn(move || thread.run(&*stopped))
    }
}

/// A thread counts as alive as long as it has this. It is dropped however the thread ends.
struct Alive {
    index: usize,
    running: Arc<Running>,
}

impl Alive {
    fn is_asked(&self) -> bool {
        self.running.asked.load(Ordering::Acquire)
    }

    /// Ends the thread, unless the request was taken back.
    fn end(&self) -> bool {
        let mut alive = self.running.alive();
        let ends = self.is_asked();
        if let (Some(one), true) = (alive.get_mut(self.index), ends) {
            *one = Presence::Gone;
        }
        ends
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        self.running.set_presence(self.index, Presence::Gone);
    }
}

/// Why vCPUs cannot be paused.
#[derive(Debug, Error)]
pub enum PauseError {
    /// A vCPU has stopped by itself. An event says how, and there is nothing to pause.
    #[error("the guest stopped by itself")]
    Stopped,
    /// A vCPU thread does not return from a device. All vCPUs run on.
    #[error(
        "a vCPU did not pause within {} s: is the output of the guest's serial port blocked?",
        STOP_PATIENCE.as_secs()
    )]
    Busy,
    /// As [`PauseError::Busy`], but the others could not be started again.
    #[error("a vCPU did not pause, and the others could not go on")]
    Resume(#[source] VcpuError),
}

/// What a vCPU thread owns.
struct Thread {
    index: usize,
    vcpu: VcpuFd,
    board: Arc<Board>,
    alive: Alive,
}

impl Thread {
    /// Runs the vCPU. Returns it if it was asked to end, and has not stopped by itself.
    fn run(mut self, stopped: &dyn Fn(Stop)) -> Option<VcpuFd> {
        let (index, run) = (self.index, AssertUnwindSafe(|| self.run_until_stop()));
        let panicked = |_payload| Some(Stop::Failed(VcpuError::Panicked { index }));
        match catch_unwind(run).unwrap_or_else(panicked) {
            None => Some(self.vcpu),
            Some(stop) => {
                stopped(stop);
                None
            }
        }
    }

    /// `None`: asked to end, and every exit is finished.
    ///
    /// KVM finishes an exit (a register is written, the next instruction is due) only in the next
    /// `KVM_RUN`; asked to return at once it does that and no more.
    fn run_until_stop(&mut self) -> Option<Stop> {
        loop {
            self.alive.running.stay_out(self.index);
            let ending = self.alive.is_asked();
            self.vcpu.set_kvm_immediate_exit(u8::from(ending));
            let board = &self.board;
            let outcome = match run_page::run(&mut self.vcpu, |exit| act(exit, board)) {
                Ok(outcome) => outcome,
                Err(cause) if cause.errno() == EINTR && ending => {
                    self.vcpu.set_kvm_immediate_exit(0);
                    if self.alive.end() {
                        return None;
                    }
                    continue;
                }
                // A signal, or an AP that waits for its start-up interrupt and was kicked.
                Err(cause) if [EINTR, EAGAIN].contains(&cause.errno()) => continue,
                Err(cause) => {
                    let (index, rip) = (self.index, self.rip());
                    return Some(Stop::Failed(VcpuError::Run { index, rip, cause }));
                }
            };
            match outcome {
                Ok(None) => {}
                Ok(Some(stop)) => return Some(stop),
                Err(exit) => {
                    let (index, rip) = (self.index, self.rip());
                    return Some(Stop::Failed(VcpuError::Exit { index, rip, exit }));
                }
            }
        }
    }

    /// Where the vCPU is; for messages, so 0 where KVM does not say.
    fn rip(&self) -> u64 {
        self.vcpu.get_regs().map_or(0, |registers| registers.rip)
    }
}

/// Makes `SIGRTMIN` interrupt `KVM_RUN` and do nothing else.
///
/// # Errors
/// From `sigaction`.
pub fn prepare_kick() -> Result<(), Errno> {
    register_signal_handler(SIGRTMIN(), kicked)
}

/// Does nothing: the signal only has to interrupt `KVM_RUN`.
extern "C" fn kicked(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {}
