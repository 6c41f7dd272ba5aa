//! Why a vCPU stops, and why it cannot go on.

use std::io::Error as IoError;

use thiserror::Error;
use vmm_sys_util::errno::Error as Errno;

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
