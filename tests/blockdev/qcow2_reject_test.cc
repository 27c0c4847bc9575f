// Headers and tables that must be refused, each with a message that names the reason
// (the catalogue of bad images: Q01 to Q25, as far as it concerns reading).

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include "blockdev/disk.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/test_client.h"

namespace blockdev::test {
namespace {

using testing::HasSubstr;

// A new image of 1 MiB with one written cluster: header, refcount table at 0x10000, refcount block
// at 0x20000, L1 at 0x30000, L2 at 0x40000, data at 0x50000.
std::string make_image(const TempDir& dir, const std::string& options = "compat=1.1") {
  const std::string path = dir.path("x.qcow2");
  run_ok(fmt::format("qemu-img create -q -f qcow2 -o {} {} 1M", options, path));
  run_ok("qemu-io -f qcow2 -c 'write -q -P 7 0 64k' " + path);
  return path;
}

Result<std::unique_ptr<Disk>> try_open(const std::string& path, const std::string& more = "") {
  return open_disk(parse_disk_spec(path + ",format=qcow2" + more).value(), {});
}

void expect_refused(const std::string& path, const std::string& reason,
                    const std::string& more = "") {
  const auto disk = try_open(path, more);
  ASSERT_FALSE(disk) << "accepted, though: " << reason;
  EXPECT_THAT(disk.error().message(), HasSubstr(reason));
}

struct Poke {
  const char* name;
  u64 offset;
  u32 width;
  u64 value;
  const char* reason;
};

class PokedHeader : public testing::TestWithParam<Poke> {};

TEST_P(PokedHeader, IsRefusedWithTheReason) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string path = make_image(dir);
  const Poke& poke = GetParam();
  if (poke.width == 8) {
    poke_be64(path, poke.offset, poke.value);
  } else {
    poke_be32(path, poke.offset, static_cast<u32>(poke.value));
  }
  expect_refused(path, poke.reason);
}

INSTANTIATE_TEST_SUITE_P(
    Fields, PokedHeader,
    testing::Values(
        Poke{"magic", 0, 4, 0x51464900, "not a qcow2 image"},
        Poke{"version_0", 4, 4, 0, "qcow2 version 0"}, Poke{"version_1", 4, 4, 1, "version 1"},
        Poke{"version_4", 4, 4, 4, "version 4"},
        Poke{"version_max", 4, 4, 0xffffffff, "version 4294967295"},
        Poke{"header_length_0", 100, 4, 0, "header_length 0"},
        Poke{"header_length_72", 100, 4, 72, "header_length 72"},
        Poke{"header_length_103", 100, 4, 103, "header_length 103"},
        Poke{"header_length_huge", 100, 4, 0x7fffffff, "header_length"},
        Poke{"header_length_max", 100, 4, 0xffffffff, "header_length"},
        Poke{"extension_length", 116, 4, 0x7fffffff, "header extension"},
        Poke{"unknown_feature", 72, 8, u64{1} << 40, "bit 40"},
        Poke{"unknown_feature_5", 72, 8, 0x20, "bit 5"},
        Poke{"data_file_feature", 72, 8, 4, "external data file"},
        Poke{"compression_without_type", 72, 8, 8, "compression type 0"},
        Poke{"type_without_feature", 104, 4, 0x01000000, "compression type 1"},
        Poke{"cluster_bits_0", 20, 4, 0, "cluster_bits 0"},
        Poke{"cluster_bits_8", 20, 4, 8, "cluster_bits 8"},
        Poke{"cluster_bits_22", 20, 4, 22, "cluster_bits 22"},
        Poke{"cluster_bits_63", 20, 4, 63, "cluster_bits 63"},
        Poke{"cluster_bits_max", 20, 4, 0xffffffff, "cluster_bits"},
        Poke{"size_0", 24, 8, 0, "no bytes"}, Poke{"size_2_63", 24, 8, u64{1} << 63, "at most"},
        Poke{"size_max", 24, 8, ~u64{0}, "at most"},
        Poke{"size_over_cap", 24, 8, (u64{1} << 50) + 512, "at most 1125899906842624"},
        Poke{"size_over_l1", 24, 8, u64{1} << 50, "needs 2097152"},
        Poke{"refcount_block_reserved", 0x10000, 8, 0x20001, "reserved bits"},
        Poke{"refcount_block_unaligned", 0x10000, 8, 0x20200, "refcount block at 0x20200"},
        Poke{"refcount_block_is_table", 0x10000, 8, 0x10000, "refcount table and refcount block"},
        Poke{"refcount_block_is_l1", 0x10008, 8, 0x30000, "L1 table and refcount block"},
        Poke{"encrypted_aes", 32, 4, 1, "encrypted"}, Poke{"encrypted_luks", 32, 4, 2, "encrypted"},
        Poke{"encrypted_99", 32, 4, 99, "encrypted"},
        Poke{"l1_size_max", 36, 4, 0xffffffff, "L1 table of"},
        Poke{"l1_size_huge", 36, 4, 0x7fffffff, "L1 table of"},
        Poke{"l1_size_0", 36, 4, 0, "L1 table has 0 entries"},
        Poke{"l1_unaligned", 40, 8, 0x30001, "L1 table at 0x30001"},
        Poke{"l1_past_end", 40, 8, 0x7fff0000, "outside file"},
        Poke{"l1_overflow", 40, 8, 0xffffffffffff0000, "outside file"},
        Poke{"l1_is_header", 40, 8, 0, "overlap"},
        Poke{"l1_is_refcount_table", 40, 8, 0x10000, "overlap"},
        Poke{"refcount_table_0", 56, 4, 0, "no refcount table"},
        Poke{"refcount_table_huge", 56, 4, 0x20001, "refcount table of"},
        Poke{"refcount_table_max", 56, 4, 0xffffffff, "refcount table of"},
        Poke{"refcount_table_unaligned", 48, 8, 0x10200, "refcount table at 0x10200"},
        Poke{"refcount_table_past_end", 48, 8, 0x70000000, "outside file"},
        Poke{"refcount_order_7", 96, 4, 7, "refcount_order 7"},
        Poke{"refcount_order_63", 96, 4, 63, "refcount_order 63"},
        Poke{"snapshots_max", 60, 4, 0xffffffff, "internal snapshots"},
        Poke{"snapshots_no_table", 60, 4, 1, "overlap"},
        Poke{"backing_offset_only", 8, 8, 0x200, "backing file name"},
        Poke{"backing_size_only", 16, 4, 5, "backing file name"}),
    [](const auto& test) { return std::string(test.param.name); });

TEST(Qcow2Reject, FilesTooShortForAHeader) {
  const TempDir dir;
  for (const u64 size : {0, 1, 71, 103}) {
    std::vector<u8> bytes(size, 0);
    const u8 start[] = {'Q', 'F', 'I', 0xfb, 0, 0, 0, 3};
    std::copy_n(start, std::min<u64>(size, sizeof start), bytes.begin());
    write_file(dir.path("short.qcow2"), bytes);
    expect_refused(dir.path("short.qcow2"), size < 72 ? "too few for a header" : "too few");
  }
}

TEST(Qcow2Reject, BackingNamesThatAreNoNames) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string path = make_image(dir);
  const auto set_name = [&](u64 offset, u32 size) {
    poke_be64(path, 8, offset);
    poke_be32(path, 16, size);
  };
  set_name(0x200, 1024);
  expect_refused(path, "1024 bytes");
  set_name(0xfffe, 5);
  expect_refused(path, "end of the first cluster");
  set_name(0x10, 5);
  expect_refused(path, "between the header");
  set_name(0x400, 5);  // NUL bytes
  expect_refused(path, "not plain text");
  const auto poke_name = [&](std::string_view name) {
    poke_file(path, 0x400, {reinterpret_cast<const u8*>(name.data()), name.size()});
    set_name(0x400, static_cast<u32>(name.size()));
  };
  for (const char* name : {"a\xff"
                           "bcd",
                           "\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "a\x1b[2J",
                           "a\x7f", "a\xc2\x80", "a\xc2\x9f", "a\xd8\x9c",
                           "a\xe2\x80\xae"
                           "txt.exe",
                           "a\xe2\x80\x8f", "a\xe2\x80\xa8", "a\xe2\x81\xa6"}) {
    poke_name(name);
    expect_refused(path, "not plain text");
  }
  for (const char* name : {"a\xc2\xa0", "\xc3\xa4.raw", "\xe2\x82\xac", "\xf0\x9f\x98\x80"}) {
    poke_name(name);
    expect_refused(path, "names inside images are not followed");
  }
}

TEST(Qcow2Reject, ExtendedL2WithTinyClusters) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string path = make_image(dir, "cluster_size=4k");
  poke_be64(path, 72, 0x10);
  expect_refused(path, "subclusters of less than 512 bytes");
}

