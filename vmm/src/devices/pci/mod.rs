//! The PCI bus: one bus of 32 slots, reached through ECAM or through ports 0xCF8 and 0xCFC.
//!
//! Every guest has it, with a host bridge in slot 0, whatever devices there are: so the ACPI tables,
//! which are measured, describe it once and for all (`boot/acpi.rs`). Functions have one BAR each,
//! placed by us in the window and movable within it, and interrupt by MSI-X only.
//!
//! ```text
//! vCPU exit -> PciBus -> ECAM page or ports: PciFunction::read_config, write_config
//!                     -> in a BAR:           PciFunction::read_bar, write_bar
//! ```

mod config_space;
mod function;
mod host_bridge;
mod in_process;
mod msix;
mod wires;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use log::trace;

pub use config_space::{COMMAND_MASTER, COMMAND_MEMORY, ConfigSpace, PciIdentity};
pub use function::PciFunction;
use host_bridge::HostBridge;
pub use in_process::InProcess;
pub use msix::{BadMsix, MSIX_CAPABILITY, MSIX_ENTRY_BYTES, Msix, MsixState};
pub use wires::{KvmWires, MsiMessage, Wires};

use crate::page::Gpa;

/// Slots of the bus; the host bridge is in slot 0.
pub const SLOTS: u8 = 32;

/// Bytes of ECAM for one bus: 4 KiB for each of 8 functions of each slot.
pub const ECAM_BYTES: u64 = 1 << 20;

/// Bytes of every BAR.
pub const BAR_BYTES: u64 = 0x8000;

/// Port of the address register; the data register is at 0xCFC. `PNP0A08`'s two.
pub const CONFIG_PORT: u16 = 0xcf8;

/// Ports of both.
pub const CONFIG_PORTS: u16 = 8;

/// Address register: the data register reaches configuration space.
const CONFIG_ENABLE: u32 = 1 << 31;

/// Where the bus is in the guest's physical address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PciLayout {
    /// [`ECAM_BYTES`] of configuration space.
    pub ecam: Gpa,
    /// First byte of the window that BARs are in.
    pub window: Gpa,
    /// Its bytes.
    pub window_bytes: u64,
}

impl PciLayout {
    /// Where the BAR of the function in `slot` starts out.
    #[must_use]
    pub fn bar_of(&self, slot: u8) -> u64 {
        self.window.0 + u64::from(slot) * BAR_BYTES
    }

    /// Whether a BAR at `base` is decoded: the host bridge forwards its window only.
    #[must_use]
    pub fn forwards(&self, base: u64) -> bool {
        let end = base.checked_add(BAR_BYTES);
        base >= self.window.0 && end.is_some_and(|end| end <= self.window.0 + self.window_bytes)
    }
}

/// The bus.
#[derive(Debug)]
pub struct PciBus {
    layout: PciLayout,
    /// By slot.
    functions: Vec<Option<Arc<dyn PciFunction>>>,
    /// The address register at [`CONFIG_PORT`].
    address: AtomicU32,
}

impl PciBus {
    /// A bus with `functions` by their slots, 1 to 31; others are not there.
    #[must_use]
    pub fn new(layout: PciLayout, functions: Vec<(u8, Arc<dyn PciFunction>)>) -> Self {
        let mut slots: Vec<Option<Arc<dyn PciFunction>>> = vec![None; usize::from(SLOTS)];
        let bridge: Arc<dyn PciFunction> = Arc::new(HostBridge::new());
        for (slot, function) in functions.into_iter().chain([(0, bridge)]) {
            if let Some(place) = slots.get_mut(usize::from(slot)) {
                *place = Some(function);
            }
        }
        Self { layout, functions: slots, address: AtomicU32::new(0) }
    }

    /// What is saved of the bus itself: the address register.
    #[must_use]
    pub fn address(&self) -> u32 {
        self.address.load(Ordering::Relaxed)
    }

    /// Restores [`PciBus::address`].
    pub fn set_address(&self, address: u32) {
        self.address.store(address, Ordering::Relaxed);
    }

