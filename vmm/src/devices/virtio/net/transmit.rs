//! From the driver to the tap: one chain is one packet, which the kernel takes from where it lies.

use std::io::ErrorKind;

use super::drops::Drop;
use super::flow::{AT_A_TIME, Flow, Rest};
use super::header::{HEADER_BYTES, Header, PACKET_BYTES_MAX, PACKET_BYTES_MIN};
use super::port::Port;
use crate::devices::virtio::{Broken, DescriptorChain, Segment, Virtqueue};
use crate::memory::DeviceView;

/// Sends packets for a turn.
///
/// # Errors
/// [`Broken`] if a chain is none of this device's.
pub(super) fn transmit(
    queue: &mut Virtqueue<'_, '_>,
    (memory, features): (&DeviceView, u64),
    port: Option<&dyn Port>,
    flow: &mut Flow,
) -> Result<Rest, Broken> {
    for _ in 0..AT_A_TIME {
        if let Some(wait) = flow.wait() {
            return Ok(Rest::Later(wait));
        }
        let Some(chain) = queue.pop()? else { return Ok(Rest::Nothing) };
        let head = chain.head();
        flow.take(usize::try_from(chain.readable_bytes()).unwrap_or(usize::MAX));
        if chain.readable_bytes() < HEADER_BYTES as u64 {
            return Err(Broken::Request("a packet to send is shorter than its header".to_owned()));
        }
        // Without a port the link is down: what is sent is lost, as on a wire that is not plugged in.
        if let Some(port) = port
            && let Err(why) = send(chain, (memory, features), port)
        {
            flow.drops.count(&why);
        }
        queue.finish(head, 0)?;
    }
    Ok(Rest::More)
}

fn send(
    mut chain: DescriptorChain<'_>,
    (memory, features): (&DeviceView, u64),
    port: &dyn Port,
) -> Result<(), Drop> {
    let mut header = [0; HEADER_BYTES];
    chain.read(&mut header);
    let bytes = usize::try_from(chain.readable_bytes()).unwrap_or(usize::MAX);
    if !(PACKET_BYTES_MIN..=PACKET_BYTES_MAX).contains(&bytes) {
        return Err(Drop::Length { bytes });
    }
    let header = Header::from_bytes(&header).to_send(features, bytes).ok_or(Drop::Header)?;
    let request = chain.into_request();
    let slice = |part: &Segment| part.slice(memory);
    let packet: Option<Vec<_>> = request.readable.iter().map(slice).collect();
    let packet = packet.ok_or(Drop::Length { bytes })?;
    loop {
        match port.write(&header.to_bytes(), &packet) {
            Err(cause) if cause.kind() == ErrorKind::Interrupted => {}
            other => return other.map_err(Drop::Unsent),
        }
    }
}
