//! What this machine can do at best: memory, loopback, and the cryptography of private pages.

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Instant;

use aes::Aes128;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use sevferry::encryption::Status;
use sevferry::memory::{Access, GuestRam};
use sevferry::page::RamLayout;
use sha2::Sha256;

use super::vmm::Result;

/// Bytes of one write or copy: as much as a second-level cache holds.
const STEP: usize = 1 << 20;

/// Bytes per second of copying from one buffer to another, on one thread.
pub(crate) fn memcpy() -> f64 {
    let (from, mut to) = (vec![1_u8; 64 * STEP], vec![2_u8; 64 * STEP]);
    let begun = Instant::now();
    for _ in 0..8 {
        to.copy_from_slice(&from);
        black_box(&mut to);
    }
    8.0 * to.len() as f64 / begun.elapsed().as_secs_f64()
}

/// Bytes per second of `bytes` over so many TCP connections on loopback, from and to one buffer each.
pub(crate) fn loopback(connections: u64, bytes: u64) -> Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let each = usize::try_from(bytes / connections)?;
    let mut pairs = Vec::new();
    for _ in 0..connections {
        let sender = TcpStream::connect(address)?;
        pairs.push((sender, listener.accept()?.0));
    }
    let begun = Instant::now();
    let whole = thread::scope(|scope| {
        let mut receivers = Vec::new();
        for (mut sender, mut receiver) in pairs {
            scope.spawn(move || {
                let (buffer, mut left) = (vec![1; STEP], each);
                while left > 0 {
                    let part = buffer.get(..left.min(STEP)).unwrap_or_default();
                    if sender.write_all(part).is_err() {
                        return;
                    }
                    left -= part.len();
                }
            });
            receivers.push(scope.spawn(move || {
                let (mut buffer, mut got) = (vec![0; STEP], 0);
                while let Ok(count @ 1..) = receiver.read(&mut buffer) {
                    got += count;
                }
                got == each
            }));
        }
        receivers.into_iter().all(|receiver| receiver.join().unwrap_or(false))
    });
    let took = begun.elapsed().as_secs_f64();
    if !whole {
        return Err("a loopback connection lost bytes".into());
    }
    Ok(bytes as f64 / took)
}

/// Bytes per second of what a page costs each side: AES-128-CTR, then HMAC-SHA-256, on all of
/// `threads` threads together.
pub(crate) fn page_cryptography(threads: u32) -> f64 {
    const PAGES: u32 = 30_000;
    let begun = Instant::now();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let Ok(mac) = <Hmac<Sha256> as KeyInit>::new_from_slice(&[1; 16]) else { return };
                let mut page = [3_u8; 4096];
                for number in 0..PAGES {
                    let iv = u128::from(number << 8).to_be_bytes();
                    Ctr128BE::<Aes128>::new(&[2; 16].into(), &iv.into()).apply_keystream(&mut page);
                    black_box(mac.clone().chain_update(page).finalize());
                }
            });
        }
    });
    f64::from(threads * PAGES) * 4096.0 / begun.elapsed().as_secs_f64()
}

/// Touches so many bytes in huge pages: a machine that has given memory back to its own host waits for
/// it to come again, which would be measured as the next VMM's.
pub(crate) fn warm_memory(bytes: u64) -> Result<()> {
    let memory = GuestRam::single(RamLayout::new(bytes)?)?;
    for run in memory.layout().ranges() {
        memory.populate(run, Status::Shared, Access::Write);
    }
    Ok(())
}
