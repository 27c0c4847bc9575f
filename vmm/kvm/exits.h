// What a vCPU came back with: KVM's exit reasons as values. Anything KVM can say that is not in
// this list is an UnknownExit; nothing is dropped.

#pragma once

#include <array>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "vmm/base/types.h"
#include "vmm/memory/gpa.h"

namespace kvm {

enum class Direction : u8 { in, out };  // seen from the guest: in = the guest reads

// IN, OUT, INS, OUTS. `data` holds count * size bytes in kvm_run and is valid until the next run:
// written by the guest for `out`, to be filled for `in`.
struct PortExit {
  Direction direction;
  u16 port;
  u8 size;
  u32 count;
  std::span<u8> data;
};

// A load or store of 1-8 bytes where no RAM is. `data` as above.
struct MmioExit {
  Direction direction;
  Gpa gpa;
  std::span<u8> data;
};

struct HaltExit {};         // only without an in-kernel LAPIC
struct ShutdownExit {};     // triple fault
struct InterruptedExit {};  // request_exit(), or a signal

struct SystemEventExit {
  u32 type;  // KVM_SYSTEM_EVENT_*
};

// KVM could not go on: most often an instruction its emulator does not know.
struct InternalErrorExit {
  u32 suberror;  // KVM_INTERNAL_ERROR_*
  u64 rip;
  std::array<u64, 16> data;
  u32 data_count;
  std::array<u8, 15> instruction;
  u8 instruction_size;  // 0 where KVM does not tell
};

struct FailEntryExit {
  u64 reason;  // hardware's word for why the entry failed
};

struct UnknownExit {
  u32 reason;  // KVM_EXIT_*
  u64 rip;
};

using VcpuExit = std::variant<PortExit, MmioExit, HaltExit, ShutdownExit, InterruptedExit,
                              SystemEventExit, InternalErrorExit, FailEntryExit, UnknownExit>;

// One line for the log and for messages: "internal error 1 (emulation failure) at rip 0x...: 0f
// 0b".
std::string describe(const VcpuExit& exit);

}  // namespace kvm
