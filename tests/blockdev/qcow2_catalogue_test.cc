// The catalogue of damaged images, Q01 to Q32, one row or more for each, and what is to become of
// it when it is opened for reading and when it is opened for writing. That the reasons are named is
// qcow2_reject_test.cc's; that nothing else is opened is qcow2_reject_test.cc's, too.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "blockdev/disk.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/test_client.h"

namespace blockdev::test {
namespace {

using testing::HasSubstr;

// mkfs: 1 MiB, clusters of 64 KiB: refcount table at 0x10000, refcount block at 0x20000, L1 at
// 0x30000, L2 at 0x40000, the cluster of guest offset 0 at 0x50000, filled with 7.
constexpr u64 kRefcountTable = 0x10000;
constexpr u64 kRefcountBlock = 0x20000;
constexpr u64 kL1 = 0x30000;
constexpr u64 kL2 = 0x40000;
constexpr u64 kData = 0x50000;

enum class Fate : u8 {
  refused,     // opened for neither
  read_only,   // readable; refused for writing
  damaged,     // reading the place is an error; writing it is one, too, and changes nothing else
  unreadable,  // reading the place is an error, and so is writing a part of it; others are served
  readable,    // reading works; a write is an error or refused, and changes nothing else
  works,       // both work, and the image checks clean afterwards
};

using Damage = std::function<void(const TempDir&, const std::string& path)>;

struct Row {
  const char* id;  // of the catalogue
  const char* name;
  Fate fate;
  const char* reason;  // part of the message; what is refused for writing only: of that one
  Damage damage;
};

Damage be32_at(u64 offset, u32 value) {
  return [=](const TempDir&, const std::string& path) { poke_be32(path, offset, value); };
}
Damage be64_at(u64 offset, u64 value) {
  return [=](const TempDir&, const std::string& path) { poke_be64(path, offset, value); };
}
Damage cut_to(u64 size) {
  return [=](const TempDir&, const std::string& path) {
    ASSERT_EQ(::truncate(path.c_str(), static_cast<off_t>(size)), 0);
  };
}
Damage both(const Damage& first, const Damage& second) {
  return [=](const TempDir& dir, const std::string& path) {
    first(dir, path);
    second(dir, path);
  };
}
Damage backing_name(const std::string& name) {
  return [=](const TempDir&, const std::string& path) {
    poke_be64(path, 8, 0x400);
    poke_be32(path, 16, static_cast<u32>(name.size()));
    poke_file(path, 0x400, {reinterpret_cast<const u8*>(name.data()), name.size()});
  };
}
Damage command(const std::string& text) {
  return [=](const TempDir& dir, const std::string& path) {
    run_ok(fmt::format("cd {} && {}", dir.root(),
                       fmt::format(fmt::runtime(text), fmt::arg("path", path))));
  };
}
Damage image_with(const std::string& options) {
  return command("rm {path} && qemu-img create -q -f qcow2 -o " + options +
                 " {path} 1M && qemu-io -f qcow2 -c 'write -q -P 7 0 64k' {path}");
}

const Row kRows[] = {
    {"Q01", "empty", Fate::refused, "too few", cut_to(0)},
    {"Q01", "71_bytes", Fate::refused, "too few", cut_to(71)},
    {"Q01", "103_bytes", Fate::refused, "too few", cut_to(103)},
    {"Q01", "wrong_magic", Fate::refused, "not a qcow2 image", be32_at(0, 0x51464900)},
    {"Q01", "raw_file", Fate::refused, "not a qcow2 image",
     command("truncate -s 0 {path} && truncate -s 1M {path}")},
    {"Q02", "version_0", Fate::refused, "version 0", be32_at(4, 0)},
    {"Q02", "version_1", Fate::refused, "version 1", be32_at(4, 1)},
    {"Q02", "version_4", Fate::refused, "version 4", be32_at(4, 4)},
    {"Q02", "version_max", Fate::refused, "version 4294967295", be32_at(4, 0xffffffff)},
    {"Q02", "version_2_over_a_backing_file", Fate::read_only, "version 2",
     both(be32_at(4, 2), backing_name("below"))},
    {"Q03", "header_length_0", Fate::refused, "header_length 0", be32_at(100, 0)},
    {"Q03", "header_length_72", Fate::refused, "header_length 72", be32_at(100, 72)},
    {"Q03", "header_length_103", Fate::refused, "header_length 103", be32_at(100, 103)},
    {"Q03", "header_length_huge", Fate::refused, "header_length", be32_at(100, 0x7fffffff)},
    {"Q03", "header_length_max", Fate::refused, "header_length", be32_at(100, 0xffffffff)},
    {"Q04", "extension_length", Fate::refused, "header extension", be32_at(116, 0x7fffffff)},
    {"Q04", "extension_over_the_first_cluster", Fate::refused, "header extension",
     be32_at(116, 0x10000)},
    // They end with the cluster, for QEMU too.
    {"Q04", "extensions_without_end", Fate::works, "",
     [](const TempDir&, const std::string& path) {
       for (u64 at = 112; at < 0x10000; at += 8) poke_be64(path, at, 0x1234567800000000);
     }},
    {"Q05", "dirty", Fate::read_only, "image check -r all", be64_at(72, 1)},
    {"Q05", "corrupt", Fate::read_only, "corrupt", be64_at(72, 2)},
    {"Q05", "data_file", Fate::refused, "external data file", be64_at(72, 4)},
    {"Q05", "compression_without_type", Fate::refused, "compression type 0", be64_at(72, 8)},
    {"Q05", "type_without_feature", Fate::refused, "compression type 1", be32_at(104, 0x01000000)},
    {"Q05", "zstd", Fate::works, "", image_with("compression_type=zstd")},
    {"Q05", "extended_l2", Fate::works, "", image_with("extended_l2=on")},
    {"Q05", "unknown_bit", Fate::refused, "bit 40", be64_at(72, u64{1} << 40)},
    {"Q05", "unknown_bit_5", Fate::refused, "bit 5", be64_at(72, 0x20)},
    {"Q06", "cluster_bits_0", Fate::refused, "cluster_bits 0", be32_at(20, 0)},
    {"Q06", "cluster_bits_8", Fate::refused, "cluster_bits 8", be32_at(20, 8)},
    {"Q06", "cluster_bits_22", Fate::refused, "cluster_bits 22", be32_at(20, 22)},
    {"Q06", "cluster_bits_63", Fate::refused, "cluster_bits 63", be32_at(20, 63)},
    {"Q06", "cluster_bits_max", Fate::refused, "cluster_bits", be32_at(20, 0xffffffff)},
    {"Q07", "size_0", Fate::refused, "no bytes", be64_at(24, 0)},
    {"Q07", "size_2_63", Fate::refused, "at most", be64_at(24, u64{1} << 63)},
    {"Q07", "size_max", Fate::refused, "at most", be64_at(24, ~u64{0})},
    {"Q07", "size_not_of_sectors", Fate::works, "", be64_at(24, base::kMiB - 100)},
    {"Q08", "crypt_1", Fate::refused, "encrypted", be32_at(32, 1)},
    {"Q08", "crypt_2", Fate::refused, "encrypted", be32_at(32, 2)},
    {"Q08", "crypt_99", Fate::refused, "encrypted", be32_at(32, 99)},
    {"Q09", "l1_size_max", Fate::refused, "L1 table of", be32_at(36, 0xffffffff)},
    {"Q09", "l1_size_huge", Fate::refused, "L1 table of", be32_at(36, 0x7fffffff)},
    {"Q09", "l1_size_0", Fate::refused, "L1 table has 0", be32_at(36, 0)},
    {"Q09", "l1_too_small", Fate::refused, "needs", be64_at(24, u64{1} << 40)},
    {"Q10", "l1_misaligned", Fate::refused, "L1 table at", be64_at(40, 0x30001)},
    {"Q10", "l1_past_the_end", Fate::refused, "outside file", be64_at(40, 0x7fff0000)},
    {"Q10", "l1_overflows", Fate::refused, "outside file", be64_at(40, 0xffffffffffff0000)},
    {"Q10", "l1_is_the_header", Fate::refused, "overlap", be64_at(40, 0)},
    {"Q10", "l1_is_the_refcount_table", Fate::refused, "overlap", be64_at(40, kRefcountTable)},
    {"Q11", "refcount_table_0", Fate::refused, "no refcount table", be32_at(56, 0)},
    {"Q11", "refcount_table_huge", Fate::refused, "refcount table of", be32_at(56, 0x20001)},
    {"Q11", "refcount_table_max", Fate::refused, "refcount table of", be32_at(56, 0xffffffff)},
    {"Q11", "refcount_table_misaligned", Fate::refused, "refcount table at", be64_at(48, 0x10200)},
    {"Q11", "refcount_table_past_the_end", Fate::refused, "outside file", be64_at(48, 0x70000000)},
    {"Q12", "refcount_order_7", Fate::refused, "refcount_order 7", be32_at(96, 7)},
    {"Q12", "refcount_order_63", Fate::refused, "refcount_order 63", be32_at(96, 63)},
    {"Q13", "snapshots_max", Fate::refused, "internal snapshots", be32_at(60, 0xffffffff)},
    {"Q13", "snapshots_without_table", Fate::refused, "overlap", be32_at(60, 1)},
    {"Q13", "a_snapshot", Fate::read_only, "snapshot", command("qemu-img snapshot -c s {path}")},
    {"Q14", "name_too_long", Fate::refused, "1024 bytes",
     both(be64_at(8, 0x200), be32_at(16, 1024))},
    {"Q14", "name_past_the_header", Fate::refused, "end of the first cluster",
     both(be64_at(8, 0xfffe), be32_at(16, 5))},
    {"Q14", "offset_without_size", Fate::refused, "backing file name", be64_at(8, 0x200)},
    {"Q14", "size_without_offset", Fate::refused, "backing file name", be32_at(16, 5)},
    {"Q14", "not_utf_8", Fate::refused, "not plain text", backing_name("a\xff\xfe")},
    {"Q14", "nul_inside", Fate::refused, "not plain text", backing_name(std::string("a\0b", 3))},
    {"Q15", "etc_shadow", Fate::refused, "not followed", backing_name("/etc/shadow")},
    {"Q15", "dot_dot", Fate::refused, "not followed", backing_name("../../x")},
    {"Q15", "json", Fate::refused, "not followed", backing_name("json:{}")},
    {"Q15", "nbd", Fate::refused, "not followed", backing_name("nbd://localhost")},
    {"Q15", "proc_self_mem", Fate::refused, "not followed", backing_name("/proc/self/mem")},
    {"Q15", "dev_kvm", Fate::refused, "not followed", backing_name("/dev/kvm")},
    {"Q16", "data_file_extension", Fate::refused, "data file",
     [](const TempDir&, const std::string& path) {
       poke_be64(path, 112, 0x4441544100000006);
       poke_be64(path, 120, 0x736861646f770000);  // "shadow"
       poke_be64(path, 128, 0);
     }},
    {"Q19", "l1_reserved_bits", Fate::damaged, "", be64_at(kL1, 0x8100000000000000 | kL2)},
    {"Q19", "l1_misaligned_entry", Fate::damaged, "", be64_at(kL1, 0x8000000000040200)},
    {"Q19", "l1_entry_past_the_end", Fate::damaged, "", be64_at(kL1, 0x80000000f0000000)},
    {"Q19", "l1_entry_is_the_header", Fate::readable, "", be64_at(kL1, u64{1} << 63)},
    {"Q19", "l1_entry_is_the_l1", Fate::readable, "", be64_at(kL1, (u64{1} << 63) | kL1)},
    {"Q20", "l2_reserved_bits", Fate::damaged, "", be64_at(kL2, 0x8000000000000002 | kData)},
    {"Q20", "l2_misaligned", Fate::damaged, "", be64_at(kL2, 0x8000000000050200)},
    {"Q20", "l2_high_bits", Fate::damaged, "", be64_at(kL2, 0xbfffffffffff0000)},
    // An L2 entry with offset 0 is what unallocated is: it cannot point to the header.
    {"Q20", "l2_entry_is_the_l2", Fate::readable, "", be64_at(kL2, (u64{1} << 63) | kL2)},
    {"Q20", "l2_entry_is_the_l1", Fate::readable, "", be64_at(kL2, (u64{1} << 63) | kL1)},
    {"Q20", "l2_entry_is_a_refcount_block", Fate::readable, "",
     be64_at(kL2, (u64{1} << 63) | kRefcountBlock)},
    {"Q21", "compressed_past_the_end", Fate::unreadable, "", be64_at(kL2, 0x4000000070000000)},
    {"Q21", "compressed_garbage", Fate::unreadable, "", be64_at(kL2, 0x4000000000000000 | kData)},
    {"Q22", "copied_though_shared", Fate::readable, "", be32_at(kRefcountBlock + 8, 0x00010002)},
    {"Q23", "refcount_0_for_data", Fate::readable, "", be32_at(kRefcountBlock + 8, 0x00010000)},
    {"Q23", "refcount_max", Fate::readable, "", be32_at(kRefcountBlock + 8, 0x0001ffff)},
    {"Q23", "refcount_block_offset_0", Fate::readable, "", be64_at(kRefcountTable, 0)},
    {"Q24", "l2_table_in_the_refcount_block", Fate::readable, "",
     be64_at(kL1, (u64{1} << 63) | kRefcountBlock)},
    {"Q25", "cut_in_data", Fate::works, "", cut_to(kData + 512)},
    {"Q25", "cut_before_l2", Fate::damaged, "", cut_to(kL2)},
    {"Q25", "cut_before_l1", Fate::refused, "outside file", cut_to(kL1)},
    {"Q25", "cut_before_refcounts", Fate::refused, "outside file", cut_to(kRefcountBlock)},
    {"Q27", "a_directory", Fate::refused, "s a directory", command("rm {path} && mkdir {path}")},
    {"Q27", "a_fifo", Fate::refused, "not a regular file", command("rm {path} && mkfifo {path}")},
    {"Q28", "16_tib", Fate::works, "",
     command("rm {path} && qemu-img create -q -f qcow2 {path} 16T")},
    {"Q29", "lazy_refcounts_after_a_crash", Fate::read_only, "image check -r all",
     both(be64_at(72, 1), be64_at(80, 1))},
    {"Q31", "version_2", Fate::works, "", image_with("compat=0.10")},
    {"Q31", "clusters_of_512", Fate::works, "", image_with("cluster_size=512")},
    {"Q31", "clusters_of_2_mib", Fate::works, "", image_with("cluster_size=2M")},
    {"Q31", "refcounts_of_1_bit", Fate::works, "", image_with("refcount_bits=1")},
    {"Q31", "refcounts_of_64_bits", Fate::works, "", image_with("refcount_bits=64")},
    {"Q31", "lazy_refcounts", Fate::works, "", image_with("lazy_refcounts=on")},
    {"Q31", "preallocated_metadata", Fate::works, "", image_with("preallocation=metadata")},
    {"Q31", "preallocated", Fate::works, "", image_with("preallocation=full")},
};

std::string make_image(const TempDir& dir) {
  const std::string path = dir.path("x.qcow2");
  run_ok("qemu-img create -q -f qcow2 " + path + " 1M");
  run_ok("qemu-io -f qcow2 -c 'write -q -P 7 0 64k' " + path);
  run_ok(fmt::format("truncate -s 1M {}", dir.path("below")));
  return path;
}

Result<std::unique_ptr<Disk>> open_as(const std::string& path, const std::string& mode,
                                      const Row& row) {
  std::string spec = path + ",format=qcow2,mode=" + mode;
  if (std::string_view(row.name).ends_with("over_a_backing_file")) {
    spec += ",backing=" + std::filesystem::path(path).parent_path().string() + "/below:raw";
  }
  return open_disk(parse_disk_spec(spec).value(), {});
}

void PrintTo(const Row& row, std::ostream* out) { *out << row.name; }

class Catalogue : public testing::TestWithParam<Row> {
 protected:
  void expect_refused(const std::string& path, const std::string& mode) {
    const auto disk = open_as(path, mode, GetParam());
    ASSERT_FALSE(disk) << "accepted for mode=" << mode;
    const std::string text = disk.error().message() + " " + disk.error().hint();
    EXPECT_THAT(text, HasSubstr(GetParam().reason)) << "mode=" << mode;
  }
  // The one place, and a place that no damage touches.
  void expect_reads(const std::string& path, BlockStatus expected) {
    const auto disk = open_as(path, "ro", GetParam());
    ASSERT_TRUE(disk) << disk.error().message();
    TestClient client(*(*disk)->backend);
    std::vector<u8> data(4096);
    EXPECT_EQ(client.read(0, data), expected);
  }
  // Refused at the door or at the request; the file is as it was, but for the corrupt bit.
  void expect_write_changes_nothing(const std::string& path) {
    const std::vector<u8> before = read_file(path);
    bool was_stopped = false;
    {
      const auto disk = open_as(path, "persist", GetParam());
      if (!disk) return;
      TestClient client(*(*disk)->backend);
      was_stopped = client.write(0, pattern(512, 1)) == BlockStatus::io_error;
      was_stopped =
          client.write(512 * base::kKiB, pattern(512, 1)) != BlockStatus::ok || was_stopped;
      (void)client.flush();
    }
    std::vector<u8> after = read_file(path);
    const bool is_marked = (after.at(79) & 2) != 0;
    EXPECT_TRUE(was_stopped);
    EXPECT_TRUE(is_marked);
    after[79] &= static_cast<u8>(~2);
    after.resize(before.size());
    EXPECT_EQ(std::ranges::mismatch(after, before).in1 - after.begin(),
              static_cast<std::ptrdiff_t>(before.size()))
        << "the first byte that changed";
  }
  void expect_others_are_served(const std::string& path) {
    const auto disk = open_as(path, "persist", GetParam());
    ASSERT_TRUE(disk) << disk.error().message();
    TestClient client(*(*disk)->backend);
    EXPECT_EQ(client.write(512, pattern(512, 1)), BlockStatus::io_error);
    EXPECT_EQ(client.write(512 * base::kKiB, pattern(512, 2)), BlockStatus::ok);
    EXPECT_EQ(client.read(512 * base::kKiB, 512), pattern(512, 2));
    EXPECT_EQ(client.flush(), BlockStatus::ok);
  }
  void expect_works(const std::string& path) {
    {
      const auto disk = open_as(path, "persist", GetParam());
      ASSERT_TRUE(disk) << disk.error().message();
      TestClient client(*(*disk)->backend);
      EXPECT_EQ(client.write(4096, pattern(8192, 1)), BlockStatus::ok);
      EXPECT_EQ(client.write(700 * base::kKiB, pattern(70000 / 512 * 512, 2)), BlockStatus::ok);
      EXPECT_EQ(client.zero(BlockOp::discard, 256 * base::kKiB, 64 * base::kKiB), BlockStatus::ok);
      EXPECT_EQ(client.flush(), BlockStatus::ok);
      EXPECT_EQ(client.read(4096, 8192), pattern(8192, 1));
      EXPECT_EQ(client.read(700 * base::kKiB, 70000 / 512 * 512), pattern(70000 / 512 * 512, 2));
    }
    run_ok("qemu-img check -q -f qcow2 " + path);
  }
};

TEST_P(Catalogue, HasItsFate) {
  SKIP_WITHOUT_QEMU_TOOLS();
  const TempDir dir;
  const std::string path = make_image(dir);
  GetParam().damage(dir, path);
  switch (GetParam().fate) {
    case Fate::refused:
      expect_refused(path, "ro");
      expect_refused(path, "persist");
      break;
    case Fate::read_only:
      expect_reads(path, BlockStatus::ok);
      expect_refused(path, "persist");
      break;
    case Fate::damaged:
      expect_reads(path, BlockStatus::io_error);
      expect_write_changes_nothing(path);
      break;
    case Fate::unreadable:
      expect_reads(path, BlockStatus::io_error);
      expect_others_are_served(path);
      break;
    case Fate::readable: expect_write_changes_nothing(path); break;
    case Fate::works:
      expect_reads(path, BlockStatus::ok);
      expect_works(path);
      break;
  }
}

INSTANTIATE_TEST_SUITE_P(Rows, Catalogue, testing::ValuesIn(kRows), [](const auto& test) {
  return std::string(test.param.id) + "_" + test.param.name;
});

}  // namespace
}  // namespace blockdev::test
