// Zeroes, discards and copy-on-write at the places where images went wrong before, written by
// qemu-io through our server and by QEMU into an image of its own: both must read the same, and
// qemu-img check must find ours clean. What is tried follows what QEMU's iotests 034, 037, 122,
// 154, 250 and 290 are about.

#include <fmt/format.h>
#include <sys/stat.h>

#include "tests/oracles/support/nbd_server.h"

namespace blockdev::test {
namespace {

struct OverlayCase {
  const char* name;
  const char* options;
};

class OverlayWrites : public testing::TestWithParam<OverlayCase> {
 protected:
  void SetUp() override { SKIP_WITHOUT_ORACLES(); }

  // A base of `size` with data, zero clusters and holes side by side.
  void make_base(const std::string& size, const std::vector<std::string>& commands) {
    run_ok(fmt::format("qemu-img create -q -f qcow2 {} {}", base_, size));
    qemu_io(base_, "qcow2", commands);
  }
  // The commands on an overlay of `size` of ours and on one of QEMU's.
  void expect_same(const std::string& size, const std::vector<std::string>& commands) {
    for (const std::string& overlay : {ours_, theirs_}) {
      run_ok(fmt::format("qemu-img create -q -f qcow2 -o {} -b {} -F qcow2 {} {}",
                         GetParam().options, base_, overlay, size));
    }
    qemu_io(theirs_, "qcow2 -d unmap", commands);
    {
      NbdServer server(
          dir_, {fmt::format("disk={},format=qcow2,mode=persist,backing={}:qcow2", ours_, base_)});
      qemu_io(server.uri(), "raw -d unmap", commands);
      run_ok(fmt::format("qemu-img compare -f raw -F qcow2 {} {}", server.uri(), theirs_));
    }
    run_ok("qemu-img check -f qcow2 " + ours_);
    run_ok(fmt::format("qemu-img compare -f qcow2 -F qcow2 {} {}", ours_, theirs_));
  }

