// TinyGuest: a VM of a few pages of hand-assembled code, in ring 3 of long mode.
//
// Layout: page tables from 0x2000 (PML4, PDPT, PD, then PTs), an identity map of the first 4 MiB
// plus device pages at 0xd0000000 (virtual 0x40000000); code at 0x1000 + 0x100 * vCPU.

#pragma once

#include <gtest/gtest.h>

#include <initializer_list>
#include <memory>
#include <vector>

#include "vmm/kvm/processors.h"
#include "vmm/kvm/self_test.h"

namespace kvm {

#define ASSERT_OK(expression)                                \
  do {                                                       \
    const auto ok_result_ = (expression);                    \
    ASSERT_TRUE(ok_result_) << ok_result_.error().message(); \
  } while (false)

#define EXPECT_OK(expression)                                \
  do {                                                       \
    const auto ok_result_ = (expression);                    \
    EXPECT_TRUE(ok_result_) << ok_result_.error().message(); \
  } while (false)

inline constexpr u64 kTestRoot = 0x2000;
inline constexpr u64 kTestTable = 0x5000;           // of the first 2 MiB
inline constexpr u64 kTestOtherTable = 0x6000;      // of the next 2 MiB
inline constexpr u64 kTestDevice = 0x4000'0000;     // virtual
inline constexpr u64 kTestDeviceGpa = 0xd000'0000;  // physical
inline constexpr u64 kTestCode = 0x9000;

// The Kvm of this host, or the reason why there is none.
const Result<Kvm>& test_kvm();

class TinyGuest final {
 public:
  explicit TinyGuest(u32 vcpu_count = 1, u64 ram_bytes = 4 * base::kMiB,
                     DirtyLogging logging = DirtyLogging::on);

  void put(u64 gpa, std::initializer_list<int> code);
  void put_u64(u64 gpa, u64 value);
  u64 get_u64(u64 gpa) const;
  // Puts a vCPU at `rip` in ring 3.
  void start(u32 index, u64 rip);
  VcpuExit run(u32 index = 0);
  // The byte that the guest wrote to `port`, or -1 (the exit is in the failure message).
  int run_to_port(u16 port, u32 index = 0);
  Vcpu& vcpu(u32 index = 0) { return processors->vcpu(index); }

  std::unique_ptr<memory::GuestMemory> memory;
  std::unique_ptr<Vm> vm;
  std::unique_ptr<Processors> processors;
};

class KvmTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!test_kvm()) GTEST_SKIP() << test_kvm().error().message();
  }
};

}  // namespace kvm
