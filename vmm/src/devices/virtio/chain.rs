//! One request of a driver: the bytes that the device reads, then those that it writes.

use std::collections::VecDeque;
use std::mem::take;

use serde::{Deserialize, Serialize};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemoryBackend};

use super::broken::Broken;
use crate::memory::{DeviceSlice, DeviceView};

/// A run of bytes in guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Segment {
    /// Where it starts.
    pub address: u64,
    /// How many bytes.
    pub bytes: u32,
}

/// A chain of descriptors, checked: all of it is RAM, and none of it is looked up again.
#[derive(Debug)]
pub struct DescriptorChain<'m> {
    memory: &'m DeviceView,
    head: u16,
    readable: VecDeque<Segment>,
    writable: VecDeque<Segment>,
    written: u32,
}

/// A chain that outlives the call that it was popped in, for devices that finish it later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PendingRequest {
    /// What the ring calls it.
    pub head: u16,
    /// What the device reads.
    pub readable: Vec<Segment>,
    /// What the device writes.
    pub writable: Vec<Segment>,
}

impl PendingRequest {
    /// Whether all of it is RAM: one that came from elsewhere need not be.
    #[must_use]
    pub fn is_in(&self, memory: &DeviceView) -> bool {
        self.readable.iter().chain(&self.writable).all(|part| part.slice(memory).is_some())
    }

    /// As [`DescriptorChain::read`], later.
    pub fn read(&mut self, memory: &DeviceView, into: &mut [u8]) -> usize {
        let mut parts = VecDeque::from(take(&mut self.readable));
        let done = copy_out(memory, &mut parts, into);
        self.readable = parts.into();
        done
    }

    /// As [`DescriptorChain::write`], later.
    pub fn write(&mut self, memory: &DeviceView, from: &[u8]) -> u32 {
        let mut parts = VecDeque::from(take(&mut self.writable));
        let done = copy_in(memory, &mut parts, from);
        self.writable = parts.into();
        u32::try_from(done).unwrap_or(u32::MAX)
    }
}

impl Segment {
    /// Its bytes, if they are RAM.
    #[must_use]
    pub fn slice(self, memory: &DeviceView) -> Option<DeviceSlice<'_>> {
        let bytes = usize::try_from(self.bytes).ok()?;
        memory.get_slice(GuestAddress(self.address), bytes).ok()
    }
}

impl<'m> DescriptorChain<'m> {
    /// # Errors
    /// [`Broken`] if a buffer is not RAM, or one to read follows one to write.
    pub(super) fn new(
        memory: &'m DeviceView,
        head: u16,
        descriptors: &[Descriptor],
    ) -> Result<Self, Broken> {
        let (mut readable, mut writable) = (VecDeque::new(), VecDeque::new());
        for descriptor in descriptors {
            let segment = Segment { address: descriptor.addr().0, bytes: descriptor.len() };
            if !descriptor.is_write_only() && !writable.is_empty() {
                return Err(Broken::Order { head });
            }
            if segment.slice(memory).is_none() {
                let Segment { address, bytes } = segment;
                return Err(Broken::NotRam { head, address, bytes });
            }
            if segment.bytes > 0 {
                let part = if descriptor.is_write_only() { &mut writable } else { &mut readable };
                part.push_back(segment);
            }
        }
        Ok(Self { memory, head, readable, writable, written: 0 })
    }

    /// What the ring calls it, to [`finish`](super::Virtqueue::finish) it.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Bytes that are left to read.
    #[must_use]
    pub fn readable_bytes(&self) -> u64 {
        self.readable.iter().map(|part| u64::from(part.bytes)).sum()
    }

    /// Bytes that are left to write.
    #[must_use]
    pub fn writable_bytes(&self) -> u64 {
        self.writable.iter().map(|part| u64::from(part.bytes)).sum()
    }

    /// Bytes written so far, to [`finish`](super::Virtqueue::finish) it with.
    #[must_use]
    pub fn written(&self) -> u32 {
        self.written
    }

    /// Buffers that are left.
    #[must_use]
    pub fn parts(&self) -> usize {
        self.readable.len() + self.writable.len()
    }

    /// Takes the last byte that the device may write out of it: a status, that comes after data.
    pub fn take_last(&mut self) -> Option<Segment> {
        let part = self.writable.back_mut()?;
        part.bytes = part.bytes.checked_sub(1)?;
        let last = Segment { address: part.address + u64::from(part.bytes), bytes: 1 };
        if part.bytes == 0 {
            self.writable.pop_back();
        }
        Some(last)
    }

    /// Copies the next bytes out; returns how many: fewer than asked for only at the end.
    pub fn read(&mut self, into: &mut [u8]) -> usize {
        copy_out(self.memory, &mut self.readable, into)
    }

    /// Copies the next bytes in; returns how many there was room for.
    pub fn write(&mut self, from: &[u8]) -> usize {
        let done = copy_in(self.memory, &mut self.writable, from);
        self.written = self.written.saturating_add(u32::try_from(done).unwrap_or(u32::MAX));
        done
    }

    /// What is left of it, to be finished later.
    #[must_use]
    pub fn into_request(self) -> PendingRequest {
        let Self { head, readable, writable, .. } = self;
        PendingRequest { head, readable: readable.into(), writable: writable.into() }
    }
}

fn copy_out(memory: &DeviceView, parts: &mut VecDeque<Segment>, into: &mut [u8]) -> usize {
    pass(memory, parts, into.len(), |slice, done| {
        if let Some(rest) = into.get_mut(done..) {
            slice.copy_to(rest);
        }
    })
}

fn copy_in(memory: &DeviceView, parts: &mut VecDeque<Segment>, from: &[u8]) -> usize {
    pass(memory, parts, from.len(), |slice, done| {
        if let Some(rest) = from.get(done..) {
            slice.copy_from(rest);
        }
    })
}

/// Takes `wanted` bytes from the front of `parts` and hands them to `copy`, with how many came before
/// them. Returns how many there were.
fn pass(
    memory: &DeviceView,
    parts: &mut VecDeque<Segment>,
    wanted: usize,
    mut copy: impl FnMut(&DeviceSlice<'_>, usize),
) -> usize {
    let mut done = 0;
    while let Some(part) = parts.front_mut() {
        let left = u32::try_from(wanted.saturating_sub(done)).unwrap_or(u32::MAX);
        let now = Segment { address: part.address, bytes: part.bytes.min(left) };
        let Some(slice) = now.slice(memory).filter(|slice| !slice.is_empty()) else { break };
        copy(&slice, done);
        done += slice.len();
        part.address += u64::from(now.bytes);
        part.bytes -= now.bytes;
        if part.bytes == 0 {
            parts.pop_front();
        }
    }
    done
}
