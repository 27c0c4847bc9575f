// Entry of a freestanding guest. The bootstrap processor arrives here from PVH in 32-bit protected
// mode, an application processor in real mode at GUEST_TRAMPOLINE; both end in C at CPL 3.
//
// Where KVM runs without hardware virtualisation, everything above CPL 3 is emulated at a million
// instructions a second. So tables are assembled, not computed: tasks, descriptors, interrupt stubs,
// the interrupt table and an identity map of 4 GiB lie at fixed places in `.fixed`, and the way down
// is 30 instructions. Every page and port is the user's: C at CPL 3 reaches devices and its own page
// tables without help. The ports come from an I/O bitmap, because that emulator's IRET drops IOPL, so
// that CLI and STI are calls too. Calls to CPL 0 (cpu.h) are `ud2`, because it does not implement INT.

#include "guests/abi/platform.h"

#define FIXED GUEST_LOAD_ADDRESS
#define TSS_BYTES 128
#define STUBS (FIXED + 0x1000)
#define STUB_BYTES 16
#define PDPT (FIXED + 0x4000)
#define PAGE_DIRECTORIES (FIXED + 0x5000)
#define IO_BITMAP (FIXED + 0x9000)
#define TSS_LIMIT(cpu) (IO_BITMAP + 8192 - (FIXED + cpu * TSS_BYTES))
#define KERNEL_STACK_BYTES 4096
#define USER_STACK_BYTES 16384

// SDM vol. 3, 3.4.5 "Segment Descriptors", and 7.2.3 "TSS Descriptor in 64-bit mode".
#define KERNEL_CODE 0x10
#define KERNEL_DATA 0x18
#define KERNEL_CODE32 0x20
#define USER_DATA 0x2b
#define USER_CODE 0x33
#define TSS_SELECTOR 0x40

#define RFLAGS_USER 0x3002  // IOPL 3 where it holds, interrupts off

  .section .note.pvh, "a", @note
  .balign 4
  .long 4, 4, 18  // XEN_ELFNOTE_PHYS32_ENTRY
  .asciz "Xen"
  .long pvh_start

  .section .fixed, "awx"
tss:
  .set cpu, 0
  .rept GUEST_MAXIMUM_CPUS
  .long 0
  .quad kernel_stacks + (cpu + 1) * KERNEL_STACK_BYTES
  .zero 90
  .word IO_BITMAP - (FIXED + cpu * TSS_BYTES)
  .zero TSS_BYTES - 104
  .set cpu, cpu + 1
  .endr

  .org 0x800
  .globl gdt
gdt:
  .quad 0, 0
  .quad 0x00af9b000000ffff  // 0x10
  .quad 0x00cf93000000ffff  // 0x18
  .quad 0x00cf9b000000ffff  // 0x20
  .quad 0x00cff3000000ffff  // 0x28, user data
  .quad 0x00affb000000ffff  // 0x30, user code
  .quad 0
  .set cpu, 0
  .rept GUEST_MAXIMUM_CPUS
  .quad TSS_LIMIT(cpu) | ((FIXED + cpu * TSS_BYTES) << 16) | (0x89 << 40)
  .quad 0
  .set cpu, cpu + 1
  .endr
gdt_end:

  .org 0xf00
gdt_pointer:
  .word gdt_end - gdt - 1
  .quad FIXED + 0x800
  .balign 8
idt_pointer:
  .word 4095
  .quad FIXED + 0x2000
  .balign 8
no_idt_pointer:
  .word 0
  .quad 0

  .org 0x1000
  .code64
  .set vector, 0
  .rept 256
  .org 0x1000 + vector * STUB_BYTES
  .if vector == 6
  jmp kernel_call
  .else
  .if !(vector == 8 || (vector >= 10 && vector <= 14) || vector == 17 || vector == 21)
  push $0
  .endif
  push $vector
  jmp interrupt_common
  .endif
  .set vector, vector + 1
  .endr

  .org 0x2000
idt:
  .set vector, 0
  .rept 256
  .word (STUBS + vector * STUB_BYTES) & 0xffff
  .word KERNEL_CODE
  .word 0x8e00
  .word (STUBS + vector * STUB_BYTES) >> 16
  .quad 0
  .set vector, vector + 1
  .endr

  .org 0x3000
  .globl boot_pml4
boot_pml4:
  .quad PDPT + 7
  .zero 4088
  .globl boot_pdpt
boot_pdpt:
  .set entry, 0
  .rept 4
  .quad PAGE_DIRECTORIES + entry * 4096 + 7
  .set entry, entry + 1
  .endr
  .zero 4064
  .set entry, 0
  .rept 2048
  .quad (entry << 21) + 0xe7  // present, writable, user, accessed, dirty, 2 MiB
  .set entry, entry + 1
  .endr

// SDM vol. 1, 19.5.2 "I/O Permission Bit Map": every port is the user's, shared by all processors.
io_bitmap:
  .zero 8192
  .byte 0xff

  .text
// Into long mode from 32-bit protected mode, then to `\next`. Leaves ebx alone.
  .macro to_long_mode next
  mov $0x620, %eax  // PAE, OSFXSR, OSXMMEXCPT
  mov %eax, %cr4
  mov $boot_pml4, %eax
  mov %eax, %cr3
  mov $0xc0000080, %ecx  // EFER: LME, NXE
  xor %edx, %edx
  mov $0x900, %eax
  wrmsr
  mov $0x80010033, %eax  // PG, WP, NE, ET, MP, PE
  mov %eax, %cr0
  ljmp $KERNEL_CODE, $\next
  .endm

  .code32
  .globl pvh_start
