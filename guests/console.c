#include "guests/console.h"

enum { SERIAL_VECTOR = 0x24, INTERRUPT_ENABLE = 1, MODEM_CONTROL = 4, RECEIVED = 1, OUT2 = 8 };

static int asleep_between_characters;
// Only in RAM: a reboot forgets it, a revert brings back the value of the snapshot.
static u64 nonce;
static u64 command_count;

static void input_arrived(void) {}

void console_wake_on_input(void) {
  lapic_enable();
  handle_interrupt(SERIAL_VECTOR, input_arrived);
  ioapic_route(PLATFORM_COM1_IRQ, SERIAL_VECTOR, TRIGGER_EDGE);
  out8(PLATFORM_COM1 + MODEM_CONTROL, OUT2);
  out8(PLATFORM_COM1 + INTERRUPT_ENABLE, RECEIVED);
  asleep_between_characters = 1;
}

void console_poll(void) {
  out8(PLATFORM_COM1 + INTERRUPT_ENABLE, 0);
  asleep_between_characters = 0;
}

char console_get_char(void) {
  while (!char_waiting()) {
    // Interrupts are off: one that comes between the look and the sleep ends the sleep.
    if (asleep_between_characters) {
      halt();
    } else {
      pause();
    }
  }
  return get_char();
}

u64 next_number(char** arguments, u64 otherwise) {
  const char* word = next_word(arguments);
  return *word ? number_of(word) : otherwise;
}

static void command_echo(char* arguments) {
  put_text("ECHO ");
  put_line(arguments);
}
static void command_nonce(char* arguments) {
  nonce = next_number(&arguments, nonce);
  put_pair("NONCE", nonce);
  put_pair("COMMANDS", command_count);
}
// So many numbered lines, for a snapshot or revert in mid-output.
static void command_print(char* arguments) {
  u64 lines = next_number(&arguments, 1);
  for (u64 line = 0; line < lines; ++line) {
    put_pair("LINE", line);
  }
  put_line("PRINTED");
}
static void command_poll(char* arguments) {
  (void)arguments;
  console_poll();
  put_line("POLLING");
}
static void command_off(char* arguments) {
  (void)arguments;
  power_off();
}
static void command_exit(char* arguments) { guest_exit((u32)next_number(&arguments, 0)); }
static void command_triple_fault(char* arguments) {
  (void)arguments;
  kernel_call(KERNEL_TRIPLE_FAULT, 0, 0);
}
static void command_reset(char* arguments) {
  (void)arguments;
  out8(PLATFORM_RESET_PORT, PLATFORM_RESET_VALUE);
}
static void command_hang(char* arguments) {
  (void)arguments;
  put_line("HANGING");
  kernel_call(KERNEL_HALT_FOR_EVER, 0, 0);
}
static void command_clock(char* arguments) {
  (void)arguments;
  put_pair("NANOSECONDS", clock_nanoseconds());
  put_pair("TSC", read_tsc());
}

static const struct Command common_commands[] = {
    {"echo", command_echo},
    {"nonce", command_nonce},
    {"print", command_print},
    {"poll", command_poll},
    {"off", command_off},
    {"exit", command_exit},
    {"triple-fault", command_triple_fault},
    {"reset", command_reset},
    {"hang", command_hang},
    {"clock", command_clock},
    {0, 0},
};

static int run_from(const struct Command* commands, const char* name, char* arguments) {
  for (; commands->name; ++commands) {
    if (same_text(commands->name, name)) {
      commands->run(arguments);
      return 1;
    }
  }
  return 0;
}

static void read_command(char* line, size_t capacity) {
  size_t length = 0;
  for (char character = console_get_char(); character != '\n'; character = console_get_char()) {
    if (character != '\r' && length + 1 < capacity) {
      line[length++] = character;
    }
  }
  line[length] = 0;
}

_Noreturn void run_commands(const struct Command* commands) {
  console_wake_on_input();
  put_line(GUEST_READY_WORD);
  for (;;) {
    char line[256];
    read_command(line, sizeof(line));
    char* arguments = line;
    const char* name = next_word(&arguments);
    ++command_count;
    if (!run_from(commands, name, arguments) && !run_from(common_commands, name, arguments)) {
      put_text("UNKNOWN ");
      put_line(name);
    }
  }
}
