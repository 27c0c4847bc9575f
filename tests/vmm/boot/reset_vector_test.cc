#include "vmm/boot/reset_vector.h"

#include <gmock/gmock.h>

#include "tests/vmm/boot/support/kernel_files.h"
#include "vmm/boot/layout.h"

namespace {

// The bytes by hand, so that a changed port shows here: mov dx, 0x600; mov al, 1; out dx, al; hlt.
TEST(ResetVector, WritesTheResetValueToTheResetPort) {
  auto memory = boot_test::make_memory(2 * base::kMiB);
  boot::write_reset_vector(*memory);
  EXPECT_THAT(boot_test::read_ram(*memory, 0xffff0, 7),
              testing::ElementsAre(0xba, 0x00, 0x06, 0xb0, 0x01, 0xee, 0xf4));
}

TEST(ResetVector, LeavesTheGenerationIdAlone) {
  auto memory = boot_test::make_memory(2 * base::kMiB);
  boot::write_reset_vector(*memory);
  EXPECT_THAT(boot_test::read_ram(*memory, boot::kGenerationIdAddress, 16), testing::Each(0));
}

}  // namespace
