//! Sends bytes that each say where they belong to a peer that sends them back, and checks every one.
//!
//! usage: byte_stream echo PORT               sends back what it gets, on any number of connections
//!        byte_stream run HOST:PORT SECONDS   prints a line each second, and a last one
//!
//! The lines are `byte_stream: bytes=N longest_gap_ms=N`, the last one ends in `ok`: all that was sent
//! came back, in order, unchanged. The gap is the longest time in which no byte came back. A byte that
//! is wrong, or a connection that ends early, is told on standard error, with exit code 1.

use std::io::{Error, Read, Result, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How much is written or read at once; a whole number of words.
const CHUNK: usize = 64 << 10;
/// Longer than this no answer may be missing.
const PATIENCE: Duration = Duration::from_secs(300);

/// The word at an index: no two of a stream are alike, so a page that is doubled or left out shows.
fn word(index: u64) -> [u8; 8] {
    // The mixing function of splitmix64, which is a bijection.
    let mut word = index.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (word ^ (word >> 31)).to_le_bytes()
}

/// The bytes of the stream from `start` on.
fn fill(buffer: &mut [u8], start: u64) {
    for (offset, byte) in (start..).zip(buffer.iter_mut()) {
        *byte = word(offset / 8)[(offset % 8) as usize];
    }
}

/// Writes until the time is up; returns how many bytes.
fn send(mut stream: TcpStream, until: Instant) -> Result<u64> {
    let mut sent = 0;
    let mut buffer = vec![0; CHUNK];
    while Instant::now() < until {
        fill(&mut buffer, sent);
        stream.write_all(&buffer)?;
        sent += CHUNK as u64;
    }
    stream.shutdown(Shutdown::Write)?;
    Ok(sent)
}

/// Reads to the end and compares; returns how many bytes came back, and the longest gap.
fn check(mut stream: TcpStream) -> Result<(u64, Duration)> {
    let (mut received, mut longest) = (0u64, Duration::ZERO);
    let mut buffer = vec![0; CHUNK];
    let mut expected = vec![0; CHUNK];
    let mut last = Instant::now();
    let mut told = last;
    loop {
        let count = stream.read(&mut buffer)?;
        longest = longest.max(last.elapsed());
        last = Instant::now();
        if count == 0 {
            return Ok((received, longest));
        }
        fill(&mut expected[..count], received);
        let pairs = buffer[..count].iter().zip(&expected);
        if let Some(wrong) = pairs.into_iter().position(|(found, due)| found != due) {
            let at = received + wrong as u64;
            return Err(Error::other(format!("byte {at} is not what was sent")));
        }
        received += count as u64;
        if told.elapsed() >= Duration::from_secs(1) {
            told = last;
            println!("byte_stream: bytes={received} longest_gap_ms={}", longest.as_millis());
        }
    }
}

fn run(address: &str, seconds: u64) -> Result<()> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let writer = stream.try_clone()?;
    let until = Instant::now() + Duration::from_secs(seconds);
    let sender = std::thread::spawn(move || send(writer, until));
    let (received, longest) = check(stream)?;
    let sent = sender.join().map_err(|_| Error::other("the sender panicked"))??;
    if sent != received {
        return Err(Error::other(format!("{sent} bytes were sent, {received} came back")));
    }
    println!("byte_stream: bytes={received} longest_gap_ms={} ok", longest.as_millis());
    Ok(())
}

fn echo(port: u16) -> Result<()> {
    for stream in TcpListener::bind(("0.0.0.0", port))?.incoming() {
        let mut from = stream?;
        let mut back = from.try_clone()?;
        std::thread::spawn(move || std::io::copy(&mut from, &mut back));
    }
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments[..] {
        ["echo", port] => port.parse().map_err(Error::other).and_then(echo),
        ["run", address, seconds] => {
            seconds.parse().map_err(Error::other).and_then(|seconds| run(address, seconds))
        }
        _ => Err(Error::other("usage: byte_stream echo PORT | run HOST:PORT SECONDS")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("byte_stream: {error}");
            ExitCode::FAILURE
        }
    }
}
