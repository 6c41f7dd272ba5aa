//! The device: requests popped, begun, gone on with as the storage answers, and finished.
//!
//! A request is one task of the engine at a time: a piece to read or write, a range, a flush. It has
//! a token from when it is popped until the driver has it back, or, if the driver gives the device up
//! meanwhile, until the storage has. Nothing begins while the storage has something from before a
//! reset, or without the lock, or once the device is to be quiet.

use std::collections::VecDeque;
use std::io::Error as IoError;
use std::mem::{replace, take};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use log::{info, warn};
use serde::{Deserialize, Serialize};

use super::arena::Arena;
use super::cache::Cache;
use super::disk::{Disk, NoDisk, NotResized};
use super::engine::{DEPTH, DiskTask, Done, Engine};
use super::flight::{Flight, Next};
use super::layout::{self, QUEUE_SIZE, SEGMENTS_MAX, WRITEBACK};
use super::request::{Asked, Limits, RequestStatus, SERIAL_BYTES, parse};
use super::threads::Threads;
use super::uring::Uring;
use crate::devices::virtio::{
    BadState, Broken, DescriptorChain, DeviceKind, DeviceState, NotHeld, Queues, Segment,
    VirtioDevice,
};
use crate::memory::DeviceView;

/// Version of [`BlockState`].
const VERSION: u32 = 1;

/// Pages of the arena: 4 MiB, most of which only large requests ever touch.
const ARENA_PAGES: usize = 1024;

/// The device.
#[derive(Debug)]
pub struct Block {
    disk: Disk,
    arena: Arc<Arena>,
    engine: Box<dyn Engine>,
    /// By token.
    places: Vec<TokenUse>,
    free: Vec<u32>,
    /// What waits for room in the arena.
    waiting: VecDeque<u32>,
    /// What has ended and is not looked at yet.
    ended: VecDeque<Done>,
    /// How many tasks the engine has, and how many of those nobody waits for.
    flying: usize,
    orphans: usize,
    /// Whether a queue was left although there may be more in it.
    is_behind: bool,
    /// Whether nothing new begins.
    is_quiet: bool,
    cache: Cache,
}

/// What a token stands for.
#[derive(Debug)]
enum TokenUse {
    Free,
    Taken(Box<Flight>),
    /// The storage has it still; nobody waits for it.
    Orphan,
    /// A flush of our own, of the changes up to this one.
    Sync(u64),
}

/// What travels: of a device that is quiet, so without requests.
#[derive(Debug, Serialize, Deserialize)]
struct BlockState {
    sectors: u64,
    writeback: bool,
    flush_failed: bool,
}

impl Block {
    /// `VIRTIO_ID_BLOCK`; for PCI it is mass storage of another kind.
    pub const KIND: DeviceKind = DeviceKind { id: 2, name: "disk", class: [1, 0x80, 0] };

    /// The device for `disk`.
    ///
    /// # Errors
    /// [`NoDisk::Engine`].
    pub fn new(disk: Disk) -> Result<Self, NoDisk> {
        let failed = |cause| NoDisk::Engine { path: disk.path().to_owned(), cause };
        let arena = Arena::new(ARENA_PAGES).map_err(|cause| failed(IoError::other(cause)))?;
        let engine: Box<dyn Engine> = match Uring::start(disk.file(), &arena) {
            Ok(uring) => Box::new(uring),
            // The kernel is old, or its administrator forbids it.
            Err(cause) => {
                info!("{}: no io_uring ({cause}), so threads", disk.path().display());
                Box::new(Threads::start(disk.file()).map_err(failed)?)
            }
        };
        Ok(Self::on(disk, arena, engine))
    }

    /// The device for `disk`, whose work `engine` does.
    pub(super) fn on(disk: Disk, arena: Arc<Arena>, engine: Box<dyn Engine>) -> Self {
        Self {
            disk,
            arena,
            engine,
            places: (0..DEPTH).map(|_| TokenUse::Free).collect(),
            free: (0..DEPTH).rev().collect(),
            waiting: VecDeque::new(),
            ended: VecDeque::new(),
            flying: 0,
            orphans: 0,
            is_behind: false,
            is_quiet: false,
            cache: Cache::new(),
        }
    }

