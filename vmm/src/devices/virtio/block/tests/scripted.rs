//! Storage that does what a test says: stalls, fails, does only a part.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Error as IoError;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::super::engine::{DiskTask, Done, Engine};
use super::super::threads::perform;
use super::*;

/// How the storage takes the next task.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reply {
    /// Fails with this errno.
    Fail(i32),
    /// Moves only so many bytes.
    Part(usize),
}

/// The test's hold on the storage.
#[derive(Debug, Clone)]
pub(super) struct Script(Arc<(Mutex<Stage>, Condvar)>);

#[derive(Debug)]
struct Stage {
    file: Arc<File>,
    event: EventFd,
    is_stalled: bool,
    waiting: VecDeque<(u32, DiskTask)>,
    done: VecDeque<Done>,
    replies: VecDeque<Reply>,
    log: Vec<&'static str>,
}

#[derive(Debug)]
struct Scripted {
    script: Script,
    event: EventFd,
}

impl Script {
    /// A guest with a disk on such storage.
    pub(super) fn guest(image: &Image, features: u64) -> (Guest, Self) {
        let (disk, arena) = (Disk::open(image.options()).unwrap(), Arena::new(1024).unwrap());
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let stage = Stage {
            file: Arc::clone(disk.file()),
            event: event.try_clone().unwrap(),
            is_stalled: false,
            waiting: VecDeque::new(),
            done: VecDeque::new(),
            replies: VecDeque::new(),
            log: Vec::new(),
        };
        let script = Self(Arc::new((Mutex::new(stage), Condvar::new())));
        let engine = Scripted { script: script.clone(), event };
        let block = Block::on(disk, arena, Box::new(engine));
        (Guest::of(block, features), script)
    }

    /// From now on tasks are taken and not done.
    pub(super) fn stall(&self) {
        self.stage().is_stalled = true;
    }

    /// All that waits is done, and all that comes.
    pub(super) fn go_on(&self) {
        let mut stage = self.stage();
        stage.is_stalled = false;
        while let Some((token, task)) = stage.waiting.pop_front() {
            stage.perform(token, task);
        }
    }

    /// How the next tasks end.
    pub(super) fn reply(&self, replies: &[Reply]) {
        self.stage().replies.extend(replies);
    }

    /// What the storage was asked for since the last call.
    pub(super) fn log(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.stage().log)
    }

    /// Waits until so many tasks are stalled.
    #[track_caller]
    pub(super) fn wait_for(&self, count: usize) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let mut stage = self.stage();
        while stage.waiting.len() < count {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {count} came", stage.waiting.len());
            stage = self.0.1.wait_timeout(stage, left).unwrap().0;
        }
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.0.0.lock().unwrap()
    }
}

impl Stage {
    fn perform(&mut self, token: u32, task: DiskTask) {
        let (result, slot) = match (self.replies.pop_front(), task) {
            (None, task) => perform(&self.file, task),
            (Some(Reply::Fail(errno)), task) => {
                let slot = match task {
                    DiskTask::Read { slot, .. } | DiskTask::Write { slot, .. } => Some(slot),
                    DiskTask::Flush | DiskTask::Discard { .. } | DiskTask::Zero { .. } => None,
                };
                (Err(IoError::from_raw_os_error(errno)), slot)
            }
            (Some(Reply::Part(bytes)), DiskTask::Read { at, mut slot }) => {
                (self.file.read_at(&mut slot.bytes_mut()[..bytes], at), Some(slot))
            }
            (Some(Reply::Part(bytes)), DiskTask::Write { at, slot }) => {
                (self.file.write_at(&slot.bytes()[..bytes], at), Some(slot))
            }
            (Some(Reply::Part(_)), task) => perform(&self.file, task),
        };
        self.done.push_back(Done { token, result, slot });
        self.event.write(1).unwrap();
    }
}

impl Engine for Scripted {
    fn event(&self) -> &EventFd {
        &self.event
    }

    fn begin(&mut self, token: u32, task: DiskTask) {
        let mut stage = self.script.stage();
        stage.log.push(match &task {
            DiskTask::Read { .. } => "read",
            DiskTask::Write { .. } => "write",
            DiskTask::Flush => "flush",
            DiskTask::Discard { .. } => "discard",
            DiskTask::Zero { .. } => "zero",
        });
        if stage.is_stalled {
            stage.waiting.push_back((token, task));
            self.script.0.1.notify_all();
        } else {
            stage.perform(token, task);
        }
    }

    fn submit(&mut self) {}

    fn next(&mut self) -> Option<Done> {
        self.script.stage().done.pop_front()
    }
}
