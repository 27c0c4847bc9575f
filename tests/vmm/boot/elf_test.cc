#include <gmock/gmock.h>

#include "tests/vmm/boot/support/kernel_files.h"
#include "vmm/boot/layout.h"
#include "vmm/boot/pvh.h"

namespace {

using boot_test::Bytes;
using boot_test::code_segment;
using boot_test::Elf;
using boot_test::ElfSegment;
using boot_test::pvh_note;
using boot_test::refusal;
using boot_test::TemporaryFile;
using testing::AllOf;
using testing::HasSubstr;

constexpr u64 kMiB = base::kMiB;

Elf plain_elf() { return {.entry = 0x100010, .segments = {code_segment(0x100000)}}; }
Elf pvh_elf() {
  return {.entry = 0xdeadbeef, .segments = {code_segment(0x100000), pvh_note(0x100040)}};
}

TEST(Elf, SegmentsLandAtTheirPhysicalAddresses) {
  const auto memory = boot_test::make_memory();
  Elf elf = plain_elf();
  elf.segments.push_back(code_segment(0x300000));
  ASSERT_TRUE(boot_test::load(*memory, elf.build()));
  EXPECT_EQ(boot_test::read_ram(*memory, 0x100000, 0x1000), elf.segments[0].content);
  EXPECT_EQ(boot_test::read_ram(*memory, 0x101000, 0x1000), Bytes(0x1000));
  EXPECT_EQ(boot_test::read_ram(*memory, 0x300000, 0x1000), elf.segments[1].content);
}

TEST(Elf, WithoutNoteStartsInLongModeAtItsEntry) {
  const auto memory = boot_test::make_memory();
  const auto registers = boot_test::load(*memory, plain_elf().build());
  ASSERT_TRUE(registers);
  EXPECT_EQ(registers->mode, boot::StartMode::long_mode_64);
  EXPECT_EQ(registers->rip, 0x100010u);
  EXPECT_EQ(registers->rsi, boot::kZeroPageAddress);
  const auto params = memory->read<boot::BootParams>(Gpa{boot::kZeroPageAddress});
  EXPECT_EQ(params->header.boot_flag, boot::kBootFlag);
  EXPECT_EQ(params->header.header, boot::kHeaderMagic);
  EXPECT_NE(params->header.version, 0);
}

TEST(Elf, PvhNoteWinsOverTheEntry) {
  const auto memory = boot_test::make_memory();
  const auto registers = boot_test::load(*memory, pvh_elf().build());
  ASSERT_TRUE(registers);
  EXPECT_EQ(registers->mode, boot::StartMode::protected_mode_32);
  EXPECT_EQ(registers->rip, 0x100040u);
  EXPECT_EQ(registers->rbx, boot::kHvmStartInfoAddress);
}

TEST(Elf, PvhNoteIsFoundBehindOthersAndInEightBytes) {
  Elf elf = pvh_elf();
  Bytes notes = boot_test::note("GNU", 3, Bytes(20, 0xab));
  for (const Bytes& next :
       {boot_test::note("Xen", 5, Bytes(5)), boot_test::note("Xeno", 18, Bytes(4)),
        boot_test::note("Xen", 18, {0x80, 0, 0x10, 0, 0, 0, 0, 0})}) {
    notes.insert(notes.end(), next.begin(), next.end());
  }
  elf.segments[1].content = notes;
  const auto memory = boot_test::make_memory();
  const auto registers = boot_test::load(*memory, elf.build());
  ASSERT_TRUE(registers) << registers.error().message();
  EXPECT_EQ(registers->rip, 0x100080u);
}

TEST(Elf, PvhStartInfoPointsToInitrdCommandLineRsdpAndMemoryMap) {
  const auto memory = boot_test::make_memory();
  const TemporaryFile initrd(Bytes(100, 0x5a));
  ASSERT_TRUE(boot_test::load(*memory, pvh_elf().build(),
                              {.initrd_path = initrd.path(), .command_line = "quiet"}));
  const auto info = *memory->read<boot::HvmStartInfo>(Gpa{boot::kHvmStartInfoAddress});
  EXPECT_EQ(info.magic, 0x336ec578u);
  EXPECT_EQ(info.version, 1u);
  EXPECT_EQ(info.rsdp, boot::kAcpiTablesStart);
  EXPECT_EQ(boot_test::read_ram(*memory, info.command_line, 6),
            (Bytes{'q', 'u', 'i', 'e', 't', 0}));
  ASSERT_EQ(info.module_count, 1u);
  const auto module = *memory->read<boot::HvmModule>(Gpa{info.module_list});
  EXPECT_EQ(module.size, 100u);
  EXPECT_EQ(boot_test::read_ram(*memory, module.address, 100), Bytes(100, 0x5a));
  ASSERT_EQ(info.memory_map_count, 3u);
  u64 last_end = 0;
  for (u64 i = 0; i < info.memory_map_count; ++i) {
    const auto entry = *memory->read<boot::HvmMemoryMapEntry>(
        Gpa{info.memory_map + i * sizeof(boot::HvmMemoryMapEntry)});
    EXPECT_EQ(entry.start, last_end);
    last_end = entry.start + entry.length;
  }
  EXPECT_EQ(last_end, 64 * kMiB);
}

TEST(Elf, PvhWithoutInitrdHasNoModules) {
  const auto memory = boot_test::make_memory();
  ASSERT_TRUE(boot_test::load(*memory, pvh_elf().build()));
  const auto info = *memory->read<boot::HvmStartInfo>(Gpa{boot::kHvmStartInfoAddress});
  EXPECT_EQ(info.module_count, 0u);
  EXPECT_EQ(info.module_list, 0u);
}

TEST(Elf, TinyPvhKernelTouchesFewPages) {
  const auto memory = boot_test::make_memory(1024 * kMiB);
  ASSERT_TRUE(boot_test::load(*memory, pvh_elf().build()));
  memory::PageSet pages(memory->page_count());
  memory->dirty_log().collect(pages);
  EXPECT_LE(pages.count(), 6u);
}

TEST(Elf, EveryTruncationIsRefused) {
  const Bytes whole = pvh_elf().build();
  for (u64 length = 1; length < whole.size(); ++length) {
    if (length > 200 && length % 61 != 0 && whole.size() - length > 40) continue;
    ASSERT_NE(refusal(Bytes(whole.begin(), whole.begin() + static_cast<long>(length))), "")
        << "taken at " << length << " bytes";
  }
}

TEST(Elf, OtherClassByteOrderMachineAndTypeAreRefused) {
  Elf elf = plain_elf();
  elf.file_class = 1;
  EXPECT_THAT(refusal(elf.build()), HasSubstr("only 64-bit"));
  elf = plain_elf();
  elf.data_encoding = 2;
  EXPECT_THAT(refusal(elf.build()), HasSubstr("little-endian"));
  elf = plain_elf();
  elf.machine = 183;
  EXPECT_THAT(refusal(elf.build()), HasSubstr("e_machine 183"));
  elf = plain_elf();
  elf.type = 1;
  EXPECT_THAT(refusal(elf.build()), HasSubstr("e_type 1"));
}

TEST(Elf, BadProgramHeaderTableIsRefused) {
  Elf elf = plain_elf();
  elf.segment_bytes = 32;
  EXPECT_THAT(refusal(elf.build()), HasSubstr("e_phentsize 32"));
  elf = plain_elf();
  elf.segment_count = 0;
  EXPECT_THAT(refusal(elf.build()), HasSubstr("e_phnum 0"));
  elf.segment_count = 0xffff;
  EXPECT_THAT(refusal(elf.build()), HasSubstr("e_phnum 65535"));
  elf = plain_elf();
  elf.segments_offset = ~u64{0};
  EXPECT_THAT(refusal(elf.build()), HasSubstr("truncated: ELF program headers"));
}

TEST(Elf, HugeMemorySizeIsRefused) {
  Elf elf = plain_elf();
  for (const u64 size : {64 * kMiB, u64{1} << 62, ~u64{0} - 0x100000}) {
    elf.segments[0].memory_bytes = size;
    EXPECT_THAT(refusal(elf.build()), HasSubstr("beyond the machine's RAM")) << size;
  }
  elf.segments[0].memory_bytes = 64 * kMiB;
  EXPECT_THAT(refusal(elf.build()), HasSubstr("at least 65 MiB"));
}

TEST(Elf, WrappingSegmentIsRefused) {
  Elf elf = plain_elf();
  elf.segments[0].address = ~u64{0} - 0xfff;
  EXPECT_THAT(refusal(elf.build()), HasSubstr("wraps around"));
}

TEST(Elf, SegmentInTheDeviceHoleIsRefused) {
  Elf elf = plain_elf();
  elf.segments[0].address = 3 * base::kGiB - 0x1000;
  EXPECT_THAT(refusal(elf.build(), 5 * base::kGiB), HasSubstr("beyond the machine's RAM"));
}

TEST(Elf, SegmentBelowOneMebibyteIsRefused) {
  Elf elf = plain_elf();
  elf.segments[0].address = boot::kZeroPageAddress;
  EXPECT_THAT(refusal(elf.build()), HasSubstr("belongs to the machine"));
}

TEST(Elf, FileSizeAboveMemorySizeIsRefused) {
  Elf elf = plain_elf();
  elf.segments[0].memory_bytes = 0xfff;
  EXPECT_THAT(refusal(elf.build()), AllOf(HasSubstr("p_filesz"), HasSubstr("p_memsz")));
}

TEST(Elf, SegmentBeyondTheFileIsRefused) {
  Elf elf = plain_elf();
  elf.segments[0].claimed_offset = ~u64{0} - 10;
  EXPECT_THAT(refusal(elf.build()), HasSubstr("truncated: ELF segment 0"));
}

TEST(Elf, OverlappingSegmentsAreRefused) {
  Elf elf = plain_elf();
  elf.segments.push_back(code_segment(0x101fff));
  EXPECT_THAT(refusal(elf.build()), HasSubstr("segments 0 and 1 overlap"));
  elf.segments[1].address = 0x102000;
  EXPECT_EQ(refusal(elf.build()), "");
}

TEST(Elf, NothingToLoadIsRefused) {
  Elf elf = plain_elf();
  elf.segments[0].type = 6;
  EXPECT_THAT(refusal(elf.build()), HasSubstr("no segment to load"));
}

TEST(Elf, EntryOutsideOfTheFilesPartIsRefused) {
  Elf elf = plain_elf();
  for (const u64 entry : {u64{0}, u64{0xfffff}, u64{0x101000}, ~u64{0}, u64{0xffffffff81000000}}) {
    elf.entry = entry;
    EXPECT_THAT(refusal(elf.build()), HasSubstr("e_entry")) << entry;
  }
  elf = pvh_elf();
  elf.segments[1] = pvh_note(0x90000);
  EXPECT_THAT(refusal(elf.build()), HasSubstr("PVH entry 0x90000"));
}

TEST(Elf, HostileNotesAreRefused) {
  Elf elf = pvh_elf();
  elf.segments[1].content[0] = 0xff;  // name size
  EXPECT_THAT(refusal(elf.build()), HasSubstr("reaches beyond"));
  elf = pvh_elf();
  for (int i = 0; i < 4; ++i) elf.segments[1].content[static_cast<u64>(4 + i)] = 0xff;
  EXPECT_THAT(refusal(elf.build()), HasSubstr("reaches beyond"));
  elf = pvh_elf();
  elf.segments[1].content = boot_test::note("Xen", 18, Bytes(3));
  EXPECT_THAT(refusal(elf.build()), HasSubstr("not 4 or 8"));
  elf = pvh_elf();
  elf.segments[1].claimed_file_bytes = ~u64{0} - 3;
  EXPECT_THAT(refusal(elf.build()), HasSubstr("truncated: ELF notes"));
  elf = pvh_elf();
  elf.segments[1].content = Bytes(12 * 5000);
  EXPECT_THAT(refusal(elf.build()), HasSubstr("more than 1024 notes"));
}

TEST(Elf, CommandLineThatLinuxWouldCutIsRefused) {
  EXPECT_THAT(refusal(pvh_elf().build(), 64 * kMiB, {.command_line = std::string(2048, 'a')}),
              HasSubstr("at most 2047"));
}

}  // namespace
