#include "vmm/base/codec.h"

#include <gtest/gtest.h>

namespace {

enum class Colour : u8 { red, green };

struct Inner {
  u16 a = 0;
  std::array<u8, 3> b{};
  static constexpr auto fields() {
    return std::tuple(base::field<1>("a", &Inner::a), base::field<2>("b", &Inner::b));
  }
  friend bool operator==(const Inner&, const Inner&) = default;
};

struct Outer {
  u64 number = 0;
  bool flag = false;
  Colour colour = Colour::red;
  std::vector<u32> list;
  std::array<Inner, 2> inners{};
  std::vector<Inner> more;
  static constexpr auto fields() {
    return std::tuple(
        base::field<1>("number", &Outer::number), base::field<2>("flag", &Outer::flag),
        base::field<3>("colour", &Outer::colour), base::field<4>("list", &Outer::list),
        base::field<6>("inners", &Outer::inners), base::field<7>("more", &Outer::more));
  }
  friend bool operator==(const Outer&, const Outer&) = default;
};

Outer sample() {
  return {.number = 0x1122334455667788,
          .flag = true,
          .colour = Colour::green,
          .list = {1, 2, 3},
          .inners = {Inner{5, {1, 2, 3}}, Inner{6, {4, 5, 6}}},
          .more = {Inner{7, {7, 8, 9}}}};
}

TEST(Codec, DecodesWhatItEncoded) {
  const base::Bytes bytes = base::encode_state(sample());
  const Result<Outer> decoded = base::decode_state<Outer>(bytes);
  ASSERT_TRUE(decoded) << decoded.error().message();
  EXPECT_EQ(*decoded, sample());
}

TEST(Codec, LayoutIsStable) {
  const base::Bytes bytes = base::encode_state(Inner{0x0201, {3, 4, 5}});
  EXPECT_EQ(bytes, (base::Bytes{1, 0, 2, 0, 0, 0, 1, 2, 2, 0, 3, 0, 0, 0, 3, 4, 5}));
}

TEST(Codec, RefusesTruncationAtEveryByte) {
  const base::Bytes bytes = base::encode_state(sample());
  for (std::size_t length = 0; length < bytes.size(); ++length) {
    EXPECT_FALSE(base::decode_state<Outer>(std::span(bytes).first(length))) << length;
  }
}

TEST(Codec, RefusesBytesLeftOver) {
  base::Bytes bytes = base::encode_state(sample());
  bytes.push_back(0);
  EXPECT_FALSE(base::decode_state<Outer>(bytes));
}

TEST(Codec, RefusesAnUnknownTagAndNamesTheField) {
  base::Bytes bytes = base::encode_state(sample());
  bytes[0] = 9;
  const Result<Outer> decoded = base::decode_state<Outer>(bytes);
  ASSERT_FALSE(decoded);
  EXPECT_EQ(decoded.error().message(), "field \"number\": tag 9 where 1 belongs");
}

TEST(Codec, RefusesALengthBeyondTheInputWithoutAllocating) {
  base::Bytes bytes = base::encode_state(sample());
  bytes[2] = bytes[3] = bytes[4] = bytes[5] = 0xff;
  EXPECT_FALSE(base::decode_state<Outer>(bytes));
}

TEST(Codec, RefusesAYesNoOfTwo) {
  base::Bytes bytes = base::encode_state(sample());
  bytes[14 + 6] = 2;
  EXPECT_FALSE(base::decode_state<Outer>(bytes));
}

}  // namespace
