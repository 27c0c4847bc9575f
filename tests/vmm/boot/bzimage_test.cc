#include <gmock/gmock.h>

#include "tests/vmm/boot/support/kernel_files.h"
#include "vmm/base/ranges.h"
#include "vmm/boot/layout.h"

namespace {

using boot_test::Bytes;
using boot_test::BzImage;
using boot_test::refusal;
using boot_test::TemporaryFile;
using testing::AllOf;
using testing::HasSubstr;
using testing::Not;

boot::BootParams zero_page(const memory::GuestMemory& memory) {
  return *memory.read<boot::BootParams>(Gpa{boot::kZeroPageAddress});
}

TEST(BzImage, PayloadLandsAtThePreferredAddressWithoutTheSetupCode) {
  const auto memory = boot_test::make_memory();
  const BzImage image;
  ASSERT_TRUE(boot_test::load(*memory, image.build()));
  const Bytes payload = boot_test::read_ram(*memory, 0x1000000, image.payload_bytes);
  for (u64 i = 0; i < payload.size(); ++i) ASSERT_EQ(payload[i], boot_test::payload_byte(i));
}

TEST(BzImage, SignatureAfterThePayloadIsNotLoaded) {
  const auto memory = boot_test::make_memory();
  Bytes file = BzImage().build();
  file.resize(file.size() + 1472, 0xee);
  ASSERT_TRUE(boot_test::load(*memory, file));
  EXPECT_EQ(memory->read<le32>(Gpa{0x1001000}), 0u);
}

TEST(BzImage, StartsAtTheSixtyFourBitEntryWithTheZeroPageInRsi) {
  const auto memory = boot_test::make_memory();
  const auto registers = boot_test::load(*memory, BzImage().build());
  ASSERT_TRUE(registers);
  EXPECT_EQ(registers->mode, boot::StartMode::long_mode_64);
  EXPECT_EQ(registers->rip, 0x1000200u);
  EXPECT_EQ(registers->rsi, boot::kZeroPageAddress);
}

TEST(BzImage, ZeroPageCarriesWhatTheLoaderOwes) {
  const auto memory = boot_test::make_memory();
  const TemporaryFile initrd(Bytes(5000, 0x42));
  ASSERT_TRUE(boot_test::load(*memory, BzImage().build(),
                              {.initrd_path = initrd.path(), .command_line = "console=ttyS0"}));
  const boot::BootParams params = zero_page(*memory);
  EXPECT_EQ(params.header.type_of_loader, 0xff);
  EXPECT_EQ(params.header.header, boot::kHeaderMagic);
  EXPECT_EQ(params.header.pref_address, 0x1000000u);
  EXPECT_EQ(params.header.cmd_line_ptr, boot::kCommandLineAddress);
  EXPECT_EQ(params.acpi_rsdp_addr, boot::kAcpiTablesStart);
  EXPECT_EQ(params.sentinel, 0);
  EXPECT_EQ(params.header.ramdisk_size, 5000u);
  const u64 start = params.header.ramdisk_image;
  EXPECT_TRUE(base::is_aligned(start, base::kPageBytes));
  EXPECT_EQ(start, 64 * base::kMiB - 8192);
  EXPECT_EQ(boot_test::read_ram(*memory, start, 5000), Bytes(5000, 0x42));
  const Bytes line = boot_test::read_ram(*memory, boot::kCommandLineAddress, 14);
  EXPECT_STREQ(reinterpret_cast<const char*>(line.data()), "console=ttyS0");
}

TEST(BzImage, RandomSeedIsThirtyTwoBytesThatDifferBetweenBoots) {
  std::vector<boot::RngSeed> seeds;
  for (int i = 0; i < 2; ++i) {
    const auto memory = boot_test::make_memory();
    ASSERT_TRUE(boot_test::load(*memory, BzImage().build()));
    ASSERT_EQ(zero_page(*memory).header.setup_data, boot::kSetupDataAddress);
    seeds.push_back(*memory->read<boot::RngSeed>(Gpa{boot::kSetupDataAddress}));
    EXPECT_EQ(seeds.back().next, 0u);
    EXPECT_EQ(seeds.back().type, 9u);
    EXPECT_EQ(seeds.back().length, 32u);
  }
  EXPECT_NE(std::memcmp(seeds[0].seed, seeds[1].seed, 32), 0);
}

TEST(BzImage, MemoryMapCoversRamAndNeverOverlaps) {
  for (const u64 ram :
       {32 * base::kMiB, 3 * base::kGiB, 3 * base::kGiB + base::kMiB, 64 * base::kGiB}) {
    const auto memory = boot_test::make_memory(ram);
    ASSERT_TRUE(boot_test::load(*memory, BzImage().build()));
    const boot::BootParams params = zero_page(*memory);
    u64 usable = 0;
    u64 last_end = 0;
    for (u32 i = 0; i < params.e820_entries; ++i) {
      const boot::E820Entry& entry = params.e820_table[i];
      EXPECT_GE(entry.start, last_end);
      EXPECT_TRUE(memory->ram_offset(Gpa{entry.start}, entry.length));
      last_end = entry.start + entry.length;
      if (entry.type == 1) usable += entry.length;
      const bool holds_acpi = base::overlaps(entry.start, entry.length, boot::kAcpiTablesStart,
                                             boot::kKernelAreaStart - boot::kAcpiTablesStart);
      EXPECT_EQ(holds_acpi, entry.type == 2);
    }
    EXPECT_EQ(usable, ram - (boot::kKernelAreaStart - boot::kLegacyHoleStart));
  }
}

TEST(BzImage, InitrdStaysBelowTheKernelsLimit) {
  const auto memory = boot_test::make_memory();
  const TemporaryFile initrd(Bytes(4096, 1));
  BzImage image;
  image.header.initrd_addr_max = 0x2ffffff;
  ASSERT_TRUE(boot_test::load(*memory, image.build(), {.initrd_path = initrd.path()}));
  EXPECT_EQ(zero_page(*memory).header.ramdisk_image, 0x2fff000u);
}

TEST(BzImage, InitrdGoesBelowAKernelThatFillsTheTop) {
  const auto memory = boot_test::make_memory(32 * base::kMiB);
  const TemporaryFile initrd(Bytes(4096, 1));
  BzImage image;
  image.header.init_size = 16 * base::kMiB;
  ASSERT_TRUE(boot_test::load(*memory, image.build(), {.initrd_path = initrd.path()}));
  EXPECT_EQ(zero_page(*memory).header.ramdisk_image, 0xfff000u);
}

TEST(BzImage, ShortSetupHeaderDoesNotLeakSetupCodeIntoTheZeroPage) {
  const auto memory = boot_test::make_memory();
  BzImage image;
  image.header.jump_distance = 0x264 - 0x202;
  image.header.kernel_info_offset = 0xdeadbeef;
  ASSERT_TRUE(boot_test::load(*memory, image.build()));
  EXPECT_EQ(zero_page(*memory).header.kernel_info_offset, 0u);
}

TEST(BzImage, EveryTruncationIsRefused) {
  const Bytes whole = BzImage().build();
  for (u64 length = 1; length < whole.size(); ++length) {
    if (length > 0x280 && length % 61 != 0 && whole.size() - length > 20) continue;
    const std::string message =
        refusal(Bytes(whole.begin(), whole.begin() + static_cast<long>(length)));
    ASSERT_NE(message, "") << "taken at " << length << " bytes";
    EXPECT_THAT(message, HasSubstr(fmt::format("the file has {} bytes", length)));
  }
}

TEST(BzImage, EmptyFileIsRefused) { EXPECT_THAT(refusal({}), HasSubstr("the file is empty")); }

TEST(BzImage, MissingKernelNamesTheFile) {
  const auto memory = boot_test::make_memory();
  const auto result = boot::load_kernel(*memory, {.kernel_path = "/nowhere/vmlinuz"});
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind(), ErrorKind::not_found);
  EXPECT_THAT(result.error().message(), HasSubstr("/nowhere/vmlinuz"));
}

