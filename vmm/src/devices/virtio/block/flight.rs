//! A request that the device has taken: what is left of it, its next task, and what a task's end means.

use std::collections::VecDeque;
use std::io::{Error as IoError, ErrorKind};
use std::mem::take;
use std::sync::Arc;

use super::arena::Arena;
use super::engine::{DiskTask, Done};
use super::request::{Asked, Range};
use crate::devices::virtio::{PendingRequest, Segment};
use crate::memory::DeviceView;

/// Most bytes of a piece: a longer request takes several, one after the other.
const PIECE_MAX: u64 = 1 << 20;

/// A request of the driver.
#[derive(Debug)]
pub(super) struct Flight {
    /// The queue that it came from.
    pub(super) queue: u16,
    /// What is left of its data.
    pub(super) request: PendingRequest,
    /// Where its status goes.
    pub(super) status: Segment,
    /// Bytes written to the guest so far.
    pub(super) written: u32,
    work: WorkLeft,
    /// How many changes of the disk its flush is to make durable.
    changes: u64,
}

/// What is left to do.
#[derive(Debug)]
enum WorkLeft {
    Read(Range),
    Write(Range),
    Discard(VecDeque<Range>),
    Zero(VecDeque<Range>),
    /// Zeros, written because the storage makes none.
    Fill(VecDeque<Range>),
    /// Makes durable what was changed before.
    Flush,
    /// Nothing.
    Nothing,
}

/// What comes after a task.
#[derive(Debug)]
pub(super) enum Next {
    /// This one, at once.
    DiskTask(DiskTask),
    /// What [`Flight::task`] says.
    More,
    /// The disk is as it was asked for, by a change or without one.
    Over {
        /// Whether by a change.
        changed: bool,
    },
    /// What was changed up to this one is durable.
    Flushed(u64),
}

impl Flight {
    /// What was asked for, of the chain that `request` is what is left of.
    pub(super) fn new(
        queue: u16,
        (request, status): (PendingRequest, Segment),
        asked: Asked,
    ) -> Self {
        let range = |at, bytes| Range { at, bytes, may_unmap: false };
        let work = match asked {
            Asked::Read { bytes: 0, .. } | Asked::Write { bytes: 0, .. } | Asked::Serial => {
                WorkLeft::Nothing
            }
            Asked::Read { at, bytes } => WorkLeft::Read(range(at, bytes)),
            Asked::Write { at, bytes } => WorkLeft::Write(range(at, bytes)),
            Asked::Discard(ranges) | Asked::Zero(ranges) if ranges.is_empty() => WorkLeft::Nothing,
            Asked::Discard(ranges) => WorkLeft::Discard(ranges.into()),
            Asked::Zero(ranges) => WorkLeft::Zero(ranges.into()),
            Asked::Flush => WorkLeft::Flush,
        };
        Self { queue, request, status, written: 0, work, changes: 0 }
    }

