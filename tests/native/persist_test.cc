// Disks that are written through to their image (mode=persist): what a guest wrote is in the file
// that QEMU reads, also below snapshots and after reverts.

#include "tests/native/support/persist.h"

#include <sys/stat.h>

namespace native {
namespace {

TEST_F(Persist, WhatTheGuestWroteIsInTheImageAfterPowerOff) {
  const std::string file = image("d.qcow2");
  start(persist(file));
  write(vm_, 0, 300, 1);
  write(vm_, 20000, 64, 2);
  EXPECT_EQ(vm_.ask("disk-zero 0 8 16"), "STATUS 0\n");
  power_off(vm_);
  expect_clean(file);
  const std::string bytes = content(file);
  expect_pattern(bytes, 0, 8, 1);
  EXPECT_EQ(bytes.substr(8 * kSectorBytes, 16 * kSectorBytes), std::string(16 * kSectorBytes, 0));
  expect_pattern(bytes, 24, 276, 1);
  expect_pattern(bytes, 20000, 64, 2);
  EXPECT_TRUE(heads_on_disk().empty());
  // And on from there, in another VM.
  VmProcess next(home_, "next");
  next.start("workload", {"--disk", persist(file)});
  expect(next, 24, 276, 1);
  write(next, 100, 10, 3);
  EXPECT_EQ(home_.quicksave({"stop", "next", "--timeout", "1"}).status, 0);
  expect_clean(file);
  expect_pattern(content(file), 100, 10, 3);
}

TEST_F(Persist, RawImageIsWrittenThrough) {
  make_disk(home_.file("d.raw"), kDiskBytes);
  start(persist(home_.file("d.raw"), "raw"));
  write(vm_, 0, 300, 1);
  flush(vm_);
  EXPECT_EQ(read_file(home_.file("d.raw")).substr(0, 300 * kSectorBytes), pattern(0, 300, 1));
  vm_.snapshot("a");
  write(vm_, 100, 10, 2);
  power_off(vm_);
  EXPECT_EQ(read_file(home_.file("d.raw")).substr(0, 300 * kSectorBytes), pattern(0, 300, 1))
      << "a frozen file was written";
  const std::string bytes = content(head());
  expect_pattern(bytes, 0, 100, 1);
  expect_pattern(bytes, 100, 10, 2);
}

TEST_F(Persist, ImageBelowTheImageIsReadAndNotWritten) {
  image("base.qcow2");
  shell("qemu-io -f qcow2 -c 'write -q -P 7 0 1M' base.qcow2");
  const std::string before = read_file(home_.file("base.qcow2"));
  const std::string top = image("top.qcow2", "-b base.qcow2 -F qcow2");
  start(persist(top) + ",backing=" + home_.file("base.qcow2") + ":qcow2");
  write(vm_, 3, 5, 1);
  power_off(vm_);
  expect_clean(top);
  const std::string bytes = content(top);
  EXPECT_EQ(bytes.substr(0, 3 * kSectorBytes), std::string(3 * kSectorBytes, 7));
  expect_pattern(bytes, 3, 5, 1);
  EXPECT_EQ(bytes.substr(8 * kSectorBytes, 4096), std::string(4096, 7));
  EXPECT_EQ(read_file(home_.file("base.qcow2")), before);
}

TEST_F(Persist, DiscardReachesTheHostFile) {
  const std::string file = image("d.qcow2");
  start(persist(file));
  write(vm_, 0, 16384, 1);  // 8 MiB
  flush(vm_);
  const auto blocks = [&] {
    struct stat status {};
    return ::stat(file.c_str(), &status) == 0 ? status.st_blocks : 0;
  };
  const auto full = blocks();
  EXPECT_EQ(vm_.ask("disk-discard 0 0 16384"), "STATUS 0\n");
  flush(vm_);
  EXPECT_LT(blocks(), full / 4);
  power_off(vm_);
  expect_clean(file);
  EXPECT_EQ(content(file), std::string(kDiskBytes, 0));
}

TEST_F(Persist, RevertTakesTheDiskBackAndFlushesGoOn) {
  start(persist(image("d.qcow2")));
  write(vm_, 0, 100, 1);
  vm_.snapshot("a");
  for (int round = 0; round < 5; ++round) {
    write(vm_, 0, 100, 10 + static_cast<u64>(round));
    flush(vm_);
    vm_.revert("a");
    expect(vm_, 0, 100, 1);
    flush(vm_);
  }
  EXPECT_TRUE(comes_true([&] { return heads_on_disk().size() == 1; })) << "left files stay";
  write(vm_, 10, 10, 9);
  power_off(vm_);
  expect_clean(head());
  const std::string bytes = content(head());
  expect_pattern(bytes, 0, 10, 1);
  expect_pattern(bytes, 10, 10, 9);
  expect_pattern(bytes, 20, 80, 1);
}

// What the guest wrote up to T and never flushed is in the frozen file, what it wrote after is not.
TEST_F(Persist, SnapshotWhileTheGuestWritesIsWhole) {
  constexpr u64 kCount = 120000;  // takes the guest a few hundred milliseconds
  shell("qemu-img create -q -f qcow2 d.qcow2 64M");
  start(persist(home_.file("d.qcow2")));
  const std::string hash = "disk-hash 0 0 " + std::to_string(kCount);
  // A busy host may take the snapshot when all is written: then once more.
  bool was_in_time = false;
  std::string name;
  std::string restored;
  for (u64 seed = 1; seed <= 5 && !was_in_time; ++seed) {
    name = "s" + std::to_string(seed);
    const std::size_t from = vm_.log().size();
    // Not before the guest has the whole command: what is still on its way is in no snapshot.
    const std::string written = seed == 1 ? home_.file("d.qcow2") : head();
    const u64 size = fs::file_size(written);
    vm_.send("disk-write 0 0 " + std::to_string(kCount) + " " + std::to_string(seed) + "\n");
    for (u32 i = 0; i < 5000 && fs::file_size(written) == size; ++i) ::usleep(1000);
    ::usleep(20000);
    vm_.snapshot(name);
    VmProcess other(home_, name);
    other.start_from("t@" + name);
    // Each answer comes when the writing that the snapshot cut in two is finished.
    restored = other.ask(hash);
    was_in_time = other.log().find("STATUS 0") != std::string::npos;
    ASSERT_TRUE(vm_.wait_for("STATUS 0", from));
    EXPECT_EQ(vm_.ask(hash), restored);
    vm_.revert(name);
    vm_.forget_connection();
    EXPECT_EQ(vm_.ask(hash), restored);
  }
  EXPECT_TRUE(was_in_time);
  power_off(vm_);
  expect_pattern(content(head()), 0, kCount, std::stoul(name.substr(1)));
}

// While the snapshot's memory is written, which takes a while here.
TEST_F(Persist, FlushEndsWhenTheSnapshotItStandsOnIsDurable) {
  start(persist(image("d.qcow2")), {"-m", "512M"});
  write(vm_, 0, 100, 1);
  vm_.ask("fill 0 100000 1");
  EXPECT_EQ(home_.quicksave({"snapshot", "create", "t", "a", "--no-wait"}).status, 0);
  write(vm_, 0, 50, 2);
  EXPECT_FALSE(fs::exists(vm_directory() + "/refs/a")) << "the snapshot was written too fast";
  flush(vm_);
  EXPECT_TRUE(fs::exists(object("a") + "/manifest.json")) << "a flush promised too much";
  EXPECT_TRUE(fs::exists(head()));
  expect(vm_, 0, 50, 2);
}

// The guest stands still at once, although the process has to write for a while yet.
TEST_F(Persist, GuestThatIsKilledStandsStillWhileItsSnapshotIsWritten) {
  start(persist(image("d.qcow2")), {"-m", "512M"});
  write(vm_, 0, 100, 1);
  vm_.ask("fill 0 100000 1");
  vm_.send("run 1\n");
  EXPECT_EQ(home_.quicksave({"snapshot", "create", "t", "a", "--no-wait"}).status, 0);
  const pid_t killing = home_.begin({"kill", "t"});
  bool stands_still = false;
  while (!stands_still && !fs::exists(vm_directory() + "/refs/a")) {
    const std::size_t said = vm_.log().size();
    ::usleep(50000);
    stands_still = vm_.log().size() == said;
  }
  EXPECT_TRUE(stands_still) << "or the snapshot was written too fast";
  EXPECT_EQ(home_.finish(killing).status, 0);
  EXPECT_EQ(home_.quicksave({"snapshot", "check", "t@a"}).status, 0);
}

TEST_F(Persist, RevertDoesNotWaitForTheSnapshotToBeWritten) {
  start(persist(image("d.qcow2")), {"-m", "512M"});
  write(vm_, 0, 100, 1);
  vm_.ask("fill 0 100000 1");
  vm_.snapshot("a");
  write(vm_, 0, 50, 2);
  EXPECT_EQ(home_.quicksave({"snapshot", "create", "t", "b", "--no-wait"}).status, 0);
  write(vm_, 0, 20, 3);
  vm_.send("disk-flush 0\n");  // waits for the snapshot, and the revert takes it back
  vm_.revert("b");
  EXPECT_FALSE(fs::exists(vm_directory() + "/refs/b")) << "the snapshot was written too fast";
  vm_.forget_connection();
  expect(vm_, 0, 50, 2);
  vm_.revert("a");
  expect(vm_, 0, 100, 1);
  write(vm_, 90, 10, 4);
  flush(vm_);
  ASSERT_TRUE(comes_true([&] { return fs::exists(vm_directory() + "/refs/b"); }));
  ASSERT_TRUE(comes_true([&] { return heads_on_disk().size() == 1; }));
  power_off(vm_);
  const std::string bytes = content(head());
  expect_pattern(bytes, 0, 90, 1);
  expect_pattern(bytes, 90, 10, 4);
  expect_pattern(content(object("b") + "/disk-0.qcow2"), 0, 50, 2);
}

TEST_F(Persist, SnapshotRestoresInANewProcessWhileOthersLive) {
  start(persist(image("d.qcow2")));
  write(vm_, 0, 100, 1);
  vm_.snapshot("a");
  write(vm_, 0, 50, 2);
  vm_.snapshot("b");
  write(vm_, 0, 20, 3);
  VmProcess left(home_, "left"), right(home_, "right");
  left.start_from("t@a");
  right.start_from("t@b");
  expect(left, 0, 100, 1);
  expect(right, 0, 50, 2);
  expect(right, 50, 50, 1);
  write(left, 0, 10, 4);
  write(right, 0, 10, 5);
  flush(left);
  flush(right);
  expect(vm_, 0, 20, 3);
  // Life goes on in each: snapshots, reverts, further generations.
  right.snapshot("c");
  write(right, 0, 10, 6);
  right.revert("c");
  expect(right, 0, 10, 5);
  right.revert("b");
  expect(right, 0, 50, 2);
  VmProcess third(home_, "third");
  third.start_from("right@c");
  expect(third, 0, 10, 5);
  expect(third, 10, 40, 2);
  expect(third, 50, 50, 1);
  power_off(third);
  power_off(left);
  expect_clean(head("left"));
  expect_pattern(content(head("left")), 0, 10, 4);
  expect_pattern(content(head("third")), 0, 10, 5);
  // The process that took them gone, its names too: the data stays for those who need it.
  EXPECT_EQ(home_.quicksave({"kill", "t"}).status, 0);
  EXPECT_EQ(home_.quicksave({"rm", "--force", "t"}).status, 0);
  expect(right, 50, 50, 1);
  right.revert("c");
  expect(right, 0, 10, 5);
}

}  // namespace
}  // namespace native