TEST(Qcow2Reject, NamesInsideImagesAreNotFollowed) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string path = dir.path("x.qcow2");
  write_file(dir.path("base.raw"), pattern(4096, 1));
  run_ok("cd " + dir.root() + " && qemu-img create -q -f qcow2 -b base.raw -F raw x.qcow2 1M");
  expect_refused(path, "names a backing file, \"base.raw\"");
  EXPECT_THAT(try_open(path).error().hint(), HasSubstr("backing=base.raw:raw"));
  EXPECT_TRUE(try_open(path, ",backing-dir=" + dir.root()));
  run_ok("qemu-img rebase -u -f qcow2 -F raw -b a,b.raw " + path);
  EXPECT_THAT(try_open(path).error().hint(), HasSubstr("backing=a,,b.raw:raw"));
  ASSERT_EQ(::symlink("base.raw", dir.path("link.raw").c_str()), 0);
  ASSERT_EQ(::mkfifo(dir.path("fifo").c_str(), 0600), 0);
  ASSERT_EQ(::mkdir(dir.path("sub").c_str(), 0700), 0);
  for (const char* name : {"/etc/shadow", "../../x", "json:{}", "nbd://localhost", "/proc/self/mem",
                           "/dev/kvm", "link.raw", "fifo", "sub"}) {
    run_ok("qemu-img rebase -u -f qcow2 -F raw -b '" + std::string(name) + "' " + path);
    EXPECT_FALSE(try_open(path)) << name;
    EXPECT_FALSE(try_open(path, ",backing-dir=" + dir.root())) << name;
  }
}

