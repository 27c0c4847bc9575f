// Disks that are written through to their image (mode=persist): what a guest wrote is in the file
// that QEMU reads, also below snapshots, after reverts, and after kill -9.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "snapshot/disk_heads.h"
#include "tests/native/support/vm_process.h"

namespace native {
namespace {

namespace fs = std::filesystem;

constexpr unsigned kDiskBytes = 16 << 20;
constexpr unsigned kSectorBytes = 512;

// What the guest `workload` writes to a sector (guests/workload.c, fill_sectors()).
std::string pattern(u64 first, u64 count, u64 seed) {
  std::string bytes;
  for (u64 sector = first; sector < first + count; ++sector) {
    u64 state = seed ^ (sector * 0x9e3779b97f4a7c15);
    for (unsigned word = 0; word < kSectorBytes / 8; ++word) {
      u64 value = (state += 0x9e3779b97f4a7c15);
      value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
      value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
      value ^= value >> 31;
      bytes.append(reinterpret_cast<const char*>(&value), sizeof value);
    }
  }
  return bytes;
}

class Persist : public NativeTest {
 protected:
  VmHome home_;
  VmProcess vm_{home_, "t"};

  void SetUp() override {
    if (std::system("qemu-img --version >/dev/null 2>&1 && qemu-io --version >/dev/null 2>&1")) {
      GTEST_SKIP() << "qemu-img and qemu-io are not installed";
    }
    NativeTest::SetUp();
  }

  // The output of a command; a failure of it fails the test.
  std::string shell(const std::string& command) const {
    const std::string out = home_.file("shell.out");
    EXPECT_EQ(
        std::system(("cd " + home_.path() + " && (" + command + ") >" + out + " 2>&1").c_str()), 0)
        << command << "\n"
        << read_file(out);
    return read_file(out);
  }
  std::string image(const std::string& name, const std::string& options = "") const {
    shell("qemu-img create -q -f qcow2 " + options + " " + name + " 16M");
    return home_.file(name);
  }
  static std::string persist(const std::string& file, const std::string& format = "qcow2") {
    return file + ",format=" + format + ",mode=persist";
  }
  void start(const std::string& disk, std::vector<std::string> options = {}) {
    options.insert(options.end(), {"--disk", disk});
    vm_.start("workload", options);
    ASSERT_TRUE(vm_.wait_for("READY"));
  }
  static void write(VmProcess& vm, u64 first, u64 count, u64 seed) {
    EXPECT_EQ(vm.ask("disk-write 0 " + std::to_string(first) + " " + std::to_string(count) + " " +
                     std::to_string(seed)),
              "STATUS 0\n");
  }
  static void flush(VmProcess& vm) { EXPECT_EQ(vm.ask("disk-flush 0"), "STATUS 0\n"); }
  static void expect(VmProcess& vm, u64 first, u64 count, u64 seed) {
    EXPECT_EQ(vm.ask("disk-check 0 " + std::to_string(first) + " " + std::to_string(count) + " " +
                     std::to_string(seed)),
              "MATCH\n")
        << first << " " << seed;
  }
  void power_off(VmProcess& vm) const {
    vm.send("off\n");
    EXPECT_TRUE(vm.wait_until_gone());
  }

  // By QEMU's eyes: the image has no fault (a leak after a crash is none), and these are its bytes.
  void expect_clean(const std::string& file, bool leaks_allowed = false) const {
    const std::string out = home_.file("check.out");
    const int status = WEXITSTATUS(
        std::system(("qemu-img check -f qcow2 " + file + " >" + out + " 2>&1").c_str()));
    EXPECT_TRUE(status == 0 || (leaks_allowed && status == 3)) << file << ": " << status << "\n"
                                                               << read_file(out);
  }
  std::string content(const std::string& file, const std::string& format = "qcow2") const {
    shell("qemu-img convert -f " + format + " -O raw " + file + " raw.out");
    return read_file(home_.file("raw.out"));
  }
  static void expect_pattern(const std::string& content, u64 first, u64 count, u64 seed) {
    EXPECT_EQ(
        content.compare(first * kSectorBytes, count * kSectorBytes, pattern(first, count, seed)), 0)
        << "sector " << first << " on, seed " << seed;
  }

