//! A disk's work done by a few threads: where the kernel has no `io_uring`, or forbids it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Error as IoError, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Builder;

use log::{debug, error};
use rustix::fs::{FallocateFlags, fallocate};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::arena::ArenaSlot;
use super::engine::{DiskTask, Done, Engine};

/// How many tasks are done at the same time.
const THREADS: usize = 4;

/// The threads, which end when this is dropped and their task is done.
#[derive(Debug)]
pub(super) struct Threads {
    tasks: Sender<(u32, DiskTask)>,
    shared: Arc<ThreadState>,
}

#[derive(Debug)]
struct ThreadState {
    file: Arc<File>,
    tasks: Mutex<Receiver<(u32, DiskTask)>>,
    done: Mutex<VecDeque<Done>>,
    event: EventFd,
}

impl Threads {
    /// Starts them.
    pub(super) fn start(file: &Arc<File>) -> Result<Self, IoError> {
        let (tasks, receiver) = channel();
        let shared = Arc::new(ThreadState {
            file: Arc::clone(file),
            tasks: Mutex::new(receiver),
            done: Mutex::default(),
            event: EventFd::new(EFD_NONBLOCK)?,
        });
        for index in 0..THREADS {
            let shared = Arc::clone(&shared);
            Builder::new().name(format!("disk-{index}")).spawn(move || shared.work())?;
        }
        Ok(Self { tasks, shared })
    }
}

impl Engine for Threads {
    fn event(&self) -> &EventFd {
        &self.shared.event
    }

    fn begin(&mut self, token: u32, task: DiskTask) {
        if self.tasks.send((token, task)).is_err() {
            error!("the threads of a disk are gone; please report it");
        }
    }

    fn submit(&mut self) {}

    fn next(&mut self) -> Option<Done> {
        lock(&self.shared.done).pop_front()
    }
}

impl ThreadState {
    /// Until nobody has more tasks.
    fn work(&self) {
        loop {
            let next = lock(&self.tasks).recv();
            let Ok((token, task)) = next else { return };
            let (result, slot) = perform(&self.file, task);
            lock(&self.done).push_back(Done { token, result, slot });
            if let Err(cause) = self.event.write(1) {
                debug!("a disk's event: {cause}");
            }
        }
    }
}

/// Does the task here and now.
pub(super) fn perform(file: &File, task: DiskTask) -> (Result<usize, IoError>, Option<ArenaSlot>) {
    let changed = |mode, at, bytes| {
        fallocate(file, FallocateFlags::KEEP_SIZE | mode, at, bytes).map_err(IoError::from)?;
        Ok(0)
    };
    match task {
        DiskTask::Read { at, mut slot } => {
            let result = again(|| file.read_at(slot.bytes_mut(), at));
            (result, Some(slot))
        }
        DiskTask::Write { at, slot } => (again(|| file.write_at(slot.bytes(), at)), Some(slot)),
        DiskTask::Flush => (again(|| file.sync_data().map(|()| 0)), None),
        DiskTask::Discard { at, bytes } => {
            (again(|| changed(FallocateFlags::PUNCH_HOLE, at, bytes)), None)
        }
        DiskTask::Zero { at, bytes } => {
            (again(|| changed(FallocateFlags::ZERO_RANGE, at, bytes)), None)
        }
    }
}

/// What a signal interrupts is tried again.
fn again(mut call: impl FnMut() -> Result<usize, IoError>) -> Result<usize, IoError> {
    loop {
        match call() {
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}
