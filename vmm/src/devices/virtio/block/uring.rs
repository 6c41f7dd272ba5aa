//! A disk's work done by the kernel's `io_uring`, with the file and the front of the arena registered.

#![expect(unsafe_code, reason = "the one file that hands memory to io_uring")]

use std::fmt::{Debug, Formatter, Result as FmtResult};
use std::fs::File;
use std::io::{Error as IoError, ErrorKind};
use std::mem::forget;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use io_uring::squeue::Entry;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, Probe, opcode};
use log::{debug, warn};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::arena::{Arena, ArenaSlot};
use super::engine::{DEPTH, DiskTask, Done, Engine};

/// How much of the arena is registered, from its start: registered memory is pinned, and pages that
/// are pinned are the host's from the beginning. Small requests gain by it, and are placed first.
const REGISTERED_BYTES: usize = 256 << 10;

/// The file, in the ring's table.
const FILE: Fixed = Fixed(0);

/// The ring.
pub(super) struct Uring {
    ring: IoUring,
    event: EventFd,
    /// Bytes of the arena that are registered, from its start.
    registered: usize,
    /// Entries that the kernel has not been told of.
    unsubmitted: usize,
    /// The slots of tasks that the kernel has, by token: nobody else may have them.
    slots: Vec<Option<ArenaSlot>>,
    /// Keeps what the ring has registered.
    _arena: Arc<Arena>,
    _file: Arc<File>,
}

impl Debug for Uring {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_struct("Uring").field("registered", &self.registered).finish_non_exhaustive()
    }
}

impl Uring {
    /// A ring for `file`, whose tasks have their slots in `arena`.
    pub(super) fn start(file: &Arc<File>, arena: &Arc<Arena>) -> Result<Self, IoError> {
        // Completions wait until a thread of ours is in the kernel anyway, since Linux 5.19.
        let cooperative = IoUring::builder().setup_coop_taskrun().build(DEPTH);
        let ring = cooperative.or_else(|_old| IoUring::new(DEPTH))?;
        let mut probe = Probe::new();
        ring.submitter().register_probe(&mut probe)?;
        if !probe.is_supported(opcode::Fallocate::CODE) {
            return Err(ErrorKind::Unsupported.into());
        }
        let event = EventFd::new(EFD_NONBLOCK)?;
        ring.submitter().register_eventfd(event.as_raw_fd())?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let front = libc::iovec { iov_base: arena.base().cast(), iov_len: REGISTERED_BYTES };
        // SAFETY: the bytes are within the arena, which is mapped for as long as there is the ring.
        let registered = unsafe { ring.submitter().register_buffers(&[front]) };
        let registered = match registered {
            Ok(()) => REGISTERED_BYTES,
            // It counts against the limit of locked memory.
            Err(cause) => {
                debug!("io_uring without registered memory: {cause}");
                0
            }
        };
        let slots = (0..DEPTH).map(|_| None).collect();
        let (arena, file) = (Arc::clone(arena), Arc::clone(file));
        let unsubmitted = 0;
        Ok(Self { ring, event, registered, unsubmitted, slots, _arena: arena, _file: file })
    }

    /// The entry for a task, and the slot to keep until it is done.
    fn entry(&self, task: DiskTask) -> (Entry, Option<ArenaSlot>) {
        let changed = |mode, at, bytes| {
            let mode = libc::FALLOC_FL_KEEP_SIZE | mode;
            opcode::Fallocate::new(FILE, bytes).offset(at).mode(mode).build()
        };
        match task {
            DiskTask::Read { at, slot } => {
                let (to, len) = (slot.address(), length(&slot));
                let entry = if self.is_registered(&slot) {
                    opcode::ReadFixed::new(FILE, to, len, 0).offset(at).build()
                } else {
                    opcode::Read::new(FILE, to, len).offset(at).build()
                };
                (entry, Some(slot))
            }
            DiskTask::Write { at, slot } => {
                let (from, len) = (slot.address().cast_const(), length(&slot));
                let entry = if self.is_registered(&slot) {
                    opcode::WriteFixed::new(FILE, from, len, 0).offset(at).build()
                } else {
                    opcode::Write::new(FILE, from, len).offset(at).build()
                };
                (entry, Some(slot))
            }
            DiskTask::Flush => (opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(), None),
            DiskTask::Discard { at, bytes } => {
                (changed(libc::FALLOC_FL_PUNCH_HOLE, at, bytes), None)
            }
            DiskTask::Zero { at, bytes } => (changed(libc::FALLOC_FL_ZERO_RANGE, at, bytes), None),
        }
    }

    fn is_registered(&self, slot: &ArenaSlot) -> bool {
        slot.place() + slot.len() <= self.registered
    }
}

impl Engine for Uring {
    fn event(&self) -> &EventFd {
        &self.event
    }

    fn begin(&mut self, token: u32, task: DiskTask) {
        let (entry, slot) = self.entry(task);
        if let Some(place) = self.slots.get_mut(token as usize) {
            *place = slot;
        }
        let entry = entry.user_data(u64::from(token));
        // SAFETY: the memory that the entry names is the slot's, which stays in `slots` until the
        // kernel is done with it.
        while unsafe { self.ring.submission().push(&entry) }.is_err() {
            // There are as many places as tokens: what is full has only not been handed over.
            self.submit();
        }
        self.unsubmitted += 1;
    }

    fn submit(&mut self) {
        while self.unsubmitted > 0 {
            match self.ring.submit() {
                Ok(count) => self.unsubmitted = self.unsubmitted.saturating_sub(count.max(1)),
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                // The host has no memory: that passes.
                Err(cause) => {
                    warn!("io_uring does not take a disk's requests, and is asked again: {cause}");
                    if let Err(cause) = self.event.write(1) {
                        debug!("a disk's event: {cause}");
                    }
                    return;
                }
            }
        }
    }

    fn next(&mut self) -> Option<Done> {
        let entry = self.ring.completion().next()?;
        let token = u32::try_from(entry.user_data()).ok()?;
        let slot = self.slots.get_mut(token as usize).and_then(Option::take);
        let result = usize::try_from(entry.result())
            .map_err(|_negative| IoError::from_raw_os_error(entry.result().saturating_neg()));
        Some(Done { token, result, slot })
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel may still read and write them, until the storage answers.
        self.slots.iter_mut().filter_map(Option::take).for_each(forget);
    }
}

/// A slot is a megabyte at the most.
fn length(slot: &ArenaSlot) -> u32 {
    u32::try_from(slot.len()).unwrap_or(u32::MAX)
}
