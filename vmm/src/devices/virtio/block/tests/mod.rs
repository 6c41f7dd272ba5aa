//! A disk driven through its rings by a driver in this process, on real files and on storage that stalls
//! or fails as a test says.

mod files;
mod model;
mod requests;
mod scripted;
mod storage;

use std::env::temp_dir;
use std::fs::{File, read, remove_file};
use std::path::PathBuf;
use std::process::id;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use super::arena::Arena;
use super::device::Block;
use super::disk::{Disk, DiskOptions};
use super::engine::Engine;
use super::threads::Threads;
use super::uring::Uring;
use crate::devices::virtio::{Driver, FunctionState, VirtioDevice};

const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

const FLUSH_FEATURE: u64 = 1 << 9;
const CONFIG_WCE: u64 = 1 << 11;

const NEEDS_RESET: u8 = 64;

/// Starts an engine, if there is one.
type Start = fn(&Disk, &Arc<Arena>) -> Option<Box<dyn Engine>>;

/// A raw image, which goes with it.
struct Image(PathBuf);

impl Image {
    /// Of so many sectors, all zeros.
    fn of(sectors: u64) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = temp_dir().join(format!("sevferry-disk-{}-{count}.raw", id()));
        File::create(&path).unwrap().set_len(sectors * 512).unwrap();
        Self(path)
    }

    fn bytes(&self) -> Vec<u8> {
        read(&self.0).unwrap()
    }

    fn options(&self) -> DiskOptions {
        DiskOptions {
            path: self.0.clone(),
            id: "root".to_owned(),
            serial: "SERIAL-1".to_owned(),
            readonly: false,
            direct: false,
            queues: 1,
        }
    }

    /// Disks on it: done by `io_uring`, where there is one, and by threads.
    fn by_each_engine(&self) -> Vec<Guest> {
        let engines: [Start; 2] = [
            |disk, arena| Some(Box::new(Uring::start(disk.file(), arena).ok()?)),
            |disk, _arena| Some(Box::new(Threads::start(disk.file()).unwrap())),
        ];
        let made = engines.iter().filter_map(|engine| {
            let (disk, arena) = (Disk::open(self.options()).unwrap(), Arena::new(1024).unwrap());
            let engine = engine(&disk, &arena)?;
            Some(Guest::without_lock(Block::on(disk, arena, engine), u64::MAX))
        });
        made.collect()
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        remove_file(&self.0).unwrap_or_default();
    }
}

/// A driver and its disk.
struct Guest {
    driver: Driver,
}

impl Guest {
    fn on(image: &Image) -> Self {
        Self::with(image.options())
    }

    fn with(options: DiskOptions) -> Self {
        Self::of(Block::new(Disk::open(options).unwrap()).unwrap(), u64::MAX)
    }

    /// Accepts those of `features` that are offered.
    fn of(block: Block, features: u64) -> Self {
        let guest = Self::without_lock(block, features);
        guest.driver.function().hold().unwrap();
        guest
    }

    fn without_lock(block: Block, features: u64) -> Self {
        let ram_bytes = (4 + 17 * block.queue_sizes().len() as u64) << 20;
        let mut driver = Driver::new(Box::new(block), ram_bytes, 64 << 10).unwrap();
        driver.start(features).unwrap();
        Self { driver }
    }

    /// Adds a request to queue 0 and rings; returns its head.
    fn begin(&mut self, kind: u32, sector: u64, data: &[u8], room: &[u32]) -> u16 {
        let header = header(kind, sector);
        let mut readable = vec![&header[..]];
        readable.extend(data.chunks(64 << 10));
        let writable = [room, &[1]].concat();
        let head = self.driver.add(0, &readable, &writable).unwrap();
        self.driver.ring(0);
        head
    }

    /// Waits for the next that comes back: its head, its status, and what was read.
    fn end(&mut self) -> (u16, u8, Vec<u8>) {
        let mut returned = self.driver.wait(0).unwrap();
        let status = returned.bytes.pop().unwrap();
        if status == OK {
            assert_eq!(returned.written as usize, returned.bytes.len() + 1);
        }
        (returned.head, status, returned.bytes)
    }

    fn request(&mut self, kind: u32, sector: u64, data: &[u8], room: &[u32]) -> (u8, Vec<u8>) {
        let head = self.begin(kind, sector, data, room);
        let (came, status, bytes) = self.end();
        assert_eq!(came, head);
        (status, bytes)
    }

    #[track_caller]
    fn write(&mut self, sector: u64, data: &[u8]) {
        assert_eq!(self.request(OUT, sector, data, &[]).0, OK);
    }

    #[track_caller]
    fn read(&mut self, sector: u64, bytes: u32) -> Vec<u8> {
        let whole = vec![64 << 10; bytes as usize >> 16];
        let rest = bytes & 0xffff;
        let room = [&whole[..], &[rest][..usize::from(rest > 0)]].concat();
        let (status, bytes) = self.request(IN, sector, &[], &room);
        assert_eq!(status, OK);
        bytes
    }

    fn config(&self, offset: u64, bytes: usize) -> u64 {
        let mut data = [0; 8];
        self.driver.read_config(offset, &mut data[..bytes]);
        u64::from_le_bytes(data)
    }

    fn is_broken(&self) -> bool {
        self.driver.status() & NEEDS_RESET != 0
    }
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

/// A range to discard or to fill with zeros.
fn range(sector: u64, sectors: u32, flags: u32) -> [u8; 16] {
    let mut range = [0; 16];
    range[..8].copy_from_slice(&sector.to_le_bytes());
    range[8..12].copy_from_slice(&sectors.to_le_bytes());
    range[12..].copy_from_slice(&flags.to_le_bytes());
    range
}

/// Bytes that are nowhere alike.
fn pattern(seed: u8, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at / 512).to_le_bytes()[0] ^ at.to_le_bytes()[0] ^ seed).collect()
}

/// The state of its device, as it travels.
fn state_of(guest: &Guest) -> FunctionState {
    guest.driver.function().pause();
    let bytes = guest.driver.function().state().to_bytes().unwrap();
    FunctionState::from_bytes(&bytes).unwrap()
}
