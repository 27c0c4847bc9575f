#include "blockdev/qcow2_builder.h"

#include <unistd.h>

#include <algorithm>
#include <bit>

#include "blockdev/qcow2_header_writer.h"
#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace blockdev::qcow2 {
namespace {

constexpr u64 kBufferBytes = 2 * base::kMiB;
constexpr u32 kRefcountOrder = 4;
constexpr u64 kRefcountBytes = 2;

std::span<const u8> bytes_of(const std::vector<be64>& values) {
  return {reinterpret_cast<const u8*>(values.data()), values.size() * sizeof(be64)};
}

}  // namespace

Builder::Builder(const base::Fd& fd, const NewImage& image)
    : fd_(&fd),
      image_(image),
      geometry_(image.geometry()),
      l1_entries_(base::divide_up(image.size_bytes, geometry_.bytes_per_l2_table())) {
  l1_offset_ =
      take_clusters(base::divide_up(l1_entries_ * sizeof(be64), geometry_.cluster_bytes()));
}

Result<Builder> Builder::create(const base::Fd& fd, const NewImage& image) {
  TRY(check_new_image(image));
  return Builder(fd, image);
}

u64 Builder::take_clusters(u64 count) {
  const u64 offset = next_cluster_ << geometry_.cluster_bits();
  next_cluster_ += count;
  return offset;
}

Result<void> Builder::add_cluster(u64 cluster, u64 bitmap, std::span<const u8> content) {
  CHECK(bitmap != 0 && content.size() == geometry_.cluster_bytes());
  const u64 offset = cluster << geometry_.cluster_bits();
  const u64 l1_index = geometry_.l1_index(offset);
  CHECK(l1_index < l1_entries_ && l1_index >= l2_index_);
  if (l1_index != l2_index_) TRY(end_l2_table());
  l2_index_ = l1_index;
  l2_.resize(geometry_.cluster_bytes() / sizeof(be64));
  u64 entry = 0;
  if (static_cast<u32>(bitmap) != 0) {
    const u64 host = take_clusters(1);
    TRY(write_data(host, bitmap, content));
    entry = host | kCopied;
  }
  const u64 index = geometry_.l2_index(offset);
  if (geometry_.has_extended_l2()) {
    l2_[2 * index] = entry;
    l2_[2 * index + 1] = bitmap;
  } else {
    l2_[index] = entry != 0 ? entry : kZero;
  }
  return {};
}

Result<void> Builder::write_data(u64 host_offset, u64 bitmap, std::span<const u8> content) {
  if (!geometry_.has_extended_l2()) return write(host_offset, content);
  const u64 unit = geometry_.subcluster_bytes();
  u64 left = static_cast<u32>(bitmap);  // 64 bits: a shift by 32 is one by 32
  while (left != 0) {
    const u64 first = static_cast<u64>(std::countr_zero(left));
    const u64 count = static_cast<u64>(std::countr_one(left >> first));
    TRY(write(host_offset + first * unit, content.subspan(first * unit, count * unit)));
    left &= ~u64{0} << (first + count);
  }
  return {};
}

// What lies one behind the other goes to the kernel in large pieces.
Result<void> Builder::write(u64 offset, std::span<const u8> bytes) {
  const bool fits =
      offset == buffer_offset_ + buffer_.size() && buffer_.size() + bytes.size() <= kBufferBytes;
  if (!fits) {
    TRY(write_out());
    buffer_offset_ = offset;
  }
  buffer_.insert(buffer_.end(), bytes.begin(), bytes.end());
  return {};
}

Result<void> Builder::write_out() {
  if (buffer_.empty()) return {};
  TRY(base::write_exactly(*fd_, buffer_, buffer_offset_));
  buffer_.clear();
  return {};
}

Result<void> Builder::end_l2_table() {
  if (l2_.empty()) return {};
  const u64 offset = take_clusters(1);
  TRY(write(offset, bytes_of(l2_)));
  l1_.resize(l2_index_ + 1);
  l1_[l2_index_] = offset | kCopied;
  l2_.clear();
  return {};
}

Result<void> Builder::finish() {
  TRY(end_l2_table());
  TRY(write_l1());
  TRY(write_refcounts());
  TRY(write_out());
  // All of the last cluster is there, and the holes before it are.
  if (::ftruncate(fd_->get(), static_cast<off_t>(next_cluster_ << geometry_.cluster_bits())) != 0) {
    return errno_error("set the size of the image");
  }
  if (!l1_.empty()) TRY(base::sync_file(*fd_));
  return write_header();
}

Result<void> Builder::write_l1() {
  return l1_.empty() ? Result<void>() : write(l1_offset_, bytes_of(l1_));
}

// The refcount structures are clusters with a refcount themselves: their number is found by
// repeating until it does not grow.
Result<void> Builder::write_refcounts() {
  const u64 cluster = geometry_.cluster_bytes();
  const u64 per_block = cluster / kRefcountBytes;
  const u64 used = next_cluster_;
  u64 blocks = 0;
  u64 total = used;
  refcount_table_clusters_ = 0;
  while (blocks < base::divide_up(total, per_block)) {
    blocks = base::divide_up(total, per_block);
    refcount_table_clusters_ = base::divide_up(blocks * sizeof(be64), cluster);
    total = used + blocks + refcount_table_clusters_;
  }
  if (refcount_table_clusters_ * cluster > kMaxRefcountTableBytes) {
    return make_error(ErrorKind::unsupported, "so much data needs a refcount table of {} bytes",
                      refcount_table_clusters_ * cluster)
        .with_hint("a larger cluster_size");
  }
  const u64 blocks_offset = take_clusters(blocks);
  refcount_table_offset_ = take_clusters(refcount_table_clusters_);
  std::vector<be64> table(blocks);
  for (u64 i = 0; i < blocks; ++i) {
    table[i] = blocks_offset + i * cluster;
    const std::vector<be16> counts(std::min(per_block, total - i * per_block), be16(1));
    TRY(write(table[i], {reinterpret_cast<const u8*>(counts.data()), counts.size() * 2}));
  }
  return write(refcount_table_offset_, bytes_of(table));
}

Result<void> Builder::write_header() {
  HeaderParts parts;
  WireHeader& wire = parts.wire;
  wire.magic = kMagic;
  wire.version = 3;
  wire.cluster_bits = image_.cluster_bits;
  wire.size = image_.size_bytes;
  wire.l1_size = static_cast<u32>(l1_entries_);
  wire.l1_table_offset = l1_offset_;
  wire.refcount_table_offset = refcount_table_offset_;
  wire.refcount_table_clusters = static_cast<u32>(refcount_table_clusters_);
  wire.incompatible_features = geometry_.has_extended_l2() ? u64{kExtendedL2} : 0;
  wire.refcount_order = kRefcountOrder;
  wire.header_length = sizeof wire;
  parts.backing_name = image_.backing_name;
  if (!image_.backing_name.empty()) {
    parts.extensions.push_back(backing_format_extension(image_.backing_format));
  }
  // The table of names is for people; small clusters have no room for it beside a backing name.
  HeaderParts with_names = parts;
  with_names.extensions.push_back(feature_names_extension());
  const Result<std::vector<u8>> roomy = compose_header(std::move(with_names));
  const std::vector<u8> bytes = roomy ? *roomy : TRY(compose_header(std::move(parts)));
  return base::write_exactly(*fd_, bytes, 0);
}

}  // namespace blockdev::qcow2
