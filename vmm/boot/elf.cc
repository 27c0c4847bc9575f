#include "vmm/boot/elf.h"

#include <algorithm>
#include <array>

#include "vmm/base/ranges.h"
#include "vmm/boot/layout.h"

namespace boot {
namespace {

// Elf64_Ehdr
struct Header {
  u8 magic[4];           //  0  0x7f "ELF"
  u8 file_class;         //  4  1: 32 bits, 2: 64 bits
  u8 data_encoding;      //  5  1: little-endian
  u8 ident_version;      //  6
  u8 ident_rest[9];      //  7
  le16 type;             // 16  ET_EXEC 2, ET_DYN 3
  le16 machine;          // 18  EM_X86_64 62
  le32 version;          // 20
  le64 entry;            // 24
  le64 segments_offset;  // 32  e_phoff
  le64 sections_offset;  // 40
  le32 flags;            // 48
  le16 header_bytes;     // 52
  le16 segment_bytes;    // 54  e_phentsize
  le16 segment_count;    // 56  e_phnum
  le16 section_bytes;    // 58
  le16 section_count;    // 60
  le16 names_index;      // 62
};
static_assert(base::WireType<Header> && sizeof(Header) == 64);

// Elf64_Phdr
struct ProgramHeader {
  le32 type;             //  0
  le32 flags;            //  4
  le64 offset;           //  8
  le64 virtual_address;  // 16
  le64 address;          // 24  p_paddr
  le64 file_bytes;       // 32  p_filesz
  le64 memory_bytes;     // 40  p_memsz
  le64 alignment;        // 48
};
static_assert(base::WireType<ProgramHeader> && sizeof(ProgramHeader) == 56);

// Elf64_Nhdr
struct Note {
  le32 name_bytes;         // 0
  le32 description_bytes;  // 4
  le32 type;               // 8
};
static_assert(base::WireType<Note> && sizeof(Note) == 12);

constexpr std::array<u8, 4> kMagic{0x7f, 'E', 'L', 'F'};
constexpr u8 kClass64 = 2;
constexpr u8 kLittleEndian = 1;
constexpr u16 kTypeExecutable = 2;
constexpr u16 kTypeShared = 3;
constexpr u16 kMachineX86_64 = 62;
constexpr u32 kSegmentLoad = 1;
constexpr u32 kSegmentNote = 4;
constexpr u32 kNotePhys32Entry = 18;
constexpr std::array<u8, 4> kNoteNameXen{'X', 'e', 'n', '\0'};
// Linux has 5 segments and 8 notes. The limits bound the work that a hostile file can ask for.
constexpr u32 kSegmentCountMaximum = 64;
constexpr u32 kNoteCountMaximum = 1024;

struct SegmentTable {
  std::array<ProgramHeader, kSegmentCountMaximum> entries;
  u32 count = 0;

