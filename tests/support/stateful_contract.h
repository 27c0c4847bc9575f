// The contract of every Stateful (vmm/base/stateful.h), checked on any of them.
//
// A section's integrity is the checksum's work, one layer up. Here a damaged section must either be
// refused, with the object untouched, or mean exactly what its bytes say: a state that encodes to
// the same bytes again.

#pragma once

#include <gtest/gtest.h>

#include <functional>
#include <memory>

#include "devices/device.h"

namespace test {

inline base::Bytes bytes_of(const base::Stateful& object) {
  return object.encode(*object.save_state());
}

inline Result<void> restore_bytes(base::Stateful& object, std::span<const u8> bytes) {
  const std::unique_ptr<base::SavedState> saved = TRY(object.decode(bytes));
  return object.restore_state(*saved);
}

// `object` is in a state worth saving, `fresh` is another as just built, and `dirty` changes what
// it is given in every way it can.
inline void check_stateful_contract(base::Stateful& object, base::Stateful& fresh,
                                    const std::function<void()>& dirty_object) {
  const std::unique_ptr<base::SavedState> first = object.save_state();
  const base::Bytes bytes = object.encode(*first);
  ASSERT_TRUE(object.validate_state(*first));

  // Identity.
  ASSERT_TRUE(object.restore_state(*first));
  EXPECT_EQ(bytes_of(object), bytes);

  // Onto a dirtied object as onto a fresh one.
  dirty_object();
  EXPECT_NE(bytes_of(object), bytes) << "dirty_object() changed nothing";
  ASSERT_TRUE(object.restore_state(*first));
  EXPECT_EQ(bytes_of(object), bytes);
  const Result<void> onto_fresh = restore_bytes(fresh, bytes);
  ASSERT_TRUE(onto_fresh) << onto_fresh.error().message();
  EXPECT_EQ(bytes_of(fresh), bytes);

  // Truncated and lengthened.
  dirty_object();
  const base::Bytes before = bytes_of(object);
  for (u64 length = 0; length < bytes.size(); ++length) {
    EXPECT_FALSE(restore_bytes(object, std::span(bytes).first(length))) << length;
  }
  base::Bytes longer = bytes;
  longer.push_back(0);
  EXPECT_FALSE(restore_bytes(object, longer));
  EXPECT_EQ(bytes_of(object), before);

  // Every bit flipped.
  for (u64 bit = 0; bit < bytes.size() * 8; ++bit) {
    base::Bytes flipped = bytes;
    flipped[bit / 8] = static_cast<u8>(flipped[bit / 8] ^ (1u << (bit % 8)));
    const base::Bytes now = bytes_of(object);
    if (restore_bytes(object, flipped)) {
      EXPECT_EQ(bytes_of(object), flipped) << "bit " << bit;
    } else {
      EXPECT_EQ(bytes_of(object), now) << "bit " << bit;
    }
  }
}

inline void check_reset_equals_fresh(devices::Device& device, devices::Device& fresh) {
  device.reset();
  EXPECT_EQ(bytes_of(device.stateful()), bytes_of(fresh.stateful()));
}

}  // namespace test
