// What goes wrong in the engine that writes images only when two rare things meet: a flush that
// fails and a limit, a queue that goes and a flush that still runs, an image that lies.

#include <gtest/gtest.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <functional>
#include <optional>

#include "blockdev/disk.h"
#include "blockdev/executor.h"
#include "blockdev/qcow2_allocator.h"
#include "tests/blockdev/support/faulty_engine.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/test_client.h"
#include "tests/blockdev/support/test_engines.h"

namespace blockdev::test {
namespace {

// What the engines of a disk are for, in the order in which it makes them.
enum class EngineUse : u8 { tables, flush, queue };

// Hands each operation to a hook before it is done.
class HookEngine final : public IoEngine {
 public:
  using Hook = std::function<void(EngineUse, const IoOperation&)>;
  HookEngine(EngineUse use, const Hook& hook)
      : use_(use), hook_(hook), inner_(SyncEngine::create().value()) {}

  void submit(const IoOperation& operation) override {
    if (hook_) hook_(use_, operation);
    inner_->submit(operation);
    event_.signal();
  }
  void kick() override {}
  void reap(std::vector<IoCompletion>& completions) override {
    event_.take();
    inner_->reap(completions);
  }
  void wait() override { inner_->wait(); }
  int completion_fd() const override { return event_.fd().get(); }
  u32 in_flight_count() const override { return inner_->in_flight_count(); }
  void signal() { event_.signal(); }

 private:
  const EngineUse use_;
  const Hook& hook_;
  std::unique_ptr<IoEngine> inner_;
  base::EventFd event_ = base::EventFd::create().value();
};

// A qcow2 image opened for writing, with faults for its flushes and a hook for all.
struct EdgeRig {
  explicit EdgeRig(const std::string& size, const std::string& options = "cluster_size=64k") {
    run_ok("qemu-img create -q -f qcow2 -o " + options + " " + path() + " " + size);
  }
  std::string path() const { return dir.path("disk"); }

  void open(const std::string& more = "") {
    u32 made = 0;
    DiskOptions disk_options;
    disk_options.executor = executor;
    disk_options.make_engine = [this, made]() mutable -> Result<std::unique_ptr<IoEngine>> {
      const auto use = static_cast<EngineUse>(std::min(made++, 2u));
      auto engine = std::make_unique<HookEngine>(use, hook);
      newest_engine = engine.get();
      if (use != EngineUse::flush) return std::unique_ptr<IoEngine>(std::move(engine));
      return std::unique_ptr<IoEngine>(TRY(FaultyEngine::create(std::move(engine), plan)));
    };
    disk = open_disk(parse_disk_spec(path() + ",format=qcow2,mode=persist" + more).value(),
                     disk_options)
               .value();
    client = std::make_unique<TestClient>(*disk->backend);
  }
  void fail_flushes(int error_number) {
    plan.arm({.error_number = error_number, .duration = FaultDuration::from_then_on});
  }
  void close_and_check() {
    client.reset();
    EXPECT_TRUE(disk->durable->close());
    disk.reset();
    run_ok("qemu-img check -q " + path());
  }

  TempDir dir{"/dev/shm"};
  FaultPlan plan;
  HookEngine::Hook hook;
  HookEngine* newest_engine = nullptr;
  std::shared_ptr<ManualExecutor> executor = std::make_shared<ManualExecutor>();
  std::unique_ptr<Disk> disk;
  std::unique_ptr<TestClient> client;
};

// A request that the test waits for in its own way.
struct OwnRequest final : BlockClient {
  OwnRequest(BlockQueue& on, u64 offset, std::span<const u8> data) {
    buffer = {const_cast<u8*>(data.data()), data.size()};
    request = {.op = BlockOp::write,
               .offset_bytes = offset,
               .length_bytes = data.size(),
               .buffers = {&buffer, 1},
               .client = this};
    on.submit(request);
  }
  void on_done(BlockRequest&, BlockStatus with) override { status = with; }

