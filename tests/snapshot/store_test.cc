#include "snapshot/store.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <random>
#include <thread>

#include "tests/snapshot/support/fixture.h"

namespace {

using namespace snapshot;
using namespace snapshot_test;
namespace fs = std::filesystem;

class Store : public testing::Test {
 protected:
  std::string snapshots() const { return home_.path() + "/snapshots"; }
  std::string vms() const { return home_.path() + "/vms"; }
  std::string object(const Uuid& uuid) const { return snapshots() + "/" + uuid.to_string(); }
  u64 directories() const {
    u64 count = 0;
    for (const auto& entry : fs::directory_iterator(snapshots())) count += entry.is_directory();
    return count;
  }
  std::string refusal(const Uuid& uuid) const { return message(store_.open(uuid)); }

  // Rewrites the manifest of an object with `change` made and a checksum that fits.
  template <class Change>
  void forge(const Uuid& uuid, Change change) const {
    const std::string path = object(uuid) + "/manifest.json";
    Manifest manifest = Manifest::parse(read_text(path)).value();
    change(manifest);
    write_text(path, manifest.serialize());
  }

  TemporaryDirectory home_;
  SnapshotStore store_ =
      SnapshotStore::open(home_.path() + "/snapshots", home_.path() + "/vms").value();
};

TEST_F(Store, PublishedSnapshotIsListedOpenedAndChecked) {
  const Uuid uuid = make_snapshot(store_, "t", "clean");
  EXPECT_EQ(store_.resolve("t", "clean").value(), uuid);
  const auto list = store_.list("t").value();
  ASSERT_EQ(list.size(), 1u);
  EXPECT_EQ(list[0].name, "clean");
  ASSERT_TRUE(list[0].manifest) << list[0].damage;
  const auto opened = store_.open(uuid);
  ASSERT_TRUE(opened) << message(opened);
  const Result<void> checked = store_.check(*opened);
  EXPECT_TRUE(checked) << message(checked);
  struct stat status {};
  ASSERT_EQ(::stat(object(uuid).c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0700u);
  for (const char* file : {"memory", "memory.sums", "state", "disk-0.qcow2", "manifest.json"}) {
    ASSERT_EQ(::stat((object(uuid) + "/" + file).c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 07777, 0400u) << file;  // S29
  }
}

TEST_F(Store, DroppedDraftLeavesNothing) {
  {
    auto draft = store_.begin("t", "clean").value();
    fill(draft, "t", "clean");
    EXPECT_EQ(directories(), 1u);
    EXPECT_TRUE(store_.list("").value().empty());
  }
  EXPECT_EQ(directories(), 0u);
}

TEST_F(Store, TakenNameIsRefusedAndNothingAppears) {
  auto late = store_.begin("t", "clean").value();
  const Uuid first = make_snapshot(store_, "t", "clean");
  EXPECT_EQ(store_.begin("t", "clean").error().kind(), ErrorKind::exists);
  Manifest manifest = fill(late, "t", "clean");
  EXPECT_EQ(store_.publish(std::move(late), std::move(manifest)).error().kind(), ErrorKind::exists);
  EXPECT_EQ(directories(), 1u);
  EXPECT_EQ(store_.resolve("t", "clean").value(), first);
  EXPECT_FALSE(store_.begin("t", "../x"));
  EXPECT_FALSE(store_.begin("..", "x"));
}

TEST_F(Store, FilesThatDoNotFitTheManifestAreNeverPublished) {
  auto draft = store_.begin("t", "clean").value();
  Manifest manifest = fill(draft, "t", "clean");
  manifest.state.size_bytes += 1;
  EXPECT_FALSE(store_.publish(std::move(draft), std::move(manifest)));
  EXPECT_EQ(directories(), 0u);
  EXPECT_TRUE(store_.list("").value().empty());
}

TEST_F(Store, WithoutAValidManifestThereIsNoSnapshot) {  // S01
  const Uuid uuid = make_snapshot(store_, "t", "clean");
  const std::string path = object(uuid) + "/manifest.json";
  const std::string text = read_text(path);
  for (const std::size_t length :
       {std::size_t{0}, std::size_t{1}, text.size() / 2, text.size() - 1}) {
    write_text(path, text.substr(0, length));
    EXPECT_FALSE(store_.open(uuid)) << length;
    const auto list = store_.list("t").value();
    ASSERT_EQ(list.size(), 1u);
    EXPECT_FALSE(list[0].manifest);
    EXPECT_FALSE(list[0].damage.empty());
  }
  fs::remove(path);
  EXPECT_FALSE(store_.open(uuid));
  // A name holds it: it is reported, and kept for whoever may repair it.
  EXPECT_EQ(store_.gc().value().damaged.size(), 1u);
  EXPECT_EQ(directories(), 1u);
  fs::remove(vms() + "/t/refs/clean");
  EXPECT_EQ(store_.gc().value().removed, 1u);
  EXPECT_EQ(directories(), 0u);
}

TEST_F(Store, MissingShortOrLongFileIsRefusedWithItsName) {  // S02, S03, S05
  for (const std::string file : {"memory", "memory.sums", "state", "disk-0.qcow2"}) {
    const Uuid uuid = make_snapshot(store_, "t", "n-" + file);
    const std::string path = object(uuid) + "/" + file;
    fs::permissions(path, fs::perms::owner_read | fs::perms::owner_write);
    const u64 size = fs::file_size(path);
    for (const u64 wrong : {size - 1, size + 1, u64{0}}) {
      fs::resize_file(path, wrong);
      EXPECT_NE(refusal(uuid).find("\"" + file + "\""), std::string::npos) << refusal(uuid);
    }
    fs::remove(path);
    EXPECT_NE(refusal(uuid).find("\"" + file + "\""), std::string::npos) << refusal(uuid);
  }
}

TEST_F(Store, FlippedBitOfTheStateIsRefused) {  // S03
  const Uuid uuid = make_snapshot(store_, "t", "clean");
  const std::string path = object(uuid) + "/state";
  const std::string state = read_text(path);
  for (std::size_t bit = 0; bit < state.size() * 8; bit += 3) {
    std::string broken = state;
    broken[bit / 8] = static_cast<char>(broken[bit / 8] ^ (1 << (bit % 8)));
    write_text(path, broken);
    ASSERT_FALSE(store_.open(uuid)) << bit;
  }
}

TEST_F(Store, FlippedBitOfMemoryIsFoundByCheck) {  // S04
  const Uuid uuid = make_snapshot(store_, "t", "clean");
  std::string memory = read_text(object(uuid) + "/memory");
  memory[12345] = static_cast<char>(memory[12345] ^ 4);
  write_text(object(uuid) + "/memory", memory);
  const auto opened = store_.open(uuid);
  ASSERT_TRUE(opened) << "open() does not read memory";
  EXPECT_NE(message(store_.check(*opened)).find("chunk 0"), std::string::npos);
}

TEST_F(Store, LayerOfAnotherSnapshotIsRefused) {  // S05
  const Uuid mine = make_snapshot(store_, "t", "mine");
  const Uuid other = make_snapshot(store_, "u", "other");
  ASSERT_EQ(fs::file_size(object(mine) + "/disk-0.qcow2"),
            fs::file_size(object(other) + "/disk-0.qcow2"));
  write_text(object(mine) + "/disk-0.qcow2", read_text(object(other) + "/disk-0.qcow2"));
  EXPECT_NE(refusal(mine).find("checksum"), std::string::npos) << refusal(mine);
  // And one that the manifest points to, but that belongs to no ancestor.
  const Uuid third = make_snapshot(store_, "t", "third");
  forge(third, [&](Manifest& manifest) {
    manifest.disks[0].layers =
        Manifest::parse(read_text(object(other) + "/manifest.json")).value().disks[0].layers;
  });
  EXPECT_NE(refusal(third).find("no ancestor"), std::string::npos) << refusal(third);
}

TEST_F(Store, ChangedBaseImageIsRefused) {  // S06
  const std::string base = home_.path() + "/base.raw";
  std::ofstream(base) << "disk";
  const Uuid uuid = make_snapshot(store_, "t", "clean");
  forge(uuid, [&](Manifest& manifest) {
    manifest.disks[0].bases = {BaseImage::identify(base, "raw").value()};
  });
  EXPECT_TRUE(store_.open(uuid)) << refusal(uuid);
  std::ofstream(base, std::ios::app) << "!";
  EXPECT_NE(refusal(uuid).find("size was 4, is 5"), std::string::npos) << refusal(uuid);
}

TEST_F(Store, LinksPipesAndDirectoriesInPlaceOfFilesAreRefused) {  // S21
  const Uuid uuid = make_snapshot(store_, "t", "clean");
  const std::string path = object(uuid) + "/state";
  const std::string aside = home_.path() + "/aside";
  fs::rename(path, aside);
  fs::create_symlink(aside, path);
  EXPECT_FALSE(store_.open(uuid));
  fs::remove(path);
  fs::create_hard_link(aside, path);
  EXPECT_NE(refusal(uuid).find("hard links"), std::string::npos) << refusal(uuid);
  fs::remove(path);
  ASSERT_EQ(::mkfifo(path.c_str(), 0600), 0);
  EXPECT_NE(refusal(uuid).find("regular"), std::string::npos) << refusal(uuid);
  fs::remove(path);
  fs::create_directory(path);
  EXPECT_FALSE(store_.open(uuid));
  fs::remove(path);
  fs::rename(aside, path);
  EXPECT_TRUE(store_.open(uuid)) << refusal(uuid);
  // The object itself.
  fs::rename(object(uuid), aside);
  fs::create_directory_symlink(aside, object(uuid));
  EXPECT_FALSE(store_.open(uuid));
}

TEST_F(Store, ObjectThatOthersMayWriteIsRefused) {  // S22
  const Uuid uuid = make_snapshot(store_, "t", "clean");
  fs::permissions(object(uuid), fs::perms::group_write, fs::perm_options::add);
  EXPECT_EQ(store_.open(uuid).error().kind(), ErrorKind::denied);
  fs::permissions(object(uuid), fs::perms::group_write, fs::perm_options::remove);
  fs::permissions(object(uuid) + "/memory", fs::perms::others_write, fs::perm_options::add);
  EXPECT_EQ(store_.open(uuid).error().kind(), ErrorKind::denied);
  fs::permissions(object(uuid) + "/memory", fs::perms::others_write, fs::perm_options::remove);
  if (::geteuid() != 0) GTEST_SKIP() << "giving a file to another user needs root";
  ASSERT_EQ(::chown((object(uuid) + "/state").c_str(), 12345, 12345), 0);
  EXPECT_EQ(store_.open(uuid).error().kind(), ErrorKind::denied);
}

TEST_F(Store, MissingAncestorAndCircleAreRefused) {  // S23
  const Uuid a = make_snapshot(store_, "t", "a");
  const Uuid b = make_snapshot(store_, "t", "b", a);
  const Uuid c = make_snapshot(store_, "t", "c", b);
  EXPECT_TRUE(store_.open(c));
  forge(a, [&](Manifest& manifest) { manifest.parent = c; });
  EXPECT_NE(refusal(c).find("circle"), std::string::npos) << refusal(c);
  forge(a, [&](Manifest& manifest) { manifest.parent = Uuid::random(); });
  EXPECT_NE(refusal(c).find("ancestor"), std::string::npos) << refusal(c);
}

TEST_F(Store, SnapshotInUseIsNotRemovedAndItsUserIsNamed) {  // S24
  const Uuid uuid = make_snapshot(store_, "t", "clean");
  {
    const auto first = store_.open(uuid);
    const auto second = store_.open(uuid);
    ASSERT_TRUE(first && second) << "two may use one snapshot";
    const Result<void> removed = store_.remove("t", "clean");
    ASSERT_FALSE(removed);
    EXPECT_EQ(removed.error().kind(), ErrorKind::busy);
    EXPECT_NE(removed.error().message().find(fmt::format("process {} ", ::getpid())),
              std::string::npos)
        << removed.error().message();
    EXPECT_EQ(store_.list("t").value().size(), 1u);
  }
  EXPECT_TRUE(store_.remove("t", "clean"));
  EXPECT_EQ(directories(), 0u);
  EXPECT_EQ(store_.remove("t", "clean").error().kind(), ErrorKind::not_found);
}

TEST_F(Store, ParentOfAChildIsNotRemovedAndTheChildIsNamed) {  // S24
  const Uuid a = make_snapshot(store_, "t", "a");
  make_snapshot(store_, "u", "b", a);
  const Result<void> removed = store_.remove("t", "a");
  ASSERT_FALSE(removed);
  EXPECT_NE(removed.error().message().find("snapshot \"b\" of VM \"u\""), std::string::npos);
  EXPECT_TRUE(store_.remove("u", "b"));
  EXPECT_TRUE(store_.remove("t", "a"));
}

TEST_F(Store, RemovingAVmTakesTheNameAndNotTheDataThatOthersNeed) {
  const Uuid a = make_snapshot(store_, "t", "a");
  const Uuid unneeded = make_snapshot(store_, "t", "unneeded");
  make_snapshot(store_, "u", "b", a);
  std::optional<SnapshotObject> live = std::move(*store_.open(make_snapshot(store_, "t", "live")));
  EXPECT_TRUE(store_.remove_names("t"));
  EXPECT_TRUE(store_.list("t").value().empty());
  EXPECT_TRUE(store_.open(a)) << refusal(a);
  EXPECT_FALSE(fs::exists(object(unneeded)));
  EXPECT_TRUE(fs::exists(live->path()));
  live.reset();
  EXPECT_EQ(store_.gc().value().removed, 1u);
  EXPECT_TRUE(store_.remove("u", "b"));  // the last that needed `a`
  EXPECT_EQ(directories(), 0u);
}

TEST_F(Store, GarbageOfALivingProcessStays) {
  auto draft = store_.begin("t", "clean").value();
  EXPECT_EQ(store_.gc().value().removed, 0u);
  Manifest manifest = fill(draft, "t", "clean");
  EXPECT_TRUE(store_.publish(std::move(draft), std::move(manifest)));
}

TEST_F(Store, DamagedNamedObjectKeepsEverythingItMayRestOn) {
  const Uuid a = make_snapshot(store_, "t", "a");
  const Uuid b = make_snapshot(store_, "u", "b", a);
  const std::string text = read_text(object(b) + "/manifest.json");
  write_text(object(b) + "/manifest.json", text.substr(1));
  EXPECT_TRUE(store_.remove_names("t"));
  EXPECT_TRUE(fs::exists(object(a)));
  write_text(object(b) + "/manifest.json", text);
  EXPECT_TRUE(store_.open(b)) << refusal(b);
}

TEST_F(Store, ListWhileOthersCreateAndRemoveShowsWholeSnapshotsOnly) {
  std::atomic<bool> stop = false;
  std::thread maker([&] {
    for (int i = 0; i < 40; ++i) {
      make_snapshot(store_, "t", fmt::format("s{}", i));
      if (i % 2 != 0) continue;
      EXPECT_TRUE(store_.remove("t", fmt::format("s{}", i)));
    }
    stop = true;
  });
  while (!stop) {
    const auto list = store_.list("").value();
    for (const ListedSnapshot& listed : list) {
      EXPECT_TRUE(listed.manifest) << listed.name << ": " << listed.damage;
    }
  }
  maker.join();
  EXPECT_EQ(store_.list("t").value().size(), 20u);
}

TEST_F(Store, CollectingGarbageWhileSnapshotsAppearAndAreDroppedFailsNeverAndTakesNone) {
  std::atomic<bool> stop = false;
  std::thread maker([&] {
    for (int i = 0; i < 60; ++i) {
      make_snapshot(store_, "t", fmt::format("s{}", i));
      auto dropped = store_.begin("t", "dropped").value();
    }
    stop = true;
  });
  while (!stop) {
    const Result<GarbageReport> report = store_.gc();
    EXPECT_TRUE(report) << message(report);
    const Result<u32> leftovers = store_.remove_leftovers();
    EXPECT_TRUE(leftovers) << message(leftovers);
  }
  maker.join();
  EXPECT_EQ(store_.list("t").value().size(), 60u);
  EXPECT_EQ(directories(), 60u);
}

TEST_F(Store, LeftoversOfAKilledWriterAreRemovedAndADraftThatIsBeingWrittenIsNot) {
  const auto draft = store_.begin("t", "now").value();
  fs::create_directory(snapshots() + "/." + Uuid::random().to_string() + ".tmp-01234567");
  fs::create_directory(snapshots() + "/.trash-01234567");
  make_snapshot(store_, "t", "clean");
  EXPECT_EQ(directories(), 4u);
  EXPECT_EQ(store_.remove_leftovers().value(), 2u);
  EXPECT_EQ(directories(), 2u);
  EXPECT_EQ(store_.list("t").value().size(), 1u);
}

TEST_F(Store, KilledAtAnyMomentItReopensClean) {  // H10
  std::mt19937 random(5);
  u64 survivors = 0;
  for (int round = 0; round < 60; ++round) {
    const pid_t child = ::fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      std::optional<Uuid> parent;
      for (int i = 0;; ++i) {
        const std::string name = fmt::format("r{}-{}", round, i);
        const Uuid uuid = make_snapshot(store_, "t", name, parent);
        if (i % 3 == 2) {
          if (!store_.remove("t", name)) ::_exit(1);
        } else {
          parent = uuid;
        }
      }
    }
    ::usleep(random() % 30'000);
    ASSERT_EQ(::kill(child, SIGKILL), 0);
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << "the child failed by itself";

    ASSERT_TRUE(store_.gc());
    const auto list = store_.list("").value();
    for (const ListedSnapshot& listed : list) {
      ASSERT_TRUE(listed.manifest) << listed.damage;
      const auto opened = store_.open(listed.uuid);
      ASSERT_TRUE(opened) << message(opened);
      ASSERT_TRUE(store_.check(*opened));
    }
    ASSERT_EQ(directories(), list.size()) << "gc leaves exactly what is listed";
    survivors += list.size();
    ASSERT_TRUE(store_.remove_names("t"));
    ASSERT_EQ(directories(), 0u);
  }
  EXPECT_GT(survivors, 0u) << "every child was killed before its first snapshot";
}

TEST_F(Store, NoRoomForTheManifestLeavesNothing) {  // H01
  auto draft = store_.begin("t", "clean").value();
  Manifest manifest = fill(draft, "t", "clean");
  manifest.description.assign(20'000, 'x');
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto old_handler = ::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{8192, old.rlim_max};
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  const auto object = store_.publish(std::move(draft), std::move(manifest));
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
  ::signal(SIGXFSZ, old_handler);
  EXPECT_FALSE(object);
  EXPECT_EQ(directories(), 0u);
  EXPECT_TRUE(store_.list("").value().empty());
}

}  // namespace
