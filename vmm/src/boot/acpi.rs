//! The ACPI tables: processors, the I/O APIC, the serial port, the PCI bus, and how to stop.
//!
//! Hardware-reduced ACPI: no PM timer, no SCI, no legacy interrupt controllers. The guest resets
//! and powers off by one byte written to [`ACPI_PORT`]. The bytes are measured, so they depend only on the
//! number of processors: the bus is described, and not what is on it.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Memory32Fixed, Name,
    Package, Path, ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADT, FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace as GasSpace, GAS};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use super::layout::{ACPI, IO_APIC, LOCAL_APIC, PCI};
use crate::devices::pci::{CONFIG_PORT, ECAM_BYTES};
use crate::devices::{ACPI_PORT, ACPI_RESET, COM1_IRQ, COM1_PORT};

/// The maker of the tables.
const OEM: [u8; 6] = *b"SVFRRY";

/// Which tables they are.
const OEM_TABLE: [u8; 8] = *b"SEVFERRY";

/// Version of the tables; count it up when they change, since launch digests change too.
const OEM_REVISION: u32 = 2;

/// FADT boot flags: no VGA, no CMOS clock; and, by omission, no keyboard controller to probe.
const BOOT_FLAGS: u16 = 1 << 2 | 1 << 5;

/// Where each table starts: a multiple of this.
const ALIGNMENT: usize = 64;

/// The bytes from [`ACPI`] on, the RSDP first, for `vcpus` processors with APIC ids from 0.
pub(super) fn tables(vcpus: u8) -> Vec<u8> {
    let mut bytes = vec![0; Rsdp::len()];
    let dsdt = append(&mut bytes, &dsdt(vcpus));
    let fadt = append(&mut bytes, &fadt(dsdt));
    let madt = append(&mut bytes, &madt(vcpus));
    let mcfg = append(&mut bytes, &mcfg());
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    xsdt.add_entry(mcfg);
    let xsdt = append(&mut bytes, &xsdt);

    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt).to_aml_bytes(&mut rsdp);
    bytes.splice(..Rsdp::len(), rsdp);
    bytes
}

/// Appends `table` at the next multiple of [`ALIGNMENT`]; returns its guest-physical address.
fn append(bytes: &mut Vec<u8>, table: &dyn Aml) -> u64 {
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    let address = ACPI.0 + bytes.len() as u64;
    table.to_aml_bytes(bytes);
    address
}

fn fadt(dsdt: u64) -> FADT {
    let power = GAS::new(GasSpace::SystemIo, 8, 0, AccessSize::ByteAccess, ACPI_PORT.into());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_FLAGS.into();
    fadt.reset_reg = power;
    fadt.reset_value = ACPI_RESET;
    fadt.sleep_control_reg = power;
    fadt.sleep_status_reg = power;
    fadt.finalize()
}

/// Where the configuration space of the one PCI bus is.
fn mcfg() -> MCFG {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(PCI.ecam.0, 0, 0, 0);
    mcfg
}

/// An address that is a constant below 4 GiB.
fn low(gpa: u64) -> u32 {
    u32::try_from(gpa).unwrap_or(u32::MAX)
}

fn madt(vcpus: u8) -> MADT {
    let apics = LocalInterruptController::Address(low(LOCAL_APIC.0));
    let mut madt = MADT::new(OEM, OEM_TABLE, OEM_REVISION, apics);
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, low(IO_APIC.0), 0));
    madt
}

fn dsdt(vcpus: u8) -> Sdt {
    let mut devices = Vec::new();
    for id in 0..vcpus {
        let hid = Name::new("_HID".into(), &"ACPI0007");
        let uid = Name::new("_UID".into(), &id);
        let path = Path::new(&format!("C{id:03X}"));
        Device::new(path, vec![&hid, &uid]).to_aml_bytes(&mut devices);
    }
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0501"));
    let uid = Name::new("_UID".into(), &0u8);
    let ports = IO::new(COM1_PORT, COM1_PORT, 1, 8);
    // ISA interrupts are edge triggered and active high.
    let interrupt = Interrupt::new(true, true, false, false, COM1_IRQ);
    let resources = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ports, &interrupt]));
    Device::new("COM1".into(), vec![&hid, &uid, &resources]).to_aml_bytes(&mut devices);

    pci(&mut devices);

    let mut aml = Scope::raw("\\_SB_".into(), devices);
    // Sleep type 5 in the sleep control register is power-off.
    Name::new("_S5_".into(), &Package::new(vec![&5u8])).to_aml_bytes(&mut aml);

    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, OEM_TABLE, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt
}

