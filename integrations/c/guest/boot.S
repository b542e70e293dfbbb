/*
 * From Xen's first instruction to start(), for every vCPU. PVH: Xen docs/misc/pvh.html.
 *
 * Owns the ELF note, the page tables, the stacks and the hypercall page. No interrupts: this kernel never turns them on.
 * Vector registers stay off (CR4.OSFXSR is 0), so any use of them ends the domain.
 */
#include "layout.h"

        /* Where Xen enters: XEN_ELFNOTE_PHYS32_ENTRY = 18 (Xen public/elfnote.h). */
        .section .note.Xen, "a", @note
        .balign 4
        .long 4, 4, 18
        .asciz "Xen"
        .long pvh_entry

        /* The first 4 GiB, one to one, in pages of 2 MiB. */
        .section .data.page_tables, "aw", @progbits
        .balign 4096
        .globl page_tables
page_tables:
        .quad pointers + 3
        .fill 511, 8, 0
pointers:
        .quad directories + 0x0003, directories + 0x1003, directories + 0x2003, directories + 0x3003
        .fill 508, 8, 0
directories:
        .set page, 0
        .rept 2048
        .quad (page << 21) + 0x83       /* present, writable, large */
        .set page, page + 1
        .endr
gdt:    .quad 0, 0x00af9a000000ffff     /* a 64-bit code segment */
gdt_pointer:
        .word 15
        .long gdt

        /* Xen fills it in (write to the register that CPUID names). */
        .section .text.hypercall_page, "ax", @progbits
        .balign 4096
        .globl hypercall_page
hypercall_page:
        .fill 4096, 1, 0xf4             /* hlt, which ends a kernel that calls too early */

        .section .bss.stacks, "aw", @nobits
        .balign 16
        .globl stacks
stacks: .skip STACK_SIZE * MAX_VCPUS

        /* vCPU 0: 32-bit, paging off. */
        .section .text.entry, "ax", @progbits
        .code32
        .globl pvh_entry
pvh_entry:
        cld
        mov $page_tables, %eax
        mov %eax, %cr3
        mov $CR4, %eax
        mov %eax, %cr4
        mov $0xc0000080, %ecx           /* EFER */
        rdmsr
        or $EFER_LME, %eax
        wrmsr
        mov $CR0, %eax
        mov %eax, %cr0
        lgdt gdt_pointer
        ljmpl $8, $pvh_long
        .code64
pvh_long:
        xor %eax, %eax
        mov %eax, %ds
        mov %eax, %es
        mov %eax, %ss
        lea stacks + STACK_SIZE(%rip), %rsp
        xor %edi, %edi                  /* vCPU 0 */

        /* Every vCPU: 64-bit, on its own stack, its number in edi. */
        .globl vcpu_entry
vcpu_entry:
        cld
        xor %ebp, %ebp
        call start
        ud2

        .section .note.GNU-stack, "", @progbits
