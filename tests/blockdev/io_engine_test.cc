#include "blockdev/io_engine.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include "blockdev/direct_engine.h"
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

// Which descriptors the operations went to, and then does them.
class WatchedEngine final : public IoEngine {
 public:
  std::optional<int> try_now(const IoOperation& operation) override { return run_now(operation); }
  void submit(const IoOperation& operation) override {
    fds.push_back(operation.fd);
    done_.push_back({operation.tag, run_now(operation)});
  }
  void kick() override {}
  void reap(std::vector<IoCompletion>& completions) override { completions.swap(done_); }
  void wait() override {}
  int completion_fd() const override { return -1; }
  u32 in_flight_count() const override { return static_cast<u32>(done_.size()); }

  std::vector<int> fds;

 private:
  std::vector<IoCompletion> done_;
};

int outcome(IoEngine& engine, const IoOperation& operation) {
  if (const std::optional<int> now = engine.try_now(operation)) return *now;
  engine.submit(operation);
  std::vector<IoCompletion> completions;
  engine.reap(completions);
  return completions.at(0).error_number;
}

TEST(DirectEngine, WholePagesGoPastThePageCacheAndAllElseThroughIt) {
  const TempDir dir("/var/tmp");
  const std::string path = dir.path("a.raw");
  write_file(path, pattern(3 * 4096, 1));
  if (!check_direct_io(path)) GTEST_SKIP() << "no direct I/O in /var/tmp";
  const base::Fd fd = base::open_file(path, O_RDWR).value();
  auto watched = std::make_unique<WatchedEngine>();
  WatchedEngine& seen = *watched;
  DirectEngine engine(std::move(watched));
  const base::Mapping memory = base::Mapping::anonymous(2 * 4096).value();
  const iovec page{memory.data(), 4096};
  const iovec part{memory.data() + 4096, 512};
  const iovec askew{memory.data() + 512, 4096};
  // A part of a page, then all of it, by turns: neither may see what was there before.
  for (u8 round = 1; round <= 20; ++round) {
    memory.data()[4096] = round;
    ASSERT_EQ(outcome(engine, {IoKind::write, fd.get(), 4096 + 512, {&part, 1}, 0}), 0);
    ASSERT_EQ(outcome(engine, {IoKind::read, fd.get(), 4096, {&page, 1}, 0}), 0);
    ASSERT_EQ(memory.data()[512], round);
    memory.data()[0] = static_cast<u8>(100 + round);
    ASSERT_EQ(outcome(engine, {IoKind::write, fd.get(), 4096, {&page, 1}, 0}), 0);
    ASSERT_EQ(outcome(engine, {IoKind::read, fd.get(), 4096, {&askew, 1}, 0}), 0);
    ASSERT_EQ(memory.data()[512], 100 + round);
  }
  ASSERT_EQ(seen.fds.size(), 40u);  // the whole pages
  for (const int direct : seen.fds) {
    EXPECT_NE(direct, fd.get());
    EXPECT_NE(::fcntl(direct, F_GETFL) & O_DIRECT, 0);
  }
  EXPECT_EQ(outcome(engine, {.kind = IoKind::sync, .fd = fd.get()}), 0);
}

TEST(DirectEngine, FileSystemWithoutItIsRefused) {
  const Result<void> checked = check_direct_io("/proc/version");
  ASSERT_FALSE(checked);
  EXPECT_EQ(checked.error().kind(), ErrorKind::unsupported);
  EXPECT_FALSE(check_direct_io("/nowhere/a.raw"));
}

}  // namespace
}  // namespace blockdev::test
