// Other people's NBD clients on our plugin: what they read, write and ask must be what QEMU makes
// of the same images.

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "tests/oracles/support/nbd_server.h"

namespace blockdev::test {
namespace {

// --- reading ---

struct ImageCase {
  const char* name;
  const char* options;
};

class ServedImage : public testing::TestWithParam<ImageCase> {};

TEST_P(ServedImage, ReadsAndMapsAsQemuDoes) {
  SKIP_WITHOUT_ORACLES();
  const TempDir dir;
  const std::string image = dir.path("a.qcow2");
  run_ok(fmt::format("qemu-img create -q -f qcow2 -o {} {} 9M", GetParam().options, image));
  qemu_io(image, "qcow2",
          {"write -q -P 1 0 64k", "write -q -P 2 100k 300k", "write -q -z 2M 64k",
           "write -q -P 3 4095k 1025k", "write -q -c -P 4 6M 2M", "write -q -P 5 9215k 1k"});
  NbdServer server(dir, {"disk=" + image + ",format=qcow2,mode=ro"});
  run_ok(fmt::format("qemu-img compare -f raw -F qcow2 {} {}", server.uri(), image));
  run_ok(fmt::format("nbdcopy {} {}", server.uri(), dir.path("copy.raw")));
  run_ok(fmt::format("qemu-img compare -f raw -F qcow2 {} {}", dir.path("copy.raw"), image));
}

INSTANTIATE_TEST_SUITE_P(Options, ServedImage,
                         testing::Values(ImageCase{"v2", "compat=0.10"},
                                         ImageCase{"cs512", "cluster_size=512"},
                                         ImageCase{"cs64k", "cluster_size=64k"},
                                         ImageCase{"cs2M", "cluster_size=2M"},
                                         ImageCase{"ext128k", "extended_l2=on,cluster_size=128k"},
                                         ImageCase{"zstd", "compression_type=zstd"}),
                         [](const auto& test) { return std::string(test.param.name); });

// base.raw <- middle.qcow2 <- top.qcow2, with data, zeros and holes in each.
struct Chain {
  explicit Chain(const TempDir& dir)
      : base(dir.path("base.raw")), middle(dir.path("middle.qcow2")), top(dir.path("top.qcow2")) {
    run_ok("qemu-img create -q -f raw " + base + " 6M");
    qemu_io(base, "raw", {"write -q -P 1 0 1M", "write -q -P 2 2M 1M", "write -q -P 3 5M 1M"});
    run_ok(fmt::format("qemu-img create -q -f qcow2 -b {} -F raw {} 8M", base, middle));
    qemu_io(middle, "qcow2",
            {"write -q -P 4 512k 128k", "write -q -z 2M 256k", "write -q -P 5 6M 64k"});
    run_ok(fmt::format(
        "qemu-img create -q -f qcow2 -o extended_l2=on,cluster_size=128k -b {} -F qcow2 {} 12M",
        middle, top));
    qemu_io(top, "qcow2",
            {"write -q -P 6 520k 4k", "write -q -z 576k 64k", "write -q -z 6M 4k",
             "write -q -P 7 10M 512"});
  }
  std::string words(const std::string& mode) const {
    return fmt::format("disk={},format=qcow2,mode={},backing={}:qcow2,backing={}:raw", top, mode,
                       middle, base);
  }