    /// The guest reads `data.len()` bytes at `address`, where no RAM is. What nobody answers reads
    /// as ones.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xff);
        match self.find(address) {
            Some(BusPlace::Config(function, offset)) => function.read_config(offset, data),
            Some(BusPlace::Bar(function, offset)) => function.read_bar(offset, data),
            None => trace!("read of {} bytes at {address:#x}, where nothing is", data.len()),
        }
    }

    /// The guest writes `data` at `address`, where no RAM is.
    pub fn write(&self, address: u64, data: &[u8]) {
        match self.find(address) {
            Some(BusPlace::Config(function, offset)) => function.write_config(offset, data),
            Some(BusPlace::Bar(function, offset)) => function.write_bar(offset, data),
            None => trace!("write of {} bytes at {address:#x}, where nothing is", data.len()),
        }
    }

    /// Whether an I/O port is the bus's.
    #[must_use]
    pub fn has_port(port: u16) -> bool {
        port_offset(port).is_some()
    }

    /// The guest reads `size` bytes at an I/O port of the bus again and again, until `data` is full.
    pub fn read_port(&self, port: u16, size: usize, data: &mut [u8]) {
        data.chunks_mut(size.max(1)).for_each(|access| self.read_port_once(port, access));
    }

    /// The guest writes `size` bytes of `data` at an I/O port of the bus, then the next ones.
    pub fn write_port(&self, port: u16, size: usize, data: &[u8]) {
        data.chunks(size.max(1)).for_each(|access| self.write_port_once(port, access));
    }

    fn read_port_once(&self, port: u16, data: &mut [u8]) {
        data.fill(0xff);
        let Some(offset) = port_offset(port) else { return };
        if let Some(register) = offset.checked_sub(4) {
            if let Some((function, base)) = self.addressed() {
                function.read_config(base + register, data);
            }
        } else if let (0, Ok(data)) = (offset, <&mut [u8; 4]>::try_from(data)) {
            *data = self.address().to_le_bytes();
        }
    }

    fn write_port_once(&self, port: u16, data: &[u8]) {
        let Some(offset) = port_offset(port) else { return };
        if let Some(register) = offset.checked_sub(4) {
            if let Some((function, base)) = self.addressed() {
                function.write_config(base + register, data);
            }
        } else if let (0, Ok(data)) = (offset, data.try_into()) {
            self.set_address(u32::from_le_bytes(data));
        }
    }

    /// The function and the register that the address register names.
    fn addressed(&self) -> Option<(&Arc<dyn PciFunction>, u16)> {
        let address = self.address();
        let [register, function, bus, _enable] = address.to_le_bytes();
        let is_there = address & CONFIG_ENABLE != 0 && bus == 0 && function & 7 == 0;
        let function = self.function(u64::from(function >> 3)).filter(|_| is_there)?;
        Some((function, u16::from(register & !3)))
    }

    fn function(&self, slot: u64) -> Option<&Arc<dyn PciFunction>> {
        self.functions.get(usize::try_from(slot).ok()?)?.as_ref()
    }

    fn find(&self, address: u64) -> Option<BusPlace<'_>> {
        if let Some(offset) = within(address, self.layout.ecam.0, ECAM_BYTES) {
            let (function, register) = (offset >> 12, offset & 0xfff);
            let there = self.function(function >> 3).filter(|_| function & 7 == 0)?;
            return Some(BusPlace::Config(there, u16::try_from(register).ok()?));
        }
        within(address, self.layout.window.0, self.layout.window_bytes)?;
        self.functions.iter().flatten().find_map(|function| {
            let offset = within(address, function.bar()?, BAR_BYTES)?;
            Some(BusPlace::Bar(function, offset))
        })
    }
}

