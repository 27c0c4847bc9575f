// The record of where a VM's persistent disks are, and what it keeps from being removed or written.

#include "snapshot/disk_heads.h"

#include <gtest/gtest.h>

#include "tests/snapshot/support/fixture.h"

namespace {

using namespace snapshot;
using namespace snapshot_test;
namespace fs = std::filesystem;

class DiskHeads : public testing::Test {
 protected:
  DiskHeads() {
    fs::create_directories(vm());
    std::ofstream(image()) << "an image";
  }
  std::string vm() const { return home_.path() + "/vms/t"; }
  std::string image() const { return home_.path() + "/disk.raw"; }
  Disk disk(std::vector<DiskLayer> layers = {}) const {
    return {.slot = 0,
            .name = "vda",
            .mode = "persist",
            .virtual_bytes = 512,
            .bases = {BaseImage::identify(image(), "raw").value()},
            .layers = std::move(layers)};
  }
  DiskHead head(std::vector<DiskLayer> layers = {}) const {
    return {.file = "disk-0-1.qcow2", .frozen = {}, .below = disk(std::move(layers))};
  }
  Error refused(const std::string& path) const {
    const Result<void> allowed = store_.check_may_write(path);
    return allowed ? make_error(ErrorKind::failed, "allowed") : allowed.error();
  }

  TemporaryDirectory home_;
  SnapshotStore store_ =
      SnapshotStore::open(home_.path() + "/snapshots", home_.path() + "/vms").value();
};

TEST_F(DiskHeads, RecordComesBackAsItWasWritten) {
  std::vector<DiskHead> heads = {head({{Uuid::random(), "disk-0.qcow2", 9, std::nullopt}}), head()};
  heads[1].frozen = {"disk-0-2.qcow2", "disk-0-3.qcow2"};
  ASSERT_TRUE(read_disk_heads(vm()).value().empty());
  for (u64 count : {2u, 1u}) {
    heads.resize(count);
    const Result<void> written = write_disk_heads(vm(), heads);
    ASSERT_TRUE(written) << message(written);
    EXPECT_EQ(read_disk_heads(vm()).value(), heads);
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(vm()), fs::directory_iterator()), 1)
      << "nothing else is left behind";
}

TEST_F(DiskHeads, DamagedOrHostileRecordIsRefusedWithItsName) {
  ASSERT_TRUE(write_disk_heads(vm(), {head()}));
  const std::string path = vm() + "/disks.json";
  const std::string good = read_text(path);
  const auto refusal = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    text.replace(text.find(from), from.size(), to);
    write_text(path, text);
    return message(read_disk_heads(vm()));
  };
  EXPECT_NE(refusal("disk-0-1.qcow2", "../d").find("file name"), std::string::npos);
  EXPECT_NE(refusal("\"version\": 1", "\"version\": 2").find("version 2"), std::string::npos);
  EXPECT_NE(refusal("\"frozen\"", "\"ice\"").find("frozen"), std::string::npos);
  write_text(path, good.substr(9));
  EXPECT_NE(message(read_disk_heads(vm())).find(path), std::string::npos);
}

TEST_F(DiskHeads, SnapshotThatADiskRestsOnIsNotRemoved) {
  const Uuid a = make_snapshot(store_, "t", "a");
  ASSERT_TRUE(write_disk_heads(vm(), {head({{a, "disk-0.qcow2", 1, std::nullopt}})}));
  const Result<void> removed = store_.remove("t", "a");
  ASSERT_FALSE(removed);
  EXPECT_EQ(removed.error().kind(), ErrorKind::busy);
  EXPECT_NE(removed.error().message().find("is needed by disk vda of VM \"t\""), std::string::npos)
      << removed.error().message();
  EXPECT_NE(removed.error().hint().find("quicksave rm"), std::string::npos);
  // Its name gone, the disk alone keeps it.
  fs::remove(vm() + "/refs/a");
  ASSERT_TRUE(store_.gc());
  EXPECT_TRUE(store_.open(a));
  // A damaged record may name anything.
  const std::string text = read_text(vm() + "/disks.json");
  write_text(vm() + "/disks.json", "{");
  ASSERT_TRUE(store_.gc());
  EXPECT_TRUE(store_.open(a));
  write_text(vm() + "/disks.json", text);
  ASSERT_TRUE(store_.remove_names("t"));
  EXPECT_FALSE(store_.open(a));
}

