// The smallest guest: one line on the serial port, then power off. Stays in the mode it was entered
// in, so that the time to its first byte is the VMM's alone.

#include "guests/abi/platform.h"

  .section .note.pvh, "a", @note
  .balign 4
  .long 4, 4, 18  // XEN_ELFNOTE_PHYS32_ENTRY
  .asciz "Xen"
  .long pvh_start

  .text
  .code32
  .globl pvh_start
pvh_start:
  mov $PLATFORM_COM1, %dx
  mov $text, %esi
  mov $text_end - text, %ecx
  cld
  rep outsb
  mov $PLATFORM_SLEEP_CONTROL_PORT, %dx
  mov $PLATFORM_SLEEP_CONTROL_POWER_OFF, %al
  out %al, %dx
1:
  hlt
  jmp 1b

text:
  .ascii "HELLO\nGUEST-EXIT 0\n"
text_end:

  .section .note.GNU-stack, "", @progbits
