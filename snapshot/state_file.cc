#include "snapshot/state_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <set>

#include <xxhash.h>

#include "vmm/base/check.h"
#include "vmm/base/wire.h"

namespace snapshot {
namespace {

constexpr u32 kMagic = 0x54535351;  // "QSST"
constexpr u32 kVersion = 1;
constexpr u64 kMaximumNameBytes = 64;

struct Header {
  le32 magic;     //  0
  le32 version;   //  4
  le32 count;     //  8  sections
  le32 reserved;  // 12  zero
};
static_assert(base::WireType<Header> && sizeof(Header) == 16);

struct SectionHeader {
  le32 name_bytes;     //  0
  le32 payload_bytes;  //  4
  le64 checksum;       //  8  XXH3-64 of name and payload
};
static_assert(base::WireType<SectionHeader> && sizeof(SectionHeader) == 16);

template <base::WireType T>
void append(base::Bytes& out, const T& value) {
  const u8* const bytes = reinterpret_cast<const u8*>(&value);
  out.insert(out.end(), bytes, bytes + sizeof value);
}

template <base::WireType T>
Result<T> take(base::ByteReader& reader) {
  const std::span<const u8> bytes = TRY(reader.take(sizeof(T)));
  T value;
  std::memcpy(&value, bytes.data(), sizeof value);
  return value;
}

u64 checksum_of(std::span<const u8> name_and_payload) {
  return XXH3_64bits(name_and_payload.data(), name_and_payload.size());
}

Result<Section> read_section(base::ByteReader& reader) {
  const SectionHeader header = TRY(take<SectionHeader>(reader));
  const u64 name_bytes = header.name_bytes;
  if (name_bytes == 0 || name_bytes > kMaximumNameBytes) {
    return make_error(ErrorKind::corrupt, "section name of {} bytes", name_bytes);
  }
  const std::span<const u8> body = TRY(reader.take(name_bytes + u64{header.payload_bytes}));
  if (checksum_of(body) != header.checksum) {
    return make_error(ErrorKind::corrupt, "a section's checksum does not match");
  }
  Section section;
  section.name.assign(reinterpret_cast<const char*>(body.data()), name_bytes);
  section.payload.assign(body.begin() + static_cast<std::ptrdiff_t>(name_bytes), body.end());
  return section;
}

}  // namespace

Result<base::Bytes> encode_sections(std::span<const Section> sections) {
  CHECK(sections.size() <= kMaximumSections);
  base::Bytes out;
  append(out, Header{kMagic, kVersion, static_cast<u32>(sections.size()), 0});
  for (const Section& section : sections) {
    CHECK(!section.name.empty() && section.name.size() <= kMaximumNameBytes);
    base::Bytes body(section.name.begin(), section.name.end());
    body.insert(body.end(), section.payload.begin(), section.payload.end());
    if (body.size() > kMaximumStateBytes - sizeof(SectionHeader) - out.size()) {
      return make_error(ErrorKind::unsupported, "state of \"{}\" makes more than {} bytes in all",
                        section.name, kMaximumStateBytes);
    }
    append(out, SectionHeader{static_cast<u32>(section.name.size()),
                              static_cast<u32>(section.payload.size()), checksum_of(body)});
    out.insert(out.end(), body.begin(), body.end());
  }
  // Covers the header and the headers of sections, which their own checksums do not.
  append(out, le64(XXH3_64bits(out.data(), out.size())));
  return out;
}

Result<std::vector<Section>> decode_sections(std::span<const u8> bytes) {
  if (bytes.size() > kMaximumStateBytes + sizeof(le64)) {
    return make_error(ErrorKind::corrupt, "state has {} bytes, more than {}", bytes.size(),
                      kMaximumStateBytes);
  }
  base::ByteReader reader(bytes);
  const Header header = TRY(take<Header>(reader));
  if (header.magic != kMagic) return make_error(ErrorKind::corrupt, "not a state file");
  if (header.version != kVersion) {
    return make_error(ErrorKind::unsupported, "state version {}; this program reads version {}",
                      u32{header.version}, kVersion);
  }
  if (header.reserved != 0 || header.count > kMaximumSections) {
    return make_error(ErrorKind::corrupt, "state header is damaged");
  }
  std::vector<Section> sections;
  std::set<std::string> names;
  for (u32 i = 0; i < header.count; ++i) {
    sections.push_back(TRY_CONTEXT(read_section(reader), fmt::format("section {}", i)));
    if (!names.insert(sections.back().name).second) {
      return make_error(ErrorKind::corrupt, "section \"{}\" is there twice", sections.back().name);
    }
  }
  const u64 covered = bytes.size() - reader.left_bytes();
  const le64 checksum = TRY(take<le64>(reader));
  if (!reader.empty()) {
    return make_error(ErrorKind::corrupt, "{} bytes after the last section", reader.left_bytes());
  }
  if (checksum != XXH3_64bits(bytes.data(), covered)) {
    return make_error(ErrorKind::corrupt, "state checksum does not match");
  }
  return sections;
}

Result<StateFile> write_state_file(const base::Fd& directory, const std::string& name,
                                   std::span<const Section> sections) {
  const base::Bytes bytes = TRY(encode_sections(sections));
  const auto write = [&]() -> Result<void> {
    const base::Fd file =
        TRY(base::open_file_at(directory, name, O_WRONLY | O_CREAT | O_EXCL, 0400));
    TRY(base::write_exactly(file, bytes, 0));
    return base::sync_file(file);
  };
  Result<void> written = write();
  if (!written) {
    ::unlinkat(directory.get(), name.c_str(), 0);
    return std::move(written).error().with_context(fmt::format("write \"{}\"", name));
  }
  return StateFile{name, bytes.size(), Checksum::of(bytes)};
}

Result<std::vector<Section>> read_state_file(const base::Fd& file, const StateFile& expected) {
  const u64 size = TRY(base::file_size(file));
  if (size != expected.size_bytes || size > kMaximumStateBytes + sizeof(le64)) {
    return make_error(ErrorKind::corrupt, "state file has {} bytes, the manifest says {}", size,
                      expected.size_bytes);
  }
  base::Bytes bytes(size);
  TRY(base::read_exactly(file, bytes, 0));
  if (Checksum::of(bytes) != expected.checksum) {
    return make_error(ErrorKind::corrupt, "state file's checksum does not match the manifest");
  }
  return decode_sections(bytes);
}

}  // namespace snapshot
