// GuestMemory: the guest's RAM, and the only way to touch it.
//
// RAM is one contiguous private mapping. Its bytes are numbered by RAM offset, without holes; that
// is also the numbering of files and dirty sets. The guest sees them at guest-physical addresses:
// [0, 3 GiB) and, for what does not fit there, from 4 GiB on. Below 4 GiB the last GiB belongs to
// devices.
//
// The guest is hostile and runs while we read. So there are no references into RAM: read() makes
// one copy, and the copy is what is checked and used. Host pointers leave this class only as
// GuestBytes, for readv/io_uring and memcpy, and must not be kept past the request.
//
// Everything that gives write access marks the pages in dirty_log() first; there is no other way to
// write guest RAM.
//
// Thread: all calls from any thread.

#pragma once

#include <sys/uio.h>

#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"
#include "vmm/base/wire.h"
#include "vmm/memory/dirty_log.h"
#include "vmm/memory/gpa.h"

namespace memory {

inline constexpr u64 kLowRamLimit = 3 * base::kGiB;   // RAM below here, devices above
inline constexpr u64 kHighRamStart = 4 * base::kGiB;  // RAM again
inline constexpr u64 kMaximumRamBytes = 64 * base::kGiB;

// One run of RAM that is contiguous for the guest.
struct RamRegion {
  Gpa gpa;
  u64 ram_offset;
  u64 length_bytes;
};

// Of a file, in whole pages.
struct FilePart {
  u64 offset = 0;
  u64 length_bytes = 0;
};

// A checked range of guest RAM as a host address.
struct GuestBytes {
  u8* data = nullptr;
  u64 size = 0;

  iovec to_iovec() const { return {data, size}; }
};

class GuestMemory final {
 public:
  // Zero-filled RAM. `ram_bytes` is a multiple of 4 KiB, 1 MiB to 64 GiB.
  static Result<std::unique_ptr<GuestMemory>> create(u64 ram_bytes);
  // RAM that starts as a private, lazily read copy of `file`, which holds exactly `ram_bytes`; only
  // `parts` of it are not zeros. The file must not change while this object lives.
  static Result<std::unique_ptr<GuestMemory>> create_from_file(const base::Fd& file, u64 ram_bytes,
                                                               std::span<const FilePart> parts);

  GuestMemory(const GuestMemory&) = delete;
  GuestMemory& operator=(const GuestMemory&) = delete;

  u64 size_bytes() const { return mapping_.size_bytes(); }
  u64 page_count() const { return size_bytes() / base::kPageBytes; }
  std::span<const RamRegion> regions() const { return regions_; }
  DirtyLog& dirty_log() { return dirty_log_; }

  // All zero again, whatever the RAM started as. REQUIRES: nobody holds GuestBytes. Not marked.
  Result<void> reset();

  // The whole of RAM by RAM offset, for the snapshot code on a quiet machine. Writes through it are
  // not marked.
  std::span<u8> quiet_ram() { return {mapping_.data(), size_bytes()}; }

  // Where [gpa, gpa + length) lies in RAM; nothing if any byte of it is not RAM.
  std::optional<u64> ram_offset(Gpa gpa, u64 length) const;

  // Where a page of RAM lies for the guest. REQUIRES: page < page_count().
  Gpa gpa_of_page(u64 page) const;

  std::optional<GuestBytes> readable(Gpa gpa, u64 length) const;
  // Marks the range dirty. Call at submission when the write itself comes later.
  std::optional<GuestBytes> writable(Gpa gpa, u64 length);

  [[nodiscard]] bool read(Gpa gpa, std::span<u8> out) const;
  [[nodiscard]] bool write(Gpa gpa, std::span<const u8> bytes);

  template <base::WireType T>
  std::optional<T> read(Gpa gpa) const {
    T value;
    if (!read(gpa, {reinterpret_cast<u8*>(&value), sizeof value})) return std::nullopt;
    return value;
  }
  template <base::WireType T>
  [[nodiscard]] bool write(Gpa gpa, const T& value) {
    return write(gpa, {reinterpret_cast<const u8*>(&value), sizeof value});
  }

  // Ring indices, which the other side changes while we look. REQUIRES: gpa is a multiple of 2.
  // The acquire pairs with the driver's barrier before it stores avail.idx; the release with the
  // driver's after it loads used.idx.
  std::optional<u16> load_acquire_u16(Gpa gpa) const;
  [[nodiscard]] bool store_release_u16(Gpa gpa, u16 value);

 private:
  GuestMemory(base::Mapping mapping, std::vector<RamRegion> regions);

  base::Mapping mapping_;
  std::vector<RamRegion> regions_;
  DirtyLog dirty_log_;
};

}  // namespace memory
