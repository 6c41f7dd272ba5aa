//! vCPUs: one thread each, from the first instruction to the event that ends the machine.
//!
//! ```text
//! spawn -> Running --(power-off, reset, triple fault, failure)--> Stopped
//!             \------(asked: flag, then signal until answered)--/
//! ```

pub mod cpuid;
mod exit;

use std::convert::Infallible;
use std::io::Error as IoError;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use kvm_ioctls::VcpuFd;
use libc::{EAGAIN, EINTR, c_int, c_void, siginfo_t};
use log::{debug, warn};
use thiserror::Error;
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

use exit::act;
pub use exit::{Board, MSR_AMD64_SEV};

/// How long a kicked vCPU thread may take before it is kicked again: a signal that arrives just
/// before `KVM_RUN` interrupts nothing.
const KICK_AGAIN: Duration = Duration::from_millis(1);

/// How long all vCPUs together may take to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Why a vCPU stopped, and with it the machine.
#[derive(Debug)]
pub enum Stop {
    /// The guest entered S5.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// The guest crashed so hard that a PC would reset itself.
    TripleFault,
    /// KVM could not go on.
    Failed(VcpuError),
}

/// All vCPUs of a machine, running.
#[derive(Debug)]
pub struct Vcpus {
    threads: Vec<JoinHandle<()>>,
    /// Nothing is ever sent: it disconnects when the last thread ends.
    running: Receiver<Infallible>,
    asked: Arc<AtomicBool>,
}

impl Vcpus {
    /// Starts a thread for each vCPU; the first to stop of its own says so on `events`.
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
        let (alive, running) = channel();
        let asked = Arc::new(AtomicBool::new(false));
        let mut started = Self { threads: Vec::new(), running, asked };
        for (index, vcpu) in vcpus.into_iter().enumerate() {
            let (board, asked) = (Arc::clone(board), Arc::clone(&started.asked));
            let thread = Thread { index, vcpu, board, asked, _alive: alive.clone() };
            let events = events.clone();
            let spawned = Builder::new().name(format!("vcpu{index}")).spawn(move || {
                thread.run(&events);
            });
            match spawned {
                Ok(handle) => started.threads.push(handle),
                Err(cause) => {
                    drop(alive);
                    started.stop();
                    return Err(VcpuError::Thread(cause));
                }
            }
        }
        Ok(started)
    }

    /// Stops all vCPUs and waits until their threads are gone, or `STOP_PATIENCE` is over: a
    /// thread that hangs in a write to a blocked output keeps its part of the board alive.
    pub fn stop(self) {
        self.asked.store(true, Ordering::Release);
        let deadline = Instant::now() + STOP_PATIENCE;
        loop {
            for thread in &self.threads {
                if let Err(cause) = thread.kill(SIGRTMIN()) {
                    debug!("kicking a vCPU: {cause}");
                }
            }
            if let Err(RecvTimeoutError::Disconnected) = self.running.recv_timeout(KICK_AGAIN) {
                break;
            }
            if Instant::now() > deadline {
                warn!("a vCPU did not stop within {} s; left behind", STOP_PATIENCE.as_secs());
                return;
            }
        }
        for thread in self.threads {
            if thread.join().is_err() {
                warn!("a vCPU thread panicked");
            }
        }
    }
}

/// Why a vCPU cannot go on.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// The host refused a thread or its signal.
    #[error("starting a vCPU thread")]
    Thread(#[source] IoError),
    /// A bug in this program; the message was printed when it happened.
    #[error("the thread of vCPU {index} panicked; please report it")]
    Panicked {
        /// Which vCPU.
        index: usize,
    },
    /// `KVM_RUN` failed.
    #[error("running vCPU {index} at rip {rip:#x}: {cause}")]
    Run {
        /// Which vCPU.
        index: usize,
        /// Where it was.
        rip: u64,
        /// KVM's errno.
        cause: Errno,
    },
    /// An exit that this machine cannot answer.
    #[error("vCPU {index} at rip {rip:#x} left the guest with {exit}")]
    Exit {
        /// Which vCPU.
        index: usize,
        /// Where it was.
        rip: u64,
        /// KVM's exit, by name.
        exit: String,
    },
}

/// What a vCPU thread owns.
struct Thread {
    index: usize,
    vcpu: VcpuFd,
    board: Arc<Board>,
    asked: Arc<AtomicBool>,
    /// Dropped when the thread ends, however it ends.
    _alive: Sender<Infallible>,
}

impl Thread {
    fn run<E: From<Stop>>(mut self, events: &Sender<E>) {
        let (index, run) = (self.index, AssertUnwindSafe(|| self.run_until_stop()));
        let panicked = |_payload| Some(Stop::Failed(VcpuError::Panicked { index }));
        if let Some(stop) = catch_unwind(run).unwrap_or_else(panicked) {
            debug!("vCPU {index} stops: {stop:?}");
            if events.send(stop.into()).is_err() {
                debug!("nobody waits for vCPU {index}");
            }
        }
    }

    /// `None`: asked to.
    fn run_until_stop(&mut self) -> Option<Stop> {
        loop {
            if self.asked.load(Ordering::Acquire) {
                return None;
            }
            let outcome = match self.vcpu.run() {
                Ok(exit) => act(exit, &self.board),
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

/// The signal's work is done by interrupting `KVM_RUN`.
extern "C" fn kicked(_signal: c_int, _info: *mut siginfo_t, _context: *mut c_void) {}
