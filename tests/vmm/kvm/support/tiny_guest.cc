#include "tests/vmm/kvm/support/tiny_guest.h"

#include "vmm/base/check.h"
#include "vmm/kvm/flat_mode.h"
#include "vmm/kvm/ioctl.h"

namespace kvm {

namespace {

template <class T>
T value_of(Result<T> result) {
  if (!result) ADD_FAILURE() << result.error().message();
  CHECK(result.has_value());
  return std::move(*result);
}

constexpr u64 kPresentWritableUser = 7;

}  // namespace

const Result<Kvm>& test_kvm() {
  static const Result<Kvm> kvm = Kvm::open();
  return kvm;
}

TinyGuest::TinyGuest(u32 vcpu_count, u64 ram_bytes, DirtyLogging logging)
    : memory(value_of(memory::GuestMemory::create(ram_bytes))) {
  const auto link = [&](u64 from, u64 to) { put_u64(from, to | kPresentWritableUser); };
  link(kTestRoot, kTestRoot + 0x1000);           // PML4[0] -> PDPT
  link(kTestRoot + 0x1000, kTestRoot + 0x2000);  // PDPT[0] -> PD: RAM
  link(kTestRoot + 0x1008, 0x7000);              // PDPT[1] -> PD: devices
  link(kTestRoot + 0x2000, kTestTable);
  link(kTestRoot + 0x2008, kTestOtherTable);
  link(0x7000, 0x8000);
  for (u64 page = 0; page < 1024; ++page) link(kTestTable + page * 8, page * base::kPageBytes);
  for (u64 page = 0; page < 16; ++page) link(0x8000 + page * 8, kTestDeviceGpa + page * 0x1000);
  vm = value_of(Vm::create(*test_kvm(), *memory, logging));
  processors = value_of(Processors::create(*test_kvm(), *vm, vcpu_count));
}

void TinyGuest::put(u64 gpa, std::initializer_list<int> code) {
  std::vector<u8> bytes(code.begin(), code.end());
  CHECK(memory->write(Gpa{gpa}, bytes));
}

void TinyGuest::put_u64(u64 gpa, u64 value) { CHECK(memory->write(Gpa{gpa}, le64(value))); }

u64 TinyGuest::get_u64(u64 gpa) const { return memory->read<le64>(Gpa{gpa}).value(); }

void TinyGuest::start(u32 index, u64 rip) {
  Vcpu& v = vcpu(index);
  EXPECT_OK(
      v.set_special_registers(flat_mode(value_of(v.special_registers()), Ring::user, kTestRoot)));
  kvm_regs registers{};
  registers.rip = rip;
  registers.rflags = kFlatUserRflags;
  registers.rsp = 0x8'0000 - 0x1000 * index;
  EXPECT_OK(v.set_registers(registers));
  if (index != 0) {
    kvm_mp_state runnable{};
    EXPECT_EQ(::ioctl(v.fd().get(), KVM_SET_MP_STATE, &runnable), 0);
  }
}

VcpuExit TinyGuest::run(u32 index) { return value_of(vcpu(index).run()); }

int TinyGuest::run_to_port(u16 port, u32 index) {
  const VcpuExit exit = run(index);
  const PortExit* out = std::get_if<PortExit>(&exit);
  if (out == nullptr || out->port != port || out->direction != Direction::out) {
    ADD_FAILURE() << describe(exit);
    return -1;
  }
  return out->data[0];
}

}  // namespace kvm