TEST_F(DiskHeads, ImageBelowASnapshotIsNotWritten) {
  EXPECT_TRUE(store_.check_may_write(image()));
  auto draft = store_.begin("t", "clean").value();
  Manifest manifest = fill(draft, "t", "clean");
  manifest.disks[0].bases = {BaseImage::identify(image(), "raw").value()};
  ASSERT_TRUE(store_.publish(std::move(draft), std::move(manifest)));
  const Error error = refused(image());
  EXPECT_EQ(error.kind(), ErrorKind::busy);
  EXPECT_EQ(error.message(),
            fmt::format("disk \"{}\" is frozen: snapshot 't@clean' rests on it", image()));
  EXPECT_NE(error.hint().find("quicksave snapshot delete t@clean"), std::string::npos);
  // By another name it is the same file.
  fs::create_symlink(image(), home_.path() + "/link");
  EXPECT_EQ(refused(home_.path() + "/link").kind(), ErrorKind::busy);
  fs::rename(image(), home_.path() + "/moved.raw");
  EXPECT_EQ(refused(home_.path() + "/moved.raw").kind(), ErrorKind::busy);
  // A layer of the snapshot's own.
  const std::string uuid = store_.resolve("t", "clean").value().to_string();
  EXPECT_EQ(refused(home_.path() + "/snapshots/" + uuid + "/disk-0.qcow2").kind(), ErrorKind::busy);
  // What has changed is of no use to the snapshot any more.
  std::ofstream(home_.path() + "/moved.raw", std::ios::app) << "!";
  EXPECT_TRUE(store_.check_may_write(home_.path() + "/moved.raw"));
  ASSERT_TRUE(store_.remove("t", "clean"));
}

TEST_F(DiskHeads, ImageBelowTheNewestStateOfAVmIsNotWritten) {
  DiskHead below = head();
  below.frozen = {"disk-0-0.qcow2"};
  ASSERT_TRUE(write_disk_heads(vm(), {below}));
  std::ofstream(vm() + "/disk-0-0.qcow2") << "frozen";
  std::ofstream(vm() + "/disk-0-1.qcow2") << "active";
  const Error error = refused(image());
  EXPECT_EQ(error.kind(), ErrorKind::busy);
  EXPECT_NE(error.message().find("is frozen: what VM \"t\" wrote"), std::string::npos);
  EXPECT_NE(error.hint().find(fmt::format("--disk {0}/disk-0-1.qcow2,format=qcow2,mode=persist,"
                                          "backing={0}/disk-0-0.qcow2:qcow2,backing={1}:raw;",
                                          vm(), image())),
            std::string::npos)
      << error.hint();
  EXPECT_EQ(refused(vm() + "/disk-0-0.qcow2").kind(), ErrorKind::busy);
  EXPECT_TRUE(store_.check_may_write(vm() + "/disk-0-1.qcow2")) << "the newest state itself";
  ASSERT_TRUE(store_.remove_names("t"));
  EXPECT_TRUE(store_.check_may_write(image()));
}

// The process was killed between giving the layer to the snapshot and taking it from the VM.
TEST_F(DiskHeads, LayerOfAPersistentDiskMayHaveItsOldNameToo) {
  auto draft = store_.begin("t", "clean").value();
  Manifest manifest = fill(draft, "t", "clean");
  fs::create_hard_link(draft.file_path("disk-0.qcow2"), vm() + "/disk-0-1.qcow2");
  const Uuid uuid = draft.uuid();
  manifest.disks[0].mode = "persist";
  const auto published = store_.publish(std::move(draft), manifest);
  ASSERT_TRUE(published) << message(published);
  EXPECT_TRUE(store_.open(uuid));
  EXPECT_EQ(refused(vm() + "/disk-0-1.qcow2").kind(), ErrorKind::busy);
  fs::create_hard_link(vm() + "/disk-0-1.qcow2", vm() + "/third");
  EXPECT_NE(message(store_.open(uuid)).find("3 hard links, may have two"), std::string::npos);
}

}  // namespace
