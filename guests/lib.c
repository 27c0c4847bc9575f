#include "guests/lib.h"

// 16550: line status register, data ready and transmit holding register empty.
enum { LINE_STATUS = 5, DATA_READY = 0x01, TRANSMIT_EMPTY = 0x20 };

void put_char(char character) {
  while (!(in8(PLATFORM_COM1 + LINE_STATUS) & TRANSMIT_EMPTY)) {
    pause();
  }
  out8(PLATFORM_COM1, (u8)character);
}

void put_text(const char* text) {
  while (*text) {
    put_char(*text++);
  }
}

void put_line(const char* text) {
  put_text(text);
  put_char('\n');
}

void put_number(u64 value) {
  char digits[20];
  int count = 0;
  do {
    digits[count++] = (char)('0' + value % 10);
    value /= 10;
  } while (value);
  while (count) {
    put_char(digits[--count]);
  }
}

void put_hex(u64 value) {
  put_text("0x");
  int shift = 60;
  while (shift && !(value >> shift)) {
    shift -= 4;
  }
  for (; shift >= 0; shift -= 4) {
    put_char("0123456789abcdef"[(value >> shift) & 15]);
  }
}

void put_pair(const char* name, u64 value) {
  put_text(name);
  put_char(' ');
  put_number(value);
  put_char('\n');
}

int char_waiting(void) { return in8(PLATFORM_COM1 + LINE_STATUS) & DATA_READY; }

char get_char(void) {
  while (!char_waiting()) {
    pause();
  }
  return (char)in8(PLATFORM_COM1);
}

size_t get_line(char* line, size_t capacity) {
  size_t length = 0;
  for (;;) {
    char character = get_char();
    if (character == '\r') {
      continue;
    }
    if (character == '\n') {
      line[length] = 0;
      return length;
    }
    if (length + 1 < capacity) {
      line[length++] = character;
    }
  }
}

char* next_word(char** rest) {
  char* word = *rest;
  while (*word == ' ') {
    ++word;
  }
  char* end = word;
  while (*end && *end != ' ') {
    ++end;
  }
  if (*end) {
    *end++ = 0;
  }
  *rest = end;
  return word;
}

u64 number_of(const char* word) {
  u64 value = 0;
  u64 radix = 10;
  if (word[0] == '0' && word[1] == 'x') {
    radix = 16;
    word += 2;
  }
  for (; *word; ++word) {
    u64 digit = *word >= 'a' && *word <= 'f' ? (u64)(*word - 'a' + 10) : (u64)(*word - '0');
    if (digit >= radix) {
      return 0;
    }
    value = value * radix + digit;
  }
  return value;
}

int same_text(const char* left, const char* right) {
  while (*left && *left == *right) {
    ++left;
    ++right;
  }
  return *left == *right;
}

void* memcpy(void* to, const void* from, size_t bytes) {
  void* start = to;
  __asm__ volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(bytes)::"memory");
  return start;
}

void* memset(void* to, int value, size_t bytes) {
  void* start = to;
  __asm__ volatile("rep stosb" : "+D"(to), "+c"(bytes) : "a"(value) : "memory");
  return start;
}

// Every 8-byte word multiplied in, so that a moved, missing or changed word shows.
u64 hash_memory(u64 start, u64 bytes) {
  u64 hash = 0xcbf29ce484222325;
  const u64* words = (const u64*)start;
  for (u64 index = 0; index < bytes / 8; ++index) {
    hash = (hash ^ words[index]) * 0x9e3779b97f4a7c15;
    hash ^= hash >> 29;
  }
  return hash;
}

u64 random_next(u64* state) {
  u64 value = (*state += 0x9e3779b97f4a7c15);
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

_Noreturn void power_off(void) {
  out8(PLATFORM_SLEEP_CONTROL_PORT, PLATFORM_SLEEP_CONTROL_POWER_OFF);
  // Not our machine, or the port does not work: nothing else ends it.
  for (volatile u32 wait = 0; wait < 1000; ++wait) {
    in8(PLATFORM_SLEEP_CONTROL_PORT);
  }
  kernel_call(KERNEL_TRIPLE_FAULT, 0, 0);
  for (;;) {
  }
}

_Noreturn void guest_exit(u32 code) {
  put_pair(GUEST_EXIT_WORD, code);
  power_off();
}

void expect_equal(u32 code, const char* what, u64 actual, u64 expected) {
  if (actual == expected) {
    return;
  }
  put_text("FAILED ");
  put_text(what);
  put_text(": ");
  put_hex(actual);
  put_text(", expected ");
  put_hex(expected);
  put_char('\n');
  guest_exit(code);
}

void expect_true(u32 code, const char* what, int condition) {
  if (!condition) {
    put_text("FAILED ");
    put_line(what);
    guest_exit(code);
  }
}

__attribute__((weak)) void secondary_start(u64 processor) {
  (void)processor;
  kernel_call(KERNEL_HALT_FOR_EVER, 0, 0);
}
