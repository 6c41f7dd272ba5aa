//! What the loader tells a PVH guest: command line, memory map, ACPI root pointer.
//!
//! Layout: Xen's public header `arch-x86/hvm/start_info.h`.

use core::str;

use crate::physical::{read8, read32, read64};
use crate::ram::Ram;

const MAGIC: u32 = 0x336e_c578;
/// Bytes of the command line that are kept.
const MAX_COMMAND_LINE: usize = 4096;
/// Entries of the memory map that are read.
const MAX_ENTRIES: u32 = 128;
const ENTRY_BYTES: usize = 24;
const TYPE_RAM: u32 = 1;

/// The loader's message, copied: the memory that held it can be used for anything.
pub(crate) struct StartInfo {
    command_line: [u8; MAX_COMMAND_LINE],
    command_line_len: usize,
    /// Where RAM is.
    pub(crate) ram: Ram,
    /// Address of the ACPI root pointer, or 0.
    pub(crate) acpi_root: u64,
}

impl StartInfo {
    /// Reads `hvm_start_info` at a guest-physical address.
    pub(crate) fn read(address: u64) -> Result<Self, &'static str> {
        if read32(address) != MAGIC {
            return Err("start_info: wrong magic");
        }
        if read32(address + 4) == 0 {
            return Err("start_info: version 0 has no memory map");
        }
        let mut info = Self {
            command_line: [0; MAX_COMMAND_LINE],
            command_line_len: 0,
            ram: memory_map(read64(address + 40), read32(address + 48))?,
            acpi_root: read64(address + 32),
        };
        let text = read64(address + 24);
        if text != 0 {
            for (at, byte) in (text..).zip(&mut info.command_line) {
                *byte = read8(at);
                if *byte == 0 {
                    return Ok(info);
                }
                info.command_line_len += 1;
            }
            return Err("start_info: command line longer than 4095 bytes");
        }
        Ok(info)
    }

    /// The command line; empty if it is not text.
    pub(crate) fn command_line(&self) -> &str {
        let bytes = self.command_line.get(..self.command_line_len).unwrap_or_default();
        str::from_utf8(bytes).unwrap_or_default()
    }
}

fn memory_map(address: u64, entries: u32) -> Result<Ram, &'static str> {
    let mut ram = Ram::default();
    for entry in (address..).step_by(ENTRY_BYTES).take(entries.min(MAX_ENTRIES) as usize) {
        let (base, bytes, kind) = (read64(entry), read64(entry + 8), read32(entry + 16));
        if kind == TYPE_RAM && !ram.add(base, bytes) {
            return Err("start_info: memory map of more than 32 runs");
        }
    }
    if ram.bytes() == 0 {
        return Err("start_info: no RAM in the memory map");
    }
    Ok(ram)
}
