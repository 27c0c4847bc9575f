#include "blockdev/flusher.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <thread>

#include "blockdev/qcow2_writer.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/test_engines.h"

namespace blockdev {
namespace {

class Signal final {
 public:
  void give() {
    base::MutexLock lock(mutex_);
    is_given_ = true;
    changed_.notify_all();
  }
  void wait() {
    base::MutexLock lock(mutex_);
    while (!is_given_) changed_.wait(mutex_);
  }

 private:
  base::Mutex mutex_;
  base::Condition changed_;
  bool is_given_ GUARDED_BY(mutex_) = false;
};

// Its flushes take until the test lets them end.
class SlowImage final : public WritableImage {
 public:
  explicit SlowImage(int flush_result) : flush_result_(flush_result) {}

  u64 size_bytes() const override { return base::kMiB; }
  Result<Extent> map(u64, u64 length) const override { return Extent{.length_bytes = length}; }
  Result<void> read_computed(u64, u64, IovecCursor&, ReadScratch&) const override { return {}; }
  int fd() const override { return -1; }
  u32 discard_granularity_bytes() const override { return 4096; }
  WriteStep begin_write(ByteRange, WriteKind, WriteTicket&, Waker&) override { return {}; }
  void end_write(WriteTicket&, int) override {}
  int flush(WaitingIo&, FlushReason) override {
    ++flush_count;
    begun.give();
    may_end.wait();
    return flush_result_;
  }
  FlushNeed flush_need() const override { return FlushNeed::none; }
  Result<void> resize(u64, WaitingIo&) override { return {}; }
  Result<void> record_size(WaitingIo&) override { return {}; }
  bool may_keep_what_is_behind() const override { return false; }
  Result<void> close(WaitingIo&) override { return {}; }

  std::atomic<int> flush_count{0};
  Signal begun;
  Signal may_end;

 private:
  const int flush_result_;
};

struct NoWaker final : Waker {
  void wake() override {}
};

// A pause must not last as long as a flush that began before it.
TEST(Flusher, ReplacesAnImageWhileItIsFlushed) {
  const auto before = std::make_shared<SlowImage>(EIO);
  const auto after = std::make_shared<SlowImage>(0);
  Flusher flusher(before, std::make_shared<ThreadExecutor>(), test::make_sync_engine().value());
  int answer_before = -1;
  std::thread asks([&] { answer_before = flusher.flush_now(); });
  before->begun.wait();
  flusher.replace_image(after);  // returns
  EXPECT_EQ(after->flush_count, 0);

  // What is flushed from now on is the other image.
  after->may_end.give();
  int answer_after = -1;
  std::thread asks_again([&] { answer_after = flusher.flush_now(); });
  before->may_end.give();
  asks.join();
  asks_again.join();
  EXPECT_EQ(answer_before, EIO);
  EXPECT_EQ(answer_after, 0);
  EXPECT_EQ(before->flush_count, 1);
  EXPECT_EQ(after->flush_count, 1);
}

// A frozen image is closed by another thread than the one that flushes it.
TEST(Flusher, CloseWaitsForAFlushAndOneThatComesLaterChangesNothing) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const test::TempDir dir("/dev/shm");
  const std::string path = dir.path("disk.qcow2");
  test::run_ok("qemu-img create -q -f qcow2 " + path + " 1M");
  const std::shared_ptr<Qcow2Writer> image =
      Qcow2Writer::create(base::open_file(path, O_RDWR).value(), Qcow2Writer::Below::nothing,
                          test::make_sync_engine().value())
          .value();
  NoWaker waker;
  WriteTicket ticket;
  const std::vector<u8> data(64 * base::kKiB, 0x5a);
  const WriteStep step = image->begin_write({0, data.size()}, WriteKind::data, ticket, waker);
  ASSERT_EQ(step.kind, StepKind::allocate);
  test::poke_file(path, step.file_offset, data);
  image->end_write(ticket, 0);

  // Stands in its first barrier: what leads to the cluster is not written yet.
  Signal in_flush, may_go_on;
  WaitingIo slow(std::make_unique<test::HookedEngine>(test::make_sync_engine().value(),
                                                      [&](const IoOperation& operation) {
                                                        if (operation.kind != IoKind::sync) return;
                                                        in_flush.give();
                                                        may_go_on.wait();
                                                      }));
  std::thread flushes(
      [&] { EXPECT_EQ(image->flush(slow, WritableImage::FlushReason::background), 0); });
  in_flush.wait();
  std::thread lets_it_go_on([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    may_go_on.give();
  });
  WaitingIo io(test::make_sync_engine().value());
  EXPECT_TRUE(image->close(io));
  const std::vector<u8> at_close = test::read_file(path);
  lets_it_go_on.join();
  flushes.join();
  EXPECT_EQ(image->flush(io, WritableImage::FlushReason::background), 0);
  EXPECT_EQ(test::read_file(path), at_close);
  EXPECT_EQ(test::run_command("qemu-img check -f qcow2 " + path).status, 0);
}

}  // namespace
}  // namespace blockdev
