//! A driver of virtio devices in this process: for tests and benchmarks of devices, without a guest.
//!
//! It does what Linux does, through the bus: finds the capabilities, negotiates, sets up rings in
//! guest RAM, rings the doorbells, and waits for interrupts. A test that wants to break the rules
//! writes into [`Driver::memory`] and [`Driver::bus`] itself.

use std::io::Error as IoError;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use thiserror::Error;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::function::{NoFunction, VirtioFunction};
use super::function_core::{BELLS, COMMON, DEVICE, TABLE};
use super::{Segment, VirtioDevice};
use crate::devices::pci::{
    COMMAND_MASTER, COMMAND_MEMORY, InProcess, PciBus, PciFunction, PciLayout, Wires,
};
use crate::memory::{DeviceMemory, DeviceView, GuestRam, RamError};
use crate::page::{BadRange, Gpa, RamLayout};

/// Where the bus of the driver's machine is.
pub const DRIVER_LAYOUT: PciLayout =
    PciLayout { ecam: Gpa(0xe000_0000), window: Gpa(0xc000_0000), window_bytes: 0x100_0000 };

/// The slot of the device.
pub const DRIVER_SLOT: u8 = 1;

/// Where rings are, one after another, so many bytes for each.
const RINGS: u64 = 1 << 20;
const RING_BYTES: u64 = 1 << 20;

/// Ring entries that the driver uses at the most.
const SIZE_MAX: u16 = 256;

/// Status bits, as a driver sets them one after the other.
const ACKNOWLEDGE: u8 = 1;
const DRIVER: u8 = 2;
const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;

/// Descriptor flags.
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A machine with one device, and its driver.
#[derive(Debug)]
pub struct Driver {
    function: Arc<VirtioFunction>,
    bus: PciBus,
    wires: Arc<InProcess>,
    memory: Arc<DeviceMemory>,
    queues: Vec<DriverQueue>,
    /// Bytes behind each descriptor.
    buffer_bytes: u32,
    patience: Duration,
    /// Whether what the device wrote is copied out.
    copies: bool,
}

/// Where a queue's parts are, and what the driver knows of it.
#[derive(Debug, Clone, Default)]
pub struct DriverQueue {
    /// Entries.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
    buffers: u64,
    free: Vec<u16>,
    next_available: u16,
    next_used: u16,
    chains: Vec<Vec<u16>>,
}

/// A chain that came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Returned {
    /// Its first descriptor.
    pub head: u16,
    /// What the device says that it wrote.
    pub written: u32,
    /// The writable part, as it is now.
    pub bytes: Vec<u8>,
}

