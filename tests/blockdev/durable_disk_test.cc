#include "blockdev/durable_disk.h"

#include <gtest/gtest.h>

#include <random>

#include "blockdev/disk.h"
#include "blockdev/sync_engine.h"
#include "tests/blockdev/support/model_disk.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/test_client.h"

namespace blockdev::test {
namespace {

struct ImageKind {
  std::string name;
  std::string create;  // what qemu-img create gets
  u64 disk_bytes;
  std::string base = {};  // "raw" or "qcow2"
};

void PrintTo(const ImageKind& kind, std::ostream* out) { *out << kind.name; }

// An image made by qemu-img, perhaps above another, opened for writing, with a model of it.
struct Rig {
  explicit Rig(const ImageKind& image) : kind(image) {
    model.bytes.resize(kind.disk_bytes);
    if (!kind.base.empty()) make_base();
    const std::string format = kind.name.starts_with("raw") ? "raw" : "qcow2";
    run_ok("qemu-img create -q -f " + format + " " + kind.create + backing() + " " + path() + " " +
           std::to_string(kind.disk_bytes));
    spec = path() + ",format=" + format + ",mode=persist";
    if (!kind.base.empty()) spec += ",backing=" + dir.path("base") + ":" + kind.base;
    open();
  }
  ~Rig() { close(); }

  std::string path() const { return dir.path("disk"); }
  u64 cluster_bytes() const {
    return kind.name.find("2m") != std::string::npos ? 2 * base::kMiB : 0;
  }
  std::string backing() const {
    return kind.base.empty() ? "" : " -b " + dir.path("base") + " -F " + kind.base;
  }
  // A bit shorter than the disk, with data and holes.
  void make_base() {
    const u64 bytes = kind.disk_bytes - 64 * base::kKiB - 512;
    std::vector<u8> content(bytes);
    for (u64 at = 0; at + 65536 < bytes; at += 2 * 65536) {
      std::ranges::copy(pattern(65536, at), content.begin() + static_cast<std::ptrdiff_t>(at));
    }
    write_file(dir.path("content"), content);
    run_ok("qemu-img convert -f raw -O " + kind.base + " " + dir.path("content") + " " +
           dir.path("base"));
    std::ranges::copy(content, model.bytes.begin());
  }
  void open() {
    DiskOptions options;
    options.executor = executor;
    disk = open_disk(parse_disk_spec(spec).value(), options).value();
    client = std::make_unique<TestClient>(*disk->backend);
  }
  void close() {
    client.reset();
    if (disk != nullptr) {
      EXPECT_TRUE(disk->durable->close());
    }
    disk.reset();
  }

  void write(u64 offset, u64 length, u64 seed) {
    const std::vector<u8> data = pattern(length, seed);
    ASSERT_EQ(client->write(offset, data), BlockStatus::ok);
    model.write(offset, data);
  }
  void zero(BlockOp op, u64 offset, u64 length) {
    ASSERT_EQ(client->zero(op, offset, length), BlockStatus::ok);
    if (op == BlockOp::write_zeroes) model.zero(offset, length);
  }
  void expect_content() {
    std::vector<u8> found = client->read(0, model.bytes.size());
    ASSERT_EQ(found.size(), model.bytes.size());
    const auto differs = std::ranges::mismatch(found, model.bytes);
    ASSERT_TRUE(differs.in1 == found.end()) << "at " << std::hex << (differs.in1 - found.begin());
  }
  // Closed, QEMU must find the same in it and nothing to complain about.
  void expect_qemu_agrees() {
    close();
    if (!kind.name.starts_with("raw")) run_ok("qemu-img check -q " + path());
    write_file(dir.path("model"), model.bytes);
    const std::string format = kind.name.starts_with("raw") ? "raw" : "qcow2";
    run_ok("qemu-img compare -q -f " + format + " -F raw " + path() + " " + dir.path("model"));
  }

