/* SPDX-License-Identifier: Apache-2.0
 * From the multiboot loader's 32-bit mode to kernel_main in 64-bit mode, and the entries for system
 * calls and exceptions. */

.section .multiboot, "a"
    .align 8
    .long 0x1badb002, 3, -(0x1badb002 + 3)      /* magic, flags: page align + memory map, checksum */

.section .bss
    .align 4096
page_map:           .skip 4096
page_pointers:      .skip 4096
page_directories:   .skip 4 * 4096
kernel_stack:       .skip 65536
kernel_stack_top:
exception_stack:    .skip 65536
.globl exception_stack_top
exception_stack_top:

.text
.code32
.globl _start
_start:
    cli
    movl $kernel_stack_top, %esp
    movl %ebx, %edi                             /* multiboot information */

    /* 4 GiB mapped one to one in 2 MiB pages, everything allowed in user mode. */
    movl $page_pointers + 7, page_map
    movl $page_directories + 0x0007, page_pointers
    movl $page_directories + 0x1007, page_pointers + 8
    movl $page_directories + 0x2007, page_pointers + 16
    movl $page_directories + 0x3007, page_pointers + 24
    movl $page_directories, %edx
    movl $0x87, %eax
    movl $2048, %ecx
1:  movl %eax, (%edx)
    addl $0x200000, %eax
    addl $8, %edx
    decl %ecx
    jnz 1b

    movl %cr4, %eax
    orl $0x50620, %eax                          /* PAE, OSFXSR, OSXMMEXCPT, FSGSBASE, OSXSAVE */
    movl %eax, %cr4
    movl $page_map, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx                      /* EFER: long mode, SYSCALL */
    rdmsr
    orl $0x101, %eax
    wrmsr
    movl %cr0, %eax
    andl $~0xc, %eax                            /* no FPU emulation, no task-switched trap */
    orl $0x80010022, %eax                       /* paging, write protection, FPU errors */
    movl %eax, %cr0
    lgdt gdt_descriptor
    ljmp $0x08, $long_mode

.code64
long_mode:
    movw $0x10, %ax
    movw %ax, %ds
    movw %ax, %es
    movw %ax, %ss
    xorl %eax, %eax
    movw %ax, %fs
    movw %ax, %gs
    movq $kernel_stack_top, %rsp
    movl %edi, %edi
    call kernel_main

/* enter_user(rdi: entry, rsi: stack): every other register is zero, as on Linux. */
.globl enter_user
enter_user:
    movq %rdi, %rcx
    movq $2, %r11
    movq %rsi, %rsp
    xorl %eax, %eax
    xorl %ebx, %ebx
    xorl %edx, %edx
    xorl %esi, %esi
    xorl %edi, %edi
    xorl %ebp, %ebp
    xorl %r8d, %r8d
    xorl %r9d, %r9d
    xorl %r10d, %r10d
    xorl %r12d, %r12d
    xorl %r13d, %r13d
    xorl %r14d, %r14d
    xorl %r15d, %r15d
    sysretq

/* Linux keeps every register but rax, rcx and r11; the kernel's C code uses no vector registers. */
.globl syscall_entry
syscall_entry:
    movq %rsp, user_stack(%rip)
    movq $kernel_stack_top, %rsp
    pushq %rcx
    pushq %r11
    pushq %rdi
    pushq %rsi
    pushq %rdx
    pushq %r10
    pushq %r8
    pushq %r9
    movq %r10, %r8                              /* (rax, rdi, rsi, rdx, r10) become C's arguments */
    movq %rdx, %rcx
    movq %rsi, %rdx
    movq %rdi, %rsi
    movq %rax, %rdi
    call handle_syscall
    popq %r9
    popq %r8
    popq %r10
    popq %rdx
    popq %rsi
    popq %rdi
    popq %r11
    popq %rcx
    movq user_stack(%rip), %rsp
    sysretq

/* One stub per exception; those for which the CPU pushes no error code push a zero. */
.macro exception_stub vector
exception_\vector:
    .if !(\vector == 8 || (\vector >= 10 && \vector <= 14) || \vector == 17)
    pushq $0
    .endif
    pushq $\vector
    jmp exception_common
    .pushsection .data
    .quad exception_\vector
    .popsection
.endm

.data
    .align 16
.globl exception_stubs
exception_stubs:
.text
.altmacro
.set vector, 0
.rept 32
    exception_stub %vector
    .set vector, vector + 1
.endr
exception_common:
    movq %rsp, %rdi
    call report_exception

.data
    .align 16
.globl gdt
gdt:
    .quad 0
    .quad 0x00af9b000000ffff                    /* 0x08 kernel code */
    .quad 0x00cf93000000ffff                    /* 0x10 kernel data */
    .quad 0x00cffb000000ffff                    /* 0x18 user code, 32 bits: unused */
    .quad 0x00cff3000000ffff                    /* 0x20 user data */
    .quad 0x00affb000000ffff                    /* 0x28 user code */
    .quad 0, 0                                  /* 0x30 task state, filled in by kernel.c */
gdt_descriptor:
    .word 63
    .quad gdt
user_stack:
    .quad 0
