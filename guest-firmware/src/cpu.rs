//! The processor instructions that Rust has no words for, each as one function.
#![expect(unsafe_code, reason = "port I/O, model-specific registers, hypercalls and table loads")]

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdtsc, CpuidResult};

use crate::ram::PAGE_SIZE;
use crate::symbols;

/// Bytes.
const CACHE_LINE: usize = 64;
/// `KVM_HC_MAP_GPA_RANGE`.
const MAP_GPA_RANGE: i64 = 12;

/// Writes a byte to an I/O port.
pub(crate) fn out8(port: u16, value: u8) {
    // SAFETY: no device here writes guest memory because of a port write.
    unsafe { asm!("out dx, al", in("dx") port, in("al") value, options(nomem, nostack)) };
}

/// Writes two bytes to an I/O port.
pub(crate) fn out16(port: u16, value: u16) {
    // SAFETY: as for `out8`.
    unsafe { asm!("out dx, ax", in("dx") port, in("ax") value, options(nomem, nostack)) };
}

/// Reads a byte from an I/O port.
pub(crate) fn in8(port: u16) -> u8 {
    let value;
    // SAFETY: as for `out8`.
    unsafe { asm!("in al, dx", in("dx") port, out("al") value, options(nomem, nostack)) };
    value
}

/// Reads two bytes from an I/O port.
pub(crate) fn in16(port: u16) -> u16 {
    let value;
    // SAFETY: as for `out8`.
    unsafe { asm!("in ax, dx", in("dx") port, out("ax") value, options(nomem, nostack)) };
    value
}

/// Reads four bytes from an I/O port.
pub(crate) fn in32(port: u16) -> u32 {
    let value;
    // SAFETY: as for `out8`.
    unsafe { asm!("in eax, dx", in("dx") port, out("eax") value, options(nomem, nostack)) };
    value
}

/// Writes four bytes to an I/O port.
pub(crate) fn out32(port: u16, value: u32) {
    // SAFETY: as for `out8`.
    unsafe { asm!("out dx, eax", in("dx") port, in("eax") value, options(nomem, nostack)) };
}

/// Fills `bytes` with single reads of an I/O port, by one instruction.
pub(crate) fn in_string8(port: u16, bytes: &mut [u8]) {
    // SAFETY: as many bytes are written as there are; the direction flag is clear in all of Rust.
    unsafe {
        asm!(
            "rep insb",
            in("dx") port,
            inout("rdi") bytes.as_mut_ptr() => _,
            inout("rcx") bytes.len() => _,
            options(nostack, preserves_flags),
        );
    }
}

/// The same with reads of two bytes.
pub(crate) fn in_string16(port: u16, words: &mut [u16]) {
    // SAFETY: as for `in_string8`.
    unsafe {
        asm!(
            "rep insw",
            in("dx") port,
            inout("rdi") words.as_mut_ptr() => _,
            inout("rcx") words.len() => _,
            options(nostack, preserves_flags),
        );
    }
}

/// Writes each of `bytes` to an I/O port, by one instruction.
pub(crate) fn out_string8(port: u16, bytes: &[u8]) {
    // SAFETY: as many bytes are read as there are; the rest is as for `out8`.
    unsafe {
        asm!(
            "rep outsb",
            in("dx") port,
            inout("rsi") bytes.as_ptr() => _,
            inout("rcx") bytes.len() => _,
            options(readonly, nostack, preserves_flags),
        );
    }
}

/// The same with writes of two bytes.
pub(crate) fn out_string16(port: u16, words: &[u16]) {
    // SAFETY: as for `out_string8`.
    unsafe {
        asm!(
            "rep outsw",
            in("dx") port,
            inout("rsi") words.as_ptr() => _,
            inout("rcx") words.len() => _,
            options(readonly, nostack, preserves_flags),
        );
    }
}

/// Loads a number from memory into the floating-point unit: an instruction that KVM does not emulate.
pub(crate) fn load_float(address: u64) {
    // SAFETY: nothing here computes with that unit, whose stack is empty again afterwards.
    unsafe { asm!("fninit", "fld dword ptr [{}]", "fninit", in(reg) address, options(nostack)) };
}

/// `CPUID`.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> CpuidResult {
    __cpuid_count(leaf, subleaf)
}

/// The time-stamp counter, in ticks of unknown length.
pub(crate) fn ticks() -> u64 {
    // SAFETY: reading the counter has no effect on memory.
    unsafe { _rdtsc() }
}