  std::string vm_directory(const std::string& vm = "t") const {
    return home_.path() + "/vms/" + vm;
  }
  // The newest state of a VM's disk.
  std::string head(const std::string& vm = "t") const {
    const auto heads = snapshot::read_disk_heads(vm_directory(vm));
    if (!heads || heads->size() != 1) return "no head";
    return vm_directory(vm) + "/" + heads->front().file;
  }
  std::string object(const std::string& name, const std::string& vm = "t") const {
    std::string uuid = read_file(vm_directory(vm) + "/refs/" + name);
    if (!uuid.empty()) uuid.pop_back();
    return home_.path() + "/snapshots/" + uuid;
  }
  std::vector<std::string> heads_on_disk(const std::string& vm = "t") const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(vm_directory(vm))) {
      const std::string name = entry.path().filename();
      if (name.ends_with(".qcow2")) found.push_back(name);
    }
    return found;
  }
  // What is removed or opened in the background after the guest goes on.
  template <class Condition>
  bool comes_true(Condition condition) const {
    for (int look = 0; look < 500; ++look) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return false;
  }
};

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

TEST_F(Persist, SnapshotFreezesTheFileAndTheGuestGoesOnAboveIt) {
  const std::string file = image("d.qcow2");
  start(persist(file));
  write(vm_, 0, 100, 1);
  vm_.snapshot("a");
  const std::string frozen = read_file(file);
  expect_clean(file);
  write(vm_, 50, 100, 2);
  flush(vm_);
  expect(vm_, 0, 50, 1);
  expect(vm_, 50, 100, 2);
  // QEMU may read what is frozen while the VM runs.
  expect_pattern(content(file), 0, 100, 1);
  power_off(vm_);
  EXPECT_EQ(read_file(file), frozen);
  expect_clean(head());
  const std::string bytes = content(head());
  expect_pattern(bytes, 0, 50, 1);
  expect_pattern(bytes, 50, 100, 2);
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
    vm_.send("disk-write 0 0 " + std::to_string(kCount) + " " + std::to_string(seed) + "\n");
    ::usleep(50000);
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

TEST_F(Persist, ChainOfThreeSnapshotsIsOneStoryForQemu) {
  const std::string file = image("d.qcow2");
  start(persist(file));
  for (u64 n = 1; n <= 3; ++n) {
    write(vm_, 100 * n, 150, n);
    vm_.snapshot("s" + std::to_string(n));
  }
  write(vm_, 400, 150, 4);
  flush(vm_);
  // Each older snapshot and back, in the same process.
  for (const char* name : {"s1", "s3", "s2", "s3"}) vm_.revert(name);
  expect(vm_, 100, 100, 1);
  expect(vm_, 200, 100, 2);
  expect(vm_, 300, 150, 3);
  power_off(vm_);
  const std::string chain = shell("qemu-img info --backing-chain " + head());
  for (const std::string& part :
       {fs::path(head()).filename().string(), fs::path(object("s3")).filename().string(),
        fs::path(object("s2")).filename().string(), std::string("d.qcow2")}) {
    EXPECT_NE(chain.find(part), std::string::npos) << part << "\n" << chain;
  }
  for (u64 n = 2; n <= 3; ++n) {
    const std::string layer = object("s" + std::to_string(n)) + "/disk-0.qcow2";
    expect_clean(layer);
    const std::string bytes = content(layer);
    for (u64 m = 1; m < n; ++m) expect_pattern(bytes, 100 * m, 100, m);
    expect_pattern(bytes, 100 * n, 150, n);
    EXPECT_EQ(bytes.substr((100 * n + 150) * kSectorBytes, 4096), std::string(4096, 0));
    EXPECT_EQ(home_.quicksave({"snapshot", "check", "t@s" + std::to_string(n)}).status, 0);
  }
  expect_clean(file);
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

TEST_F(Persist, FrozenFileIsRefusedForWritingWithTheWayOn) {
  const std::string file = image("d.qcow2");
  start(persist(file));
  write(vm_, 0, 100, 1);
  vm_.snapshot("a");
  write(vm_, 0, 50, 2);
  power_off(vm_);
  const std::string frozen = read_file(file);
  const auto refused = [&](const std::string& disk) {
    return home_.quicksave({"run", "--name", "u", "-d", "--kernel", guest_path("workload"), "-m",
                            "64M", "--disk", disk});
  };
  const CommandResult result = refused(persist(file));
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("disk \"" + file + "\" is frozen"), std::string::npos) << result.err;
  const std::size_t at = result.err.find("--disk ");
  ASSERT_NE(at, std::string::npos) << result.err;
  EXPECT_EQ(read_file(file), frozen);
  // Nor by anything that changes images.
  shell("qemu-img create -q -f qcow2 -b d.qcow2 -F qcow2 top.qcow2");
  shell("qemu-io -f qcow2 -c 'write -q 0 64k' top.qcow2");
  shell("qemu-img create -q -f raw other.raw 16M");
  const std::vector<std::vector<std::string>> writers = {
      {"resize", "-f", "qcow2", file, "+1M"},
      {"rebase", "-f", "qcow2", "-u", "-b", "", file},
      {"check", "-f", "qcow2", "-r", "all", file},
      {"convert", "-f", "raw", "-O", "qcow2", home_.file("other.raw"), file},
      {"convert", "-f", "raw", "-O", "qcow2", "-n", home_.file("other.raw"), file},
      {"bench", "-f", "qcow2", "-w", "-c", "8", file},
      {"commit", "-f", "qcow2", "--backing", file + ":qcow2", home_.file("top.qcow2")}};
  for (std::vector<std::string> words : writers) {
    words.insert(words.begin(), "image");
    const CommandResult written = home_.quicksave(words);
    EXPECT_EQ(written.status, 1) << words[1];
    EXPECT_NE(written.err.find("is frozen"), std::string::npos) << words[1] << ": " << written.err;
    EXPECT_EQ(read_file(file), frozen) << words[1];
  }
  // The hint is what to type.
  const std::string way = result.err.substr(at + 7, result.err.find(';', at) - at - 7);
  VmProcess next(home_, "u");
  next.start("workload", {"--disk", way});
  expect(next, 0, 50, 2);
  expect(next, 50, 50, 1);
  write(next, 60, 10, 3);
  power_off(next);
  expect_clean(head());
  expect_pattern(content(head()), 60, 10, 3);
  // Read-only uses are as before.
  VmProcess reader(home_, "v");
  reader.start("workload", {"--disk", file + ",format=qcow2"});
  expect(reader, 0, 100, 1);
  EXPECT_EQ(home_.quicksave({"kill", "v"}).status, 0);
  // Without the VM that wrote above it, only its snapshot is in the way; then nothing is.
  const CommandResult kept = home_.quicksave({"rm", "t"});
  EXPECT_EQ(kept.status, 1) << "rm dropped the newest state of a disk without a word";
  EXPECT_NE(kept.err.find(head()), std::string::npos) << kept.err;
  EXPECT_EQ(home_.quicksave({"rm", "--force", "t"}).status, 0);
  VmProcess last(home_, "w");
  last.start("workload", {"--disk", persist(file)});
  expect(last, 0, 100, 1);
  write(last, 0, 10, 4);
  power_off(last);
  expect_pattern(content(file), 0, 10, 4);
}

TEST_F(Persist, SnapshotOfAnOverlayFreezesItsImageToo) {
  const std::string file = image("d.qcow2");
  start(file + ",format=qcow2");
  vm_.snapshot("a");
  power_off(vm_);
  const CommandResult result = home_.quicksave(
      {"run", "--name", "u", "-d", "--kernel", guest_path("workload"), "--disk", persist(file)});
  EXPECT_EQ(result.status, 1);
  EXPECT_NE(result.err.find("snapshot 't@a' rests on it"), std::string::npos) << result.err;
  EXPECT_NE(result.err.find("quicksave snapshot delete t@a"), std::string::npos) << result.err;
  EXPECT_EQ(home_.quicksave({"snapshot", "delete", "t@a"}).status, 0);
  VmProcess next(home_, "u");
  next.start("workload", {"--disk", persist(file)});
  EXPECT_EQ(home_.state_of("u"), "running");
}

TEST_F(Persist, OneWriterAndNoReadersBesideIt) {
  const std::string file = image("d.qcow2");
  start(persist(file));
  for (const std::string& disk : {persist(file), file + ",format=qcow2"}) {
    const CommandResult result = home_.quicksave(
        {"run", "--name", "u", "-d", "--kernel", guest_path("workload"), "--disk", disk});
    EXPECT_EQ(result.status, 1);
    EXPECT_NE(result.err.find("is locked"), std::string::npos) << result.err;
  }
  EXPECT_NE(std::system(("qemu-io -f qcow2 -c 'write 0 512' " + file + " >/dev/null 2>&1").c_str()),
            0);
  vm_.snapshot("a");
  EXPECT_NE(std::system(("qemu-io -f qcow2 -c 'write 0 512' " + file + " >/dev/null 2>&1").c_str()),
            0)
      << "QEMU may write what is frozen";
  shell("qemu-io -r -f qcow2 -c 'read 0 512' " + file);
  EXPECT_NE(
      std::system(("qemu-io -f qcow2 -c 'write 0 512' " + head() + " >/dev/null 2>&1").c_str()), 0);
}

TEST_F(Persist, SnapshotThatTheNewestStateRestsOnIsKept) {
  start(persist(image("d.qcow2")));
  write(vm_, 0, 100, 1);
  vm_.snapshot("a");
  write(vm_, 0, 50, 2);
  vm_.snapshot("b");
  write(vm_, 0, 20, 3);
  power_off(vm_);
  const auto described = nlohmann::json::parse(home_.quicksave({"inspect", "t"}).out);
  EXPECT_EQ(described["newest_disks"][0]["file"], head());
  const CommandResult refused = home_.quicksave({"snapshot", "delete", "t@b"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_NE(refused.err.find("is needed by disk vda of VM \"t\""), std::string::npos)
      << refused.err;
  const std::string bytes = content(head());
  expect_pattern(bytes, 0, 20, 3);
  expect_pattern(bytes, 20, 30, 2);
  expect_pattern(bytes, 50, 50, 1);
  EXPECT_EQ(home_.quicksave({"rm", "--force", "t"}).status, 0);
  EXPECT_TRUE(fs::is_empty(home_.path() + "/vms"));
}

// The VM is killed at moments around a snapshot and a revert. What was flushed before is there, in
// what the record names; snapshots that are listed are whole.
TEST_F(Persist, KillNineLosesNothingFlushedAndHarmsNoSnapshot) {
  const std::string file = image("d.qcow2");
  for (int round = 0; round < 12; ++round) {
    SCOPED_TRACE(round);
    fs::remove(file);
    image("d.qcow2");
    const std::string name = "k" + std::to_string(round);
    VmProcess vm(home_, name);
    vm.start("workload", {"--disk", persist(file)});
    ASSERT_TRUE(vm.wait_for("READY"));
    write(vm, 0, 100, 1);
    vm.ask("fill 0 2048 1");
    vm.snapshot("a");
    write(vm, 50, 100, 2);
    flush(vm);
    const pid_t pid = home_.pid_of(name);
    const bool reverts = round % 2 == 1;
    const pid_t command = reverts ? home_.begin({"revert", name, "a"})
                                  : home_.begin({"snapshot", "create", name, "b"});
    ::usleep(static_cast<useconds_t>(1000 + round * 3000));
    ::kill(pid, SIGKILL);
    home_.finish(command);
    ASSERT_TRUE(vm.wait_until_gone());
    // The kernel takes the ring of a killed process apart in the background; until then it holds
    // the image's locks.
    ASSERT_TRUE(comes_true([&] {
      return std::system(("qemu-img info " + head(name) + " >/dev/null 2>&1").c_str()) == 0;
    }));

    const std::string newest = head(name);
    expect_clean(newest, true);
    expect_clean(file);
    expect_pattern(content(file), 0, 100, 1);
    const std::string bytes = content(newest);
    expect_pattern(bytes, 0, 50, 1);
    // After a revert that took place the disk is the snapshot's again.
    const bool was_reverted =
        reverts && bytes.compare(50 * kSectorBytes, kSectorBytes, pattern(50, 1, 1)) == 0;
    if (!was_reverted) expect_pattern(bytes, 50, 100, 2);

    for (const nlohmann::json& listed : home_.quicksave_json({"snapshot", "list", name})) {
      const std::string snapshot = name + "@" + listed["name"].get<std::string>();
      EXPECT_EQ(home_.quicksave({"snapshot", "check", snapshot}).status, 0) << snapshot;
      VmProcess again(home_, name + "-" + listed["name"].get<std::string>());
      again.start_from(snapshot);
      expect(again, 0, 50, 1);
      if (listed["name"] == "b") expect(again, 50, 100, 2);
      EXPECT_EQ(home_.quicksave({"kill", again.name()}).status, 0);
      EXPECT_EQ(home_.quicksave({"rm", "--force", again.name()}).status, 0);
    }
    const CommandResult removed = home_.quicksave({"rm", "--force", name});
    EXPECT_EQ(removed.status, 0) << removed.err;
    EXPECT_EQ(std::distance(fs::directory_iterator(home_.path() + "/snapshots"),
                            fs::directory_iterator()),
              1)
        << "more than the store's lock is left";
  }
}

// The snapshot's files cannot be written; its split of the disk stays, and the next one has it too.
TEST_F(Persist, SnapshotThatFailsHarmsNothingAndTheNextIsWhole) {
  ::setenv("QUICKSAVE_BINARY", QUICKSAVE_BINARY_PATH "-faulty", 1);
  for (const bool is_first : {true, false}) {
    SCOPED_TRACE(is_first);
    const std::string name = is_first ? "t" : "u";
    const std::string file = image(name + ".qcow2");
    VmProcess vm(home_, name);
    vm.start("workload", {"--disk", persist(file)}, {"QUICKSAVE_FAULT=write"});
    write(vm, 0, 100, 1);
    if (!is_first) vm.snapshot("early");
    write(vm, 0, 50, 2);
    const CommandResult failed = home_.quicksave({"snapshot", "create", name, "bad"});
    EXPECT_EQ(failed.status, 1);
    write(vm, 0, 20, 3);
    flush(vm);
    vm.snapshot("good");
    write(vm, 0, 10, 4);
    vm.revert("good");
    expect(vm, 0, 20, 3);
    expect(vm, 20, 30, 2);
    expect(vm, 50, 50, 1);
    power_off(vm);
    const std::string bytes = content(object("good", name) + "/disk-0.qcow2");
    expect_pattern(bytes, 0, 20, 3);
    expect_pattern(bytes, 20, 30, 2);
    expect_pattern(bytes, 50, 50, 1);
    EXPECT_EQ(heads_on_disk(name).size(), 1u);
    VmProcess other(home_, name + "-other");
    other.start_from(name + "@good");
    expect(other, 20, 30, 2);
  }
  ::unsetenv("QUICKSAVE_BINARY");
}

TEST_F(Persist, NewestStateAboveASnapshotThatFailedIsWholeForQemu) {
  ::setenv("QUICKSAVE_BINARY", QUICKSAVE_BINARY_PATH "-faulty", 1);
  vm_.start("workload", {"--disk", persist(image("d.qcow2"))}, {"QUICKSAVE_FAULT=write"});
  write(vm_, 0, 100, 1);
  vm_.snapshot("early");
  write(vm_, 0, 50, 2);
  EXPECT_EQ(home_.quicksave({"snapshot", "create", "t", "bad"}).status, 1);
  write(vm_, 0, 20, 3);
  power_off(vm_);
  ::unsetenv("QUICKSAVE_BINARY");
  expect_clean(head());
  const std::string bytes = content(head());
  expect_pattern(bytes, 0, 20, 3);
  expect_pattern(bytes, 20, 30, 2);
  expect_pattern(bytes, 50, 50, 1);
}

// A file system of its own that is full.
class PersistWithoutRoom : public Persist {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "a small file system needs root";
    Persist::SetUp();
    if (IsSkipped()) return;
    fs::create_directory(home_.file("small"));
    shell("mount -t tmpfs -o size=12m none small");
    is_mounted_ = true;
  }
  void TearDown() override {
    home_.quicksave({"kill", "t"});
    vm_.wait_until_gone();
    if (is_mounted_) shell("umount small");
  }
  bool is_mounted_ = false;
};

TEST_F(PersistWithoutRoom, PausesTheVmAndGoesOnWhenThereIsRoom) {
  image("small/d.qcow2");
  const std::string file = home_.file("small/d.qcow2");
  start(persist(file));
  write(vm_, 0, 8192, 1);
  flush(vm_);
  shell("dd if=/dev/zero of=small/ballast bs=64k || true");
  vm_.send("disk-write 0 8192 16384 2\n");
  ASSERT_TRUE(comes_true([&] { return home_.state_of("t") == "paused"; }));
  shell("mount -o remount,size=40m small");
  const std::size_t from = vm_.log().size();
  EXPECT_EQ(home_.quicksave({"resume", "t"}).status, 0);
  EXPECT_TRUE(vm_.wait_for("STATUS 0", from));
  flush(vm_);
  expect(vm_, 0, 8192, 1);
  expect(vm_, 8192, 16384, 2);
  power_off(vm_);
  expect_clean(file);
  const std::string bytes = content(file);
  expect_pattern(bytes, 0, 8192, 1);
  expect_pattern(bytes, 8192, 16384, 2);
}

// A home that is a small file system: a snapshot without room is refused, and the guest goes on.
class PersistInAFullHome : public Persist {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "a small file system needs root";
    Persist::SetUp();
    if (IsSkipped()) return;
    is_mounted_ = std::system(("mount -t tmpfs -o size=48m none " + home_.path()).c_str()) == 0;
    ASSERT_TRUE(is_mounted_);
  }
  void TearDown() override {
    if (!is_mounted_) return;
    home_.quicksave({"kill", "t"});
    vm_.wait_until_gone();
    EXPECT_EQ(std::system(("umount -l " + home_.path()).c_str()), 0);
  }
  bool is_mounted_ = false;
};

TEST_F(PersistInAFullHome, SnapshotAndRevertAreRefusedAndTheGuestGoesOn) {
  const std::string file = image("d.qcow2");
  start(persist(file));
  write(vm_, 0, 100, 1);
  vm_.ask("fill 0 2048 1");
  vm_.snapshot("a");
  write(vm_, 0, 50, 2);
  flush(vm_);
  const auto leave_kib = [&](const std::string& left) {
    shell(
        "rm -f ballast; free=$(df -k --output=avail . | tail -1); "
        "dd if=/dev/zero of=ballast bs=1k count=$((free - " +
        left + ")) || true");
  };
  for (const char* left : {"4096", "1024", "128"}) {
    SCOPED_TRACE(left);
    leave_kib(left);
    vm_.ask("fill 0 2048 7");
    EXPECT_EQ(home_.quicksave({"snapshot", "create", "t", "b"}).status, 1);
    EXPECT_EQ(home_.state_of("t"), "running");
    flush(vm_);
    expect(vm_, 0, 50, 2);
  }
  // Not even the record of what is written now: flushes wait, the VM pauses, and goes on with room.
  leave_kib("16");
  EXPECT_EQ(home_.quicksave({"snapshot", "create", "t", "b"}).status, 1);
  const std::size_t from = vm_.log().size();
  vm_.send("disk-flush 0\n");
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  fs::remove(home_.file("ballast"));
  EXPECT_EQ(home_.quicksave({"resume", "t"}).status, 0);
  ASSERT_TRUE(vm_.wait_for("STATUS 0", from));
  vm_.snapshot("c");
  vm_.revert("a");
  expect(vm_, 0, 100, 1);
  vm_.revert("c");
  expect(vm_, 0, 50, 2);
  power_off(vm_);
  expect_clean(head());
  expect_pattern(content(object("c") + "/disk-0.qcow2"), 0, 50, 2);
}

}  // namespace
}  // namespace native