TEST(Qcow2Reject, LoopsAndDeepChains) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string path = make_image(dir);
  run_ok("cd " + dir.root() + " && qemu-img rebase -u -f qcow2 -F qcow2 -b x.qcow2 x.qcow2");
  expect_refused(path, "loop", ",backing-dir=" + dir.root());
  std::string deep;
  for (int i = 0; i < 65; ++i) {
    run_ok(fmt::format("cp {} {}", path, dir.path(fmt::format("{}.qcow2", i))));
    deep += fmt::format(",backing={}:qcow2", dir.path(fmt::format("{}.qcow2", i)));
  }
  expect_refused(path, "more than 64", deep);
}

TEST(Qcow2Reject, ThingsThatAreNoFiles) {
  const TempDir dir;
  expect_refused(dir.path("missing.qcow2"), "No such file");
  expect_refused(dir.root(), "is a directory");
  ASSERT_EQ(::mkfifo(dir.path("fifo").c_str(), 0600), 0);
  expect_refused(dir.path("fifo"), "not a regular file");
}

// Tables are checked when they are used: the request fails, the rest of the disk is readable.
TEST(Qcow2Reject, BadTableEntriesFailTheirRequestsOnly) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const std::tuple<const char*, u64, u64> cases[] = {
      {"L1 reserved bit", 0x30000, 0x8100000000040000},
      {"L1 unaligned", 0x30000, 0x8000000000040200},
      {"L1 past the end", 0x30000, 0x80000000f0000000},
      {"L2 reserved bit", 0x40000, 0x8000000000050002},
      {"L2 unaligned", 0x40000, 0x8000000000050200},
      {"L2 high bits", 0x40000, 0xbfffffffffff0000},
      {"compressed past the end", 0x40000, 0x4000000070000000},
      {"compressed garbage", 0x40000, 0x4000000000050000},
  };
  for (const auto& [name, offset, value] : cases) {
    const TempDir dir;
    const std::string path = make_image(dir);
    poke_be64(path, offset, value);
    const auto disk = try_open(path);
    ASSERT_TRUE(disk) << name << ": " << disk.error().message();
    TestClient client(*(*disk)->backend);
    std::vector<u8> data(4096);
    EXPECT_EQ(client.read(0, data), BlockStatus::io_error) << name;
    if (offset == 0x40000) {
      EXPECT_EQ(client.read(64 * base::kKiB, data), BlockStatus::ok) << name;
    }
    EXPECT_EQ(client.write(0, data), BlockStatus::ok) << "the overlay needs nothing from below";
    EXPECT_EQ(client.read(0, data), BlockStatus::ok) << name;
  }
}

