# What the guest of the benchmark does: the bytes that guest.rs puts into an ELF, for address BASE.
#
# It is entered by PVH: 32-bit mode, no paging, flat segments. It writes one byte to COM1 at once, and
# then one in every millisecond, when the timer of the local APIC wakes it; they count up.
#
# A guest that writes memory does so between two bytes, in ring 3 of 64-bit mode: a KVM that emulates
# its guests' kernels runs that, and only that, at the processor's speed. Such a KVM returns from no
# interrupt to ring 0, and passes no `int` on from ring 3. So no handler here returns, and ring 3 ends
# with an instruction that does not exist.

    .set BASE, 0x100000
    .set STACK, BASE + 0x4000
    .set ROOT, BASE + 0x5000            # page tables: one root, one below it, four directories
    .set POINTERS, ROOT + 0x1000
    .set DIRECTORIES, ROOT + 0x2000

    .set CODE32, 0x08
    .set CODE64, 0x10
    .set DATA, 0x18
    .set USER_DATA, 0x23
    .set USER_CODE64, 0x2b
    .set TASK, 0x30

    .set COM1, 0x3f8
    .set EFER, 0xc0000080
    .set MIGRATION_CONTROL, 0x4b564d08  # MSR_KVM_MIGRATION_CONTROL

    # The local APIC (Intel SDM volume 3, 11.4.1); KVM's counts nanoseconds.
    .set APIC_END, 0xfee000b0
    .set APIC_SPURIOUS, 0xfee000f0
    .set APIC_TIMER, 0xfee00320
    .set APIC_INITIAL, 0xfee00380
    .set APIC_DIVIDE, 0xfee003e0
    .set MILLISECOND, 1000000

    .set UNDEFINED, 6                   # the vector of an instruction that does not exist
    .set TICK, 32

# A label, and `at_NAME`: its address in the guest.
    .macro label name
.L\name:
    .set at_\name, .L\name - guest_image + BASE
    .endm

# `movl $value, address` in 32-bit and in 64-bit mode, where absolute addresses have a sign.
    .macro store value, address
    movl $\address, %ebx
    movl $\value, (%ebx)
    .endm

    .macro start_timer
    store 0x1ff, APIC_SPURIOUS
    store 0b1011, APIC_DIVIDE
    store 0x20000 + TICK, APIC_TIMER    # again and again
    store MILLISECOND, APIC_INITIAL
    .endm

    .macro write_byte
    movl at_counter, %eax
    incl at_counter
    movw $COM1, %dx
    outb %al, %dx
    .endm

    .section .rodata.guest_image, "a", @progbits
    .balign 8
    .globl guest_image
    .code32
guest_image:
# What guest.rs fills in.
    .long 0                             # an SEV guest says that it may be moved; a plain one must not
    .set at_is_sev, BASE
    label memory                        # where the guest writes
    .long 0
    label pages                         # how many pages there, a power of two
    .long 0
    label pages_per_tick                # 0: it writes no memory
    .long 0

# What the guest counts.
    label counter                       # bytes written
    .long 0
    label number                        # pages written
    .long 0
    label left                          # pages to write until the next tick
    .long 0

    .org 0x100
# The entry point.
    cli
    cld
    movl $STACK, %esp
    write_byte
    lgdtl at_gdt_pointer
    ljmp $CODE32, $at_flat
    label flat
    movl $DATA, %eax
    movl %eax, %ss
    movl $USER_DATA, %eax
    movl %eax, %ds
    movl %eax, %es
    movb $0xff, %al                     # the old interrupt controllers are quiet
    outb %al, $0x21
    outb %al, $0xa1
    cmpl $0, at_pages_per_tick
    jne .Lto_64_bits
    lidtl at_idt32_pointer
    cmpl $0, at_is_sev
    je .Lidle
    movl $MIGRATION_CONTROL, %ecx
    movl $1, %eax
    xorl %edx, %edx
    wrmsr
.Lidle:
    start_timer
    label sleep32
    movl $STACK, %esp
    sti
1:
    hlt
    jmp 1b

    label tick32
    write_byte
    store 0, APIC_END
    jmp .Lsleep32

