//! What the VMM does for the guest when a vCPU leaves it: one KVM exit, one answer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kvm_ioctls::{HypercallExit, ReadMsrExit, VcpuExit, WriteMsrExit};
use log::debug;

use super::run_page::Exit;
use super::stop::Stop;
use crate::devices::pci::PciBus;
use crate::devices::{Ports, PowerEvent};
use crate::encryption::{MSR_KVM_MIGRATION_CONTROL, MSR_PAGE_TABLE};
use crate::memory::{GuestRam, Pages};

/// `MSR_AMD64_SEV`: what a guest reads to learn that SEV is on (`arch/x86/include/asm/msr-index.h`).
pub const MSR_AMD64_SEV: u32 = 0xc001_0131;

/// Bit 0 of [`MSR_AMD64_SEV`]: `MSR_AMD64_SEV_ENABLED`.
const SEV_ENABLED: u64 = 1;

/// `-KVM_ENOSYS` (`include/uapi/linux/kvm_para.h`).
const NO_SUCH_HYPERCALL: u64 = (-1000_i64).cast_unsigned();

/// What vCPUs share: the devices, and for an SEV guest the page status.
#[derive(Debug)]
pub struct Board {
    /// What is reached by memory addresses. Dropped first: its devices use the RAM.
    pub bus: PciBus,
    /// Kept mapped for as long as any vCPU may run.
    pub ram: Arc<GuestRam>,
    /// I/O port devices.
    pub ports: Ports,
    /// Private and shared pages; `None` for a plain VM.
    pub pages: Option<Mutex<Pages>>,
}

/// Answers one exit: go on, stop, or the name of an exit that this machine cannot answer.
pub(super) fn act(exit: Exit<'_>, board: &Board) -> Result<Option<Stop>, String> {
    match exit {
        Exit::PortRead { port, size, data } => {
            if PciBus::has_port(port) {
                board.bus.read_port(port, size, data);
            } else {
                board.ports.read(port, size, data);
            }
            Ok(None)
        }
        Exit::PortWrite { port, size, data } => {
            if PciBus::has_port(port) {
                board.bus.write_port(port, size, data);
                return Ok(None);
            }
            Ok(board.ports.write(port, size, data).map(|event| match event {
                PowerEvent::PowerOff => Stop::PowerOff,
                PowerEvent::Reset => Stop::Reset,
            }))
        }
        Exit::InternalError(text) => Err(text),
        Exit::Other(exit) => act_on_other(exit, board),
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "the exits of other architectures and of features that are never enabled"
)]
fn act_on_other(exit: VcpuExit<'_>, board: &Board) -> Result<Option<Stop>, String> {
    match exit {
        VcpuExit::MmioRead(address, data) => board.bus.read(address, data),
        VcpuExit::MmioWrite(address, data) => board.bus.write(address, data),
        VcpuExit::Hypercall(mut exit) => hypercall(&mut exit, board),
        VcpuExit::X86Rdmsr(mut exit) => read_msr(&mut exit, board),
        VcpuExit::X86Wrmsr(mut exit) => write_msr(&mut exit, board),
        VcpuExit::Shutdown => return Ok(Some(Stop::TripleFault)),
        VcpuExit::Intr | VcpuExit::IrqWindowOpen => {}
        VcpuExit::FailEntry(reason, cpu) => {
            return Err(format!("KVM_EXIT_FAIL_ENTRY, reason {reason:#x} on host CPU {cpu}"));
        }
        VcpuExit::MemoryFault { flags, gpa, size } => {
            return Err(format!("KVM_EXIT_MEMORY_FAULT, {size:#x} bytes at {gpa:#x}, {flags:#x}"));
        }
        other => return Err(format!("{other:?}")),
    }
    Ok(None)
}

/// `KVM_EXIT_HYPERCALL`: the guest reports the status of its pages.
fn hypercall(exit: &mut HypercallExit<'_>, board: &Board) {
    *exit.ret = match &board.pages {
        Some(pages) => lock(pages).hypercall(exit.nr, &exit.args),
        None => NO_SUCH_HYPERCALL,
    };
}

fn read_msr(exit: &mut ReadMsrExit<'_>, board: &Board) {
    let value = board.pages.as_ref().and_then(|pages| match exit.index {
        MSR_AMD64_SEV => Some(SEV_ENABLED),
        MSR_KVM_MIGRATION_CONTROL => lock(pages).read_migration_control(),
        MSR_PAGE_TABLE => lock(pages).read_table_register(),
        _ => None,
    });
    match value {
        Some(value) => *exit.data = value,
        None => {
            debug!("read of MSR {:#x} refused", exit.index);
            *exit.error = 1;
        }
    }
}

fn write_msr(exit: &mut WriteMsrExit<'_>, board: &Board) {
    let accepted = match &board.pages {
        Some(pages) if exit.index == MSR_KVM_MIGRATION_CONTROL => {
            lock(pages).write_migration_control(exit.data)
        }
        Some(pages) if exit.index == MSR_PAGE_TABLE => lock(pages).write_table_register(exit.data),
        _ => false,
    };
    if !accepted {
        debug!("write of {:#x} to MSR {:#x} refused", exit.data, exit.index);
        *exit.error = 1;
    }
}

fn lock(pages: &Mutex<Pages>) -> MutexGuard<'_, Pages> {
    pages.lock().unwrap_or_else(PoisonError::into_inner)
}
