// Images with something in them, and ways to damage them by hand.

#pragma once

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "blockdev/qcow2_format.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "vmm/base/ranges.h"

namespace blockdev::test {

// What qemu-img check ends with.
inline constexpr int kClean = 0;
inline constexpr int kCorrupt = 2;
inline constexpr int kLeaks = 3;

inline void make_image(const std::string& image, const std::string& options) {
  run_ok(fmt::format("qemu-img create -q -f qcow2 -o {} {} 9M", options, image));
  run_ok(
      "qemu-io -f qcow2 -c 'write -q -P 1 0 64k' -c 'write -q -P 2 100k 300k' "
      "-c 'write -q -P 3 4095k 1025k' -c 'write -q -z 128k 64k' -c 'write -q -P 4 3M 5k' "
      "-c 'discard -q 140k 700k' -c 'write -q -P 5 9215k 1k' -c 'write -q -z 4100k 13k' " +
      image);
}

inline u64 be64_at(const std::vector<u8>& file, u64 offset) {
  be64 value;
  std::memcpy(&value, file.data() + offset, sizeof value);
  return value;
}

// Where the tables of an image are that make_image() made.
struct Tables {
  explicit Tables(const std::string& image) : path(image), file(read_file(image)) {
    l1 = be64_at(file, 40);
    refcount_table = be64_at(file, 48);
    refcount_block = be64_at(file, refcount_table);
    l2 = be64_at(file, l1) & qcow2::kOffsetMask;
    cluster = u64{1} << file[23];
    data = be64_at(file, l2) & qcow2::kOffsetMask;
    entry_bytes = file[79] & qcow2::kExtendedL2 && file[7] == 3 ? 16 : 8;
  }
  void poke(u64 offset, u64 value) const { poke_be64(path, offset, value); }
  u64 at(u64 offset) const { return be64_at(file, offset); }
  void set_refcount(u64 host_offset, u16 value) const {  // of 16 bits
    const u8 bytes[] = {static_cast<u8>(value >> 8), static_cast<u8>(value)};
    poke_file(path, refcount_block + host_offset / cluster * 2, bytes);
  }