  std::string base;
  std::string middle;
  std::string top;
};

// "0+65536 data" for every run of qemu-img map, in which runs of one kind are one.
std::vector<std::string> runs_of(const std::string& map_json) {
  std::vector<std::string> runs;
  std::string kind;
  u64 start = 0;
  u64 end = 0;
  const auto close = [&] {
    if (end > start) runs.push_back(fmt::format("{}+{} {}", start, end - start, kind));
  };
  for (const auto& entry : nlohmann::json::parse(map_json)) {
    const std::string next = entry.at("zero").get<bool>() ? "zero" : "data";
    const u64 at = entry.at("start").get<u64>();
    if (next != kind) {
      close();
      kind = next;
      start = at;
    }
    end = at + entry.at("length").get<u64>();
  }
  close();
  return runs;
}

TEST(Nbd, BaseAllocationOfAChainIsWhatQemuMaps) {
  SKIP_WITHOUT_ORACLES();
  const TempDir dir;
  const Chain chain(dir);
  NbdServer server(dir, {chain.words("ro")});
  const auto ours = runs_of(run_ok("qemu-img map -f raw --output=json " + server.uri()));
  EXPECT_EQ(ours, runs_of(run_ok("qemu-img map -f qcow2 --output=json " + chain.top)));
  EXPECT_GT(ours.size(), 8u);
  // libnbd's words for it: the last sector written is data, all around it a hole.
  const std::string map = run_ok("nbdinfo --map " + server.uri());
  EXPECT_NE(map.find("hole,zero"), std::string::npos) << map;
  EXPECT_NE(map.find("data"), std::string::npos) << map;
  run_ok(fmt::format("qemu-img compare -f raw -F qcow2 {} {}", server.uri(), chain.top));
}

TEST(Nbd, LayersOfASnapshotLieAboveTheImages) {
  SKIP_WITHOUT_ORACLES();
  const TempDir dir;
  const Chain chain(dir);
  run_ok(fmt::format("qemu-img create -q -f qcow2 -b {} -F raw {} 6M", chain.base,
                     dir.path("layer-0.qcow2")));
  qemu_io(dir.path("layer-0.qcow2"), "qcow2", {"write -q -P 8 0 128k", "write -q -z 2M 64k"});
  run_ok(fmt::format("qemu-img create -q -f qcow2 -b {} -F qcow2 {} 6M", dir.path("layer-0.qcow2"),
                     dir.path("layer-1.qcow2")));
  qemu_io(dir.path("layer-1.qcow2"), "qcow2", {"write -q -P 9 64k 128k"});
  NbdServer server(
      dir, {"disk=" + chain.base + ",format=raw,mode=ro", "layer=" + dir.path("layer-0.qcow2"),
            "layer=" + dir.path("layer-1.qcow2")});
  run_ok(fmt::format("qemu-img compare -f raw -F qcow2 {} {}", server.uri(),
                     dir.path("layer-1.qcow2")));
}

TEST(Nbd, AReadOnlyDiskSaysSoAndRefusesWrites) {
  SKIP_WITHOUT_ORACLES();
  const TempDir dir;
  const Chain chain(dir);
  NbdServer server(dir, {chain.words("ro")});
  const auto info = nlohmann::json::parse(run_ok("nbdinfo --json " + server.uri()));
  const auto& disk = info.at("exports").at(0);
  EXPECT_TRUE(disk.at("is_read_only").get<bool>());
  EXPECT_TRUE(disk.at("can_multi_conn").get<bool>());
  EXPECT_EQ(disk.at("export-size").get<u64>(), 12u << 20);
  EXPECT_EQ(disk.at("block_size_minimum").get<u64>(), 512u);
  const CommandResult refused = run_command("qemu-io -f raw -c 'write 0 4k' " + server.uri());
  EXPECT_NE(refused.status, 0) << refused.output;
}

TEST(Nbd, AFormatThatIsNotGivenIsNotGuessed) {
  SKIP_WITHOUT_ORACLES();
  const TempDir dir;
  const Chain chain(dir);
  const CommandResult refused = run_command(
      fmt::format("nbdkit -f -U {} {} {}", dir.path("s"), NBDKIT_PLUGIN_PATH, chain.top));
  EXPECT_EQ(refused.status, 1);
  EXPECT_NE(refused.output.find("the format is missing"), std::string::npos) << refused.output;
}

// --- writing ---

// The same commands for our server and for QEMU on an overlay of its own.
void expect_same_as_qemu(NbdServer& server, const TempDir& dir, const std::string& base,
                         const std::vector<std::string>& commands) {
  const std::string theirs = dir.path("theirs.qcow2");
  run_ok(fmt::format("qemu-img create -q -f qcow2 -b {} -F qcow2 {}", base, theirs));
  qemu_io(theirs, "qcow2 -d unmap", commands);
  qemu_io(server.uri(), "raw -d unmap", commands);
  run_ok(fmt::format("qemu-img compare -f raw -F qcow2 {} {}", server.uri(), theirs));
}

const std::vector<std::string> kPatterns = {
    "write -P 10 0 4k",           "write -P 11 65024 1024",
    "read -P 11 65024 1024",      "write -z 512k 128k",
    "read -P 0 512k 128k",        "write -z -u 1000k 100k",
    "read -P 0 1000k 100k",       "write -P 12 1001k 3k",
    "read -P 0 1000k 1k",         "write -f -P 13 3M 1M",
    "write -P 14 3583k 2k",       "read -P 14 3583k 2k",
    "write -z 6143k 2k",          "read -P 0 6143k 2k",
    "writev -P 15 9M 4k 8k 512",  "aio_write -P 16 11M 64k",
    "aio_write -P 17 11392k 64k", "aio_flush",
    "read -P 16 11M 64k",         "flush",
    "read -P 17 11392k 64k",      "write -P 18 12582400 512",
};

TEST(Nbd, PatternsWrittenToTheThrowAwayLayerReadAsQemus) {
  SKIP_WITHOUT_ORACLES();
  const TempDir dir;
  const Chain chain(dir);
  const std::vector<u8> before = read_file(chain.top);
  NbdServer server(dir, {chain.words("overlay")});
  expect_same_as_qemu(server, dir, chain.top, kPatterns);
  server.stop();
  EXPECT_EQ(read_file(chain.top), before) << "the image is never changed";
}

TEST(Nbd, WhatIsDiscardedReadsAsZerosAndIsAHole) {
  SKIP_WITHOUT_ORACLES();
  const TempDir dir;
  const Chain chain(dir);
  NbdServer server(dir, {chain.words("overlay")});
  qemu_io(server.uri(), "raw -d unmap", {"discard 2M 1M", "read -P 0 2M 1M"});
  const auto map = runs_of(run_ok("qemu-img map -f raw --output=json " + server.uri()));
  EXPECT_NE(std::find(map.begin(), map.end(), fmt::format("{}+{} zero", 1 << 20, 4 << 20)),
            map.end());
}

TEST(Nbd, ManyConnectionsCopyADiskWhole) {
  SKIP_WITHOUT_ORACLES();
  const TempDir dir;
  const std::string source = dir.path("source.raw");
  run_ok(fmt::format("dd if=/dev/urandom of={} bs=1M count=24 status=none", source));
  run_ok(fmt::format("truncate -s 32M {}", source));
  const std::string image = dir.path("empty.qcow2");
  run_ok(fmt::format("qemu-img create -q -f qcow2 {} 32M", image));
  NbdServer server(dir, {"disk=" + image + ",format=qcow2"});
  run_ok(fmt::format("nbdcopy --connections=4 --requests=16 --flush {} {}", source, server.uri()));
  run_ok(fmt::format("qemu-img compare -f raw -F raw {} {}", source, server.uri()));
  EXPECT_NE(run_ok("nbdinfo --map=base:allocation " + server.uri()).find("hole,zero"),
            std::string::npos);
}

// fio's own verification of random writes, many in flight.
void run_fio(const TempDir& dir, const std::string& uri) {
  run_ok(fmt::format(
      "cd {} && fio --name=verify --ioengine=nbd --uri={} --rw=randrw --bs=4k --size=12M "
      "--iodepth=16 --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_backlog=64 --fsync=50 "
      "--randseed=4 --verify_state_save=0 --minimal",
      dir.root(), uri));
}

TEST(Nbd, FioVerifiesTheThrowAwayLayer) {
  SKIP_WITHOUT_ORACLES();
  const TempDir dir;
  const Chain chain(dir);
  NbdServer server(dir, {chain.words("overlay")});
  run_fio(dir, server.uri());
}

// --- writing through to the image ---

class PersistentImage : public testing::TestWithParam<ImageCase> {
 protected:
  // An overlay of the chain, with the options of the case.
  std::string make_overlay(const TempDir& dir, const Chain& chain) {
    const std::string path = dir.path("ours.qcow2");
    run_ok(fmt::format("qemu-img create -q -f qcow2 -o {} -b {} -F qcow2 {}", GetParam().options,
                       chain.top, path));
    return path;
  }
  std::string words(const std::string& overlay, const Chain& chain) {
    return fmt::format(
        "disk={},format=qcow2,mode=persist,backing={}:qcow2,backing={}:qcow2,"
        "backing={}:raw",
        overlay, chain.top, chain.middle, chain.base);
  }
};

TEST_P(PersistentImage, HoldsWhatQemusHolds) {
  SKIP_WITHOUT_ORACLES();
  const TempDir dir;
  const Chain chain(dir);
  const std::string ours = make_overlay(dir, chain);
  NbdServer server(dir, {words(ours, chain)});
  expect_same_as_qemu(server, dir, chain.top, kPatterns);
  server.stop();
  run_ok("qemu-img check -f qcow2 " + ours);
  run_ok(fmt::format("qemu-img compare -f qcow2 -F qcow2 {} {}", ours, dir.path("theirs.qcow2")));
  // Opened again, and by QEMU in between.
  qemu_io(ours, "qcow2", {"write -P 30 700k 200k", "write -z 4M 100k"});
  NbdServer again(dir, {words(ours, chain)});
  qemu_io(again.uri(), "raw", {"read -P 30 700k 200k", "read -P 0 4M 100k", "write -P 31 800k 9k"});
  again.stop();
  run_ok("qemu-img check -f qcow2 " + ours);
  qemu_io(ours, "qcow2", {"read -P 31 800k 9k", "read -P 30 700k 100k", "read -P 30 809k 91k"});
}

TEST_P(PersistentImage, MapsAsQemuMapsIt) {
  SKIP_WITHOUT_ORACLES();
  const TempDir dir;
  const Chain chain(dir);
  const std::string ours = make_overlay(dir, chain);
  NbdServer server(dir, {words(ours, chain)});
  qemu_io(server.uri(), "raw -d unmap", kPatterns);
  qemu_io(server.uri(), "raw -d unmap", {"discard 5M 2M"});
  const auto live = runs_of(run_ok("qemu-img map -f raw --output=json " + server.uri()));
  server.stop();
  EXPECT_EQ(live, runs_of(run_ok("qemu-img map -f qcow2 --output=json " + ours)));
}

TEST_P(PersistentImage, PassesFiosVerification) {
  SKIP_WITHOUT_ORACLES();
  const TempDir dir;
  const Chain chain(dir);
  const std::string ours = make_overlay(dir, chain);
  NbdServer server(dir, {words(ours, chain)});
  run_fio(dir, server.uri());
  server.stop();
  run_ok("qemu-img check -f qcow2 " + ours);
}

INSTANTIATE_TEST_SUITE_P(Options, PersistentImage,
                         testing::Values(ImageCase{"cs512", "cluster_size=512"},
                                         ImageCase{"cs64k", "cluster_size=64k"},
                                         ImageCase{"ext128k", "extended_l2=on,cluster_size=128k"},
                                         ImageCase{"cs2M", "cluster_size=2M,refcount_bits=1"}),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(Nbd, ARawImageIsWrittenThrough) {
  SKIP_WITHOUT_ORACLES();
  const TempDir dir;
  const Chain chain(dir);
  const std::string ours = dir.path("ours.raw");
  run_ok(fmt::format("qemu-img convert -f qcow2 -O raw {} {}", chain.top, ours));
  NbdServer server(dir, {"disk=" + ours + ",format=raw,mode=persist"});
  expect_same_as_qemu(server, dir, chain.top, kPatterns);
  run_fio(dir, server.uri());
}

TEST(Nbd, AnImageThatIsWrittenIsRefusedToOthers) {
  SKIP_WITHOUT_ORACLES();
  const TempDir dir;
  const Chain chain(dir);
  NbdServer server(dir, {chain.words("persist")});
  run_ok("qemu-io -f raw -c 'write 0 4k' " + server.uri());
  const CommandResult refused = run_command("qemu-io -f qcow2 -c 'write 0 4k' " + chain.top);
  EXPECT_NE(refused.output.find("lock"), std::string::npos) << refused.output;
}

}  // namespace
}  // namespace blockdev::test
