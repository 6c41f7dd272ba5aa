# From the PVH entry point, in 32-bit mode without paging, to firmware_main in 64-bit mode; the
# application processors' way to the same place; and what has no form in Rust.
# Without paging every access is private, so what is written here is private memory.

    .set CODE32, 0x08
    .set DATA, 0x10
    .set CODE64, 0x18
    .set USER_DATA, 0x23
    .set USER_CODE64, 0x2b

    .set CR0_VALUE, 0x80000033          # PG, NE, ET, MP, PE: caches on, no emulation of SSE
    .set CR4_VALUE, 0x620               # OSXMMEXCPT, OSFXSR, PAE

# XEN_ELFNOTE_PHYS32_ENTRY: name size, description size, type.
    .section .note.Xen, "a", @note
    .balign 4
    .long 4, 8, 18
    .asciz "Xen"
    .quad pvh_entry

    .section .text.entry, "ax", @progbits
    .code32
    .globl pvh_entry
pvh_entry:
    cli
    cld
    movl %ebx, %ebp                     # hvm_start_info; CPUID destroys EBX

    # Memory that the loader did not place may hold noise.
    xorl %eax, %eax
    movl $__bss_start, %edi
    movl $__bss_end, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    rep stosl
    movl $root_table, %edi
    movl $2048, %ecx                    # the root and the one table under it
    rep stosl

    # SEV: CPUID 0x8000001F EAX bit 1 and MSR 0xC0010131 bit 0. ESI: the C-bit's upper half.
    xorl %esi, %esi
    movl $0x80000000, %eax
    cpuid
    cmpl $0x8000001f, %eax
    jb 1f
    movl $0x8000001f, %eax
    cpuid
    testb $2, %al
    jz 1f
    movl %ebx, %edi
    andl $63, %edi
    movl $0xc0010131, %ecx
    rdmsr
    testb $1, %al
    jz 1f
    leal -32(%edi), %ecx
    movl $1, %esi
    shll %cl, %esi
1:
    # Identity mapping of 4 GiB in 2 MiB pages, every entry with the C-bit.
    movl $pointer_table + 0x7, root_table
    movl %esi, root_table + 4
    movl $pointer_table, %edi
    movl $directories + 0x7, %eax
    movl $4, %ecx
2:
    movl %eax, (%edi)
    movl %esi, 4(%edi)
    addl $0x1000, %eax
    addl $8, %edi
    loop 2b
    movl $directories, %edi
    movl $0x83, %eax                    # present, writable, 2 MiB
    movl $2048, %ecx
