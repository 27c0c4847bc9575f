// Commands: a guest that is steered by its test over the serial line, one line a command. It sleeps
// while nothing arrives.

#ifndef GUESTS_CONSOLE_H_
#define GUESTS_CONSOLE_H_

#include "guests/interrupts.h"

// `arguments` may be cut up.
typedef void CommandFunction(char* arguments);
struct Command {
  const char* name;
  CommandFunction* run;
};

// Wakes on received characters from now on; the local APIC is enabled.
void console_wake_on_input(void);
void console_poll(void);  // back to busy-waiting
// One character, asleep or polling as chosen.
char console_get_char(void);

// The next word of the command as a number, or `otherwise` at the end of the line.
u64 next_number(char** arguments, u64 otherwise);

// READY, then commands for ever. Every guest also knows: echo, nonce, print, poll, off, exit,
// triple-fault, reset, hang, clock. `commands` ends with an empty name.
_Noreturn void run_commands(const struct Command* commands);

#endif  // GUESTS_CONSOLE_H_
