#include "blockdev/io_engine.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include "blockdev/image_file.h"
#include "blockdev/sync_engine.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/test_client.h"

namespace blockdev::test {
namespace {

// Linux up to 6.4 makes of O_NONBLOCK that a busy block device fails requests with EAGAIN.
TEST(ImageFile, IsReadBlocking) {
  const TempDir dir;
  write_file(dir.path("a.raw"), pattern(512, 1));
  const ImageFile named = open_image_file(dir.path("a.raw"), ImageFormat::raw).value();
  EXPECT_EQ(::fcntl(named.fd.get(), F_GETFL) & O_NONBLOCK, 0);
  const ImageFile found = open_image_file_beneath(dir.root(), "a.raw", ImageFormat::raw).value();
  EXPECT_EQ(::fcntl(found.fd.get(), F_GETFL) & O_NONBLOCK, 0);
}

// Kernels of today answer EAGAIN to nothing that is opened as above, so only the decision is
// tested: what is left is finished with a plain call, and the ring is not asked for ever.
TEST(IoTransfer, AnswerThatItWouldBlockIsTheLast) {
  const TempDir dir;
  const std::vector<u8> content = pattern(4096, 2);
  write_file(dir.path("a.raw"), content);
  const base::Fd fd = base::open_file(dir.path("a.raw"), O_RDONLY).value();
  std::vector<u8> bytes(content.size());
  const iovec buffer{bytes.data(), bytes.size()};
  IoTransfer transfer;
  transfer.start({IoKind::read, fd.get(), 0, {&buffer, 1}, 7});
  int error_number = 0;
  std::copy_n(content.begin(), 1000, bytes.begin());
  EXPECT_EQ(transfer.take_result(1000, error_number), IoTransfer::Step::again);
  EXPECT_EQ(transfer.take_result(-EAGAIN, error_number), IoTransfer::Step::done);
  EXPECT_EQ(error_number, EAGAIN);
  EXPECT_EQ(finish_now(transfer), 0);
  EXPECT_EQ(bytes, content);
}

}  // namespace
}  // namespace blockdev::test
