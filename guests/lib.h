// The guests' C library: serial line, words and numbers, hash and random numbers, the memory the
// machine has, and how a guest ends.

#ifndef GUESTS_LIB_H_
#define GUESTS_LIB_H_

#include "guests/abi/platform.h"
#include "guests/cpu.h"

// Where a guest's own code begins, on the bootstrap processor at CPL 3.
void guest_start(void);
// Where every other processor begins; guests that start none need not define it.
void secondary_start(u64 processor);

// --- serial line: polled, no FIFO assumptions ---------------------------------------------------
void put_char(char character);
void put_text(const char* text);
void put_number(u64 value);
void put_hex(u64 value);
// "NAME VALUE" pairs and lines.
void put_line(const char* text);
void put_pair(const char* name, u64 value);
int char_waiting(void);
char get_char(void);  // busy-waits
// Reads to the end of the line, without it; cuts what does not fit.
size_t get_line(char* line, size_t capacity);

// --- words and numbers of a command line --------------------------------------------------------
// Cuts the next word off `*rest`; an empty string at the end.
char* next_word(char** rest);
u64 number_of(const char* word);  // decimal, or 0x...; 0 if it is none
int same_text(const char* left, const char* right);

// --- memory -------------------------------------------------------------------------------------
void* memcpy(void* to, const void* from, size_t bytes);
void* memset(void* to, int value, size_t bytes);
u64 hash_memory(u64 start, u64 bytes);
u64 random_next(u64* state);  // splitmix64
// RAM from GUEST_ARENA to the end of the part below 4 GiB, and what lies from 4 GiB on.
u64 low_memory_end(void);
u64 high_memory_bytes(void);
// Maps RAM from 4 GiB on, one to one, up to 8 GiB.
void map_high_memory(void);

// --- ends ---------------------------------------------------------------------------------------
_Noreturn void guest_exit(u32 code);
_Noreturn void power_off(void);
// Prints the values and ends with `code` if they differ.
void expect_equal(u32 code, const char* what, u64 actual, u64 expected);
void expect_true(u32 code, const char* what, int condition);

#endif  // GUESTS_LIB_H_
