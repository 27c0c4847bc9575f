#include "vmm/boot/reset_vector.h"

#include <array>

#include "vmm/base/check.h"
#include "vmm/boot/layout.h"

namespace boot {

void write_reset_vector(memory::GuestMemory& memory) {
  constexpr std::array<u8, 9> kCode{
      0xba,
      kResetPort & 0xff,
      kResetPort >> 8,  // mov dx, kResetPort
      0xb0,
      kResetValue,  // mov al, kResetValue
      0xee,         // out dx, al
      0xf4,         // hlt
      0xeb,
      0xfd,  // jmp to the hlt
  };
  CHECK(memory.write(Gpa{kResetVectorAddress}, kCode));
}

}  // namespace boot