impl Driver {
    /// A machine with `ram_bytes` of RAM and `device`, whose driver has `buffer_bytes` behind each
    /// descriptor. Enough RAM is 1 MiB, 1 MiB for each queue, and the buffers of the queues.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn new(
        device: Box<dyn VirtioDevice>,
        ram_bytes: u64,
        buffer_bytes: u32,
    ) -> Result<Self, DriverError> {
        let ram = Arc::new(GuestRam::single(RamLayout::new(ram_bytes)?)?);
        Self::in_ram(device, ram, buffer_bytes)
    }

    /// The same in RAM that is there already; the driver is in the host's view of it.
    ///
    /// # Errors
    /// [`DriverError`].
    pub fn in_ram(
        device: Box<dyn VirtioDevice>,
        ram: Arc<GuestRam>,
        buffer_bytes: u32,
    ) -> Result<Self, DriverError> {
        let wires = Arc::new(InProcess::new().map_err(DriverError::Host)?);
        let memory = Arc::new(DeviceMemory::new(ram)?);
        let as_wires = Arc::clone(&wires) as Arc<dyn Wires>;
        let function =
            Arc::new(VirtioFunction::new(DRIVER_SLOT, device, DRIVER_LAYOUT, &as_wires, &memory)?);
        let on_bus = Arc::clone(&function) as Arc<dyn PciFunction>;
        let bus = PciBus::new(DRIVER_LAYOUT, vec![(DRIVER_SLOT, on_bus)]);
        let patience = Duration::from_secs(10);
        let queues = Vec::new();
        let copies = true;
        Ok(Self { function, bus, wires, memory, queues, buffer_bytes, patience, copies })
    }

    /// The driver goes on with the device of `there`, to which guest RAM and the device's state have
    /// gone.
    #[must_use]
    pub fn moved_to(self, there: Self) -> Self {
        let (queues, buffer_bytes) = (self.queues, self.buffer_bytes);
        Self { queues, buffer_bytes, ..there }
    }

    /// From now on the writable part of what comes back is left where it is: [`Returned::bytes`] is empty.
    pub fn without_copies(&mut self) {
        self.copies = false;
    }

    /// The device in its slot.
    #[must_use]
    pub fn function(&self) -> &VirtioFunction {
        &self.function
    }

    /// The bus.
    #[must_use]
    pub fn bus(&self) -> &PciBus {
        &self.bus
    }

    /// The interrupts and doorbells.
    #[must_use]
    pub fn wires(&self) -> &InProcess {
        &self.wires
    }

    /// Guest RAM, with the record of what the device, and the driver, wrote.
    #[must_use]
    pub fn memory(&self) -> &Arc<DeviceMemory> {
        &self.memory
    }

    /// A queue, after [`Driver::start`].
    ///
    /// # Errors
    /// [`DriverError::NoQueue`].
    pub fn queue(&self, index: u16) -> Result<&DriverQueue, DriverError> {
        self.queues.get(usize::from(index)).ok_or(DriverError::NoQueue { index })
    }

    /// Where the BAR is.
    #[must_use]
    pub fn bar(&self) -> u64 {
        self.function.bar().unwrap_or_else(|| DRIVER_LAYOUT.bar_of(DRIVER_SLOT))
    }

    /// Reads a register of the common configuration, of up to four bytes.
    #[must_use]
    pub fn read(&self, register: u64, bytes: usize) -> u32 {
        let mut data = [0; 4];
        if let Some(data) = data.get_mut(..bytes) {
            self.bus.read(self.bar() + COMMON + register, data);
        }
        u32::from_le_bytes(data)
    }

    /// Writes a register of the common configuration.
    pub fn write(&self, register: u64, data: &[u8]) {
        self.bus.write(self.bar() + COMMON + register, data);
    }

    /// The device's status.
    #[must_use]
    pub fn status(&self) -> u8 {
        let [status, ..] = self.read(0x14, 1).to_le_bytes();
        status
    }

    /// Reads the device's own configuration.
    pub fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.bus.read(self.bar() + DEVICE + offset, data);
    }

    /// Writes the device's own configuration.
    pub fn write_config(&self, offset: u64, data: &[u8]) {
        self.bus.write(self.bar() + DEVICE + offset, data);
    }

    /// Lets the device answer at its BAR and use the bus.
    pub fn enable(&self) {
        let command = DRIVER_LAYOUT.ecam.0 + (u64::from(DRIVER_SLOT) << 15) + 4;
        self.bus.write(command, &(COMMAND_MEMORY | COMMAND_MASTER).to_le_bytes());
    }

    /// Brings the device up from a reset, accepting those of `features` that it offers beside what
    /// every driver must. Returns what was accepted.
    ///
    /// # Errors
    /// [`DriverError::Features`] if it does not take them, [`DriverError::Memory`] if there is too
    /// little RAM for its queues.
    pub fn start(&mut self, features: u64) -> Result<u64, DriverError> {
        self.enable();
        for status in [0, ACKNOWLEDGE, ACKNOWLEDGE | DRIVER] {
            self.write(0x14, &[status]);
        }
        let mut accepted = 0;
        for half in [0_u32, 1] {
            self.write(0x00, &half.to_le_bytes());
            accepted |= u64::from(self.read(0x04, 4)) << (32 * half);
        }
        accepted &= features | 1 << 32 | 1 << 33;
        for half in [0_u32, 1] {
            self.write(0x08, &half.to_le_bytes());
            let [a, b, c, d, ..] = (accepted >> (32 * half)).to_le_bytes();
            self.write(0x0c, &[a, b, c, d]);
        }
        let status = ACKNOWLEDGE | DRIVER | FEATURES_OK;
        self.write(0x14, &[status]);
        if self.status() != status {
            return Err(DriverError::Features { accepted });
        }
        self.set_up_queues()?;
        self.write(0x14, &[status | DRIVER_OK]);
        Ok(accepted)
    }

    /// Vector 0 for the configuration, one more for each queue; all rings in RAM.
    fn set_up_queues(&mut self) -> Result<(), DriverError> {
        let config = DRIVER_LAYOUT.ecam.0 + (u64::from(DRIVER_SLOT) << 15);
        let count = self.read(0x12, 2);
        let buffers = RINGS + RING_BYTES * u64::from(count);
        self.queues.clear();
        for vector in 0..=count {
            let entry = self.bar() + TABLE + u64::from(vector) * 16;
            self.bus.write(entry, &0xfee0_0000_u64.to_le_bytes());
            self.bus.write(entry + 8, &vector.to_le_bytes());
            self.bus.write(entry + 12, &[0; 4]);
        }
        // MSI-X is the first capability.
        self.bus.write(config + 0x42, &0x8000_u16.to_le_bytes());
        self.write(0x10, &[0, 0]);
        for index in 0..count {
            let number = u16::try_from(index).unwrap_or(u16::MAX);
            self.write(0x16, &number.to_le_bytes());
            let size = self.read(0x18, 2).to_le_bytes();
            let size = u16::from_le_bytes([size[0], size[1]]).min(SIZE_MAX);
            let at = RINGS + RING_BYTES * u64::from(index);
            let (available, used) = (at + 0x1_0000, at + 0x2_0000);
            let zeros = vec![0; 0x3_0000];
            self.memory.view().write_slice(&zeros, GuestAddress(at))?;
            self.write(0x18, &size.to_le_bytes());
            for (register, address) in [(0x20, at), (0x28, available), (0x30, used)] {
                self.write(register, &address.to_le_bytes());
            }
            self.write(0x1a, &(number + 1).to_le_bytes());
            self.write(0x1c, &[1, 0]);
            let free = (0..size).rev().collect();
            let chains = vec![Vec::new(); usize::from(size)];
            let each = u64::from(SIZE_MAX) * u64::from(self.buffer_bytes);
            self.queues.push(DriverQueue {
                size,
                descriptors: at,
                available,
                used,
                buffers: buffers + each * u64::from(index),
                free,
                chains,
                ..DriverQueue::default()
            });
        }
        Ok(())
    }

    /// Puts a chain in a queue: buffers that the device reads, then the lengths of those that it
    /// writes. Does not ring. Returns its head.
    ///
    /// # Errors
    /// [`DriverError::Full`] without enough descriptors, or for a buffer that is too long.
    pub fn add(
        &mut self,
        index: u16,
        readable: &[&[u8]],
        writable: &[u32],
    ) -> Result<u16, DriverError> {
        let most = self.buffer_bytes;
        let memory = Arc::clone(&self.memory);
        let queue = self.queue_mut(index)?;
        let full = DriverError::Full { index };
        let needed = readable.len() + writable.len();
        let mut chain = Vec::new();
        while chain.len() < needed {
            match queue.free.pop() {
                Some(free) => chain.push(free),
                None => {
                    queue.free.append(&mut chain);
                    return Err(full);
                }
            }
        }
        let Some(&head) = chain.first() else { return Err(full) };
        let reads = readable.iter().map(|bytes| (Some(*bytes), bytes.len() as u64));
        let lengths = reads.chain(writable.iter().map(|bytes| (None, u64::from(*bytes))));
        for (place, (bytes, length)) in lengths.enumerate() {
            let (Some(&id), Ok(length)) = (chain.get(place), u32::try_from(length)) else {
                return Err(full);
            };
            if length > most {
                return Err(full);
            }
            let address = queue.buffer(id, most);
            if let Some(bytes) = bytes {
                memory.view().write_slice(bytes, GuestAddress(address))?;
            }
            let next = chain.get(place + 1).copied();
            let flags = u16::from(next.is_some()) * NEXT + u16::from(bytes.is_none()) * WRITE;
            let segment = Segment { address, bytes: length };
            queue.describe(memory.view(), id, segment, (flags, next.unwrap_or(0)))?;
        }
        if let Some(place) = queue.chains.get_mut(usize::from(head)) {
            *place = chain;
        }
        queue.publish(memory.view(), head)?;
        Ok(head)
    }

    /// Rings a queue's doorbell.
    pub fn ring(&self, index: u16) {
        let at = self.bar() + BELLS + 4 * u64::from(index);
        if !self.wires.ring(at) {
            self.bus.write(at, &index.to_le_bytes());
        }
    }

    /// The next chain that the device gives back, for which it waits.
    ///
    /// # Errors
    /// [`DriverError::Late`].
    pub fn wait(&mut self, index: u16) -> Result<Returned, DriverError> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(returned) = self.poll(index)? {
                return Ok(returned);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(DriverError::Late { index });
            }
            self.wires.wait(left);
            // What was raised is known now: the ring is looked at again.
            self.wires.clear();
        }
    }

    /// The next chain that the device has given back.
    ///
    /// # Errors
    /// [`DriverError::Memory`].
    pub fn poll(&mut self, index: u16) -> Result<Option<Returned>, DriverError> {
        let (most, copies) = (self.buffer_bytes, self.copies);
        let memory = Arc::clone(&self.memory);
        let queue = self.queue_mut(index)?;
        let used: u16 = memory.view().read_obj(GuestAddress(queue.used + 2))?;
        if u16::from_le(used) == queue.next_used {
            return Ok(None);
        }
        let at = queue.used + 4 + 8 * u64::from(queue.next_used % queue.size);
        let element: [u32; 2] = memory.view().read_obj(GuestAddress(at))?;
        queue.next_used = queue.next_used.wrapping_add(1);
        // With EVENT_IDX: an interrupt for the next one, please.
        let event = GuestAddress(queue.available + 4 + 2 * u64::from(queue.size));
        memory.view().write_obj(queue.next_used.to_le(), event)?;
        let [head, written] = element.map(u32::from_le);
        let head = u16::try_from(head).unwrap_or(u16::MAX);
        let chain = queue.chains.get_mut(usize::from(head)).map(std::mem::take);
        let mut bytes = Vec::new();
        for id in chain.unwrap_or_default() {
            let descriptor = GuestAddress(queue.descriptors + 16 * u64::from(id));
            let [_address, _high, length, flags]: [u32; 4] = memory.view().read_obj(descriptor)?;
            if copies && flags & u32::from(WRITE) != 0 {
                let mut part = vec![0; usize::try_from(length).unwrap_or(0)];
                memory.view().read_slice(&mut part, GuestAddress(queue.buffer(id, most)))?;
                bytes.append(&mut part);
            }
            queue.free.push(id);
        }
        Ok(Some(Returned { head, written, bytes }))
    }

    fn queue_mut(&mut self, index: u16) -> Result<&mut DriverQueue, DriverError> {
        self.queues.get_mut(usize::from(index)).ok_or(DriverError::NoQueue { index })
    }
}