pvh_start:
  cli
  lgdt gdt_pointer
  mov %ebx, start_info
  xor %ebx, %ebx
  to_long_mode enter_user

// ebx is this processor's number.
  .code64
enter_user:
  mov $KERNEL_DATA, %eax
  mov %eax, %ss
  lidt idt_pointer
  mov %ebx, %eax
  shl $4, %eax
  add $TSS_SELECTOR, %eax
  ltr %ax
  mov $USER_DATA, %eax
  mov %eax, %ds
  mov %eax, %es
  mov %ebx, %eax
  inc %eax
  shl $12, %eax
  lea kernel_stacks(%rax), %rsp
  lea user_stacks(,%rax,4), %rdx
  mov %ebx, %edi
  push $USER_DATA
  push %rdx
  push $RFLAGS_USER
  push $USER_CODE
  push $user_start
  iretq

user_start:
  xor %ebp, %ebp
  test %edi, %edi
  jnz 1f
  call guest_start
1:
  call secondary_start
  ud2

// What C at CPL 3 asks of CPL 0 by `ud2`: number in rax, arguments in rdi and rsi, result in rax. Any
// other number is an instruction that does not exist.
kernel_call:
  cmp $10, %rax
  jbe 1f
  push $0
  push $6
  jmp interrupt_common
1:
  addq $2, (%rsp)  // past the ud2
  push %rcx
  push %rdx
  cmp $1, %eax
  jb kernel_halt
  je kernel_read_msr
  cmp $3, %eax
  jb kernel_write_msr
  je kernel_load_cr3
  cmp $5, %eax
  jb kernel_invalidate_page
  je kernel_triple_fault
  cmp $7, %eax
  jb kernel_halt_for_ever
  je kernel_read_cr3
  cmp $9, %eax
  jb kernel_interrupts_on
  ja kernel_cpuid
  andl $~0x200, 32(%rsp)  // the caller's RFLAGS.IF
  jmp kernel_return

kernel_interrupts_on:
  orl $0x200, 32(%rsp)
kernel_return:
  pop %rdx
  pop %rcx
  iretq

kernel_halt:  // returns after one interrupt
  sti
  hlt
  cli
  jmp kernel_return

// Not at CPL 3: without hardware virtualisation that would show the host's processor.
kernel_cpuid:  // leaf rdi, four words at rsi
  push %rbx
  mov %edi, %eax
  xor %ecx, %ecx
  cpuid
  mov %eax, (%rsi)
  mov %ebx, 4(%rsi)
  mov %ecx, 8(%rsi)
  mov %edx, 12(%rsi)
  pop %rbx
  jmp kernel_return

kernel_read_msr:
  mov %edi, %ecx
  rdmsr
  shl $32, %rdx
  or %rdx, %rax
  jmp kernel_return

kernel_write_msr:
  mov %edi, %ecx
  mov %esi, %eax
  mov %rsi, %rdx
  shr $32, %rdx
  wrmsr
  jmp kernel_return

kernel_read_cr3:
  mov %cr3, %rax
  jmp kernel_return

kernel_load_cr3:
  mov %rdi, %cr3
  jmp kernel_return

kernel_invalidate_page:
  invlpg (%rdi)
  jmp kernel_return

kernel_triple_fault:
  lidt no_idt_pointer
  ud2

kernel_halt_for_ever:
  cli
  hlt
  jmp kernel_halt_for_ever

// Saves what C may clobber and hands over vector, error code and the hardware's frame.
interrupt_common:
  push %rax
  push %rcx
  push %rdx
  push %rsi
  push %rdi
  push %r8
  push %r9
  push %r10
  push %r11
  mov 72(%rsp), %rdi
  mov 80(%rsp), %rsi
  lea 88(%rsp), %rdx
  cld
  call interrupt_arrived
  pop %r11
  pop %r10
  pop %r9
  pop %r8
  pop %rdi
  pop %rsi
  pop %rdx
  pop %rcx
  pop %rax
  add $16, %rsp
  iretq

// Copied to GUEST_TRAMPOLINE before the first SIPI (smp.c). Uses no address of its own.
  .globl trampoline
  .globl trampoline_end
  .code16
trampoline:
  cli
  xor %ax, %ax
  mov %ax, %ds
  lgdtl GUEST_TRAMPOLINE + (trampoline_gdt_pointer - trampoline)
  mov $0x11, %eax
  mov %eax, %cr0
  ljmpl $KERNEL_CODE32, $secondary_protected
  .balign 8
trampoline_gdt_pointer:
  .word gdt_end - gdt - 1
  .long FIXED + 0x800
trampoline_end:

  .code32
secondary_protected:
  mov $KERNEL_DATA, %eax
  mov %eax, %ds
  mov %eax, %ss
  mov $1, %ebx
  lock xadd %ebx, processor_count
  to_long_mode enter_user

  .data
  .balign 8
  .globl processor_count
processor_count:
  .long 1
  .globl start_info
  .balign 8
start_info:
  .quad 0

  .bss
  .balign 4096
kernel_stacks:
  .zero GUEST_MAXIMUM_CPUS * KERNEL_STACK_BYTES
user_stacks:
  .zero GUEST_MAXIMUM_CPUS * USER_STACK_BYTES

  .section .note.GNU-stack, "", @progbits
