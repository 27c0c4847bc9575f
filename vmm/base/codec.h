// The codec of State structs: bytes from one table of fields.
//
// A State lists its fields once, with a tag that never changes meaning and is never reused:
//
//   struct State {
//     u8 divisor_low = 0;
//     std::array<QueueState, 4> queues{};
//     static constexpr auto fields() {
//       return std::tuple(base::field<1>("divisor_low", &State::divisor_low),
//                         base::field<2>("queues", &State::queues));
//     }
//   };
//
// Grammar (all integers little-endian):
//   struct  := record*                     in table order, each tag once
//   record  := tag:le16 length:le32 payload
//   payload := integer | enum | bool (one byte, 0 or 1)
//            | integer*                    array or vector of integers
//            | (length:le32 struct)*       array or vector of structs
//            | struct
//
// Decoding is strict: a missing, unknown or doubled tag, a length that does not fit and bytes left
// over are each refused with the field's name. Nothing is allocated beyond the size of the input.

#pragma once

#include <array>
#include <concepts>
#include <span>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "vmm/base/result.h"
#include "vmm/base/types.h"
#include "vmm/base/wire.h"

namespace base {

template <class S, class T>
struct Field {
  u16 tag;
  std::string_view name;
  T S::*member;
};

template <u16 kTag, class S, class T>
constexpr Field<S, T> field(std::string_view name, T S::*member) {
  return {kTag, name, member};
}

template <class T>
concept Scalar = std::integral<T> || std::is_enum_v<T>;

template <class T>
concept FieldStruct = requires { T::fields(); };

using Bytes = std::vector<u8>;

// Takes pieces from the front of a byte span; never past its end.
class ByteReader final {
 public:
  explicit ByteReader(std::span<const u8> bytes) : left_(bytes) {}
  bool empty() const { return left_.empty(); }
  u64 left_bytes() const { return left_.size(); }
  Result<std::span<const u8>> take(u64 count);
  template <std::unsigned_integral T>
  Result<T> take_integer() {
    const std::span<const u8> bytes = TRY(take(sizeof(T)));
    WireInteger<T, std::endian::little> value;
    std::memcpy(&value, bytes.data(), sizeof(T));
    return T{value};
  }