/// Writes a model-specific register that KVM's clients define.
pub(crate) fn write_kvm_msr(register: u32, value: u64) {
    let (low, high) = (value & 0xffff_ffff, value >> 32);
    // SAFETY: the caller names a KVM register without effect on this program's memory.
    unsafe { asm!("wrmsr", in("ecx") register, in("rax") low, in("rdx") high, options(nostack)) };
}

/// `KVM_HC_MAP_GPA_RANGE` with any arguments; what RAX holds afterwards.
pub(crate) fn map_gpa_range(gpa: u64, pages: u64, attributes: u64) -> i64 {
    let mut rax = MAP_GPA_RANGE;
    // SAFETY: RBX, which the compiler keeps for itself, is restored. The content of the pages may
    // change: the caller names no page that holds this program.
    unsafe {
        asm!(
            "xchg rbx, {gpa}",
            "vmmcall",
            "xchg rbx, {gpa}",
            gpa = inout(reg) gpa => _,
            inout("rax") rax,
            in("rcx") pages,
            in("rdx") attributes,
            options(nostack),
        );
    }
    rax
}

/// The same hypercall from ring 3. `task_stack` is the address of this processor's TSS.RSP0.
pub(crate) fn map_gpa_range_from_user(call: [u64; 3], task_stack: u64) -> i64 {
    let [gpa, pages, attributes] = call;
    // SAFETY: the descriptors are loaded, and the page of the user code is open to ring 3.
    unsafe { symbols::hypercall_from_user(gpa, pages, attributes, task_stack) }
}

/// CR3: the root of the page tables, with the C-bit where there is one.
pub(crate) fn root_table() -> u64 {
    let value;
    // SAFETY: a register is read.
    unsafe { asm!("mov {}, cr3", out(reg) value, options(nomem, nostack)) };
    value
}

/// Forgets the cached translation of one page.
pub(crate) fn flush_page(address: u64) {
    // SAFETY: the translation is read again from the tables, which keep this program where it is.
    unsafe { asm!("invlpg [{}]", in(reg) address, options(nostack)) };
}

/// Forgets every cached translation.
pub(crate) fn flush_all() {
    // SAFETY: as for `flush_page`; CR3 keeps its value.
    unsafe { asm!("mov {0}, cr3", "mov cr3, {0}", out(reg) _, options(nostack)) };
}

/// Writes back and drops the cache lines of one page.
pub(crate) fn flush_cache_lines(page: u64) {
    for line in (page..page + PAGE_SIZE).step_by(CACHE_LINE) {
        // SAFETY: memory keeps its content.
        unsafe { asm!("clflush [{}]", in(reg) line, options(nostack)) };
    }
    // SAFETY: a fence has no other effect.
    unsafe { asm!("mfence", options(nostack)) };
}

/// Loads the descriptor tables (address, limit) and the task register.
pub(crate) fn load_descriptors(segments: (u64, u16), interrupts: (u64, u16), task: u16) {
    let segments = pointer(segments);
    let interrupts = pointer(interrupts);
    // SAFETY: the selectors in use mean the same in the new table.
    unsafe { asm!("lgdt [{}]", in(reg) &raw const segments, options(nostack)) };
    // SAFETY: every entry leads to `exception_entries` or `user_return`.
    unsafe { asm!("lidt [{}]", in(reg) &raw const interrupts, options(nostack)) };
    // SAFETY: the selector names an available TSS.
    unsafe { asm!("ltr {0:x}", in(reg) task, options(nostack)) };
}

/// Hints that this processor waits for another.
pub(crate) fn pause() {
    core::hint::spin_loop();
}

/// Stops this processor for good: interrupts are never enabled.
pub(crate) fn halt() -> ! {
    loop {
        // SAFETY: nothing runs on this processor any more.
        unsafe { asm!("cli", "hlt", options(nomem, nostack)) };
    }
}

/// Ends the machine by an exception that has no handler, not even for the failure to find one.
pub(crate) fn triple_fault() -> ! {
    let nothing = pointer((0, 0));
    // SAFETY: the program ends here.
    unsafe { asm!("lidt [{}]", "ud2", in(reg) &raw const nothing, options(noreturn, nostack)) }
}

/// The operand of `LGDT` and `LIDT`: limit, then address, without padding.
fn pointer((address, limit): (u64, u16)) -> [u8; 10] {
    (u128::from(address) << 16 | u128::from(limit)).to_le_bytes()[..10]
        .try_into()
        .unwrap_or([0; 10])
}
