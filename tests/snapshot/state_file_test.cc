#include "snapshot/state_file.h"

#include <gtest/gtest.h>

#include "tests/snapshot/support/fixture.h"

namespace {

using namespace snapshot;
using namespace snapshot_test;

const std::vector<Section> kSections{{"serial", {1, 2, 3, 0, 255}}, {"vcpu.0", {}}, {"x", {9}}};

TEST(StateFile, ComesBackAsItWasWritten) {
  EXPECT_EQ(decode_sections(encode_sections(kSections).value()).value(), kSections);
  EXPECT_TRUE(decode_sections(encode_sections({}).value()).value().empty());
}

TEST(StateFile, TruncatedAtAnyByteIsRefused) {  // S03
  const base::Bytes bytes = encode_sections(kSections).value();
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    ASSERT_FALSE(decode_sections(std::span(bytes).first(length))) << length;
  }
}

TEST(StateFile, AnyFlippedBitIsRefused) {  // S03, S16
  const base::Bytes bytes = encode_sections(kSections).value();
  for (std::size_t bit = 0; bit < bytes.size() * 8; ++bit) {
    base::Bytes broken = bytes;
    broken[bit / 8] = static_cast<u8>(broken[bit / 8] ^ (1 << (bit % 8)));
    ASSERT_FALSE(decode_sections(broken)) << bit;
  }
}

TEST(StateFile, BytesAfterTheEndAreRefused) {
  base::Bytes bytes = encode_sections(kSections).value();
  bytes.push_back(0);
  EXPECT_FALSE(decode_sections(bytes));
}

TEST(StateFile, DoubledSectionIsRefused) {
  const std::vector<Section> twice{{"serial", {1}}, {"serial", {2}}};
  EXPECT_EQ(message(decode_sections(encode_sections(twice).value())),
            "section \"serial\" is there twice");
}

TEST(StateFile, TooMuchStateIsAnErrorAndNotACrash) {
  const std::vector<Section> huge{{"a", base::Bytes(40 * base::kMiB)},
                                  {"b", base::Bytes(40 * base::kMiB)}};
  EXPECT_FALSE(encode_sections(huge));
}

TEST(StateFile, SizeIsComparedBeforeAnythingIsRead) {
  const TemporaryDirectory directory;
  const base::Fd fd = base::open_file(directory.path(), O_RDONLY | O_DIRECTORY).value();
  StateFile state = write_state_file(fd, "state", kSections).value();
  const base::Fd file = base::open_file(directory.path() + "/state", O_RDONLY).value();
  EXPECT_EQ(read_state_file(file, state).value(), kSections);
  EXPECT_FALSE(write_state_file(fd, "state", kSections));
  state.size_bytes = u64{1} << 60;
  EXPECT_FALSE(read_state_file(file, state));
  write_text(directory.path() + "/large", "");
  std::filesystem::permissions(directory.path() + "/large", std::filesystem::perms::owner_all);
  std::filesystem::resize_file(directory.path() + "/large", u64{1} << 40);
  const base::Fd large = base::open_file(directory.path() + "/large", O_RDONLY).value();
  state.size_bytes = u64{1} << 40;
  EXPECT_FALSE(read_state_file(large, state));
}

}  // namespace