  std::string path;
  std::vector<u8> file;
  u64 l1, refcount_table, refcount_block, l2, cluster, data, entry_bytes;
};

struct Damage {
  const char* name;
  int status;
  void (*inflict)(const Tables&);
};

inline const Damage kDamages[] = {
    {"leak", kLeaks,
     [](const Tables& t) {
       const u64 end = base::align_up(t.file.size(), t.cluster);
       ASSERT_EQ(::truncate(t.path.c_str(), static_cast<off_t>(end + 3 * t.cluster)), 0);
       t.set_refcount(end + t.cluster, 1);
     }},
    {"refcount_too_high", kCorrupt,  // and so COPIED is wrong
     [](const Tables& t) { t.set_refcount(t.data, 2); }},
    {"refcount_of_data_zero", kCorrupt, [](const Tables& t) { t.set_refcount(t.data, 0); }},
    {"refcount_of_header_zero", kCorrupt, [](const Tables& t) { t.set_refcount(0, 0); }},
    {"refcount_of_l2_zero", kCorrupt, [](const Tables& t) { t.set_refcount(t.l2, 0); }},
    {"no_refcount_block", kCorrupt, [](const Tables& t) { t.poke(t.refcount_table, 0); }},
    {"refcount_block_over_l1", kCorrupt, [](const Tables& t) { t.poke(t.refcount_table, t.l1); }},
    {"refcount_block_outside", kCorrupt,
     [](const Tables& t) { t.poke(t.refcount_table + 8, t.cluster << 20); }},
    {"refcount_block_twice", kCorrupt,
     [](const Tables& t) { t.poke(t.refcount_table + 8, t.refcount_block); }},
    {"refcount_table_reserved", kCorrupt,
     [](const Tables& t) { t.poke(t.refcount_table, t.refcount_block | 1); }},
    {"l2_entry_outside", kCorrupt,
     [](const Tables& t) { t.poke(t.l2, qcow2::kCopied | t.cluster << 20); }},
    {"l2_entry_just_outside", kCorrupt,
     [](const Tables& t) {
       t.poke(t.l2, qcow2::kCopied | ((t.file.size() / t.cluster + 1) * t.cluster));
     }},
    {"l2_entry_far_outside", kCorrupt,
     [](const Tables& t) {
       t.poke(t.l2, qcow2::kCopied | (qcow2::kOffsetMask & ~(t.cluster - 1)));
     }},
    {"l2_entry_unaligned", kCorrupt, [](const Tables& t) { t.poke(t.l2, t.at(t.l2) | 0x200); }},
    {"l2_entry_reserved", kCorrupt,
     [](const Tables& t) { t.poke(t.l2, t.at(t.l2) | u64{1} << 57); }},
    {"l2_entry_into_header", kCorrupt,
     [](const Tables& t) { t.poke(t.l2 + t.entry_bytes, qcow2::kCopied | t.l1); }},
    {"two_entries_one_cluster", kCorrupt,
     [](const Tables& t) { t.poke(t.l2 + t.entry_bytes, t.at(t.l2)); }},
    {"l2_entry_lost", kLeaks,
     [](const Tables& t) {
       t.poke(t.l2, 0);
       if (t.entry_bytes == 16) t.poke(t.l2 + 8, 0);
     }},
    {"copied_missing_in_l2", kCorrupt,
     [](const Tables& t) { t.poke(t.l2, t.at(t.l2) & ~qcow2::kCopied); }},
    {"copied_missing_in_l1", kCorrupt,
     [](const Tables& t) { t.poke(t.l1, t.at(t.l1) & ~qcow2::kCopied); }},
    {"copied_in_no_cluster", kClean,
     [](const Tables& t) { t.poke(t.l2 + t.cluster - t.entry_bytes, qcow2::kCopied); }},
    {"l1_entry_reserved", kCorrupt, [](const Tables& t) { t.poke(t.l1, t.at(t.l1) | 1); }},
    {"l1_entry_unaligned", kCorrupt, [](const Tables& t) { t.poke(t.l1, t.at(t.l1) | 0x400); }},
    {"l1_entry_outside", kCorrupt,
     [](const Tables& t) { t.poke(t.l1, qcow2::kCopied | t.cluster << 20); }},
    {"l1_entry_lost", kLeaks, [](const Tables& t) { t.poke(t.l1, 0); }},
    {"l1_over_refcount_table", kCorrupt, [](const Tables& t) { t.poke(40, t.refcount_table); }},
    {"l1_outside", kCorrupt, [](const Tables& t) { t.poke(40, t.cluster << 20); }},
    {"refcount_table_outside", kCorrupt, [](const Tables& t) { t.poke(48, t.cluster << 20); }},
    {"refcount_table_over_header", kCorrupt, [](const Tables& t) { t.poke(48, 0); }},
    {"compressed_with_copied", kCorrupt,
     [](const Tables& t) {
       t.poke(t.l2, qcow2::kCopied | qcow2::kCompressed | (t.data + t.cluster / 2));
     }},
    {"compressed_outside", kCorrupt,
     [](const Tables& t) { t.poke(t.l2, qcow2::kCompressed | t.cluster << 20); }},
    {"file_cut_short", kCorrupt,
     [](const Tables& t) {
       ASSERT_EQ(::truncate(t.path.c_str(), static_cast<off_t>(t.file.size() - 2 * t.cluster)), 0);
     }},
    {"file_cut_to_its_tables", kCorrupt,
     [](const Tables& t) {
       ASSERT_EQ(::truncate(t.path.c_str(), static_cast<off_t>(t.cluster + 100)), 0);
     }},
    {"subclusters_allocated_and_zero", kCorrupt,
     [](const Tables& t) {
       if (t.entry_bytes == 16)
         t.poke(t.l2 + 8, ~u64{0});
       else
         t.poke(t.l2, t.at(t.l2) | 2);
     }},
    {"subclusters_of_no_cluster", kCorrupt,
     [](const Tables& t) {
       t.poke(t.l2 + t.cluster - t.entry_bytes + (t.entry_bytes == 16 ? 8 : 0), 0x1ff);
     }},
};

}  // namespace blockdev::test
