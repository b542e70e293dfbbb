/* What boot.S and the C files have to agree on. */
#ifndef LAYOUT_H
#define LAYOUT_H

#define MAX_VCPUS 8
#define STACK_SIZE 16384

/* Control registers of 64-bit mode (Intel SDM volume 3, chapter 2). */
#define CR0 0x80010033 /* paging, write protection, x87 as compiled code expects it, protected mode */
#define CR4 0x20       /* physical address extension; no vector registers */
#define EFER_LME 0x100 /* 64-bit mode */
#define EFER_LMA 0x400 /* 64-bit mode is active */

#endif