  const TempDir dir_;
  const std::string base_ = dir_.path("base.qcow2");
  const std::string ours_ = dir_.path("ours.qcow2");
  const std::string theirs_ = dir_.path("theirs.qcow2");
};

const std::vector<std::string> kMixedBase = {
    "write -q -P 1 0 1M",       "write -q -z 1M 256k",     "write -q -P 2 2M 128k",
    "write -q -P 3 2304k 512",  "write -q -P 4 3071k 66k", "write -q -z 4M 64k",
    "write -q -P 5 4160k 192k", "write -q -P 6 6M 2M",
};

// iotest 154: each end of the zeroes lies within a cluster, over data, zeros and nothing below.
TEST_P(OverlayWrites, ZeroesWithinClustersKeepTheirNeighbours) {
  make_base("8M", kMixedBase);
  expect_same(
      "8M", {"write -z 512 512", "write -z 65024 1024", "write -z 130k 61k", "write -z 1023k 2k",
             "write -z 1279k 1026k", "write -z 2111k 30k", "write -z 2303k 2k", "write -z 3070k 2k",
             "write -z 3136k 512", "write -z -u 4095k 66k", "write -z -u 4223k 1k",
             "write -z 6143k 3k", "read -P 1 1024 64000", "read -P 0 65024 1024",
             "read -P 0 512 512", "write -P 9 600k 100", "write -z 604k 512", "read -P 1 601k 3k"});
}

// iotest 034: whole runs of zeroes that cross clusters of every state, written over and over.
TEST_P(OverlayWrites, ZeroesAcrossManyClustersCanBeWrittenAgain) {
  make_base("8M", kMixedBase);
  expect_same("8M", {"write -z 300k 2500k", "read -P 0 300k 2500k", "write -P 10 700k 900k",
                     "write -z 650k 400k", "read -P 0 650k 400k", "read -P 10 1050k 550k",
                     "write -P 11 1000k 1k", "write -z 3M 5M", "write -P 12 5M 512",
                     "read -P 0 5243392 100k", "write -z -u 5M 4k", "read -P 0 4M 4M"});
}

// iotest 037: what lies below ends within a cluster.
TEST_P(OverlayWrites, NothingShinesThroughBehindTheEndOfAShortBase) {
  make_base("2100736", {"write -q -P 7 0 2100736"});  // 2 MiB and 7 sectors
  expect_same("8M", {"read -P 7 2M 3584", "read -P 0 2100736 512", "write -P 1 2100736 512",
                     "write -P 2 2101760 512", "write -P 3 2097664 512", "read -P 7 2098176 2560",
                     "read -P 0 2101248 512", "write -z 2098176 1k", "write -P 4 4M 512",
                     "read -P 0 4194816 60k", "write -P 5 8388096 512", "write -z 2M 2M",
                     "read -P 0 2M 2M"});
}

// iotest 290, and 250 as to sizes: what is discarded reads as zeros, also over data.
TEST_P(OverlayWrites, DiscardedClustersReadAsZerosOverABase) {
  make_base("8M", kMixedBase);
  expect_same("8M",
              {"discard 0 2M", "read -P 0 0 2M", "write -P 8 2M 2M", "discard 2M 2M",
               "read -P 0 2M 2M", "write -P 9 2200k 512", "read -P 0 2253312 1M", "discard 6M 2M",
               "write -z 6M 1M", "write -P 10 6M 4k", "discard 6M 2M", "read -P 0 6M 2M"});
}

// Everything, in an order that nobody thought of.
TEST_P(OverlayWrites, RandomRequestsReadAsQemus) {
  make_base("8M", kMixedBase);
  u64 state = 0x1234567;
  const auto random = [&state](u64 below) {
    state = state * 6364136223846793005 + 1442695040888963407;
    return (state >> 33) % below;
  };
  std::vector<std::string> commands;
  for (int i = 0; i < 150; ++i) {
    const u64 sectors = random(3) == 0 ? 1 + random(700) : 1 + random(20);
    const u64 first = random(9 * 2048 - sectors);
    switch (random(5)) {
      case 0:
        commands.push_back(fmt::format("write -q -z {} {}", first * 512, sectors * 512));
        break;
      case 1:
        commands.push_back(fmt::format("write -q -z -u {} {}", first * 512, sectors * 512));
        break;
      case 2:
        // Whole clusters of every size: what part of others a discard takes is each one's choice.
        if (random(4) == 0) commands.push_back(fmt::format("discard -q {}M 2M", random(4) * 2));
        break;
      default:
        commands.push_back(
            fmt::format("write -q -P {} {} {}", 1 + random(255), first * 512, sectors * 512));
    }
  }
  expect_same("9M", commands);
}

INSTANTIATE_TEST_SUITE_P(Options, OverlayWrites,
                         testing::Values(OverlayCase{"cs4k", "cluster_size=4k"},
                                         OverlayCase{"cs64k", "cluster_size=64k"},
                                         OverlayCase{"ext128k", "extended_l2=on,cluster_size=128k"},
                                         OverlayCase{"cs2M", "cluster_size=2M"}),
                         [](const auto& test) { return std::string(test.param.name); });

// iotest 122: a copy into our image, by QEMU, with zeros and holes in it.
TEST(ServedTarget, TakesWhatQemuImgConverts) {
  SKIP_WITHOUT_ORACLES();
  const TempDir dir;
  const std::string source = dir.path("source.qcow2");
  run_ok(fmt::format("qemu-img create -q -f qcow2 {} 8M", source));
  qemu_io(source, "qcow2", kMixedBase);
  const std::string target = dir.path("target.qcow2");
  for (const char* sparse : {"-S 4k", "-S 0", "-S 128k"}) {
    run_ok(fmt::format("qemu-img create -q -f qcow2 {} 8M", target));
    qemu_io(target, "qcow2", {"write -q -P 99 0 8M"});
    NbdServer server(dir, {"disk=" + target + ",format=qcow2,mode=persist"});
    run_ok(
        fmt::format("qemu-img convert -n {} -f qcow2 -O raw {} {}", sparse, source, server.uri()));
    server.stop();
    run_ok("qemu-img check -f qcow2 " + target);
    run_ok(fmt::format("qemu-img compare -f qcow2 -F qcow2 {} {}", target, source));
  }
}

u64 bytes_on_disk(const std::string& path) {
  struct stat status {};
  EXPECT_EQ(::stat(path.c_str(), &status), 0);
  return static_cast<u64>(status.st_blocks) * 512;
}

// iotest 250: space comes back, and writing again does not make the file grow for ever.
TEST(ServedTarget, GivesDiscardedSpaceBackToTheHost) {
  SKIP_WITHOUT_ORACLES();
  const TempDir dir;
  for (const char* options : {"cluster_size=64k", "extended_l2=on,cluster_size=128k"}) {
    const std::string image = dir.path("a.qcow2");
    run_ok(fmt::format("qemu-img create -q -f qcow2 -o {} {} 32M", options, image));
    NbdServer server(dir, {"disk=" + image + ",format=qcow2,mode=persist"});
    for (int round = 0; round < 4; ++round) {
      qemu_io(server.uri(), "raw -d unmap", {"write -q -P 7 0 32M", "flush"});
      EXPECT_GE(bytes_on_disk(image), 32u << 20);
      qemu_io(server.uri(), "raw -d unmap", {"discard -q 0 32M", "flush"});
      EXPECT_LT(bytes_on_disk(image), 2u << 20) << options;
    }
    server.stop();
    run_ok("qemu-img check -f qcow2 " + image);
    struct stat status {};
    ASSERT_EQ(::stat(image.c_str(), &status), 0);
    EXPECT_LT(status.st_size, 36 << 20) << options;
  }
}

}  // namespace
}  // namespace blockdev::test
