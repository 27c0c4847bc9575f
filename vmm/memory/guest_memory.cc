#include "vmm/memory/guest_memory.h"

#include <sys/mman.h>

#include <algorithm>
#include <atomic>
#include <cstring>

#include "vmm/base/check.h"
#include "vmm/base/ranges.h"

namespace memory {
namespace {

Result<void> check_size(u64 ram_bytes) {
  if (!base::is_aligned(ram_bytes, base::kPageBytes)) {
    return make_error(ErrorKind::usage, "memory size {} is not a multiple of 4096", ram_bytes);
  }
  if (ram_bytes < base::kMiB || ram_bytes > kMaximumRamBytes) {
    return make_error(ErrorKind::usage, "memory size {} is outside 1 MiB to {} GiB", ram_bytes,
                      kMaximumRamBytes / base::kGiB);
  }
  return {};
}

std::vector<RamRegion> layout(u64 ram_bytes) {
  std::vector<RamRegion> regions{{Gpa{0}, 0, std::min(ram_bytes, kLowRamLimit)}};
  if (ram_bytes > kLowRamLimit) {
    regions.push_back({Gpa{kHighRamStart}, kLowRamLimit, ram_bytes - kLowRamLimit});
  }
  return regions;
}

}  // namespace

Result<std::unique_ptr<GuestMemory>> GuestMemory::create(u64 ram_bytes) {
  TRY(check_size(ram_bytes));
  base::Mapping mapping = TRY(base::Mapping::anonymous(ram_bytes));
  return std::unique_ptr<GuestMemory>(new GuestMemory(std::move(mapping), layout(ram_bytes)));
}

// Zeros are not mapped from the file: on tmpfs a fault in a hole takes a page of the file system
// for good, so a guest would fill it, and find a SIGBUS where it is full.
Result<std::unique_ptr<GuestMemory>> GuestMemory::create_from_file(
    const base::Fd& file, u64 ram_bytes, std::span<const FilePart> parts) {
  TRY(check_size(ram_bytes));
  // A file that is too short would answer a guest's access with SIGBUS.
  const u64 bytes = TRY(base::file_size(file));
  if (bytes != ram_bytes) {
    return make_error(ErrorKind::corrupt, "memory file has {} bytes, needs {}", bytes, ram_bytes);
  }
  base::Mapping mapping = TRY(base::Mapping::anonymous(ram_bytes));
  for (const FilePart& part : parts) {
    CHECK(base::contains(ram_bytes, part.offset, part.length_bytes));
    const void* const at = ::mmap(mapping.data() + part.offset, part.length_bytes,
                                  PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED,
                                  file.get(), static_cast<off_t>(part.offset));
    if (at == MAP_FAILED) return errno_error("map {} bytes of a memory file", part.length_bytes);
  }
  return std::unique_ptr<GuestMemory>(new GuestMemory(std::move(mapping), layout(ram_bytes)));
}

GuestMemory::GuestMemory(base::Mapping mapping, std::vector<RamRegion> regions)
    : mapping_(std::move(mapping)),
      regions_(std::move(regions)),
      dirty_log_(mapping_.size_bytes() / base::kPageBytes) {
  // A core dump of the VMM is not the place for a guest's memory. Advice: may be refused.
  ::madvise(mapping_.data(), mapping_.size_bytes(), MADV_DONTDUMP);
}

Result<void> GuestMemory::reset() {
  // A new mapping in the same place: dropping the pages would bring a snapshot file's content back.
  void* const address = ::mmap(mapping_.data(), mapping_.size_bytes(), PROT_READ | PROT_WRITE,
                               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (address == MAP_FAILED) return errno_error("map {} bytes of memory", mapping_.size_bytes());
  ::madvise(mapping_.data(), mapping_.size_bytes(), MADV_DONTDUMP);
  return {};
}

std::optional<u64> GuestMemory::ram_offset(Gpa gpa, u64 length) const {
  for (const RamRegion& region : regions_) {
    if (gpa < region.gpa) continue;
    const u64 offset = gpa.value - region.gpa.value;
    if (base::contains(region.length_bytes, offset, length)) return region.ram_offset + offset;
  }
  return std::nullopt;
}

Gpa GuestMemory::gpa_of_page(u64 page) const {
  const u64 offset = page * base::kPageBytes;
  const RamRegion& region = offset < kLowRamLimit ? regions_.front() : regions_.back();
  return Gpa{region.gpa.value + (offset - region.ram_offset)};
}

std::optional<GuestBytes> GuestMemory::readable(Gpa gpa, u64 length) const {
  const std::optional<u64> offset = ram_offset(gpa, length);
  if (!offset) return std::nullopt;
  return GuestBytes{mapping_.data() + *offset, length};
}

std::optional<GuestBytes> GuestMemory::writable(Gpa gpa, u64 length) {
  const std::optional<u64> offset = ram_offset(gpa, length);
  if (!offset) return std::nullopt;
  dirty_log_.mark(*offset, length);
  return GuestBytes{mapping_.data() + *offset, length};
}

bool GuestMemory::read(Gpa gpa, std::span<u8> out) const {
  const std::optional<GuestBytes> bytes = readable(gpa, out.size());
  if (!bytes) return false;
  std::memcpy(out.data(), bytes->data, out.size());
  // The copy is the value: the compiler may not go back to guest memory for it.
  std::atomic_signal_fence(std::memory_order_seq_cst);
  return true;
}

bool GuestMemory::write(Gpa gpa, std::span<const u8> in) {
  const std::optional<GuestBytes> bytes = writable(gpa, in.size());
  if (!bytes) return false;
  std::memcpy(bytes->data, in.data(), in.size());
  return true;
}

std::optional<u16> GuestMemory::load_acquire_u16(Gpa gpa) const {
  const std::optional<GuestBytes> bytes = readable(gpa, sizeof(u16));
  if (!bytes) return std::nullopt;
  CHECK(base::is_aligned(gpa.value, sizeof(u16)));
  return std::atomic_ref<u16>(*reinterpret_cast<u16*>(bytes->data)).load(std::memory_order_acquire);
}

bool GuestMemory::store_release_u16(Gpa gpa, u16 value) {
  const std::optional<GuestBytes> bytes = writable(gpa, sizeof(u16));
  if (!bytes) return false;
  CHECK(base::is_aligned(gpa.value, sizeof(u16)));
  std::atomic_ref<u16>(*reinterpret_cast<u16*>(bytes->data))
      .store(value, std::memory_order_release);
  return true;
}

}  // namespace memory