  iovec buffer{};
  BlockRequest request;
  std::optional<BlockStatus> status;
};

// Of clusters of 512 bytes, 512 slices of tables may differ from the file, each for 32 KiB.
constexpr u64 kSliceDiskBytes = 32 * base::kKiB;
constexpr u64 kDirtyLimit = 512;

void make_slices_dirty(EdgeRig& rig, u64 count, std::span<const u8> sector) {
  for (u64 i = 0; i < count; ++i) {
    ASSERT_EQ(rig.client->write(i * kSliceDiskBytes, sector), BlockStatus::ok);
  }
}

// A block that is made before it is needed is linked by a flush that nobody waits for. One that
// was written in between, by a flush that left it alone, must not be taken for linked.
TEST(Edge, ABlockWhoseLinkFailedTwiceIsStillLinked) {
  SKIP_WITHOUT_QEMU_TOOLS();
  EdgeRig rig("64M", "cluster_size=8k");  // a block counts 4,096 clusters
  rig.open();
  const std::vector<u8> data = pattern(base::kMiB, 1);
  u64 at = 0;
  const auto write_until = [&](u64 end) {
    for (; at < end; at += data.size()) ASSERT_EQ(rig.client->write(at, data), BlockStatus::ok);
  };
  write_until(18 * base::kMiB);  // the next block is made
  rig.fail_flushes(EIO);
  ASSERT_TRUE(rig.executor->run_one());
  ASSERT_TRUE(rig.plan.has_struck());
  rig.plan.disarm();
  // One that is waited for takes it too: it has it to write.
  rig.fail_flushes(EIO);
  ASSERT_EQ(rig.client->flush(), BlockStatus::io_error);
  ASSERT_TRUE(rig.plan.has_struck());
  rig.plan.disarm();
  write_until(36 * base::kMiB);  // it is needed, and no further one is made
  ASSERT_EQ(rig.client->flush(), BlockStatus::ok);
  run_ok("cp " + rig.path() + " " + rig.dir.path("copy"));
  EXPECT_NE(run_command("qemu-img check -q " + rig.dir.path("copy")).status, 2);
  rig.close_and_check();
}

// A drain waits for writes that wait for a flush: while the host is full, they must end.
TEST(Edge, AWriteThatWaitsForAFlushEndsWhenThatFails) {
  SKIP_WITHOUT_QEMU_TOOLS();
  EdgeRig rig("64M", "cluster_size=512");
  rig.open();
  const std::vector<u8> sector = pattern(512, 1);
  make_slices_dirty(rig, kDirtyLimit + 1, sector);
  rig.fail_flushes(ENOSPC);
  const u64 offset = (kDirtyLimit + 1) * kSliceDiskBytes;
  OwnRequest first(rig.client->queue(), offset, sector);
  OwnRequest second(rig.client->queue(), offset + kSliceDiskBytes, sector);
  for (u32 i = 0; i < 100 && !(first.status && second.status); ++i) {
    rig.client->queue().poll();
    (void)rig.executor->run_one();
  }
  EXPECT_EQ(first.status, BlockStatus::no_space);
  EXPECT_EQ(second.status, BlockStatus::no_space);
  rig.plan.disarm();
  rig.client->queue().drain();
  EXPECT_EQ(rig.client->write(offset, sector), BlockStatus::ok) << "the host has room again";
  EXPECT_EQ(rig.client->read(0, 512), sector);
  rig.close_and_check();
}

// A flush wakes who waits for it; that may have gone on without, as soon as the flush had copied
// what it writes.
TEST(Edge, AQueueMayGoWhileAFlushItWaitedForRuns) {
  SKIP_WITHOUT_QEMU_TOOLS();
  EdgeRig rig("64M", "cluster_size=512");
  rig.open();
  const std::vector<u8> sector = pattern(512, 1);
  make_slices_dirty(rig, kDirtyLimit, sector);
  BlockQueue& queue = rig.client->queue();
  OwnRequest in_place(queue, 0, sector);  // with the engine
  TestClient other(*rig.disk->backend);
  ASSERT_EQ(other.write(kDirtyLimit * kSliceDiskBytes, sector), BlockStatus::ok);
  OwnRequest waiting(queue, kSliceDiskBytes, sector);
  bool is_gone = false;
  rig.hook = [&](EngineUse use, const IoOperation& operation) {
    if (is_gone || use != EngineUse::flush || operation.kind != IoKind::sync) return;
    for (u32 i = 0; i < 10; ++i) queue.poll();
    EXPECT_EQ(in_place.status, BlockStatus::ok);
    EXPECT_EQ(waiting.status, BlockStatus::ok);
    rig.client.reset();
    is_gone = true;
  };
  ASSERT_TRUE(rig.executor->run_one());
  EXPECT_TRUE(is_gone);
  EXPECT_EQ(other.read(kSliceDiskBytes, 512), sector);
}

// io_uring signals after a completion is there: the queue may have taken it before.
TEST(Edge, ALateSignalDoesNotKeepTheDescriptorReadable) {
  SKIP_WITHOUT_QEMU_TOOLS();
  EdgeRig rig("64M");
  rig.open();
  HookEngine& engine = *rig.newest_engine;
  ASSERT_EQ(rig.client->write(0, pattern(512, 1)), BlockStatus::ok);
  const auto is_readable = [&] {
    pollfd event{.fd = rig.client->queue().completion_fd(), .events = POLLIN, .revents = 0};
    return ::poll(&event, 1, 0) == 1;
  };
  rig.client->queue().poll();
  engine.signal();
  EXPECT_TRUE(is_readable());
  rig.client->queue().poll();
  EXPECT_FALSE(is_readable()) << "whoever waits for it would never sleep again";
  rig.close_and_check();
}

// Where things lie in a fresh image of qemu-img with clusters of 64 KiB.
constexpr u64 kEdgeRefcountTable = 0x10000;
constexpr u64 kEdgeRefcountBlock = 0x20000;
constexpr u64 kEdgeL1 = 0x30000;
constexpr u64 kEdgeL2 = 0x40000;

// Of a damaged image, freeing must not take more than is there.
TEST(Edge, ATableThatIsSaidToBeCompressedDataIsNotFreed) {
  SKIP_WITHOUT_QEMU_TOOLS();
  EdgeRig rig("16M");
  run_ok("qemu-io -f qcow2 -c 'write -q -c -P 1 0 64k' " + rig.path());
  poke_be64(rig.path(), kEdgeL2, qcow2::kCompressed | kEdgeL1);
  const std::vector<u8> before = read_file(rig.path());
  rig.open();
  ASSERT_EQ(rig.client->write(0, pattern(65536, 1)), BlockStatus::ok);
  (void)rig.client->flush();
  EXPECT_EQ(rig.client->write(0, pattern(512, 1)), BlockStatus::io_error);
  rig.client.reset();
  rig.disk.reset();
  const std::vector<u8> after = read_file(rig.path());
  EXPECT_TRUE(
      std::equal(after.begin() + kEdgeL1, after.begin() + kEdgeL2, before.begin() + kEdgeL1))
      << "the L1 table is gone";
  EXPECT_EQ(after[79] & 2, 2) << "marked corrupt";
}

// The entries of one slice may need more refcount blocks than are kept in memory.
TEST(Edge, ASliceThatNeedsManyRefcountBlocksIsChecked) {
  SKIP_WITHOUT_QEMU_TOOLS();
  constexpr u64 kBlocks = 300;
  constexpr u64 kClustersPerBlock = 8192;
  EdgeRig rig("64M", "cluster_size=64k,refcount_bits=64");
  run_ok("qemu-io -f qcow2 -c 'write -q -P 1 0 64k' " + rig.path());  // to 0x50000
  const u64 last = kBlocks * kClustersPerBlock << 16;
  ASSERT_EQ(::truncate(rig.path().c_str(), static_cast<off_t>(last + 65536)), 0);
  for (u64 i = 1; i <= kBlocks; ++i) {
    const u64 block = (5 + i) << 16;
    poke_be64(rig.path(), kEdgeRefcountBlock + (5 + i) * 8, 1);
    poke_be64(rig.path(), kEdgeRefcountTable + i * 8, block);
    poke_be64(rig.path(), block, 1);
    poke_be64(rig.path(), kEdgeL2 + i * 8, qcow2::kCopied | (i * kClustersPerBlock << 16));
  }
  rig.open();
  ASSERT_EQ(rig.client->write(500 << 16, pattern(512, 1)), BlockStatus::ok);
  EXPECT_EQ(rig.client->read(500 << 16, 512), pattern(512, 1));
  rig.close_and_check();
}

// The flush that moves the refcount table fails somewhere, and writes go on until the table must
// grow once more: what the header leads to by then is not the allocator's to give away.
TEST(Edge, ATableThatMovedInAFlushThatFailedIsNotGivenAway) {
  SKIP_WITHOUT_QEMU_TOOLS();
  constexpr u64 kFirstTable = 2 * base::kMiB;  // 64 entries, each for 64 clusters of 512 bytes
  const std::vector<u8> data = pattern(64 * base::kKiB, 1);
  const auto write = [&](EdgeRig& rig, u64 from, u64 to) {
    for (; from < to; from += data.size()) {
      if (rig.client->write(from, data) != BlockStatus::ok) return false;
    }
    return true;
  };
  u64 operations = 1;
  u64 faults = 0;
  for (u64 back = 1; back <= std::min<u64>(operations, 48); ++back) {
    EdgeRig rig("16M", "cluster_size=512,refcount_bits=64");
    rig.open();
    ASSERT_TRUE(write(rig, 0, kFirstTable + 256 * base::kKiB));
    if (back > 1) {
      rig.plan.arm({.index = operations - back,
                    .error_number = EIO,
                    .duration = FaultDuration::from_then_on});
    }
    const u64 before = rig.plan.seen_count();
    const BlockStatus flushed = rig.client->flush();
    if (back == 1) operations = rig.plan.seen_count() - before;
    faults += rig.plan.has_struck() ? 1 : 0;
    EXPECT_EQ(flushed == BlockStatus::ok, !rig.plan.has_struck());
    const bool goes_on = write(rig, kFirstTable + 256 * base::kKiB, 3 * kFirstTable);
    rig.plan.disarm();
    // As a process that is killed now would leave it.
    const int status = run_command("qemu-img check -U -q " + rig.path()).status;
    EXPECT_TRUE(status == 0 || status == 3) << status;
    if (goes_on) {  // a sync or a header that failed ends all writing
      EXPECT_EQ(rig.client->flush(), BlockStatus::ok);
      EXPECT_EQ(rig.client->read(kFirstTable, data.size()), data);
      rig.close_and_check();
    }
    ASSERT_FALSE(HasFailure()) << back << " operations from the end";
  }
  EXPECT_GT(faults, 40u);
}

// Two entries that share a cluster are sound: so a repair leaves what was used twice.
TEST(Edge, ASharedClusterIsRefusedAndNoDamage) {
  SKIP_WITHOUT_QEMU_TOOLS();
  EdgeRig rig("1M");
  run_ok("qemu-io -f qcow2 -c 'write -q -P 1 0 64k' " + rig.path());
  poke_be64(rig.path(), kEdgeL2, 0x50000);
  poke_be64(rig.path(), kEdgeL2 + 8, 0x50000);
  poke_file(rig.path(), kEdgeRefcountBlock + 5 * 2, std::vector<u8>{0, 2});
  run_ok("qemu-img check -q " + rig.path());
  rig.open();
  EXPECT_EQ(rig.client->write(512, pattern(512, 2)), BlockStatus::io_error);
  EXPECT_EQ(rig.client->read(64 * base::kKiB, 512), std::vector<u8>(512, 1));
  rig.close_and_check();
}

// Of a device all clusters lie ahead of the cursor at first.
TEST(Edge, WhatIsFreedAheadOfTheCursorIsHandedOutOnce) {
  qcow2::RefcountCache counts(16, 4, {kEdgeRefcountBlock});
  counts.insert(0, std::vector<u8>(65536));
  for (u64 cluster = 0; cluster < 10; ++cluster) counts.set(cluster, 1);
  qcow2::Allocator allocator(16, counts, {0, 1, 2}, {.cursor = 0, .fresh_cluster = ~u64{0}},
                             {kEdgeRefcountTable, 1});
  qcow2::HostRun run;
  ASSERT_EQ(allocator.reserve(1, run), qcow2::Reserved::yes);
  ASSERT_EQ(run.cluster, 10u);
  allocator.add_free(11);
  ASSERT_EQ(allocator.reserve_all(2, run), qcow2::Reserved::yes);
  ASSERT_EQ(run.cluster, 11u);
  ASSERT_EQ(allocator.reserve(1, run), qcow2::Reserved::yes);
  EXPECT_EQ(run.cluster, 13u);
}

}  // namespace
}  // namespace blockdev::test
