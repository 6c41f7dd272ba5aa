//! From the tap to the driver: one packet is in one buffer, or in several that it sees at once.
//!
//! A packet is read first and finds its buffers then. While there are too few it waits, one for
//! each queue pair; the rest waits in the tap, whose queue has a bound of its own.

use std::io::ErrorKind;

use log::debug;
use virtio_bindings::bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;

use super::drops::Drop;
use super::flow::{AT_A_TIME, Flow, Rest};
use super::header::{HEADER_BYTES, Header, PACKET_BYTES_MAX, bit};
use super::port::Port;
use crate::devices::virtio::{Broken, DescriptorChain, Virtqueue};

/// The packet that is on its way in.
#[derive(Debug)]
pub(super) struct Incoming {
    /// Room for a header and the longest packet.
    bytes: Box<[u8]>,
    /// How much of it is one that waits for buffers; 0 if none does.
    waiting: usize,
}

impl Incoming {
    pub(super) fn new() -> Self {
        let bytes = vec![0; HEADER_BYTES + PACKET_BYTES_MAX].into_boxed_slice();
        Self { bytes, waiting: 0 }
    }

    /// What waits is lost.
    pub(super) fn clear(&mut self) {
        self.waiting = 0;
    }

    /// Reads and forgets packets for a turn.
    pub(super) fn discard(&mut self, port: &dyn Port) -> Rest {
        self.clear();
        for _ in 0..AT_A_TIME {
            if !self.read(port) {
                return Rest::Nothing;
            }
            self.clear();
        }
        Rest::More
    }

    /// Delivers packets for a turn.
    ///
    /// # Errors
    /// [`Broken`] if a buffer is none.
    pub(super) fn receive(
        &mut self,
        queue: &mut Virtqueue<'_, '_>,
        features: u64,
        port: &dyn Port,
        flow: &mut Flow,
    ) -> Result<Rest, Broken> {
        for _ in 0..AT_A_TIME {
            if let Some(wait) = flow.wait() {
                return Ok(Rest::Later(wait));
            }
            if self.waiting == 0 && !self.read(port) {
                return Ok(Rest::Nothing);
            }
            match self.deliver(queue, features)? {
                Delivery::Done => flow.take(self.waiting),
                Delivery::Waits => return Ok(Rest::Nothing),
                Delivery::Dropped(why) => flow.drops.count(&why),
            }
            self.clear();
        }
        Ok(Rest::More)
    }

    /// Whether a packet was there. A tap that fails is not read again until it says that it is ready.
    fn read(&mut self, port: &dyn Port) -> bool {
        loop {
            match port.read(&mut self.bytes) {
                Ok(bytes) if bytes > HEADER_BYTES => {
                    self.waiting = bytes;
                    return true;
                }
                Ok(0) => return false,
                Ok(_) => {}
                Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
                Err(cause) => {
                    if cause.kind() != ErrorKind::WouldBlock {
                        debug!("reading from a tap: {cause}");
                    }
                    return false;
                }
            }
        }
    }

    fn deliver(
        &mut self,
        queue: &mut Virtqueue<'_, '_>,
        features: u64,
    ) -> Result<Delivery, Broken> {
        let bytes = self.waiting;
        let Some((header, packet)) = self.bytes.split_first_chunk().filter(|_| bytes > 0) else {
            return Ok(Delivery::Done);
        };
        let header = Header::from_bytes(header);
        let packet = packet.get(..bytes - HEADER_BYTES).unwrap_or_default();
        // Before buffers are looked for: what cannot be understood needs none.
        if header.to_deliver(features, 1).is_none() {
            return Ok(Delivery::Dropped(Drop::Foreign));
        }
        let is_mergeable = features & bit(VIRTIO_NET_F_MRG_RXBUF) != 0;
        let mut chains = match buffers(queue, bytes as u64, is_mergeable)? {
            Buffers::Enough(chains) => chains,
            Buffers::TooFew => return Ok(Delivery::Waits),
            Buffers::TooSmall => return Ok(Delivery::Dropped(Drop::NoRoom { bytes })),
        };
        let count = u16::try_from(chains.len()).unwrap_or(u16::MAX);
        let header = header.to_deliver(features, count).unwrap_or_default().to_bytes();
        let mut rest = packet;
        let mut used = Vec::with_capacity(chains.len());
        for (place, chain) in chains.iter_mut().enumerate() {
            if place == 0 {
                chain.write(&header);
            }
            let done = chain.write(rest);
            rest = rest.get(done..).unwrap_or_default();
            used.push((chain.head(), chain.written()));
        }
        queue.finish_together(&used)?;
        Ok(Delivery::Done)
    }
}

/// Takes chains until they hold `bytes`; only one if they cannot be merged.
fn buffers<'m>(
    queue: &mut Virtqueue<'_, 'm>,
    bytes: u64,
    is_mergeable: bool,
) -> Result<Buffers<'m>, Broken> {
    let (mut chains, mut room) = (Vec::new(), 0);
    while room < bytes {
        let Some(chain) = queue.pop()? else {
            // A ring whose buffers are all there and still too small never has enough.
            let is_all = chains.len() >= usize::from(queue.size());
            queue.put_back(u16::try_from(chains.len()).unwrap_or(0));
            return Ok(if is_all { Buffers::TooSmall } else { Buffers::TooFew });
        };
        let more = chain.writable_bytes();
        if more < HEADER_BYTES as u64 {
            let why = format!("a buffer for packets of {more} bytes, less than a header");
            return Err(Broken::Request(why));
        }
        room += more;
        chains.push(chain);
        if !is_mergeable && room < bytes {
            queue.put_back(1);
            return Ok(Buffers::TooSmall);
        }
    }
    Ok(Buffers::Enough(chains))
}

enum Buffers<'m> {
    Enough(Vec<DescriptorChain<'m>>),
    TooFew,
    TooSmall,
}

enum Delivery {
    Done,
    Waits,
    Dropped(Drop),
}