  std::span<const ProgramHeader> all() const { return {entries.data(), count}; }
};

Result<void> check_header(const Header& header) {
  if (header.file_class != kClass64 || header.data_encoding != kLittleEndian) {
    return make_error(ErrorKind::unsupported,
                      "ELF: class {} and data encoding {} at offset 4; only 64-bit little-endian "
                      "(2 and 1) is taken",
                      header.file_class, header.data_encoding)
        .with_hint("use an x86-64 kernel; a 32-bit one with a PVH entry must be linked as ELF64");
  }
  if (header.machine != kMachineX86_64) {
    return make_error(ErrorKind::unsupported, "ELF: e_machine {} at offset 18 is not x86-64 (62)",
                      u16{header.machine})
        .with_hint("this kernel is for another processor");
  }
  if (header.type != kTypeExecutable && header.type != kTypeShared) {
    return make_error(ErrorKind::unsupported, "ELF: e_type {} at offset 16 is not an executable",
                      u16{header.type});
  }
  if (header.segment_bytes != sizeof(ProgramHeader)) {
    return make_error(ErrorKind::corrupt, "ELF: e_phentsize {} at offset 54 is not {}",
                      u16{header.segment_bytes}, sizeof(ProgramHeader));
  }
  if (header.segment_count == 0 || header.segment_count > kSegmentCountMaximum) {
    return make_error(ErrorKind::unsupported,
                      "ELF: e_phnum {} at offset 56 is outside 1 to {} program headers",
                      u16{header.segment_count}, kSegmentCountMaximum);
  }
  return {};
}

Result<SegmentTable> read_segments(const KernelFile& file, const Header& header) {
  SegmentTable table;
  table.count = header.segment_count;
  TRY(file.read(header.segments_offset,
                {reinterpret_cast<u8*>(table.entries.data()), table.count * sizeof(ProgramHeader)},
                "ELF program headers (e_phoff)"));
  return table;
}

Result<void> check_segment(u32 index, const ProgramHeader& segment, AddressRange ram) {
  if (segment.file_bytes > segment.memory_bytes) {
    return make_error(ErrorKind::corrupt, "ELF: segment {}: p_filesz {:#x} exceeds p_memsz {:#x}",
                      index, u64{segment.file_bytes}, u64{segment.memory_bytes});
  }
  const std::optional<u64> end = base::checked_add(segment.address, segment.memory_bytes);
  if (!end) {
    return make_error(ErrorKind::corrupt,
                      "ELF: segment {}: p_paddr {:#x} plus p_memsz {:#x} wraps around", index,
                      u64{segment.address}, u64{segment.memory_bytes});
  }
  if (segment.address < ram.start) {
    return make_error(ErrorKind::unsupported,
                      "ELF: segment {}: p_paddr {:#x} lies below {:#x}, which belongs to the "
                      "machine",
                      index, u64{segment.address}, ram.start)
        .with_hint("link the kernel for a physical address of 1 MiB or more");
  }
  if (*end > ram.end) {
    return make_error(ErrorKind::usage,
                      "ELF: segment {}: {:#x} bytes at {:#x} (p_memsz, p_paddr) end beyond the "
                      "machine's RAM at {:#x}",
                      index, u64{segment.memory_bytes}, u64{segment.address}, ram.end)
        .with_hint(*end <= memory::kLowRamLimit
                       ? fmt::format("give the machine at least {} MiB of memory (-m)",
                                     base::divide_up(*end, base::kMiB))
                       : "the program header is damaged, or this is no kernel for a PC");
  }
  return {};
}

Result<void> check_apart(u32 index, const ProgramHeader& segment,
                         std::span<const ProgramHeader> earlier) {
  for (u32 other = 0; other < earlier.size(); ++other) {
    if (earlier[other].type == kSegmentLoad &&
        base::overlaps(segment.address, segment.memory_bytes, earlier[other].address,
                       earlier[other].memory_bytes)) {
      return make_error(ErrorKind::corrupt,
                        "ELF: segments {} and {} overlap: {:#x} bytes at {:#x}, {:#x} at {:#x}",
                        other, index, u64{earlier[other].memory_bytes}, u64{earlier[other].address},
                        u64{segment.memory_bytes}, u64{segment.address});
    }
  }
  return {};
}

// Only file bytes are copied: the rest of a segment is zero, as RAM is.
Result<AddressRange> load_segments(const KernelFile& file, memory::GuestMemory& memory,
                                   std::span<const ProgramHeader> segments) {
  const AddressRange ram = loadable_ram(memory);
  AddressRange occupied{ram.end, ram.start};
  for (u32 i = 0; i < segments.size(); ++i) {
    const ProgramHeader& segment = segments[i];
    if (segment.type != kSegmentLoad || segment.memory_bytes == 0) continue;
    TRY(check_segment(i, segment, ram));
    TRY(check_apart(i, segment, segments.first(i)));
    TRY(file.copy_to_guest(segment.offset, segment.file_bytes, memory, segment.address,
                           fmt::format("ELF segment {} (p_offset, p_filesz)", i)));
    occupied.start = std::min(occupied.start, u64{segment.address});
    occupied.end = std::max(occupied.end, segment.address + segment.memory_bytes);
  }
  if (occupied.start >= occupied.end) {
    return make_error(ErrorKind::unsupported, "ELF: no segment to load (PT_LOAD)");
  }
  return occupied;
}

// The entry of one PT_NOTE segment, if it has one.
Result<std::optional<u32>> find_pvh_entry(const KernelFile& file, const ProgramHeader& segment) {
  // Notes are padded to 4 bytes, and to 8 where the segment says so (System V gABI, "Note
  // Section").
  const u64 alignment = segment.alignment == 8 ? 8 : 4;
  if (!base::contains(file.size_bytes(), segment.offset, segment.file_bytes)) {
    return make_error(ErrorKind::corrupt,
                      "truncated: ELF notes take {:#x} bytes at offset {:#x}, the file has {:#x}",
                      u64{segment.file_bytes}, u64{segment.offset}, file.size_bytes());
  }
  // Sums below cannot wrap: position is within the file, the sizes have 32 bits.
  u64 position = segment.offset;
  const u64 end = segment.offset + segment.file_bytes;
  for (u32 count = 0; end - position >= sizeof(Note); ++count) {
    if (count == kNoteCountMaximum) {
      return make_error(ErrorKind::unsupported, "ELF: more than {} notes", kNoteCountMaximum);
    }
    const Note note = TRY(file.read<Note>(position, "ELF note"));
    const u64 name = position + sizeof(Note);
    const u64 description =
        segment.offset + base::align_up(name + note.name_bytes - segment.offset, alignment);
    if (description > end || note.description_bytes > end - description) {
      return make_error(ErrorKind::corrupt,
                        "ELF: the note at offset {:#x} reaches beyond its segment's end {:#x}",
                        position, end);
    }
    if (note.type == kNotePhys32Entry && note.name_bytes == kNoteNameXen.size()) {
      std::array<u8, 4> owner;
      TRY(file.read(name, owner, "ELF note name"));
      if (owner == kNoteNameXen) {
        if (note.description_bytes != 4 && note.description_bytes != 8) {
          return make_error(ErrorKind::corrupt,
                            "ELF: the PVH entry note at offset {:#x} has {} bytes, not 4 or 8",
                            position, u32{note.description_bytes});
        }
        return std::optional<u32>(TRY(file.read<le32>(description, "PVH entry")));
      }
    }
    position = std::min(
        end, segment.offset +
                 base::align_up(description + note.description_bytes - segment.offset, alignment));
  }
  return std::optional<u32>();
}

Result<void> check_entry(u64 entry, std::string_view what,
                         std::span<const ProgramHeader> segments) {
  for (const ProgramHeader& segment : segments) {
    if (segment.type == kSegmentLoad && entry >= segment.address &&
        base::contains(segment.file_bytes, entry - segment.address, 1)) {
      return {};
    }
  }
  return make_error(ErrorKind::corrupt, "ELF: {} {:#x} lies outside of the loaded segments", what,
                    entry)
      .with_hint("the entry must be a physical address in the file's part of a PT_LOAD segment");
}

}  // namespace

bool looks_like_elf(const KernelFile& file) {
  std::array<u8, 4> magic{};
  return file.read(0, magic, "ELF magic").has_value() && magic == kMagic;
}

Result<ElfKernel> load_elf(const KernelFile& file, memory::GuestMemory& memory) {
  const Header header = TRY(file.read<Header>(0, "ELF header"));
  TRY(check_header(header));
  const SegmentTable segments = TRY(read_segments(file, header));

  ElfKernel kernel;
  kernel.entry = header.entry;
  for (const ProgramHeader& segment : segments.all()) {
    if (segment.type == kSegmentNote && !kernel.pvh_entry) {
      kernel.pvh_entry = TRY(find_pvh_entry(file, segment));
    }
  }
  kernel.occupied = TRY(load_segments(file, memory, segments.all()));
  if (kernel.pvh_entry) {
    TRY(check_entry(*kernel.pvh_entry, "PVH entry", segments.all()));
  } else {
    TRY(check_entry(kernel.entry, "e_entry", segments.all()));
  }
  return kernel;
}

}  // namespace boot