    /// Takes what the driver has added to a queue.
    fn take_in(&mut self, index: u16, queues: &mut Queues<'_>) -> Result<(), Broken> {
        let may_begin = self.disk.is_locked() && !self.is_quiet && self.orphans == 0;
        while may_begin && self.waiting.is_empty() && !self.free.is_empty() {
            let Some(mut queue) = queues.get(index) else { return Ok(()) };
            let Some(chain) = queue.pop()? else { return Ok(()) };
            self.accept(index, chain, queues)?;
        }
        self.is_behind = true;
        Ok(())
    }

    /// Begins what a chain asks for, or answers at once.
    fn accept(
        &mut self,
        index: u16,
        mut chain: DescriptorChain<'_>,
        queues: &mut Queues<'_>,
    ) -> Result<(), Broken> {
        let broken = |what: &str| Broken::Request(what.to_owned());
        if chain.parts() > SEGMENTS_MAX as usize + 2 {
            return Err(broken("a request in more parts than seg_max allows"));
        }
        let status = chain.take_last().ok_or_else(|| broken("a request without a status"))?;
        let limits = Limits {
            sectors: self.disk.sectors(),
            readonly: self.disk.options().readonly,
            block: self.disk.block(),
        };
        let asked =
            parse(&mut chain, &limits).ok_or_else(|| broken("a request without a header"))?;
        let whose = (index, chain.head(), status);
        let asked = match asked {
            Err(refused) => return finish(queues, whose, 0, refused),
            Ok(Asked::Flush) if take(&mut self.cache.flush_failed) => {
                return finish(queues, whose, 0, RequestStatus::Failed);
            }
            Ok(asked) => asked,
        };
        if asked == Asked::Serial {
            chain.write(&self.serial());
        }
        let written = chain.written();
        let flight = Flight::new(index, (chain.into_request(), status), asked);
        if flight.is_over() {
            return finish(queues, whose, written, RequestStatus::Ok);
        }
        let Some(token) = self.free.pop() else { return Err(broken("more requests than places")) };
        self.put(token, TokenUse::Taken(Box::new(flight)));
        self.go_on(token, queues.memory());
        Ok(())
    }

    fn serial(&self) -> [u8; SERIAL_BYTES] {
        let mut serial = [0; SERIAL_BYTES];
        for (place, byte) in serial.iter_mut().zip(self.disk.options().serial.bytes()) {
            *place = byte;
        }
        serial
    }

    /// Begins the next task of a request, or lets it wait for room.
    fn go_on(&mut self, token: u32, memory: &DeviceView) {
        let Some(TokenUse::Taken(flight)) = self.places.get_mut(token as usize) else { return };
        match flight.task(&self.arena, memory, self.cache.changes()) {
            Some(task) => self.begin(token, task),
            None => self.waiting.push_back(token),
        }
    }

    fn begin(&mut self, token: u32, task: DiskTask) {
        self.flying += 1;
        self.engine.begin(token, task);
    }

    /// Takes from the engine what has ended. What no request waits for is done with here.
    fn collect(&mut self) {
        while let Some(done) = self.engine.next() {
            self.flying = self.flying.saturating_sub(1);
            match self.places.get(done.token as usize) {
                Some(TokenUse::Taken(flight)) => {
                    // Whatever becomes of the request, and of the device.
                    if flight.changes_disk() {
                        self.cache.changed();
                    }
                    self.ended.push_back(done);
                }
                Some(TokenUse::Orphan) => {
                    self.orphans = self.orphans.saturating_sub(1);
                    // It may have changed the disk, whoever asked for that.
                    self.cache.changed();
                    self.give_back(done.token);
                }
                Some(&TokenUse::Sync(changes)) => {
                    self.cache.flushed(changes);
                    if let Err(cause) = done.result {
                        self.cache.flush_failed = true;
                        self.complain("flushing", &cause);
                    }
                    self.give_back(done.token);
                }
                Some(TokenUse::Free) | None => {}
            }
        }
    }