impl DriverQueue {
    /// Where the bytes of a descriptor are.
    #[must_use]
    pub fn buffer(&self, id: u16, bytes: u32) -> u64 {
        self.buffers + u64::from(id) * u64::from(bytes)
    }

    /// Writes descriptor `id`; `link` is its flags and its next.
    ///
    /// # Errors
    /// [`DriverError::Memory`].
    pub fn describe(
        &self,
        memory: &DeviceView,
        id: u16,
        segment: Segment,
        (flags, next): (u16, u16),
    ) -> Result<(), DriverError> {
        let word = u128::from(segment.address)
            | u128::from(segment.bytes) << 64
            | u128::from(flags) << 96
            | u128::from(next) << 112;
        let at = GuestAddress(self.descriptors + 16 * u64::from(id));
        Ok(memory.write_slice(&word.to_le_bytes(), at)?)
    }

    /// Makes the chain at `head` available.
    ///
    /// # Errors
    /// [`DriverError::Memory`].
    pub fn publish(&mut self, memory: &DeviceView, head: u16) -> Result<(), DriverError> {
        let entry = self.available + 4 + 2 * u64::from(self.next_available % self.size);
        memory.write_obj(head.to_le(), GuestAddress(entry))?;
        self.next_available = self.next_available.wrapping_add(1);
        let index = GuestAddress(self.available + 2);
        Ok(memory.store(self.next_available.to_le(), index, Ordering::SeqCst)?)
    }
}

/// Why the driver cannot go on.
#[derive(Debug, Error)]
pub enum DriverError {
    /// Descriptors.
    #[error("setting up a driver")]
    Host(#[source] IoError),
    /// A size of RAM.
    #[error("guest RAM of the driver's machine")]
    Size(#[from] BadRange),
    /// RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// The device.
    #[error(transparent)]
    Function(#[from] NoFunction),
    /// Too little RAM.
    #[error("the rings and buffers of the driver: {0}")]
    Memory(#[from] GuestMemoryError),
    /// `FEATURES_OK` did not stay.
    #[error("the device does not agree to features {accepted:#x}")]
    Features {
        /// What the driver accepted.
        accepted: u64,
    },
    /// No such queue.
    #[error("the device has no queue {index}")]
    NoQueue {
        /// Its number.
        index: u16,
    },
    /// No descriptors, or a buffer that is too long.
    #[error("no room for that chain in queue {index}")]
    Full {
        /// The queue.
        index: u16,
    },
    /// Nothing came back.
    #[error("the device gives nothing back in queue {index}")]
    Late {
        /// The queue.
        index: u16,
    },
}
