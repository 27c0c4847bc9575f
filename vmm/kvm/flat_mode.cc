#include "vmm/kvm/flat_mode.h"

namespace kvm {

namespace {

// SDM volume 3, "Segment Descriptors" and "Code- and Data-Segment Descriptor Types".
kvm_segment flat_segment(Ring ring, u16 selector, u8 type) {
  kvm_segment segment{};
  segment.limit = 0xffff'ffff;
  segment.selector = static_cast<u16>(selector | static_cast<u16>(ring));
  segment.type = type;
  segment.present = 1;
  segment.dpl = static_cast<u8>(ring);
  segment.s = 1;
  segment.g = 1;
  return segment;
}

// SDM volume 3, "Control Registers" and "Extended Feature Enable Register".
constexpr u64 kCr0PeMpEtNeWpPg = 0x8001'0033;
constexpr u64 kCr4PaeFxsr = 0x620;
constexpr u64 kEferLmeLmaNx = 0xd00;

}  // namespace

kvm_sregs flat_mode(const kvm_sregs& initial, Ring ring, u64 page_table_root) {
  kvm_sregs registers = initial;
  registers.cs = flat_segment(ring, 0x30, 11);  // code, readable, accessed
  registers.cs.l = 1;
  const kvm_segment data = [ring]() {
    kvm_segment segment = flat_segment(ring, 0x28, 3);  // data, writable, accessed
    segment.db = 1;
    return segment;
  }();
  registers.ds = registers.es = registers.fs = registers.gs = registers.ss = data;
  registers.tr.type = 11;  // busy 64-bit TSS: what VM entry asks for
  // KVM-PVM does not heed IOPL but asks the TSS, here the first page of RAM: while that is zero,
  // its I/O permission map starts at 0 and allows every port below 0x7fe8.
  registers.tr.limit = 0xfff;
  registers.tr.present = 1;
  registers.tr.s = 0;
  registers.cr0 = kCr0PeMpEtNeWpPg;
  registers.cr3 = page_table_root;
  registers.cr4 = kCr4PaeFxsr;
  registers.efer = kEferLmeLmaNx;
  return registers;
}

}  // namespace kvm
