//! The configuration space of one PCI function: its header, one memory BAR, its capabilities.
//!
//! Every byte has a mask of the bits that the guest may write. Sizing a BAR is no case of its own:
//! the address bits below its size cannot be written, so ones come back as the size.

/// Bytes of a conventional configuration space. What follows, up to 4096, reads as zeros: there are
/// no extended capabilities.
pub(super) const CONFIG_BYTES: usize = 256;

/// Command register: the function answers at its BAR.
pub const COMMAND_MEMORY: u16 = 1 << 1;

/// Command register: the function may read and write guest RAM, and interrupt.
pub const COMMAND_MASTER: u16 = 1 << 2;

/// Command register: no `INTx`. There is none anyway, but Linux sets it and reads it back.
const COMMAND_NO_INTX: u16 = 1 << 10;

/// A memory BAR of 64 bits: its low four bits.
const BAR_MEMORY_64: u32 = 0b0100;

/// Status register: there is a list of capabilities.
const STATUS_CAPABILITIES: u8 = 1 << 4;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const CACHE_LINE: usize = 0x0c;
const BAR: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;
/// Where the header ends and capabilities start.
const HEADER_END: usize = 0x40;

/// What a function says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciIdentity {
    /// Vendor, of the function and of its subsystem.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Subsystem.
    pub subsystem: u16,
    /// Base class, subclass, programming interface.
    pub class: [u8; 3],
    /// Revision.
    pub revision: u8,
}

/// One function's configuration space.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    /// Where the pointer to the next capability is.
    link: usize,
    /// Where the next capability goes.
    free: usize,
}

impl ConfigSpace {
    /// A function without BARs or capabilities; it has no interrupt pin.
    #[must_use]
    pub fn new(identity: &PciIdentity) -> Self {
        let mut new = Self {
            bytes: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            link: CAPABILITIES,
            free: HEADER_END,
        };
        let [base, sub, interface] = identity.class;
        new.put(0x00, &identity.vendor.to_le_bytes());
        new.put(0x02, &identity.device.to_le_bytes());
        new.put(0x08, &[identity.revision, interface, sub, base]);
        new.put(0x2c, &identity.vendor.to_le_bytes());
        new.put(0x2e, &identity.subsystem.to_le_bytes());
        let command = COMMAND_MEMORY | COMMAND_MASTER | COMMAND_NO_INTX;
        new.let_write(COMMAND, &command.to_le_bytes());
        new.let_write(CACHE_LINE, &[0xff]);
        new.let_write(INTERRUPT_LINE, &[0xff]);
        new
    }

    /// Adds BAR 0, a memory BAR with 64 bits of address, of `bytes`, a power of two from 16 on, at
    /// `base`.
    pub fn add_bar(&mut self, base: u64, bytes: u64) {
        let mask = !(bytes.next_power_of_two().max(16) - 1);
        self.let_write(BAR, &mask.to_le_bytes());
        self.put(BAR, &(base & mask | u64::from(BAR_MEMORY_64)).to_le_bytes());
    }