    /// Goes on with what has ended.
    fn follow(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        while let Some(done) = self.ended.pop_front() {
            let token = done.token;
            let Some(place) = self.places.get_mut(token as usize) else { continue };
            let TokenUse::Taken(mut flight) = replace(place, TokenUse::Free) else { continue };
            let next = flight.after(done, queues.memory());
            let status = match next {
                Err(cause) => {
                    self.complain(flight.verb(), &cause);
                    RequestStatus::Failed
                }
                Ok(Next::DiskTask(task)) => {
                    self.put(token, TokenUse::Taken(flight));
                    self.begin(token, task);
                    continue;
                }
                Ok(Next::More) => {
                    self.put(token, TokenUse::Taken(flight));
                    self.go_on(token, queues.memory());
                    continue;
                }
                Ok(Next::Over { changed }) => {
                    if changed && self.cache.is_write_through(queues.features()) {
                        flight.flush_first();
                        self.put(token, TokenUse::Taken(flight));
                        self.go_on(token, queues.memory());
                        continue;
                    }
                    RequestStatus::Ok
                }
                Ok(Next::Flushed(changes)) => {
                    self.cache.flushed(changes);
                    RequestStatus::Ok
                }
            };
            self.free.push(token);
            let whose = (flight.queue, flight.request.head, flight.status);
            finish(queues, whose, flight.written, status)?;
        }
        Ok(())
    }

    /// Goes on with all that can be gone on with.
    fn catch_up(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        self.collect();
        self.follow(queues)?;
        for _ in 0..self.waiting.len() {
            if let Some(token) = self.waiting.pop_front() {
                self.go_on(token, queues.memory());
            }
        }
        if take(&mut self.is_behind) {
            for index in 0..self.disk.options().queues {
                self.take_in(index, queues)?;
            }
        }
        self.engine.submit();
        Ok(())
    }

    fn put(&mut self, token: u32, place: TokenUse) {
        if let Some(old) = self.places.get_mut(token as usize) {
            *old = place;
        }
    }

    fn give_back(&mut self, token: u32) {
        self.put(token, TokenUse::Free);
        self.free.push(token);
    }

    fn name(&self) -> String {
        format!("disk {:?} ({})", self.disk.options().id, self.disk.path().display())
    }

    /// A guest can make this happen as often as it likes: the log says it once a second.
    fn complain(&self, verb: &str, cause: &IoError) {
        warn!("{}: {verb}: {cause}; the guest is told that it failed", self.name());
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.collect();
        if self.flying > 0 {
            self.disk.stay_locked();
        }
    }
}

/// Gives a request back to the driver, of whose data `written` bytes were written.
fn finish(
    queues: &mut Queues<'_>,
    (index, head, status): (u16, u16, Segment),
    written: u32,
    how: RequestStatus,
) -> Result<(), Broken> {
    if let Some(place) = status.slice(queues.memory()) {
        place.copy_from(&[how.byte()]);
    }
    // After a failure there is a hole between the data and the status.
    let used = written + u32::from(how == RequestStatus::Ok);
    queues.get(index).map_or(Ok(()), |mut queue| queue.finish(head, used))
}

impl VirtioDevice for Block {
    fn kind(&self) -> DeviceKind {
        Self::KIND
    }

    fn features(&self) -> u64 {
        layout::features(&self.disk)
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![QUEUE_SIZE; usize::from(self.disk.options().queues)]
    }

    fn alike(&self) -> Vec<(&'static str, String)> {
        let options = self.disk.options();
        vec![
            ("id", options.id.clone()),
            ("size in sectors", self.disk.sectors().to_string()),
            ("block size", self.disk.block().to_string()),
            ("readonly", if options.readonly { "on" } else { "off" }.to_owned()),
            ("serial", options.serial.clone()),
        ]
    }