  ImageKind kind;
  TempDir dir{"/dev/shm"};  // no syncs of a shared device
  ModelDisk model;
  std::string spec;
  std::shared_ptr<Executor> executor = std::make_shared<ManualExecutor>();
  std::unique_ptr<Disk> disk;
  std::unique_ptr<TestClient> client;
};

const ImageKind kRaw{"raw", "", 8 * base::kMiB + 512};
const ImageKind kStandard{"standard", "", 16 * base::kMiB + 512};
const ImageKind kExtended{"extended", "-o extended_l2=on,cluster_size=128k", 16 * base::kMiB + 512};

class Durable : public testing::TestWithParam<ImageKind> {};

TEST_P(Durable, KeepsWhatIsWrittenAndQemuReadsIt) {
  SKIP_WITHOUT_QEMU_TOOLS();
  Rig rig(GetParam());
  rig.write(0, 4096, 1);
  rig.write(65536 + 512, 1024, 2);
  rig.write(65536, 512, 3);
  rig.write(3 * 65536 - 512, 200 * 1024, 4);
  rig.write(rig.model.bytes.size() - 1024, 1024, 5);
  ASSERT_NO_FATAL_FAILURE(rig.expect_content());
  EXPECT_EQ(rig.client->flush(), BlockStatus::ok);
  rig.write(4096, 8192, 6);
  rig.write(1024 * 1024, 4096, 7);
  ASSERT_NO_FATAL_FAILURE(rig.expect_content());
  rig.expect_qemu_agrees();
}

TEST_P(Durable, RandomRequestsMatchAModelAndQemu) {
  SKIP_WITHOUT_QEMU_TOOLS();
  Rig rig(GetParam());
  std::mt19937_64 random(7);
  const u64 sectors = rig.model.bytes.size() / 512;
  for (u32 round = 0; round < 3; ++round) {
    for (u32 i = 0; i < 200; ++i) {
      const u64 limit = random() % 8 == 0 ? 600 : 20;
      const u64 offset = random() % 4 == 0 ? (random() % sectors) & ~u64{127} : random() % sectors;
      const u64 length = std::min(1 + random() % limit, sectors - offset);
      switch (random() % 8) {
        case 0: rig.zero(BlockOp::write_zeroes, offset * 512, length * 512); break;
        case 1: EXPECT_EQ(rig.client->flush(), BlockStatus::ok); break;
        default: rig.write(offset * 512, length * 512, random()); break;
      }
      ASSERT_FALSE(testing::Test::HasFatalFailure());
    }
    ASSERT_NO_FATAL_FAILURE(rig.expect_content());
    rig.expect_qemu_agrees();
    rig.open();
    ASSERT_NO_FATAL_FAILURE(rig.expect_content());
  }
}

TEST_P(Durable, DiscardedSpaceReturnsAndReadsAsZeros) {
  SKIP_WITHOUT_QEMU_TOOLS();
  Rig rig(GetParam());
  const u64 bytes = 4 * base::kMiB;
  rig.write(0, bytes, 1);
  ASSERT_EQ(rig.client->zero(BlockOp::discard, 0, bytes), BlockStatus::ok);
  rig.model.zero(0, bytes);
  ASSERT_NO_FATAL_FAILURE(rig.expect_content());
  rig.write(8192, 512, 2);
  ASSERT_NO_FATAL_FAILURE(rig.expect_content());
  rig.expect_qemu_agrees();
  const u64 used = std::stoull(run_ok("du --block-size=1 " + rig.path()));
  // The tables, and what the second write filled.
  EXPECT_LT(used, base::kMiB + 6 * rig.cluster_bytes());
}

INSTANTIATE_TEST_SUITE_P(
    Images, Durable,
    testing::Values(
        kRaw, kStandard, kExtended, ImageKind{"standard_over_raw", "", 16 * base::kMiB, "raw"},
        ImageKind{"standard_over_qcow2", "", 16 * base::kMiB, "qcow2"},
        ImageKind{"extended_over_raw", "-o extended_l2=on,cluster_size=128k", 16 * base::kMiB,
                  "raw"},
        ImageKind{"extended_16k", "-o extended_l2=on,cluster_size=16k", 16 * base::kMiB, "raw"},
        ImageKind{"cluster_512", "-o cluster_size=512", 8 * base::kMiB, "raw"},
        ImageKind{"cluster_4k_bits_1", "-o cluster_size=4k,refcount_bits=1", 8 * base::kMiB, "raw"},
        ImageKind{"cluster_2m_bits_64", "-o cluster_size=2M,refcount_bits=64", 32 * base::kMiB,
                  "raw"},
        ImageKind{"cluster_512_bits_64", "-o cluster_size=512,refcount_bits=64", 8 * base::kMiB},
        ImageKind{"version_2", "-o compat=0.10", 16 * base::kMiB}),
    [](const auto& instance) { return instance.param.name; });

}  // namespace
}  // namespace blockdev::test