 private:
  std::span<const u8> left_;
};

namespace codec {

template <class T>
struct IsSequence : std::false_type {};
template <class T>
struct IsSequence<std::vector<T>> : std::true_type {};
template <class T, std::size_t N>
struct IsSequence<std::array<T, N>> : std::true_type {};

// Out of line: g++ 12 finds an overflow in the inlined insert that is not there.
void append_bytes(Bytes& out, std::span<const u8> bytes);

template <std::unsigned_integral T>
void append_integer(Bytes& out, T value) {
  const WireInteger<T, std::endian::little> wire(value);
  u8 bytes[sizeof(T)];
  std::memcpy(bytes, &wire, sizeof(T));
  append_bytes(out, bytes);
}

template <Scalar T>
auto to_unsigned(T value) {
  if constexpr (std::is_enum_v<T>) {
    return static_cast<std::make_unsigned_t<std::underlying_type_t<T>>>(value);
  } else if constexpr (std::same_as<T, bool>) {
    return static_cast<u8>(value ? 1 : 0);
  } else {
    return static_cast<std::make_unsigned_t<T>>(value);
  }
}

template <FieldStruct S>
void append_struct(Bytes& out, const S& value);

template <class T>
void append_value(Bytes& out, const T& value) {
  if constexpr (Scalar<T>) {
    append_integer(out, to_unsigned(value));
  } else if constexpr (FieldStruct<T>) {
    append_struct(out, value);
  } else {
    static_assert(IsSequence<T>::value, "a field is an integer, a State, or an array of these");
    for (const auto& element : value) {
      if constexpr (FieldStruct<typename T::value_type>) {
        const std::size_t length_at = out.size();
        append_integer(out, u32{0});
        append_struct(out, element);
        const le32 length(static_cast<u32>(out.size() - length_at - sizeof(le32)));
        std::memcpy(out.data() + length_at, &length, sizeof length);
      } else {
        append_integer(out, to_unsigned(element));
      }
    }
  }
}

template <FieldStruct S>
void append_struct(Bytes& out, const S& value) {
  std::apply(
      [&](const auto&... fields) {
        const auto append = [&](const auto& f) {
          append_integer(out, f.tag);
          const std::size_t length_at = out.size();
          append_integer(out, u32{0});
          append_value(out, value.*(f.member));
          const le32 length(static_cast<u32>(out.size() - length_at - sizeof(le32)));
          std::memcpy(out.data() + length_at, &length, sizeof length);
        };
        (append(fields), ...);
      },
      S::fields());
}

template <FieldStruct S>
Result<void> read_struct(std::span<const u8> bytes, S& out);

template <Scalar T>
Result<void> read_scalar(ByteReader& reader, T& out) {
  using Unsigned = decltype(to_unsigned(T{}));
  const Unsigned raw = TRY(reader.take_integer<Unsigned>());
  if constexpr (std::same_as<T, bool>) {
    if (raw > 1) return make_error(ErrorKind::corrupt, "a yes/no value is {}", raw);
  }
  out = static_cast<T>(raw);
  return {};
}

template <class T>
Result<void> read_value(ByteReader& reader, T& out) {
  if constexpr (Scalar<T>) {
    return read_scalar(reader, out);
  } else if constexpr (FieldStruct<T>) {
    return read_struct(TRY(reader.take(reader.left_bytes())), out);
  } else {
    using Element = typename T::value_type;
    const auto read_element = [&](Element& element) -> Result<void> {
      if constexpr (FieldStruct<Element>) {
        const u32 length = TRY(reader.take_integer<u32>());
        return read_struct(TRY(reader.take(length)), element);
      } else {
        return read_scalar(reader, element);
      }
    };
    if constexpr (requires { out.push_back(Element{}); }) {
      out.clear();
      while (!reader.empty()) {
        Element element{};
        TRY(read_element(element));
        out.push_back(std::move(element));
      }
    } else {
      for (Element& element : out) TRY(read_element(element));
    }
    return {};
  }
}

template <class S, class T>
Result<void> read_field(ByteReader& reader, const Field<S, T>& f, S& out) {
  const u16 tag = TRY(reader.take_integer<u16>());
  if (tag != f.tag) return make_error(ErrorKind::corrupt, "tag {} where {} belongs", tag, f.tag);
  const u32 length = TRY(reader.take_integer<u32>());
  ByteReader payload(TRY(reader.take(length)));
  TRY(read_value(payload, out.*(f.member)));
  if (!payload.empty()) {
    return make_error(ErrorKind::corrupt, "{} bytes too many", payload.left_bytes());
  }
  return {};
}

template <FieldStruct S>
Result<void> read_struct(std::span<const u8> bytes, S& out) {
  ByteReader reader(bytes);
  Result<void> result;
  std::apply(
      [&](const auto&... fields) {
        const auto read = [&](const auto& f) {
          if (!result) return;
          result = read_field(reader, f, out);
          if (!result) {
            result = std::move(result).error().with_context(fmt::format("field \"{}\"", f.name));
          }
        };
        (read(fields), ...);
      },
      S::fields());
  TRY(std::move(result));
  if (!reader.empty()) {
    return make_error(ErrorKind::corrupt, "{} bytes after the last field", reader.left_bytes());
  }
  return {};
}

}  // namespace codec

template <FieldStruct S>
Bytes encode_state(const S& state) {
  Bytes bytes;
  codec::append_struct(bytes, state);
  return bytes;
}

template <FieldStruct S>
Result<S> decode_state(std::span<const u8> bytes) {
  S state{};
  TRY(codec::read_struct(bytes, state));
  return state;
}

}  // namespace base