TEST(BzImage, DirectoryAndDeviceAreRefused) {
  const auto memory = boot_test::make_memory();
  for (const char* path : {"/tmp", "/dev/null"}) {
    const auto result = boot::load_kernel(*memory, {.kernel_path = path});
    ASSERT_FALSE(result);
    EXPECT_THAT(result.error().message(), AllOf(HasSubstr(path), HasSubstr("regular file")));
  }
}

TEST(BzImage, ThirtyTwoBitKernelIsRefused) {
  BzImage image;
  image.header.xloadflags = 0;
  EXPECT_THAT(refusal(image.build()), AllOf(HasSubstr("32-bit"), HasSubstr("0x236")));
}

TEST(BzImage, ProtocolWithoutExtendedFlagsIsRefused) {
  BzImage image;
  image.header.version = 0x020b;
  EXPECT_THAT(refusal(image.build()), HasSubstr("boot protocol 2.11"));
}

TEST(BzImage, BadBootFlagIsRefused) {
  BzImage image;
  image.header.boot_flag = 0x55aa;
  EXPECT_THAT(refusal(image.build()), HasSubstr("boot_flag"));
}

TEST(BzImage, ZImageIsRefused) {
  BzImage image;
  image.header.loadflags = 0;
  EXPECT_THAT(refusal(image.build()), HasSubstr("LOADED_HIGH"));
}

TEST(BzImage, HeaderThatEndsBeforeInitSizeIsRefused) {
  BzImage image;
  image.header.jump_distance = 0x20;
  EXPECT_THAT(refusal(image.build()), HasSubstr("before init_size"));
}

TEST(BzImage, PayloadWithoutRoomForTheEntryIsRefused) {
  BzImage image;
  image.header.syssize = 0x20;
  EXPECT_THAT(refusal(image.build()), HasSubstr("syssize"));
}

