//! A driver of a network card that sends and offers anything, while any packets come.
#![no_main]

use std::io::Error as IoError;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixDatagram;

use libfuzzer_sys::fuzz_target;
use sevferry::devices::virtio::{Driver, Net, Port};
use sevferry::memory::DeviceSlice;

/// A wire that takes everything and says what it is told to.
#[derive(Debug)]
struct Socket(UnixDatagram);

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Port for Socket {
    fn read(&self, into: &mut [u8]) -> Result<usize, IoError> {
        self.0.recv(into)
    }

    fn write(&self, _header: &[u8], packet: &[DeviceSlice<'_>]) -> Result<(), IoError> {
        let mut bytes = vec![0; packet.iter().map(|part| part.len()).sum()];
        for part in packet {
            part.copy_to(&mut bytes);
        }
        Ok(())
    }

    fn set_offloads(&self, _offloads: u32) -> Result<(), IoError> {
        Ok(())
    }

    fn set_attached(&self, _attached: bool) -> Result<(), IoError> {
        Ok(())
    }
}

fuzz_target!(|input: (u64, Vec<(u8, Vec<u8>, Vec<u16>)>)| {
    let (features, steps) = input;
    let Ok((near, far)) = UnixDatagram::pair() else { return };
    let blocking = [near.set_nonblocking(true), far.set_nonblocking(true)];
    assert!(blocking.iter().all(Result::is_ok));
    let Ok(card) = Net::over(vec![Box::new(Socket(near))], None, None) else { return };
    let Ok(mut driver) = Driver::new(Box::new(card), 16 << 20, 4096) else { return };
    let _accepted = driver.start(features);
    for (what, bytes, lengths) in steps.into_iter().take(64) {
        let bytes = &bytes[..bytes.len().min(4096)];
        let writable: Vec<_> =
            lengths.iter().take(8).map(|length| u32::from(length % 4096)).collect();
        match what % 4 {
            3 => {
                let _sent = far.send(bytes);
            }
            queue => {
                let _added = driver.add(queue.into(), &[bytes], &writable);
                driver.ring(queue.into());
            }
        }
    }
    driver.function().pause();
    driver.function().resume();
});
