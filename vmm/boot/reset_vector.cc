#include "vmm/boot/reset_vector.h"

#include <array>

#include "vmm/base/check.h"
#include "vmm/boot/layout.h"

namespace boot {

void write_reset_vector(memory::GuestMemory& memory) {
  // mov dx, kResetPort; mov al, kResetValue; out dx, al; then hlt for ever.
  constexpr std::array<u8, 9> kCode{
      0xba, kResetPort & 0xff, kResetPort >> 8, 0xb0, kResetValue, 0xee, 0xf4, 0xeb, 0xfd};
  CHECK(memory.write(Gpa{kResetVectorAddress}, kCode));
}

}  // namespace boot