/// What answers at an address, and the offset in it.
enum BusPlace<'a> {
    Config(&'a Arc<dyn PciFunction>, u16),
    Bar(&'a Arc<dyn PciFunction>, u64),
}

fn within(address: u64, start: u64, bytes: u64) -> Option<u64> {
    address.checked_sub(start).filter(|&offset| offset < bytes)
}

fn port_offset(port: u16) -> Option<u16> {
    port.checked_sub(CONFIG_PORT).filter(|&offset| offset < CONFIG_PORTS)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    const LAYOUT: PciLayout =
        PciLayout { ecam: Gpa(0xe000_0000), window: Gpa(0xc000_0000), window_bytes: 0x10_0000 };

    /// A function that remembers what was written to its BAR.
    #[derive(Debug)]
    struct Fake {
        config: Mutex<ConfigSpace>,
        written: Mutex<Vec<(u64, Vec<u8>)>>,
    }

    impl PciFunction for Fake {
        fn read_config(&self, offset: u16, data: &mut [u8]) {
            self.config.lock().unwrap().read(offset, data);
        }

        fn write_config(&self, offset: u16, data: &[u8]) {
            self.config.lock().unwrap().write(offset, data);
        }

        fn bar(&self) -> Option<u64> {
            Some(self.config.lock().unwrap().bar())
        }

        fn read_bar(&self, offset: u64, data: &mut [u8]) {
            data.fill(u8::try_from(offset & 0xff).unwrap());
        }

        fn write_bar(&self, offset: u64, data: &[u8]) {
            self.written.lock().unwrap().push((offset, data.to_vec()));
        }
    }

    fn bus() -> (Arc<Fake>, PciBus) {
        let identity =
            PciIdentity { vendor: 1, device: 2, subsystem: 3, class: [4; 3], revision: 5 };
        let mut config = ConfigSpace::new(&identity);
        config.add_bar(LAYOUT.bar_of(31), BAR_BYTES);
        let fake = Arc::new(Fake { config: Mutex::new(config), written: Mutex::default() });
        let bus = PciBus::new(LAYOUT, vec![(31, Arc::clone(&fake) as Arc<dyn PciFunction>)]);
        (fake, bus)
    }

    fn read(bus: &PciBus, address: u64) -> u32 {
        let mut data = [0; 4];
        bus.read(address, &mut data);
        u32::from_le_bytes(data)
    }

    fn inl(bus: &PciBus, port: u16) -> u32 {
        let mut data = [0; 4];
        bus.read_port(port, 4, &mut data);
        u32::from_le_bytes(data)
    }

    fn outl(bus: &PciBus, port: u16, value: u32) {
        bus.write_port(port, 4, &value.to_le_bytes());
    }

    /// ECAM and ports show the same functions; slots, functions and buses that are not there read as
    /// ones.
    #[test]
    fn both_ways_show_the_same_functions() {
        let (_fake, bus) = bus();
        for (slot, id) in [(0, 0x0008_1b36), (1, u32::MAX), (31, 0x0002_0001)] {
            assert_eq!(read(&bus, LAYOUT.ecam.0 + (slot << 15)), id);
            let address = 1 << 31 | u32::try_from(slot).unwrap() << 11;
            outl(&bus, 0xcf8, address);
            assert_eq!(inl(&bus, 0xcf8), address);
            assert_eq!(inl(&bus, 0xcfc), id);
            for elsewhere in [address | 1 << 8, address | 1 << 16, address & !(1 << 31)] {
                outl(&bus, 0xcf8, elsewhere);
                assert_eq!(inl(&bus, 0xcfc), u32::MAX);
            }
        }
        assert_eq!(read(&bus, LAYOUT.ecam.0 + (31 << 15) + (1 << 12)), u32::MAX);
        assert_eq!(read(&bus, LAYOUT.ecam.0 + ECAM_BYTES), u32::MAX);
        assert_eq!(read(&bus, LAYOUT.ecam.0 + (31 << 15) + 0x100), 0);
        let ports = [0xcf7, 0xcf8, 0xcff, 0xd00].map(PciBus::has_port);
        assert_eq!(ports, [false, true, true, false]);
    }

    /// Bytes and words of the data register are those of configuration space.
    #[test]
    fn the_data_register_has_bytes() {
        let (_fake, bus) = bus();
        outl(&bus, 0xcf8, 1 << 31 | 31 << 11 | 8);
        let mut class = [0; 2];
        bus.read_port(0xcfe, 2, &mut class);
        assert_eq!(class, [4, 4]);
        let mut revision = [0];
        bus.read_port(0xcfc, 1, &mut revision);
        assert_eq!(revision, [5]);
        // A byte written to the address register is not an address: Linux probes with one.
        bus.write_port(0xcfb, 1, &[1]);
        assert_eq!(inl(&bus, 0xcf8), 1 << 31 | 31 << 11 | 8);
    }

    /// `rep insb` and `rep outsb` are as many accesses of one byte, all of them to one register.
    #[test]
    fn a_repeated_access_stays_at_its_port() {
        let (_fake, bus) = bus();
        outl(&bus, 0xcf8, 1 << 31 | 31 << 11 | 8);
        let mut revisions = [0; 4];
        bus.read_port(0xcfc, 1, &mut revisions);
        assert_eq!(revisions, [5; 4]);
        bus.write_port(0xcf8, 4, &[0, 0, 0, 0, 1, 2, 3, 4]);
        assert_eq!(inl(&bus, 0xcf8), 0x0403_0201);
        bus.write_port(0xcf8, 1, &[9; 4]);
        assert_eq!(inl(&bus, 0xcf8), 0x0403_0201);
    }

    /// What is written in a BAR reaches its function, wherever the guest has moved it in the window.
    #[test]
    fn a_bar_answers_where_it_was_moved() {
        let (fake, bus) = bus();
        let first = LAYOUT.bar_of(31);
        assert_eq!(read(&bus, first + 0x21), 0x2121_2121);
        bus.write(LAYOUT.ecam.0 + (31 << 15) + 0x10, &0xc004_0000_u32.to_le_bytes());
        bus.write(first, &[1]);
        bus.write(0xc004_0008, &[2, 3]);
        assert_eq!(*fake.written.lock().unwrap(), [(8, vec![2, 3])]);
        assert_eq!(read(&bus, 0xc000_0000), u32::MAX);
        assert!(LAYOUT.forwards(0xc00f_8000) && !LAYOUT.forwards(0xc00f_c000));
        assert!(!LAYOUT.forwards(0xbfff_8000) && !LAYOUT.forwards(u64::MAX - 0x7fff));
    }
}
