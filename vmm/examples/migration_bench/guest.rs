//! The guest of the benchmark: an ELF of a few instructions that every VMM here boots by PVH.
//!
//! It sleeps, and once a millisecond the local APIC's timer wakes it to write one byte to COM1, which
//! counts up. The gap between the source's last byte and the destination's first is the downtime as
//! a user sees it, measured alike for every VMM. Its RAM is filled by its initramfs.

use std::fs::File;
use std::io::{BufWriter, Error, Write};
use std::path::Path;

/// Where the ELF is loaded, in guest memory: code, then tables, then the counter and the stack.
const BASE: u32 = 0x10_0000;
const ENTRY: u32 = BASE + 0x100;
const TICK: u32 = BASE + 0x200;
const GDT: u32 = BASE + 0x300;
const IDT: u32 = BASE + 0x400;
const FILE_END: u32 = BASE + 0x600;
const COUNTER: u32 = BASE + 0x800;
const STACK: u32 = BASE + 0x4000;

/// The vector of the timer.
const VECTOR: u32 = 0x20;

/// Timer clocks between two ticks: KVM's local APIC counts nanoseconds.
const CLOCKS: u32 = 1_000_000;

/// The local APIC's registers (Intel SDM volume 3, 11.4.1).
const APIC_SPURIOUS: u32 = 0xfee0_00f0;
const APIC_END: u32 = 0xfee0_00b0;
const APIC_TIMER: u32 = 0xfee0_0320;
const APIC_INITIAL: u32 = 0xfee0_0380;
const APIC_DIVIDE: u32 = 0xfee0_03e0;

/// `MSR_KVM_MIGRATION_CONTROL`, by which an SEV guest says that it may be moved.
const MIGRATION_CONTROL: u32 = 0x4b56_4d08;

/// The ELF. An SEV guest also says that it is ready to be moved; a plain one must not.
pub(crate) fn elf(is_sev: bool) -> Vec<u8> {
    let mut image = vec![0; (FILE_END - BASE) as usize];
    let mut place = |address: u32, bytes: &[u8]| {
        let at = (address - BASE) as usize;
        image.splice(at..at + bytes.len(), bytes.iter().copied());
    };
    place(ENTRY, &entry(is_sev));
    place(TICK, &tick());
    // Null, then flat 32-bit code and data.
    place(GDT + 8, &0x00cf_9b00_0000_ffff_u64.to_le_bytes());
    place(GDT + 16, &0x00cf_9300_0000_ffff_u64.to_le_bytes());
    place(GDT + 24, &pointer(23, GDT));
    // An interrupt gate: the handler's address around its code segment and kind.
    let (high, low) = (u64::from(TICK >> 16), u64::from(TICK & 0xffff));
    let gate = high << 48 | 0x8e00 << 32 | 8 << 16 | low;
    place(IDT + VECTOR * 8, &gate.to_le_bytes());
    place(IDT + 0x1f0, &pointer(0x10f, IDT));
    let mut file = headers();
    file.resize(0x1000, 0);
    file.extend(image);
    file
}

/// What `lgdt` and `lidt` read.
fn pointer(limit: u16, base: u32) -> [u8; 6] {
    let mut bytes = [0; 6];
    bytes[..2].copy_from_slice(&limit.to_le_bytes());
    bytes[2..].copy_from_slice(&base.to_le_bytes());
    bytes
}

/// `mov dword [address], value`.
fn store(code: &mut Vec<u8>, address: u32, value: u32) {
    code.extend([0xc7, 0x05]);
    code.extend(address.to_le_bytes());
    code.extend(value.to_le_bytes());
}

fn entry(is_sev: bool) -> Vec<u8> {
    let mut code = vec![0xfa, 0xbc]; // cli; mov esp, STACK
    code.extend(STACK.to_le_bytes());
    code.extend([0x0f, 0x01, 0x15]); // lgdt
    code.extend((GDT + 24).to_le_bytes());
    code.extend([0x0f, 0x01, 0x1d]); // lidt
    code.extend((IDT + 0x1f0).to_le_bytes());
    code.push(0xea); // jmp 8:next
    let next = ENTRY + u32::try_from(code.len()).unwrap_or(0) + 6;
    code.extend(next.to_le_bytes());
    code.extend([8, 0]);
    code.extend([0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0]); // ds, es, ss = 16
    code.extend([0xb0, 0xff, 0xe6, 0x21, 0xe6, 0xa1]); // the old interrupt controllers are quiet
    if is_sev {
        code.push(0xb9); // mov ecx
        code.extend(MIGRATION_CONTROL.to_le_bytes());
        code.extend([0xb8, 1, 0, 0, 0, 0x31, 0xd2, 0x0f, 0x30]); // eax = 1, edx = 0, wrmsr
    }
    store(&mut code, APIC_SPURIOUS, 0x1ff);
    store(&mut code, APIC_DIVIDE, 0b1011);
    store(&mut code, APIC_TIMER, 0x2_0000 | VECTOR);
    store(&mut code, APIC_INITIAL, CLOCKS);
    code.extend([0xfb, 0xf4, 0xeb, 0xfc]); // sti; hlt; again
    code
}

/// The timer's interrupt, which does not return: it sleeps until the next. (A KVM that emulates the
/// guest's kernel cannot return from interrupts.)
fn tick() -> Vec<u8> {
    let mut code = vec![0xbc]; // mov esp, STACK
    code.extend(STACK.to_le_bytes());
    code.push(0xa1); // mov eax, [COUNTER]
    code.extend(COUNTER.to_le_bytes());
    code.extend([0xff, 0x05]); // inc dword [COUNTER]
    code.extend(COUNTER.to_le_bytes());
    code.extend([0xba, 0xf8, 0x03, 0x00, 0x00, 0xee]); // out 0x3f8, al
    store(&mut code, APIC_END, 0);
    code.extend([0xfb, 0xf4, 0xeb, 0xfc]); // sti; hlt; again
    code
}

/// An ELF64 header, a loaded segment and a PVH note (type 18, name `Xen`: the entry).
fn headers() -> Vec<u8> {
    let mut out = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let word = |out: &mut Vec<u8>, words: &[u64], bytes: usize| {
        for value in words {
            out.extend(value.to_le_bytes().iter().take(bytes));
        }
    };
    word(&mut out, &[2, 62], 2); // executable, x86-64
    word(&mut out, &[1], 4);
    word(&mut out, &[ENTRY.into(), 64, 0], 8);
    word(&mut out, &[0], 4);
    word(&mut out, &[64, 56, 2, 64, 0, 0], 2);
    let file_bytes = u64::from(FILE_END - BASE);
    word(&mut out, &[1, 7], 4); // PT_LOAD, all rights
    word(&mut out, &[0x1000, BASE.into(), BASE.into(), file_bytes], 8);
    word(&mut out, &[(STACK - BASE).into(), 0x1000], 8);
    word(&mut out, &[4, 4], 4); // PT_NOTE
    word(&mut out, &[176, 0, 0, 24, 24, 4], 8);
    word(&mut out, &[4, 8, 18], 4);
    out.extend(b"Xen\0");
    word(&mut out, &[ENTRY.into()], 8);
    out
}

/// Writes a file of noise, with which a guest's RAM is filled: no page is zero or like another.
pub(crate) fn write_noise(path: &Path, bytes: u64) -> Result<(), Error> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..bytes / 8 {
        // Xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        file.write_all(&state.to_le_bytes())?;
    }
    file.flush()
}