TEST(BzImage, PayloadSizeBeyondTheFileIsRefusedWithoutTouchingMemory) {
  BzImage image;
  image.header.syssize = 0xffffffff;
  image.header.init_size = 0;
  EXPECT_THAT(refusal(image.build()), HasSubstr("end"));
  image.header.syssize = 0x10000;
  EXPECT_THAT(refusal(image.build()), HasSubstr("truncated"));
}

TEST(BzImage, TooLittleMemoryForInitSizeSaysHowMuchIsNeeded) {
  BzImage image;
  image.header.init_size = 51 * base::kMiB;
  EXPECT_THAT(refusal(image.build(), 64 * base::kMiB),
              AllOf(HasSubstr("init_size"), HasSubstr("at least 67 MiB")));
  EXPECT_EQ(refusal(image.build(), 67 * base::kMiB), "");
}

TEST(BzImage, PreferredAddressThatWrapsIsRefused) {
  BzImage image;
  for (const u64 address : {~u64{0}, ~u64{0} - 0xfff, u64{1} << 63, 4 * base::kGiB}) {
    image.header.pref_address = address;
    EXPECT_THAT(refusal(image.build(), 4 * base::kGiB), HasSubstr("pref_address")) << address;
  }
}

TEST(BzImage, LowPreferredAddressIsRaisedToOneMebibyte) {
  const auto memory = boot_test::make_memory();
  BzImage image;
  image.header.pref_address = 0;
  const auto registers = boot_test::load(*memory, image.build());
  ASSERT_TRUE(registers);
  EXPECT_EQ(registers->rip, 0x100200u);
}

TEST(BzImage, CommandLineUpToTheKernelsLimitIsTaken) {
  EXPECT_EQ(refusal(BzImage().build(), 64 * base::kMiB, {.command_line = std::string(2047, 'a')}),
            "");
  EXPECT_THAT(refusal(BzImage().build(), 64 * base::kMiB, {.command_line = std::string(2048, 'a')}),
              AllOf(HasSubstr("2048"), HasSubstr("2047")));
}

TEST(BzImage, HugeCommandLineLimitStillEndsAtItsArea) {
  BzImage image;
  image.header.cmdline_size = 0xffffffff;
  EXPECT_THAT(refusal(image.build(), 64 * base::kMiB, {.command_line = std::string(70000, 'a')}),
              HasSubstr("65535"));
}

TEST(BzImage, ControlCharactersInTheCommandLineAreRefused) {
  for (const std::string& line : {std::string("a\nb"), std::string("a\0b", 3)}) {
    EXPECT_THAT(refusal(BzImage().build(), 64 * base::kMiB, {.command_line = line}),
                HasSubstr("control character"));
  }
}

TEST(BzImage, MissingInitrdNamesTheFile) {
  EXPECT_THAT(refusal(BzImage().build(), 64 * base::kMiB, {.initrd_path = "/nowhere/initrd"}),
              HasSubstr("initrd \"/nowhere/initrd\""));
}

TEST(BzImage, EmptyInitrdIsRefused) {
  const TemporaryFile initrd({});
  EXPECT_THAT(refusal(BzImage().build(), 64 * base::kMiB, {.initrd_path = initrd.path()}),
              AllOf(HasSubstr("initrd"), HasSubstr("empty")));
}

TEST(BzImage, InitrdThatDoesNotFitBesideTheKernelIsRefused) {
  const TemporaryFile initrd(Bytes(16 * base::kMiB));
  EXPECT_THAT(refusal(BzImage().build(), 32 * base::kMiB, {.initrd_path = initrd.path()}),
              AllOf(HasSubstr("initrd"), HasSubstr("do not fit"), HasSubstr("-m")));
}

TEST(BzImage, InitrdThatDoesNotFitBelowTheKernelsLimitSaysSo) {
  const TemporaryFile initrd(Bytes(64 * base::kKiB));
  BzImage image;
  image.header.initrd_addr_max = 0x10ffff;
  EXPECT_THAT(refusal(image.build(), 64 * base::kMiB, {.initrd_path = initrd.path()}),
              Not(HasSubstr("initrd_addr_max")));
  image.header.initrd_addr_max = 0x10fffe;
  EXPECT_THAT(refusal(image.build(), 64 * base::kMiB, {.initrd_path = initrd.path()}),
              HasSubstr("initrd_addr_max"));
}

TEST(UnknownKernel, HintFollowsTheContent) {
  EXPECT_THAT(refusal(Bytes(600, 'x')), AllOf(HasSubstr("neither"), HasSubstr("600 bytes")));
  EXPECT_THAT(refusal({0x1f, 0x8b, 8, 0}), HasSubstr("gunzip"));
  EXPECT_THAT(refusal({'Q', 'F', 'I', 0xfb}), HasSubstr("--disk"));
  EXPECT_THAT(refusal({'0', '7', '0', '7', '0', '1'}), HasSubstr("--initrd"));
}

}  // namespace
