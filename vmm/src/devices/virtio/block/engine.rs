//! What does a disk's work: tasks in, completions out, and an event when there are some.

use std::fmt::Debug;
use std::io::Error as IoError;

use vmm_sys_util::eventfd::EventFd;

use super::arena::ArenaSlot;

/// Most tasks at a time: an engine takes so many, and counts them from 0.
pub(super) const DEPTH: u32 = 256;

/// Something to do with the storage. Places and lengths are in bytes.
#[derive(Debug)]
pub(super) enum DiskTask {
    /// Fill the slot.
    Read { at: u64, slot: ArenaSlot },
    /// Write what is in the slot.
    Write { at: u64, slot: ArenaSlot },
    /// Make all that was written before durable.
    Flush,
    /// Give the space back; it reads as zeros after that.
    Discard { at: u64, bytes: u64 },
    /// Make it zeros, and keep the space.
    Zero { at: u64, bytes: u64 },
}

/// A task that has ended.
#[derive(Debug)]
pub(super) struct Done {
    /// What [`Engine::begin`] was told.
    pub(super) token: u32,
    /// How many bytes were read or written, which may be fewer than asked for.
    pub(super) result: Result<usize, IoError>,
    /// The slot of the task.
    pub(super) slot: Option<ArenaSlot>,
}

/// What does the work.
pub(super) trait Engine: Debug + Send {
    /// Signalled at each completion.
    fn event(&self) -> &EventFd;

    /// Takes a task, which has begun after [`Engine::submit`]. A token is in use until it is done.
    fn begin(&mut self, token: u32, task: DiskTask);

    /// Hands over what was begun.
    fn submit(&mut self);

    /// A task that has ended.
    fn next(&mut self) -> Option<Done>;
}