    /// Adds a capability: `body` follows its two bytes of header, and the guest may write the bits
    /// of `writable` in it. Returns where it is.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> u16 {
        let (at, end) = (self.free, self.free + 2 + body.len());
        let (Ok(pointer), true) = (u8::try_from(at), end <= CONFIG_BYTES) else { return 0 };
        self.put(self.link, &[pointer]);
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.let_write(at + 2, writable);
        self.put(STATUS, &[STATUS_CAPABILITIES]);
        self.link = at + 1;
        self.free = end.next_multiple_of(4);
        u16::from(pointer)
    }

    /// The guest reads; beyond the end there are zeros.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// The guest writes, what it may.
    pub fn write(&mut self, offset: u16, data: &[u8]) {
        for (at, byte) in (usize::from(offset)..).zip(data) {
            if let (Some(old), Some(mask)) = (self.bytes.get_mut(at), self.writable.get(at)) {
                *old = *old & !mask | byte & mask;
            }
        }
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        let mut command = [0; 2];
        self.read(0x04, &mut command);
        u16::from_le_bytes(command)
    }

    /// Where BAR 0 is, whether the function answers there or not.
    #[must_use]
    pub fn bar(&self) -> u64 {
        let mut bar = [0; 8];
        self.read(0x10, &mut bar);
        u64::from_le_bytes(bar) & !0xf
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        for (place, byte) in self.bytes.iter_mut().skip(at).zip(bytes) {
            *place = *byte;
        }
    }

    fn let_write(&mut self, at: usize, mask: &[u8]) {
        for (place, byte) in self.writable.iter_mut().skip(at).zip(mask) {
            *place = *byte;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDENTITY: PciIdentity = PciIdentity {
        vendor: 0x1af4,
        device: 0x1044,
        subsystem: 0x40,
        class: [0xff, 0x12, 0x34],
        revision: 1,
    };

    fn dword(space: &ConfigSpace, offset: u16) -> u32 {
        let mut bytes = [0; 4];
        space.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// A guest finds what the function is, and cannot change it.
    #[test]
    fn the_identity_is_read_only() {
        let mut space = ConfigSpace::new(&IDENTITY);
        for _ in 0..2 {
            assert_eq!(dword(&space, 0), 0x1044_1af4);
            assert_eq!(dword(&space, 8), 0xff12_3401);
            assert_eq!(dword(&space, 0x2c), 0x0040_1af4);
            // No interrupt pin, a header of type 0.
            assert_eq!(dword(&space, 0x3c) >> 8, 0);
            assert_eq!(dword(&space, 0x0c) >> 8, 0);
            for offset in [0, 8, 0x2c] {
                space.write(offset, &[0xff; 4]);
            }
        }
        assert_eq!(dword(&space, 0xfe), 0);
    }

    /// Ones written to a BAR come back as its size, in both halves; any aligned address sticks.
    #[test]
    fn a_bar_can_be_sized_and_moved() {
        let mut space = ConfigSpace::new(&IDENTITY);
        space.add_bar(0xc000_0000, 0x8000);
        assert_eq!((dword(&space, 0x10), dword(&space, 0x14)), (0xc000_0004, 0));
        space.write(0x10, &[0xff; 4]);
        space.write(0x14, &[0xff; 4]);
        assert_eq!((dword(&space, 0x10), dword(&space, 0x14)), (0xffff_8004, u32::MAX));
        space.write(0x10, &0xd123_4567_u32.to_le_bytes());
        space.write(0x14, &7_u32.to_le_bytes());
        assert_eq!(space.bar(), 0x7_d123_0000);
        assert_eq!(dword(&space, 0x18), 0);
        space.write(0x18, &[0xff; 4]);
        assert_eq!(dword(&space, 0x18), 0);
    }

    /// Capabilities make a list that ends, each at a multiple of four, and only what may be written is.
    #[test]
    fn capabilities_are_a_list() {
        let mut space = ConfigSpace::new(&IDENTITY);
        assert_eq!(dword(&space, 4) >> 16, 0);
        let first = space.add_capability(0x11, &[1, 2, 3], &[0, 0xf0]);
        let second = space.add_capability(0x09, &[4], &[]);
        assert_eq!((first, second), (0x40, 0x48));
        assert_eq!(dword(&space, 4) >> 16, 0x10);
        assert_eq!(dword(&space, 0x34) & 0xff, 0x40);
        space.write(first, &[0xff; 8]);
        assert_eq!(dword(&space, first), 0xf201_4811);
        assert_eq!(dword(&space, second), 0x0004_0009);
        // A list that would not fit is not begun.
        assert_eq!(space.add_capability(0x09, &[0; 250], &[]), 0);
        assert_eq!(dword(&space, second), 0x0004_0009);
    }
}