/// The host bridge with what it forwards; and, as a resource of the board, configuration space, which
/// Linux looks for there before it trusts the MCFG table.
fn pci(devices: &mut Vec<u8>) {
    let zero = |name: &str| Name::new(name.into(), &0u8);
    let hid = Name::new("_HID".into(), &EISAName::new("PNP0A08"));
    let cid = Name::new("_CID".into(), &EISAName::new("PNP0A03"));
    let (uid, segment, bus) = (zero("_UID"), zero("_SEG"), zero("_BBN"));
    let buses = AddressSpace::new_bus_number(0u16, 0u16);
    let ports = IO::new(CONFIG_PORT, CONFIG_PORT, 1, 8);
    let (first, last) = (low(PCI.window.0), low(PCI.window.0 + PCI.window_bytes - 1));
    let window =
        AddressSpace::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    let forwards = ResourceTemplate::new(vec![&buses, &ports, &window]);
    let forwards = Name::new("_CRS".into(), &forwards);
    let children: Vec<&dyn Aml> = vec![&hid, &cid, &uid, &segment, &bus, &forwards];
    Device::new("PCI0".into(), children).to_aml_bytes(devices);

    let hid = Name::new("_HID".into(), &EISAName::new("PNP0C02"));
    let ecam = Memory32Fixed::new(true, low(PCI.ecam.0), low(ECAM_BYTES));
    let reserved = Name::new("_CRS".into(), &ResourceTemplate::new(vec![&ecam]));
    Device::new("MBRD".into(), vec![&hid, &zero("_UID"), &reserved]).to_aml_bytes(devices);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmm_sys_util::eventfd::EventFd;

    use super::*;
    use crate::boot::layout::ACPI_MAX;
    use crate::devices::{Ports, PowerEvent, SerialOutput, SerialPort};

    /// A table of `bytes` by its guest-physical address, its checksum checked.
    fn table(bytes: &[u8], address: u64) -> &[u8] {
        let rest = &bytes[usize::try_from(address - ACPI.0).unwrap()..];
        let len = u32::from_le_bytes(rest[4..8].try_into().unwrap());
        let table = &rest[..usize::try_from(len).unwrap()];
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(&table[10..16], b"SVFRRY");
        table
    }

    fn address(table: &[u8], offset: usize) -> u64 {
        u64::from_le_bytes(table[offset..offset + 8].try_into().unwrap())
    }

    fn count(haystack: &[u8], needle: &[u8]) -> usize {
        haystack.windows(needle.len()).filter(|window| *window == needle).count()
    }

    /// From the RSDP every table is found, sound, and knows as many processors as there are.
    #[test]
    fn tables_describe_every_processor() {
        for vcpus in [1, 2, 8, 255] {
            let bytes = tables(vcpus);
            assert!(bytes.len() as u64 <= ACPI_MAX);
            for len in [20, 36] {
                let sum = bytes[..len].iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
                assert_eq!(sum, 0);
            }
            let xsdt = table(&bytes, address(&bytes, 24));
            let (fadt, madt) = (table(&bytes, address(xsdt, 36)), table(&bytes, address(xsdt, 44)));
            let dsdt = table(&bytes, address(fadt, 140));
            let mcfg = table(&bytes, address(xsdt, 52));
            let signatures = [xsdt, fadt, madt, dsdt, mcfg].map(|table| &table[..4]);
            assert_eq!(signatures, [b"XSDT", b"FACP", b"APIC", b"DSDT", b"MCFG"]);
            assert_eq!(address(mcfg, 44), PCI.ecam.0);
            assert_eq!(mcfg[52..], [0; 8]);
            assert_eq!(count(dsdt, b"ACPI0007"), usize::from(vcpus));
            let apics: Vec<_> = madt[44..].chunks(8).take(vcpus.into()).collect();
            assert_eq!(madt.len(), 44 + apics.len() * 8 + 12);
            for (id, apic) in (0..vcpus).zip(apics) {
                assert_eq!(apic, [0, 8, id, id, 1, 0, 0, 0]);
            }
        }
    }

    /// Hardware-reduced; reset and power-off are one byte at one port.
    #[test]
    fn the_guest_can_reset_and_power_off() {
        let bytes = tables(1);
        let fadt = table(&bytes, address(table(&bytes, address(&bytes, 24)), 36));
        let flags = u32::from_le_bytes(fadt[112..116].try_into().unwrap());
        assert_eq!(flags & (1 << 20 | 1 << 10), 1 << 20 | 1 << 10);
        let register = [1, 8, 0, 1, 0, 6, 0, 0, 0, 0, 0, 0];
        assert_eq!(fadt[116..128], register);
        assert_eq!(fadt[128], ACPI_RESET);
        assert_eq!(fadt[244..256], register);
        assert_eq!(fadt[256..268], register);
        let serial =
            Arc::new(SerialPort::new(EventFd::new(0).unwrap(), SerialOutput::nowhere()).unwrap());
        let ports = Ports::new(serial);
        assert_eq!(ports.write(ACPI_PORT, 1, &[ACPI_RESET]), Some(PowerEvent::Reset));
        // Sleep type 5 in bits 2 to 4, and the bit that enables it.
        assert_eq!(ports.write(ACPI_PORT, 1, &[5 << 2 | 1 << 5]), Some(PowerEvent::PowerOff));
        let dsdt = table(&bytes, address(fadt, 140));
        assert_eq!(count(dsdt, b"\x08_S5_\x12\x04\x01\x0a\x05"), 1);
    }
}
