//! Whether this host's KVM can run an SEV guest: a tiny guest makes one hypercall, with a deadline.

use std::sync::mpsc::{Sender, channel};
use std::thread;
use std::time::Duration;

use kvm_ioctls::{VcpuExit, VcpuFd};
use log::debug;
use thiserror::Error;
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::signal::{Killable, SIGRTMIN};

use super::host::{Host, HostError};
use crate::memory::{GuestRam, RamError};
use crate::page::{PAGE_SIZE, RamLayout};
use crate::vcpu::prepare_kick;

/// How long the tiny guest may take. It needs microseconds; some KVMs never deliver the hypercall
/// and run the instruction for ever.
const DEADLINE: Duration = Duration::from_secs(2);

/// Where the tiny guest starts, in real mode.
const ENTRY: u64 = PAGE_SIZE;

/// `KVM_HC_MAP_GPA_RANGE` for frame 0, private; then HLT.
const CODE: [u8; 28] = [
    0x66, 0xb8, 12, 0, 0, 0, // mov eax, 12
    0x66, 0xbb, 0, 0, 0, 0, // mov ebx, 0
    0x66, 0xb9, 1, 0, 0, 0, // mov ecx, 1
    0x66, 0xba, 16, 0, 0, 0, // mov edx, 16
    0x0f, 0x01, 0xd9, // vmmcall
    0xf4, // hlt
];

/// Runs the tiny guest.
///
/// # Errors
/// [`ProbeError`] says what this host cannot do.
pub fn probe() -> Result<(), ProbeError> {
    let host = Host::open()?;
    let vm = host.create_vm()?;
    host.trap_page_status(&vm)?;
    let layout = RamLayout::new(2 * PAGE_SIZE).map_err(|_fixed| ProbeError::Silent)?;
    let ram = GuestRam::single(layout)?;
    ram.host().write_slice(&CODE, GuestAddress(ENTRY)).map_err(|_fixed| ProbeError::Silent)?;
    ram.register(&vm)?;
    let vcpu = prepare(vm.create_vcpu(0)?)?;
    prepare_kick().map_err(ProbeError::Kvm)?;
    let (sender, answer) = channel();
    let runner = thread::spawn(move || run(vcpu, &sender));
    let outcome = answer.recv_timeout(DEADLINE);
    if outcome.is_err() && runner.kill(SIGRTMIN()).is_err() {
        debug!("the probe's vCPU could not be interrupted");
    }
    match outcome {
        Ok(None) => Ok(()),
        Ok(Some(exit)) => Err(ProbeError::Other { exit }),
        // If even the signal does not end the thread, it ends with the process: this must not wait for it.
        Err(_late) => Err(ProbeError::Silent),
    }
}

/// Why SEV guests cannot run here.
#[derive(Debug, Error)]
pub enum ProbeError {
    /// KVM is missing, or a part of it.
    #[error(transparent)]
    Host(#[from] HostError),
    /// No memory for two pages.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// KVM refused the tiny guest.
    #[error("preparing a tiny guest: {0}")]
    Kvm(Errno),
    /// The hypercall never left the guest.
    #[error(
        "this host's KVM does not deliver hypercalls within {} s; run in `scripts/lab` instead",
        DEADLINE.as_secs()
    )]
    Silent,
    /// The guest left for another reason.
    #[error("this host's KVM answered a hypercall with {exit}; run in `scripts/lab` instead")]
    Other {
        /// KVM's exit, by name.
        exit: String,
    },
}

impl From<Errno> for ProbeError {
    fn from(cause: Errno) -> Self {
        Self::Kvm(cause)
    }
}

/// Real mode with flat segments, at the code.
fn prepare(vcpu: VcpuFd) -> Result<VcpuFd, Errno> {
    let mut system = vcpu.get_sregs()?;
    system.cs.base = 0;
    system.cs.selector = 0;
    vcpu.set_sregs(&system)?;
    let mut registers = vcpu.get_regs()?;
    registers.rip = ENTRY;
    vcpu.set_regs(&registers)?;
    Ok(vcpu)
}

/// `None` if the hypercall arrived, else the exit that came instead.
fn run(mut vcpu: VcpuFd, answer: &Sender<Option<String>>) {
    let exit = match vcpu.run() {
        Ok(VcpuExit::Hypercall(_)) => None,
        Ok(other) => Some(format!("{other:?}")),
        Err(cause) => Some(cause.to_string()),
    };
    if answer.send(exit).is_err() {
        debug!("the probe's answer came too late");
    }
}