    /// Whether there is nothing to do.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.work, WorkLeft::Nothing)
    }

    /// For people.
    pub(super) fn verb(&self) -> &'static str {
        match self.work {
            WorkLeft::Read(_) => "reading",
            WorkLeft::Write(_) => "writing",
            WorkLeft::Discard(_) => "discarding",
            WorkLeft::Zero(_) | WorkLeft::Fill(_) => "writing zeros",
            WorkLeft::Flush => "flushing",
            WorkLeft::Nothing => "nothing",
        }
    }

    /// Whether its task may change what is on the disk, whether it succeeds or not.
    pub(super) fn changes_disk(&self) -> bool {
        match &self.work {
            WorkLeft::Write(_) | WorkLeft::Fill(_) | WorkLeft::Discard(_) | WorkLeft::Zero(_) => {
                true
            }
            WorkLeft::Read(_) | WorkLeft::Flush | WorkLeft::Nothing => false,
        }
    }

    /// What it has changed is to be durable before it is finished.
    pub(super) fn flush_first(&mut self) {
        self.work = WorkLeft::Flush;
    }

    /// The next task; `None` if the arena has no room for it. The disk has seen `changes` so far.
    pub(super) fn task(
        &mut self,
        arena: &Arc<Arena>,
        memory: &DeviceView,
        changes: u64,
    ) -> Option<DiskTask> {
        let room = |range: &Range| {
            arena.take(usize::try_from(range.bytes.min(PIECE_MAX)).unwrap_or(usize::MAX))
        };
        match &self.work {
            WorkLeft::Read(range) => Some(DiskTask::Read { at: range.at, slot: room(range)? }),
            WorkLeft::Write(range) => {
                let (at, mut slot) = (range.at, room(range)?);
                self.request.read(memory, slot.bytes_mut());
                Some(DiskTask::Write { at, slot })
            }
            WorkLeft::Fill(ranges) => {
                let range = ranges.front()?;
                let mut slot = room(range)?;
                slot.bytes_mut().fill(0);
                Some(DiskTask::Write { at: range.at, slot })
            }
            WorkLeft::Discard(ranges) => {
                ranges.front().map(|range| DiskTask::Discard { at: range.at, bytes: range.bytes })
            }
            WorkLeft::Zero(ranges) => ranges.front().map(|&Range { at, bytes, may_unmap }| {
                if may_unmap {
                    DiskTask::Discard { at, bytes }
                } else {
                    DiskTask::Zero { at, bytes }
                }
            }),
            WorkLeft::Flush => {
                self.changes = changes;
                Some(DiskTask::Flush)
            }
            WorkLeft::Nothing => None,
        }
    }

    /// What follows from the end of its task.
    ///
    /// # Errors
    /// What the storage said; the request has failed then.
    pub(super) fn after(&mut self, done: Done, memory: &DeviceView) -> Result<Next, IoError> {
        let bytes = match done.result {
            Ok(bytes) => bytes,
            Err(cause) if cause.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                return self.without().ok_or(cause);
            }
            Err(cause) => return Err(cause),
        };
        match &mut self.work {
            WorkLeft::Read(range) => {
                let slot = done.slot.as_ref();
                let came = slot.and_then(|slot| slot.bytes().get(..bytes)).unwrap_or_default();
                range.pass(bytes)?;
                let is_over = range.bytes == 0;
                let written = self.request.write(memory, came);
                self.written = self.written.saturating_add(written);
                Ok(if is_over { Next::Over { changed: false } } else { Next::More })
            }
            WorkLeft::Write(range) => {
                range.pass(bytes)?;
                let at = range.at;
                // Less was written than was asked for: the rest is in the slot still.
                if let Some(mut slot) = done.slot.filter(|slot| slot.len() > bytes) {
                    slot.skip(bytes);
                    return Ok(Next::DiskTask(DiskTask::Write { at, slot }));
                }
                let is_over = range.bytes == 0;
                Ok(if is_over { Next::Over { changed: true } } else { Next::More })
            }
            WorkLeft::Fill(ranges) => {
                if let Some(range) = ranges.front_mut() {
                    range.pass(bytes)?;
                }
                ranges.pop_front_if(|range| range.bytes == 0);
                Ok(more_of(ranges))
            }
            WorkLeft::Discard(ranges) | WorkLeft::Zero(ranges) => {
                ranges.pop_front();
                Ok(more_of(ranges))
            }
            WorkLeft::Flush => Ok(Next::Flushed(self.changes)),
            WorkLeft::Nothing => Ok(Next::Over { changed: false }),
        }
    }

    /// How to do without what the storage cannot do: to discard is a hint, and zeros can be written.
    fn without(&mut self) -> Option<Next> {
        match &mut self.work {
            WorkLeft::Discard(_) => Some(Next::Over { changed: false }),
            WorkLeft::Zero(ranges) => {
                self.work = WorkLeft::Fill(take(ranges));
                Some(Next::More)
            }
            WorkLeft::Read(_)
            | WorkLeft::Write(_)
            | WorkLeft::Fill(_)
            | WorkLeft::Flush
            | WorkLeft::Nothing => None,
        }
    }
}

impl Range {
    /// Its first `bytes` are done.
    fn pass(&mut self, bytes: usize) -> Result<(), IoError> {
        let bytes = (bytes as u64).min(self.bytes);
        if bytes == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        (self.at, self.bytes) = (self.at + bytes, self.bytes - bytes);
        Ok(())
    }
}

fn more_of(ranges: &VecDeque<Range>) -> Next {
    if ranges.is_empty() { Next::Over { changed: true } } else { Next::More }
}
