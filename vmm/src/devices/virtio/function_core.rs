//! What is behind a function's lock: configuration space, registers, rings, interrupts, the device.

use super::VirtioDevice;
use super::queue::Ring;
use super::registers::{COMMON_BYTES, Registers};
use crate::devices::pci::{
    BAR_BYTES, COMMAND_MASTER, ConfigSpace, MSIX_CAPABILITY, Msix, PciIdentity,
};

/// virtio's vendor; a modern device's number follows [`DEVICE_BASE`].
const VENDOR: u16 = 0x1af4;
const DEVICE_BASE: u16 = 0x1040;

/// `PCI_CAP_ID_VNDR`.
const VENDOR_CAPABILITY: u8 = 9;

pub(super) const PAGE: u64 = 0x1000;
pub(super) const COMMON: u64 = 0;
pub(super) const ISR: u64 = PAGE;
pub(super) const DEVICE: u64 = 2 * PAGE;
pub(super) const BELLS: u64 = 3 * PAGE;
pub(super) const TABLE: u64 = 4 * PAGE;
pub(super) const PENDING: u64 = 5 * PAGE;

/// Bytes between two doorbells.
pub(super) const BELL_BYTES: u64 = 4;

/// Most queues: each has a vector, and there is one more, in a table of one page.
pub(super) const QUEUES_MAX: usize = 255;

/// ISR: a queue was used.
const ISR_QUEUE: u8 = 1;
/// ISR: the configuration changed.
const ISR_CONFIG: u8 = 2;

#[derive(Debug)]
pub(super) struct Core {
    pub(super) config: ConfigSpace,
    /// Where in it the capability is that reaches BAR 0 through it.
    window: u16,
    /// Where in it MSI-X's message control is.
    pub(super) msix_control: u16,
    pub(super) msix: Msix,
    pub(super) registers: Registers,
    pub(super) rings: Vec<Ring>,
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) isr: u8,
    pub(super) is_paused: bool,
    /// Whether it was said that the guest has broken it.
    pub(super) has_complained: bool,
}

impl Core {
    pub(super) fn new(
        device: Box<dyn VirtioDevice>,
        sizes: Vec<u16>,
        rings: Vec<Ring>,
        msix: Msix,
        bar: u64,
    ) -> Self {
        let (kind, features) = (device.kind(), device.features());
        let mut config = ConfigSpace::new(&PciIdentity {
            vendor: VENDOR,
            device: DEVICE_BASE + kind.id,
            subsystem: kind.id,
            class: kind.class,
            revision: 1,
        });
        config.add_bar(bar, BAR_BYTES);
        let (body, writable) = msix.capability(low(TABLE), low(PENDING));
        let msix_control = config.add_capability(MSIX_CAPABILITY, &body, &writable) + 2;
        let bells = sizes.len() as u64 * BELL_BYTES;
        let parts = [
            (1, COMMON, COMMON_BYTES, 0),
            (3, ISR, 1, 0),
            (4, DEVICE, PAGE, 0),
            (2, BELLS, bells, low(BELL_BYTES)),
        ];
        for (part, offset, bytes, more) in parts {
            config.add_capability(VENDOR_CAPABILITY, &capability(part, offset, bytes, more), &[]);
        }
        // The guest says which bytes of the BAR: BAR number, offset and length, then the data.
        let mut writable = [0xff; 18];
        for fixed in [0, 1, 3, 4, 5] {
            if let Some(byte) = writable.get_mut(fixed) {
                *byte = 0;
            }
        }
        let body = capability(5, 0, 0, 0);
        let window = config.add_capability(VENDOR_CAPABILITY, &body, &writable);
        let registers = Registers::new(features, sizes, msix.len());
        Self {
            config,
            window,
            msix_control,
            msix,
            registers,
            rings,
            device,
            isr: 0,
            is_paused: false,
            has_complained: false,
        }
    }

    pub(super) fn reset(&mut self) {
        self.device.reset();
        self.registers.reset();
        self.rings.iter_mut().for_each(Ring::reset);
        self.isr = 0;
    }

    pub(super) fn is_master(&self) -> bool {
        self.config.command() & COMMAND_MASTER != 0
    }

    pub(super) fn interrupt_line(&self) -> u8 {
        let mut line = [0];
        self.config.read(0x3c, &mut line);
        line[0]
    }

    pub(super) fn interrupt_queue(&mut self, queue: usize) {
        self.isr |= ISR_QUEUE;
        let vector = self.registers.queue_vector(queue);
        self.msix.signal(vector, self.is_master());
    }

    pub(super) fn interrupt_config(&mut self) {
        self.isr |= ISR_CONFIG;
        let vector = self.registers.config_vector();
        self.msix.signal(vector, self.is_master());
    }

    /// Where in BAR 0 an access of `len` bytes at `offset` of configuration space goes, and how long
    /// it is there, if it is at the data of the capability for that.
    pub(super) fn windowed(&self, offset: u16, len: usize) -> Option<(u64, usize)> {
        // After the header of the capability: length, type, BAR, id, padding; offset; length; data.
        if offset != self.window + 16 {
            return None;
        }
        let mut fields = [0; 16];
        self.config.read(self.window, &mut fields);
        let word = |at: usize| {
            let bytes = fields.get(at..)?.first_chunk()?;
            Some(u32::from_le_bytes(*bytes))
        };
        let (bar, offset, bytes) = (fields[4], u64::from(word(8)?), word(12)?);
        let bytes = usize::try_from(bytes).ok()?;
        let is_sound = bar == 0
            && [1, 2, 4].contains(&bytes)
            && bytes <= len
            && offset.is_multiple_of(bytes as u64)
            && offset < BAR_BYTES;
        is_sound.then_some((offset, bytes))
    }
}

/// `struct virtio_pci_cap` without its first two bytes; `more` is the doorbells' distance, or data.
fn capability(part: u8, offset: u64, bytes: u64, more: u32) -> [u8; 18] {
    let head = [if part == 2 || part == 5 { 20 } else { 16 }, part, 0, 0, 0, 0];
    let mut body = [0; 18];
    let words = [low(offset), low(bytes), more].map(u32::to_le_bytes);
    for (place, byte) in body.iter_mut().zip(head.iter().chain(words.as_flattened())) {
        *place = *byte;
    }
    body
}

/// A number below 4 GiB.
fn low(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
