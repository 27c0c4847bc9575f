#include "blockdev/arena.h"

#include <sys/mman.h>

#include <algorithm>

#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace blockdev {
namespace {

// Shorter runs of released slots are only reused: a system call for each would cost more than the
// memory is worth.
constexpr u64 kGiveBackSlots = 16;

// New slots are touched so many at a time: a fault for each would cost more than the copy into it.
constexpr u64 kTouchedSlots = 16;

}  // namespace

Arena::Arena(const ArenaOptions& options, std::shared_ptr<Janitor> janitor)
    : options_(options),
      memory_slots_(std::min(options.memory_limit_bytes / kSlotBytes, u64{UINT32_MAX} / 2)),
      janitor_(std::move(janitor)),
      segments_(base::divide_up(memory_slots_, kSlotsPerSegment)) {}

Arena::~Arena() {
  base::MutexLock lock(mutex_);
  if (!mappings_.empty()) janitor_->dispose(std::move(mappings_));
  if (spill_) janitor_->dispose(std::move(spill_));
}

BlockStatus Arena::allocate(u32& slot) {
  base::MutexLock lock(mutex_);
  if (!free_.empty()) {
    slot = free_.back();
    free_.pop_back();
    return BlockStatus::ok;
  }
  if (next_ > UINT32_MAX) return BlockStatus::no_space;
  slot = static_cast<u32>(next_);
  const BlockStatus status = make_room(slot);
  if (status == BlockStatus::ok) ++next_;
  return status;
}

BlockStatus Arena::make_room(u32 slot) {
  if (!is_in_memory(slot)) {
    if (spill_ == nullptr) {
      const BlockStatus status = start_spilling();
      if (status != BlockStatus::ok) return status;
    }
    return status_of_errno(spill_->extend_to(in_file(slot)));
  }
  const u64 segment = (slot - 1) / kSlotsPerSegment;
  if (segment == mappings_.size()) {
    Result<base::Mapping> mapping = base::Mapping::anonymous(kSegmentBytes);
    if (!mapping) return BlockStatus::no_space;
    segments_[segment].store(mapping->data(), std::memory_order_release);
    mappings_.push_back(std::move(*mapping));
  }
  // Best effort: Linux has it since 5.14.
  if ((slot - 1) % kTouchedSlots == 0) {
    ::madvise(memory_of(slot), kTouchedSlots * kSlotBytes, MADV_POPULATE_WRITE);
  }
  return BlockStatus::ok;
}

BlockStatus Arena::start_spilling() {
  Result<std::unique_ptr<SpillFile>> file = SpillFile::create(options_.spill_directory);
  if (!file) {
    if (log_limit_.allows()) {
      base::log(base::LogLevel::warning, "overlay: no spill file in \"{}\": {}",
                options_.spill_directory, file.error().message());
    }
    return file.error().kind() == ErrorKind::no_space ? BlockStatus::no_space
                                                      : BlockStatus::io_error;
  }
  spill_ = std::move(*file);
  spill_in_use_.store(spill_.get(), std::memory_order_release);
  return BlockStatus::ok;
}

u8* Arena::memory_of(u32 slot) const {
  const u64 index = slot - 1;
  u8* segment = segments_[index / kSlotsPerSegment].load(std::memory_order_acquire);
  return segment + index % kSlotsPerSegment * kSlotBytes;
}

BlockStatus Arena::write(u32 slot, u64 within, u64 length, IovecCursor& from) {
  CHECK(base::contains(kSlotBytes, within, length));
  if (is_in_memory(slot)) {
    from.copy_out(memory_of(slot) + within, length);
    return BlockStatus::ok;
  }
  SpillFile& spill = *spill_in_use_.load(std::memory_order_acquire);
  return status_of_errno(spill.write(in_file(slot), within, length, from));
}

BlockStatus Arena::read(u32 slot, u64 within, u64 length, IovecCursor& to) const {
  CHECK(base::contains(kSlotBytes, within, length));
  if (is_in_memory(slot)) {
    to.copy_in(memory_of(slot) + within, length);
    return BlockStatus::ok;
  }
  SpillFile& spill = *spill_in_use_.load(std::memory_order_acquire);
  const int error = spill.read(in_file(slot), within, length, to);
  return error == 0 ? BlockStatus::ok : BlockStatus::io_error;
}

void Arena::release(std::span<u32> slots) {
  if (slots.empty()) return;
  std::sort(slots.begin(), slots.end());
  // The slots are still ours alone: nobody can be given one before they are in free_ below.
  for (u64 first = 0; first < slots.size();) {
    u64 end = first + 1;
    const bool in_memory = is_in_memory(slots[first]);
    while (end < slots.size() && slots[end] == slots[end - 1] + 1 &&
           is_in_memory(slots[end]) == in_memory &&
           (!in_memory || (slots[end] - 1) % kSlotsPerSegment != 0)) {
      ++end;
    }
    if (end - first >= kGiveBackSlots) give_back(slots[first], end - first);
    first = end;
  }
  base::MutexLock lock(mutex_);
  free_.insert(free_.end(), slots.rbegin(), slots.rend());
}

// Best effort: a host that cannot take the space back leaves it in use.
void Arena::give_back(u32 first_slot, u64 count) const {
  if (is_in_memory(first_slot)) {
    ::madvise(memory_of(first_slot), count * kSlotBytes, MADV_DONTNEED);
    return;
  }
  spill_in_use_.load(std::memory_order_acquire)->give_back(in_file(first_slot), count);
}

void Arena::drop() {
  base::MutexLock lock(mutex_);
  const u64 keep = std::min<u64>(options_.keep_bytes / kSegmentBytes, mappings_.size());
  if (mappings_.size() > keep) {
    std::vector<base::Mapping> surplus;
    for (u64 i = keep; i < mappings_.size(); ++i) surplus.push_back(std::move(mappings_[i]));
    mappings_.resize(keep);
    janitor_->dispose(std::move(surplus));
  }
  if (free_.capacity() > kSlotsPerSegment) janitor_->dispose(std::move(free_));
  free_ = {};
  next_ = 1;
  spill_in_use_.store(nullptr, std::memory_order_release);
  if (spill_) janitor_->dispose(std::move(spill_));
}

}  // namespace blockdev
