// Files of persistent disks that a snapshot has frozen: who goes on above them, who may write them,
// and the story that they tell QEMU.

#include "tests/native/support/persist.h"

namespace native {
namespace {

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

TEST_F(Persist, SnapshotAboveAFrozenFileThatChangedIsRefused) {
  const std::string file = image("d.qcow2");
  start(persist(file));
  write(vm_, 0, 100, 1);
  vm_.snapshot("a");  // the guest wrote to the file: that is no change
  write(vm_, 0, 50, 2);
  const auto before = fs::last_write_time(file);
  fs::last_write_time(file, before + std::chrono::seconds(1));
  const CommandResult refused = home_.quicksave({"snapshot", "create", "t", "b"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_NE(refused.err.find(file + "\" changed while the VM was running"), std::string::npos)
      << refused.err;
  flush(vm_);
  fs::last_write_time(file, before);
  vm_.snapshot("b");
  EXPECT_EQ(home_.quicksave({"snapshot", "check", "t@b"}).status, 0);
}

TEST_F(Persist, DeletedSnapshotOfARunningVmLeavesNoFile) {
  start(persist(image("d.qcow2")));
  write(vm_, 0, 100, 1);
  vm_.snapshot("a");
  for (u64 seed = 2; seed < 5; ++seed) {
    write(vm_, 0, 50, seed);
    vm_.snapshot("b");
    write(vm_, 0, 20, 9);
    vm_.revert("a");
    const CommandResult deleted = home_.quicksave({"snapshot", "delete", "t@b"});
    EXPECT_EQ(deleted.status, 0) << deleted.err;
    expect(vm_, 0, 100, 1);
  }
  EXPECT_EQ(heads_on_disk().size(), 1u);
  write(vm_, 90, 10, 5);
  power_off(vm_);
  const std::string bytes = content(head());
  expect_pattern(bytes, 0, 90, 1);
  expect_pattern(bytes, 90, 10, 5);
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

}  // namespace
}  // namespace native
