//! What this machine can do at best: memory, loopback, and the cryptography of private pages.

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use aes::Aes128;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher};
use hmac::digest::KeyInit;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::cost::{Meter, Result, Run, own_cpu_time};

/// Bytes of one write or copy: as much as a second-level cache holds.
const STEP: usize = 1 << 20;

/// Times `work`, which is no migration.
fn cost_of(work: impl FnOnce() -> Result<()>) -> Result<Run> {
    let (cpu_before, meter) = (own_cpu_time()?, Meter::start()?);
    work()?;
    let stopped = meter.stop()?;
    Ok(stopped.with_cpu(own_cpu_time()?.saturating_sub(cpu_before)))
}

/// Copies `bytes` from one buffer to another, on one thread.
pub(crate) fn memcpy(bytes: u64) -> Result<Run> {
    let (from, mut to) = (vec![1_u8; 64 * STEP], vec![2_u8; 64 * STEP]);
    cost_of(|| {
        for _ in 0..bytes / (64 * STEP as u64) {
            to.copy_from_slice(&from);
            black_box(&mut to);
        }
        Ok(())
    })
}

/// Sends `bytes` over so many TCP connections on loopback, from and to one buffer each.
pub(crate) fn loopback(connections: u64, bytes: u64) -> Result<Run> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let each = usize::try_from(bytes / connections)?;
    let mut pairs = Vec::new();
    for _ in 0..connections {
        let sender = TcpStream::connect(address)?;
        pairs.push((sender, listener.accept()?.0));
    }
    cost_of(|| if pass_on(pairs, each) { Ok(()) } else { Err("loopback lost bytes".into()) })
}

/// Sends `each` bytes over every connection, and says whether they arrived.
fn pass_on(pairs: Vec<(TcpStream, TcpStream)>, each: usize) -> bool {
    thread::scope(|scope| {
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
    })
}

/// What a page costs each side at least, for `bytes` of pages on two threads: AES-128-CTR, then
/// HMAC-SHA-256.
pub(crate) fn page_cryptography(bytes: u64) -> Result<Run> {
    let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&[1; 16])?;
    let half = || {
        let mut page = [3_u8; 4096];
        for number in 0..bytes / 4096 / 2 {
            let iv = u128::from(number << 8).to_be_bytes();
            Ctr128BE::<Aes128>::new(&[2; 16].into(), &iv.into()).apply_keystream(&mut page);
            black_box(mac.clone().chain_update(page).finalize());
        }
    };
    cost_of(|| {
        thread::scope(|scope| {
            scope.spawn(half);
            scope.spawn(half);
        });
        Ok(())
    })
}
