// Stateful: what takes part in a snapshot.
//
// A device derives from StatefulOf<State> and writes three functions on its plain State struct:
// save(), validate(State), restore(State). The rest of this header turns them into a form that the
// snapshot code can hold without knowing the device: a SavedState (the struct, kept in the process,
// so that an in-place revert parses nothing) and bytes (for the file).
//
// Rules for all implementations:
//  - REQUIRES for every call: the machine is quiet (all vCPUs parked, the device drained).
//  - restore() works on a live object in any condition. It checks first, with the same functions
//    that guard the guest's own register writes, then assigns everything at once, then drives its
//    outputs again. If it fails, nothing changed.
//  - validate() tells what restore() would say, and changes nothing: a snapshot is refused before
//    the machine is touched.
//  - Loaded state is hostile: every field is checked as if the guest had written it.

#pragma once

#include <memory>
#include <span>
#include <string>
#include <typeinfo>
#include <utility>

#include "vmm/base/check.h"
#include "vmm/base/codec.h"
#include "vmm/base/result.h"

namespace base {

// One State struct whose type only its Stateful knows.
class SavedState {
 public:
  virtual ~SavedState() = default;
};

class Stateful {
 public:
  virtual ~Stateful() = default;

  // The section's name in a snapshot. Unique in a machine and the same in every run of it: "serial",
  // "virtio-blk.0", "vcpu.3".
  virtual std::string state_name() const = 0;

  virtual std::unique_ptr<SavedState> save_state() const = 0;
  virtual Result<void> validate_state(const SavedState&) const = 0;
  virtual Result<void> restore_state(const SavedState&) = 0;

  virtual Bytes encode(const SavedState&) const = 0;
  virtual Result<std::unique_ptr<SavedState>> decode(std::span<const u8>) const = 0;
};

template <FieldStruct StateType>
class StatefulOf : public Stateful {
 public:
  virtual StateType save() const = 0;
  virtual Result<void> validate(const StateType& state) const = 0;
  virtual Result<void> restore(const StateType& state) = 0;

  // REQUIRES: `saved` is from a Stateful of this type.
  static const StateType& state_of(const SavedState& saved) {
    const Holder* holder = dynamic_cast<const Holder*>(&saved);
    CHECK(holder != nullptr);
    return holder->state;
  }

  std::unique_ptr<SavedState> save_state() const final { return std::make_unique<Holder>(save()); }
  Result<void> validate_state(const SavedState& saved) const final {
    return validate(state_of(saved));
  }
  Result<void> restore_state(const SavedState& saved) final { return restore(state_of(saved)); }
  Bytes encode(const SavedState& saved) const final { return encode_state(state_of(saved)); }
  Result<std::unique_ptr<SavedState>> decode(std::span<const u8> bytes) const final {
    return std::unique_ptr<SavedState>(
        std::make_unique<Holder>(TRY(decode_state<StateType>(bytes))));
  }

 private:
  struct Holder final : SavedState {
    explicit Holder(StateType s) : state(std::move(s)) {}
    StateType state;
  };
};

}  // namespace base