# The first 4 GiB as they are, in 2 MiB pages that are open to ring 3.
.Lto_64_bits:
    movl $POINTERS + 7, ROOT
    movl $POINTERS, %edi
    movl $DIRECTORIES + 7, %eax
    movl $4, %ecx
1:
    movl %eax, (%edi)
    addl $8, %edi
    addl $0x1000, %eax
    loop 1b
    movl $DIRECTORIES, %edi
    movl $0x87, %eax                    # present, writable, ring 3, 2 MiB
1:
    movl %eax, (%edi)
    addl $8, %edi
    addl $0x200000, %eax
    jnc 1b
    movl $0x20, %eax                    # PAE
    movl %eax, %cr4
    movl $ROOT, %eax
    movl %eax, %cr3
    movl $EFER, %ecx
    rdmsr
    orl $0x100, %eax                    # LME
    wrmsr
    movl %cr0, %eax
    orl $0x80000000, %eax               # PG
    movl %eax, %cr0
    ljmp $CODE64, $at_in_64_bits

    .code64
    label in_64_bits
    lidtq at_idt64_pointer
    movl $TASK, %eax
    ltr %ax
    start_timer
    label sleep64
    movl $STACK, %esp
    sti
1:
    hlt
    jmp 1b

# From sleep or from ring 3, whose page is then written from its beginning.
    label tick64
    movl $STACK, %esp
    movl at_number, %eax                # no byte until all pages have been written: this takes longer
    cmpl at_pages, %eax
    jb 1f
    write_byte
1:
    store 0, APIC_END
    movl at_pages_per_tick, %eax
    movl %eax, at_left
    pushq $USER_DATA
    pushq $0                            # ring 3 has no stack
    pushq $0x202                        # interrupts come
    pushq $USER_CODE64
    pushq $at_user
    iretq

# Each page holds its number in all of its words. Before a page is written anew, what it held must
# still be there: that of the round before, or, if a tick came in between, the new one.
    label user
    cmpl $0, at_left
    je .Lrest
    movl at_number, %eax
    movl at_pages, %ecx
    leal -1(%rcx), %edi
    andl %eax, %edi
    shll $12, %edi
    addl at_memory, %edi
    movl %eax, %edx
    subl %ecx, %edx
    jb .Lwrite                          # the first round
    cmpl (%rdi), %edx
    je .Lwrite
    cmpl (%rdi), %eax
    je .Lwrite
    hlt                                 # a page is lost: not allowed here, and so the guest's end
.Lwrite:
    movl $1024, %ecx
    rep stosl
    incl at_number
    decl at_left
    jmp .Luser
.Lrest:
    ud2

    .balign 8
    label gdt
    .quad 0
    .quad 0x00cf9b000000ffff            # CODE32
    .quad 0x00af9b000000ffff            # CODE64
    .quad 0x00cf93000000ffff            # DATA
    .quad 0x00cff3000000ffff            # USER_DATA
    .quad 0x00affb000000ffff            # USER_CODE64
    .word 103, at_task - BASE           # TASK: limit, then the address in parts
    .byte BASE >> 16, 0x89, 0, BASE >> 24
    .quad 0
    label gdt_pointer
    .word 63
    .long at_gdt

# Interrupt gates: the handler's address around its code segment and kind.
    .balign 8
    label idt32
    .skip 8 * TICK
    .word at_tick32 - BASE, CODE32, 0x8e00, BASE >> 16
    label idt32_pointer
    .word 8 * (TICK + 1) - 1
    .long at_idt32

    .balign 8
    label idt64
    .skip 16 * UNDEFINED
    .word at_sleep64 - BASE, CODE64, 0x8e00, BASE >> 16
    .skip 8 + 16 * (TICK - UNDEFINED - 1)
    .word at_tick64 - BASE, CODE64, 0x8e00, BASE >> 16
    .skip 8
    label idt64_pointer
    .word 16 * (TICK + 1) - 1
    .quad at_idt64

# The task state: of it, only the stack of ring 0 is used.
    .balign 8
    label task
    .long 0
    .quad STACK
    .skip 92
    .org 0x800
