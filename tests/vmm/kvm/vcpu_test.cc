#include "vmm/kvm/vcpu.h"

#include <atomic>
#include <chrono>
#include <thread>

#include "tests/vmm/kvm/support/tiny_guest.h"
#include "vmm/kvm/ioctl.h"

namespace kvm {
namespace {

using VcpuTest = KvmTest;

TEST_F(VcpuTest, PortWriteCarriesPortSizeAndData) {
  TinyGuest guest;
  // mov eax, 0x11223344; mov dx, 0x3f8; out dx, eax
  guest.put(kTestCode, {0xb8, 0x44, 0x33, 0x22, 0x11, 0x66, 0xba, 0xf8, 0x03, 0xef});
  guest.start(0, kTestCode);
  const VcpuExit exit = guest.run();
  const PortExit* port = std::get_if<PortExit>(&exit);
  ASSERT_NE(port, nullptr) << describe(exit);
  EXPECT_EQ(port->direction, Direction::out);
  EXPECT_EQ(port->port, 0x3f8);
  EXPECT_EQ(port->size, 4);
  EXPECT_EQ(port->count, 1U);
  EXPECT_EQ(std::vector<u8>(port->data.begin(), port->data.end()),
            (std::vector<u8>{0x44, 0x33, 0x22, 0x11}));
}

TEST_F(VcpuTest, PortReadGetsWhatTheHandlerPutThere) {
  TinyGuest guest;
  guest.put(kTestCode, {0xe4, 0x40, 0xe6, 0x41});  // in al, 0x40; out 0x41, al
  guest.put(kTestCode, {0xe4, 0x50, 0xe6, 0x51});  // ports that the PIT does not have
  guest.start(0, kTestCode);
  const VcpuExit exit = guest.run();
  const PortExit* port = std::get_if<PortExit>(&exit);
  ASSERT_NE(port, nullptr) << describe(exit);
  EXPECT_EQ(port->direction, Direction::in);
  port->data[0] = 0x5a;
  EXPECT_EQ(guest.run_to_port(0x51), 0x5a);
}

TEST_F(VcpuTest, StringPortWriteCarriesEveryByte) {
  TinyGuest guest;
  // mov esi, 0x20000; mov ecx, 5; mov dx, 0x3f8; cld; rep outsb; out 0x51, al
  guest.put(kTestCode, {0xbe, 0x00, 0x00, 0x02, 0x00, 0xb9, 0x05, 0x00, 0x00, 0x00, 0x66, 0xba,
                        0xf8, 0x03, 0xfc, 0xf3, 0x6e, 0xe6, 0x51});
  guest.put(0x20000, {'h', 'e', 'l', 'l', 'o'});
  guest.start(0, kTestCode);
  std::string text;
  while (text.size() < 5) {
    const VcpuExit exit = guest.run();
    const PortExit* port = std::get_if<PortExit>(&exit);
    ASSERT_TRUE(port != nullptr && port->port == 0x3f8) << describe(exit);
    ASSERT_EQ(port->data.size(), std::size_t{port->count} * port->size);
    text.append(port->data.begin(), port->data.end());
  }
  EXPECT_EQ(text, "hello");
  EXPECT_NE(guest.run_to_port(0x51), -1);
}

TEST_F(VcpuTest, StringPortReadFillsGuestMemory) {
  TinyGuest guest;
  // mov edi, 0x20000; mov ecx, 4; mov dx, 0x60..; cld; rep insb; out 0x51, al
  guest.put(kTestCode, {0xbf, 0x00, 0x00, 0x02, 0x00, 0xb9, 0x04, 0x00, 0x00, 0x00, 0x66, 0xba,
                        0xf8, 0x03, 0xfc, 0xf3, 0x6c, 0xe6, 0x51});
  guest.start(0, kTestCode);
  u8 next = 1;
  for (;;) {
    const VcpuExit exit = guest.run();
    const PortExit* port = std::get_if<PortExit>(&exit);
    ASSERT_NE(port, nullptr) << describe(exit);
    if (port->port == 0x51) break;
    for (u8& byte : port->data) byte = next++;
  }
  EXPECT_EQ(guest.get_u64(0x20000), 0x04030201U);
}

TEST_F(VcpuTest, MmioReadAndWrite) {
  TinyGuest guest;
  // mov eax, [0x40000010]; mov [0x40000020], eax
  guest.put(kTestCode,
            {0x8b, 0x04, 0x25, 0x10, 0x00, 0x00, 0x40, 0x89, 0x04, 0x25, 0x20, 0x00, 0x00, 0x40});
  guest.start(0, kTestCode);
  const VcpuExit read = guest.run();
  const MmioExit* mmio = std::get_if<MmioExit>(&read);
  ASSERT_NE(mmio, nullptr) << describe(read);
  EXPECT_EQ(mmio->direction, Direction::in);
  EXPECT_EQ(mmio->gpa, Gpa{kTestDeviceGpa + 0x10});
  ASSERT_EQ(mmio->data.size(), 4U);
  mmio->data[0] = 0x77;
  mmio->data[3] = 0x11;
  const VcpuExit write = guest.run();
  mmio = std::get_if<MmioExit>(&write);
  ASSERT_NE(mmio, nullptr) << describe(write);
  EXPECT_EQ(mmio->direction, Direction::out);
  EXPECT_EQ(mmio->gpa, Gpa{kTestDeviceGpa + 0x20});
  EXPECT_EQ(mmio->data[0], 0x77);
  EXPECT_EQ(mmio->data[3], 0x11);
}

TEST_F(VcpuTest, TripleFaultIsShutdown) {
  TinyGuest guest;
  guest.put(kTestCode, {0x8b, 0x04, 0x25, 0x00, 0x00, 0x00, 0x7f});  // mov eax, [unmapped], no IDT
  guest.start(0, kTestCode);
  const VcpuExit exit = guest.run();
  EXPECT_TRUE(std::holds_alternative<ShutdownExit>(exit)) << describe(exit);
}

// An instruction fetch from a device page: no KVM can emulate what it cannot read.
TEST_F(VcpuTest, InternalErrorNamesRip) {
  TinyGuest guest;
  guest.start(0, kTestDevice);
  const VcpuExit exit = guest.run();
  if (const InternalErrorExit* error = std::get_if<InternalErrorExit>(&exit)) {
    EXPECT_EQ(error->rip, kTestDevice);
    EXPECT_NE(describe(exit).find("0x40000000"), std::string::npos) << describe(exit);
  } else {
    GTEST_SKIP() << "this KVM answers a fetch from a device page with: " << describe(exit);
  }
}

TEST_F(VcpuTest, FinishPendingExitCompletesAPortRead) {
  TinyGuest guest;
  guest.put(kTestCode, {0xe4, 0x50, 0xe6, 0x51});
  guest.start(0, kTestCode);
  const VcpuExit exit = guest.run();
  std::get<PortExit>(exit).data[0] = 0x5a;
  const u64 rip_before = guest.vcpu().registers()->rip;
  int more = 0;
  ASSERT_OK(guest.vcpu().finish_pending_exit([&](const VcpuExit&) { ++more; }));
  EXPECT_EQ(more, 0);
  const kvm_regs after = *guest.vcpu().registers();
  EXPECT_EQ(after.rax & 0xff, 0x5aU);
  EXPECT_EQ(after.rip, kTestCode + 2);
  EXPECT_LE(rip_before, after.rip);
}

// A store over the end of a page comes as two exits; only a loop finishes it.
TEST_F(VcpuTest, FinishPendingExitServesTheSecondHalfOfAPageCrossingStore) {
  TinyGuest guest;
  // mov eax, 0x44332211; mov [0x40000ffe], eax; out 0x51, al
  guest.put(kTestCode,
            {0xb8, 0x11, 0x22, 0x33, 0x44, 0x89, 0x04, 0x25, 0xfe, 0x0f, 0x00, 0x40, 0xe6, 0x51});
  guest.start(0, kTestCode);
  std::vector<std::pair<u64, u8>> stores;
  const auto serve = [&](const VcpuExit& exit) {
    const MmioExit* mmio = std::get_if<MmioExit>(&exit);
    ASSERT_NE(mmio, nullptr) << describe(exit);
    for (std::size_t i = 0; i < mmio->data.size(); ++i) {
      stores.emplace_back(mmio->gpa.value + i, mmio->data[i]);
    }
  };
  serve(guest.run());
  ASSERT_LT(stores.size(), 4U) << "this KVM does not split the store";
  ASSERT_OK(guest.vcpu().finish_pending_exit(serve));
  const std::vector<std::pair<u64, u8>> all = {{kTestDeviceGpa + 0xffe, 0x11},
                                               {kTestDeviceGpa + 0xfff, 0x22},
                                               {kTestDeviceGpa + 0x1000, 0x33},
                                               {kTestDeviceGpa + 0x1001, 0x44}};
  EXPECT_EQ(stores, all);
  EXPECT_EQ(guest.vcpu().registers()->rip, kTestCode + 12);
  EXPECT_EQ(guest.run_to_port(0x51), 0x11);
}

// The second half of a load is complete only after one more entry.
TEST_F(VcpuTest, FinishPendingExitCompletesAPageCrossingLoad) {
  TinyGuest guest;
  guest.put(kTestCode, {0x8b, 0x04, 0x25, 0xfe, 0x0f, 0x00, 0x40, 0xe6, 0x51});
  guest.start(0, kTestCode);
  u8 next = 0x11;
  const auto serve = [&](const VcpuExit& exit) {
    const MmioExit* mmio = std::get_if<MmioExit>(&exit);
    ASSERT_NE(mmio, nullptr) << describe(exit);
    for (u8& byte : mmio->data) {
      byte = next;
      next = static_cast<u8>(next + 0x11);
    }
  };
  serve(guest.run());
  ASSERT_OK(guest.vcpu().finish_pending_exit(serve));
  EXPECT_EQ(guest.vcpu().registers()->rax, 0x44332211U);
  EXPECT_EQ(guest.vcpu().registers()->rip, kTestCode + 7);
}

TEST_F(VcpuTest, FinishPendingExitDoesNotRunTheGuest) {
  TinyGuest guest;
  guest.put(kTestCode, {0xe6, 0x50, 0xe6, 0x51});
  guest.start(0, kTestCode);
  ASSERT_OK(guest.vcpu().finish_pending_exit([](const VcpuExit&) { FAIL(); }));
  EXPECT_EQ(guest.vcpu().registers()->rip, kTestCode);
  EXPECT_NE(guest.run_to_port(0x50), -1);
}

TEST_F(VcpuTest, FinishPendingExitOnAVcpuThatWaitsForSipi) {
  TinyGuest guest(2);
  ASSERT_OK(guest.vcpu(1).finish_pending_exit([](const VcpuExit&) { FAIL(); }));
}

TEST_F(VcpuTest, FinishPendingExitKeepsAnExitRequest) {
  TinyGuest guest;
  guest.put(kTestCode, {0xeb, 0xfe});
  guest.start(0, kTestCode);
  guest.vcpu().request_exit();
  ASSERT_OK(guest.vcpu().finish_pending_exit([](const VcpuExit&) { FAIL(); }));
  EXPECT_TRUE(std::holds_alternative<InterruptedExit>(guest.run()));
  EXPECT_TRUE(std::holds_alternative<InterruptedExit>(guest.run()));
}

// The kick meets the vCPU in the guest, on its way in, on its way out and between runs.
TEST_F(VcpuTest, RequestExitIsNeverLost) {
  TinyGuest guest;
  guest.put(kTestCode, {0xeb, 0xfe});  // jmp self
  guest.start(0, kTestCode);
  constexpr u32 kRounds = 3000;
  std::atomic<u32> round{0};   // raised by the kicker: run again
  std::atomic<u32> parked{0};  // raised by the vCPU: interrupted
  std::thread vcpu_thread([&] {
    guest.vcpu().bind_to_this_thread();
    for (u32 i = 1; i <= kRounds; ++i) {
      while (round.load() < i) std::this_thread::yield();
      for (;;) {
        const VcpuExit exit = guest.run();
        if (std::holds_alternative<InterruptedExit>(exit)) break;
      }
      parked.store(i);
    }
    guest.vcpu().unbind_thread();
  });
  bool lost = false;
  for (u32 i = 1; i <= kRounds && !lost; ++i) {
    guest.vcpu().clear_exit_request();
    round.store(i);
    for (u32 spin = 0; spin < i % 97 * 50; ++spin) __builtin_ia32_pause();
    guest.vcpu().request_exit();
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    while (parked.load() < i) {
      if (std::chrono::steady_clock::now() > deadline) {
        lost = true;
        ADD_FAILURE() << "kick " << i << " lost";
        break;
      }
      std::this_thread::yield();
    }
  }
  round.store(kRounds);
  while (parked.load() < kRounds) {
    guest.vcpu().request_exit();
    std::this_thread::yield();
  }
  vcpu_thread.join();
}

TEST_F(VcpuTest, IoeventfdTakesTheMatchingWriteOnly) {
  TinyGuest guest;
  const Result<base::EventFd> doorbell = base::EventFd::create();
  ASSERT_TRUE(doorbell);
  ASSERT_OK(guest.vm->add_ioeventfd(Gpa{kTestDeviceGpa + 0x50}, 1, doorbell->fd()));
  // mov eax, 1; mov [0x40000050], eax; mov eax, 2; mov [0x40000050], eax
  guest.put(kTestCode, {0xb8, 1, 0, 0, 0, 0x89, 0x04, 0x25, 0x50, 0x00, 0x00, 0x40,
                        0xb8, 2, 0, 0, 0, 0x89, 0x04, 0x25, 0x50, 0x00, 0x00, 0x40});
  guest.start(0, kTestCode);
  const VcpuExit exit = guest.run();
  const MmioExit* mmio = std::get_if<MmioExit>(&exit);
  ASSERT_NE(mmio, nullptr) << describe(exit);
  EXPECT_EQ(mmio->data[0], 2);
  u64 count = 0;
  ASSERT_EQ(::read(doorbell->fd().get(), &count, sizeof count), 8);
  EXPECT_EQ(count, 1U);
}

}  // namespace
}  // namespace kvm