    fn sources(&self) -> Vec<RawFd> {
        // Never read: each completion is another edge, whatever the count.
        vec![self.engine.event().as_raw_fd()]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = layout::config(&self.disk, self.cache.writeback);
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, byte) in data.iter_mut().zip(config.iter().skip(from)) {
            *place = *byte;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        if let (WRITEBACK, [byte]) = (offset, data) {
            self.cache.writeback = *byte != 0;
        }
    }

    fn process(&mut self, index: u16, queues: &mut Queues<'_>) -> Result<(), Broken> {
        self.take_in(index, queues)?;
        self.engine.submit();
        // What comes from the page cache is there already.
        self.catch_up(queues)
    }

    fn wake(&mut self, _source: usize, queues: &mut Queues<'_>) -> Result<(), Broken> {
        self.catch_up(queues)
    }

    fn id(&self) -> Option<&str> {
        Some(&self.disk.options().id)
    }

    fn resize(&mut self, bytes: Option<u64>) -> Result<bool, NotResized> {
        let is_new = self.disk.resize(bytes)?;
        if is_new {
            info!("{}: it has {} sectors now", self.name(), self.disk.sectors());
        }
        Ok(is_new)
    }

    fn quiesce(&mut self) {
        self.is_quiet = true;
    }

    fn in_flight(&mut self, is_working: bool) -> usize {
        self.collect();
        if !is_working {
            // A driver that has broken its device gets nothing back before it resets it.
            let kept: Vec<_> = self.ended.drain(..).map(|done| done.token).collect();
            kept.into_iter().chain(take(&mut self.waiting)).for_each(|token| self.give_back(token));
        }
        let kept = self.ended.len() + self.waiting.len();
        if self.flying + kept > 0 || self.cache.is_clean() || !self.is_quiet {
            return self.flying + kept;
        }
        // Another host reads what is on the storage, not what is in this one's cache.
        let Some(token) = self.free.pop() else { return 0 };
        self.put(token, TokenUse::Sync(self.cache.changes()));
        self.begin(token, DiskTask::Flush);
        self.engine.submit();
        self.flying
    }

    fn has_lost_writes(&self) -> bool {
        self.cache.flush_failed
    }

    fn go_on_working(&mut self) {
        (self.is_quiet, self.is_behind) = (false, true);
    }

    fn hold(&mut self) -> Result<(), NotHeld> {
        self.disk.lock().map_err(|cause| NotHeld(Box::new(cause)))
    }

    fn let_go(&mut self) {
        self.disk.unlock();
    }

    fn reset(&mut self) {
        let ended: Vec<_> = self.ended.drain(..).map(|done| done.token).collect();
        let unbegun: Vec<_> = self.waiting.drain(..).collect();
        for token in ended.into_iter().chain(unbegun) {
            self.give_back(token);
        }
        for place in &mut self.places {
            if matches!(place, TokenUse::Taken(_)) {
                *place = TokenUse::Orphan;
                self.orphans += 1;
            }
        }
        self.cache.writeback = true;
    }

    fn state(&self) -> DeviceState {
        let state = BlockState {
            sectors: self.disk.sectors(),
            writeback: self.cache.writeback,
            flush_failed: self.cache.flush_failed,
        };
        DeviceState::new(&Self::KIND, VERSION, &state)
    }

    fn restore(&mut self, state: &DeviceState, _memory: &DeviceView) -> Result<(), BadState> {
        let BlockState { sectors, writeback, flush_failed } = state.read(&Self::KIND, VERSION)?;
        if sectors != self.disk.sectors() {
            let here = self.disk.sectors();
            let what = format!("a disk of {sectors} sectors, and here it has {here}");
            return Err(BadState::Unlike(what));
        }
        (self.cache.writeback, self.cache.flush_failed) = (writeback, flush_failed);
        Ok(())
    }
}
