//! What a guest has reported, held against its own page tables where its policy lets the host read them.

use std::sync::mpsc::Sender;
use std::thread::park_timeout;
use std::time::Duration;

use thiserror::Error;
use vmm_sys_util::errno::Error as Errno;

use super::running::{PausedMachine, RunningMachine, Unpaused};
use crate::encryption::{Contradictions, ENTRIES, Incomplete, PageTables, Unwalked};
use crate::memory::RamError;
use crate::page::{Frame, PageRange};
use crate::sev::Policy;
use crate::sev::command::CommandError;
use crate::vcpu::{Stop, VcpuError};

/// Looks that must all find a page contradicted: a guest changes its tables and then reports it, so it
/// may be stopped in between.
const LOOKS: u32 = 3;

/// How long the guest runs between two of them.
const BETWEEN: Duration = Duration::from_millis(50);

/// `CR0.PG`, `CR4.LA57`, `EFER.LMA`: AMD APM volume 2, 3.1.
const PAGING: u64 = 1 << 31;
const FIVE_LEVELS: u64 = 1 << 12;
const LONG_MODE: u64 = 1 << 10;

/// What came of an audit.
#[derive(Debug)]
pub struct Audit {
    /// How many page tables were read, at the last look.
    pub tables: u64,
    /// What the guest has reported otherwise than its tables are.
    pub contradictions: Contradictions,
}

/// An audit's result, and the machine, which runs as before.
pub type Audited = (RunningMachine, Result<Audit, Unaudited>);

impl RunningMachine {
    /// Whether the guest's policy lets the host read its page tables.
    #[must_use]
    pub fn can_be_audited(&self) -> bool {
        self.launch().is_some_and(|launch| !launch.policy.has(Policy::NODBG))
    }

    /// Pauses the guest for a look at its page tables, or for a few if the first does not agree with
    /// what it has reported. Each table takes a firmware command, half a millisecond on hardware.
    ///
    /// # Errors
    /// [`AuditError`] if the guest is not as it was before.
    pub fn audit<E>(mut self, events: &Sender<E>) -> Result<Audited, AuditError>
    where
        E: From<Stop> + Send + 'static,
    {
        if self.launch().is_none() {
            return Ok((self, Err(Unaudited::Plain)));
        }
        if !self.can_be_audited() {
            return Ok((self, Err(Unaudited::Policy)));
        }
        let mut found: Option<Audit> = None;
        for _ in 0..LOOKS {
            if found.is_some() {
                park_timeout(BETWEEN);
            }
            let paused = match self.pause() {
                Ok(paused) => paused,
                Err(Unpaused::Busy(machine)) => return Ok((*machine, Err(Unaudited::Busy))),
                Err(Unpaused::Stopped(_report)) => return Err(AuditError::Stopped),
                Err(Unpaused::Lost(cause, _report)) => return Err(AuditError::Vcpu(cause)),
            };
            let looked = paused.audit();
            self = paused.resume(events)?;
            let mut audit = match looked {
                Ok(audit) => audit,
                Err(why) => return Ok((self, Err(why))),
            };
            if let Some(before) = found {
                audit.contradictions = audit.contradictions.also_in(&before.contradictions);
            }
            if audit.contradictions.is_empty() {
                return Ok((self, Ok(audit)));
            }
            found = Some(audit);
        }
        Ok((self, found.ok_or(Unaudited::NoTables)))
    }
}

impl PausedMachine {
    /// One look at the tables of all vCPUs that use any.
    fn audit(&self) -> Result<Audit, Unaudited> {
        let (Some(launch), Some(status)) = (self.launch(), self.page_status()) else {
            return Err(Unaudited::Plain);
        };
        let mut tables = PageTables::new(*status.layout(), launch.c_bit);
        for vcpu in self.vcpus() {
            let sregs = vcpu.get_sregs().map_err(Unaudited::Vcpu)?;
            if sregs.cr0 & PAGING == 0 || sregs.efer & LONG_MODE == 0 {
                continue;
            }
            let levels = if sregs.cr4 & FIVE_LEVELS == 0 { 4 } else { 5 };
            tables.walk(sregs.cr3, levels, &mut |frame| self.table(frame))?;
        }
        if tables.tables() == 0 {
            return Err(Unaudited::NoTables);
        }
        let contradictions = tables.compare(&status)?;
        Ok(Audit { tables: tables.tables(), contradictions })
    }

    /// A page table, which is always private.
    fn table(&self, frame: Frame) -> Result<[u64; ENTRIES], Unreadable> {
        let page = PageRange::one(frame);
        let page = page.map_err(|_beyond| Unreadable::NotSent)?;
        let address = self.ram().user_address(page)?;
        let mut bytes = [0; ENTRIES * size_of::<u64>()];
        self.launched().ok_or(Unreadable::NotSent)?.read_private(address, &mut bytes)?;
        let mut entries = [0; ENTRIES];
        let (words, _rest) = bytes.as_chunks();
        for (entry, word) in entries.iter_mut().zip(words) {
            *entry = u64::from_le_bytes(*word);
        }
        Ok(entries)
    }
}

/// Why a guest's reports cannot be held against its page tables.
#[derive(Debug, Error)]
pub enum Unaudited {
    /// Without SEV nothing is reported.
    #[error("this is a plain VM: no page is encrypted")]
    Plain,
    /// The policy says no.
    #[error(
        "the guest's policy forbids debugging (NODBG), so the host cannot read its page tables: \
         what it reports cannot be checked; a guest launched with policy=0x20 can be audited"
    )]
    Policy,
    /// A vCPU does not pause.
    #[error("a vCPU did not pause: is the output of the guest's serial port blocked?")]
    Busy,
    /// Registers.
    #[error("asking KVM for a vCPU's registers: {0}")]
    Vcpu(Errno),
    /// Nobody maps anything.
    #[error("no vCPU is in 64-bit mode yet: there are no page tables to read")]
    NoTables,
    /// Reading them.
    #[error(transparent)]
    Tables(#[from] Unwalked<Unreadable>),
    /// There is nothing to compare them with.
    #[error(transparent)]
    Incomplete(#[from] Incomplete),
}

/// Why a page table cannot be read.
#[derive(Debug, Error)]
pub enum Unreadable {
    /// The firmware has no such guest any more.
    #[error("the guest is being sent")]
    NotSent,
    /// Outside RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The firmware.
    #[error(transparent)]
    Command(#[from] CommandError),
}

/// The guest does not run any more.
#[derive(Debug, Error)]
pub enum AuditError {
    /// Of its own; that came as an event.
    #[error("the guest stopped by itself")]
    Stopped,
    /// A vCPU.
    #[error(transparent)]
    Vcpu(#[from] VcpuError),
}