TEST(Qcow2Reject, TablesPastTheEndFailAndWhatAFileEndsInIsZero) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string path = make_image(dir);
  ASSERT_EQ(::truncate(path.c_str(), 0x50000 + 1024), 0);
  {
    const auto disk = try_open(path).value();
    TestClient client(*disk->backend);
    std::vector<u8> expected(64 * base::kKiB, 0);
    std::fill_n(expected.begin(), 1024, u8{7});
    EXPECT_EQ(client.read(0, expected.size()), expected);
  }
  // The first entry of the L2 table is there, but for its last byte, which is zero.
  ASSERT_EQ(::truncate(path.c_str(), 0x40007), 0);
  {
    const auto disk = try_open(path).value();
    TestClient client(*disk->backend);
    EXPECT_EQ(client.read(0, base::kMiB), std::vector<u8>(base::kMiB, 0));
  }
  ASSERT_EQ(::truncate(path.c_str(), 0x40000), 0);
  {
    const auto disk = try_open(path).value();
    TestClient client(*disk->backend);
    std::vector<u8> data(4096);
    EXPECT_EQ(client.read(0, data), BlockStatus::io_error);
  }
  ASSERT_EQ(::truncate(path.c_str(), 0x30000), 0);
  expect_refused(path, "L1 table at 0x30000 outside file (size 0x30000)");
}

TEST(Qcow2Warn, OddImagesAreReadWithAWarning) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const std::tuple<u64, u64, const char*> cases[] = {
      {72, 1, "not closed properly"}, {72, 2, "marked corrupt"}, {24, base::kMiB - 100, "512"}};
  for (const auto& [offset, value, text] : cases) {
    const TempDir dir;
    const std::string path = make_image(dir);
    poke_be64(path, offset, value);
    const auto disk = try_open(path);
    ASSERT_TRUE(disk) << disk.error().message();
    ASSERT_EQ((*disk)->warnings.size(), 1u);
    EXPECT_THAT((*disk)->warnings[0], HasSubstr(text));
  }
  const TempDir dir;
  const std::string path = make_image(dir);
  run_ok("qemu-img snapshot -c s1 " + path);
  EXPECT_THAT(try_open(path).value()->warnings.at(0), HasSubstr("1 internal snapshots"));
}

TEST(Qcow2Memory, SparseSixteenTebibytesOpensInLittle) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string path = dir.path("x.qcow2");
  run_ok("qemu-img create -q -f qcow2 " + path + " 16T");
  const auto disk = try_open(path).value();
  TestClient client(*disk->backend);
  EXPECT_EQ(client.write(15 * 1024 * base::kGiB, pattern(8192, 3)), BlockStatus::ok);
  EXPECT_EQ(client.read(15 * 1024 * base::kGiB, 8192), pattern(8192, 3));
  EXPECT_EQ(client.read(8 * 1024 * base::kGiB, 4096), std::vector<u8>(4096, 0));
}

}  // namespace
}  // namespace blockdev::test