3:
    movl %eax, (%edi)
    movl %esi, 4(%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 3b

    movl $CR4_VALUE, %eax
    movl %eax, %cr4
    movl $root_table, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx              # EFER.LME
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $CR0_VALUE, %eax
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $CODE64, $long_mode

    .code64
long_mode:
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl %esi, %esi
    shlq $32, %rsi                      # the C-bit as a mask, or 0
    movl $root_table, %eax
    orq %rsi, %rax
    movq %rax, %cr3                     # 32-bit code could not set the C-bit here
    leaq stacks + STACK_SIZE(%rip), %rsp
    movl %ebp, %edi
    xorl %ebp, %ebp
    call firmware_main
    ud2

    .section .rodata.boot_gdt, "a", @progbits
    .balign 8
boot_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff            # CODE32
    .quad 0x00cf93000000ffff            # DATA
    .quad 0x00af9b000000ffff            # CODE64
boot_gdt_pointer:
    .word 31
    .quad boot_gdt

# Copied to AP_BASE, below 1 MiB, where a SIPI starts a processor in real mode.
    .set AP_BASE, 0x8000
    .set AP_ROOT_TABLE, 0x9000

    .section .rodata.ap, "a", @progbits
    .balign 8
    .globl ap_code, ap_code_end
    .code16
ap_code:
    cli
    cld
    movw %cs, %ax
    movw %ax, %ds
    lgdtl (ap_gdt_pointer - ap_code)
    movl $0x11, %eax                    # ET, PE
    movl %eax, %cr0
    ljmpl $CODE32, $(AP_BASE + ap_code32 - ap_code)
    .code32
ap_code32:
    movl $DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    movl $CR4_VALUE, %eax
    movl %eax, %cr4
    movl $AP_ROOT_TABLE, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx
    rdmsr
    orl $0x100, %eax
    wrmsr
    movl $CR0_VALUE, %eax
    movl %eax, %cr0
    ljmp $CODE64, $(AP_BASE + ap_code64 - ap_code)
    .code64
ap_code64:
    movq AP_BASE + ap_root - ap_code, %rax
    movq %rax, %cr3
    movq AP_BASE + ap_stack - ap_code, %rsp
    movq AP_BASE + ap_index - ap_code, %rdi
    movq AP_BASE + ap_c_mask - ap_code, %rsi
    movq AP_BASE + ap_main - ap_code, %rax
    xorl %ebp, %ebp
    call *%rax
    ud2
    .balign 8
ap_gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00af9b000000ffff
ap_gdt_pointer:
    .word 31
    .long AP_BASE + ap_gdt - ap_code
    .balign 8
# The last five words, which the starting processor fills in (see smp.rs).
ap_main:
    .quad processor_main
ap_root:
    .quad 0
ap_stack:
    .quad 0
ap_index:
    .quad 0
ap_c_mask:
    .quad 0
ap_code_end:

# One entry of 16 bytes per exception: vector and error code on the stack.
    .section .text.exceptions, "ax", @progbits
    .balign 16
    .globl exception_entries
exception_entries:
    .macro exception_entry vector
    .balign 16
    .if (1 << \vector) & 0x60227d00     # the processor pushed an error code
    .else
    pushq $0
    .endif
    pushq $\vector
    jmp exception_common
    .endm
    .irp vector, 0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31
    exception_entry \vector
    .endr
    .balign 16
exception_common:
    popq %rdi
    popq %rsi
    movq (%rsp), %rdx
    movq %cr2, %rcx
    cld
    andq $-16, %rsp
    call exception_taken
    ud2

# i64 hypercall_from_user(gpa, pages, attributes, address of TSS.RSP0)
    .section .text.user_call, "ax", @progbits
    .globl hypercall_from_user, user_return
hypercall_from_user:
    pushq %rbx
    pushq %rbp
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    subq $8, %rsp                       # the processor aligns RSP0 to 16: keep it aligned
    movq %rsp, (%rcx)
    movq %rdi, %rbx
    movq %rsi, %rcx
    pushq $USER_DATA
    pushq $0                            # the user code has no stack
    pushq $2
    pushq $USER_CODE64
    leaq user_code(%rip), %rax
    pushq %rax
    movl $12, %eax
    iretq
user_return:                            # int $0x80, on the stack saved above
    addq $40, %rsp
    movl $DATA, %ecx
    movl %ecx, %ss
    addq $8, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbp
    popq %rbx
    ret

# The only page that ring 3 may touch.
    .section .text.user, "ax", @progbits
    .balign 4096
    .globl user_code
user_code:
    vmmcall
    int $0x80
    .balign 4096

# Each processor's stack; its lowest quarter is for exceptions.
    .set STACK_SIZE, 0x8000
    .section .stacks, "aw", @nobits
    .balign 4096
    .globl stacks
stacks:
    .skip 16 * STACK_SIZE

    .section .tables, "aw", @nobits
    .balign 4096
root_table:
    .skip 4096
pointer_table:
    .skip 4096
directories:
    .skip 4 * 4096
    .globl pool                         # two pages, then whatever memory follows
pool:
    .skip 2 * 4096

# What the compiler expects of every target.
    .section .text.memory, "ax", @progbits
    .globl memcpy, memmove, memset, memcmp, bcmp
memmove:
    movq %rdi, %rax
    subq %rsi, %rax
    cmpq %rdx, %rax
    jae memcpy                          # no byte is overwritten before it is read
    movq %rdi, %rax
    movq %rdx, %rcx
    leaq -1(%rdi, %rdx), %rdi
    leaq -1(%rsi, %rdx), %rsi
    std
    rep movsb
    cld
    ret
memcpy:
    movq %rdi, %rax
    movq %rdx, %rcx
    rep movsb
    ret
memset:
    movq %rdi, %r9
    movl %esi, %eax
    movq %rdx, %rcx
    rep stosb
    movq %r9, %rax
    ret
bcmp:
memcmp:
    xorl %eax, %eax
    movq %rdx, %rcx
    cmpq %rcx, %rcx                     # equal when there is nothing to compare
    repe cmpsb
    je 1f
    movzbl -1(%rdi), %ecx
    movzbl -1(%rsi), %eax
    subl %ecx, %eax
1:
    ret
