// Result<T>: a value or an Error. Errors are for the environment (a file, an ioctl, a corrupt image
// or snapshot) and for what the user asked. What a guest does wrong is answered as the device's
// specification says and never becomes an Error; a mistake of ours is a CHECK.
//
// An Error is one line for a person: what happened, to which object, and in `hint` what to do.
// Context is added once per layer, outermost first:
//   open disk "d.qcow2": L1 table at 0x30000 outside file (size 0x20000)

#pragma once

#include <fmt/format.h>

#include <cerrno>
#include <string>
#include <string_view>
#include <utility>

#include <tl/expected.hpp>

#include "vmm/base/types.h"

enum class ErrorKind : u8 {
  failed,       // the environment said no (I/O error, ioctl failed)
  usage,        // the caller asked for something that makes no sense: exit status 2
  not_found,    // the named object does not exist
  exists,       // the named object exists already
  busy,         // locked or in use by somebody else
  denied,       // no permission
  corrupt,      // bytes that cannot be what they claim to be
  unsupported,  // valid, but outside what this program does
  no_space,     // the host has no room
  wrong_state,  // the object is in a state that does not allow this
};

class [[nodiscard]] Error {
 public:
  Error(ErrorKind kind, std::string message) : kind_(kind), message_(std::move(message)) {}

  // An errno with its text; ENOSPC, EACCES and their like choose the kind.
  static Error from_errno(int error_number, std::string_view what);

  ErrorKind kind() const { return kind_; }
  const std::string& message() const { return message_; }
  const std::string& hint() const { return hint_; }

  Error with_context(std::string_view context) && {
    message_ = fmt::format("{}: {}", context, message_);
    return std::move(*this);
  }
  Error with_hint(std::string hint) && {
    hint_ = std::move(hint);
    return std::move(*this);
  }

 private:
  ErrorKind kind_;
  std::string message_;
  std::string hint_;
};

// A class and not an alias: an alias of tl::expected can be dropped without a warning.
template <class T>
class [[nodiscard]] Result : public tl::expected<T, Error> {
 public:
  using tl::expected<T, Error>::expected;
  Result(Error error) : tl::expected<T, Error>(tl::unexpect, std::move(error)) {}
};

template <>
class [[nodiscard]] Result<void> : public tl::expected<void, Error> {
 public:
  using tl::expected<void, Error>::expected;
  Result() = default;
  Result(Error error) : tl::expected<void, Error>(tl::unexpect, std::move(error)) {}
};

template <class... Args>
Error make_error(ErrorKind kind, fmt::format_string<Args...> format, Args&&... args) {
  return Error(kind, fmt::format(format, std::forward<Args>(args)...));
}

// An Error from the current errno. `format` says what was tried and on which object.
template <class... Args>
Error errno_error(fmt::format_string<Args...> format, Args&&... args) {
  const int saved = errno;
  return Error::from_errno(saved, fmt::format(format, std::forward<Args>(args)...));
}

// TRY(x): the value of a Result, or return its Error from the enclosing function. A statement
// expression (g++ and clang), so that it can stand inside an initialiser.
#define TRY(expression)                                      \
  ({                                                         \
    auto try_result_ = (expression);                         \
    if (!try_result_) return std::move(try_result_).error(); \
    ::base::take_value(std::move(try_result_));              \
  })

// As TRY, and puts `context` in front of the message.
#define TRY_CONTEXT(expression, context)                                           \
  ({                                                                               \
    auto try_result_ = (expression);                                               \
    if (!try_result_) return std::move(try_result_).error().with_context(context); \
    ::base::take_value(std::move(try_result_));                                    \
  })

namespace base {

template <class T>
T take_value(Result<T>&& result) {
  return std::move(*result);
}
inline void take_value(Result<void>&&) {}

}  // namespace base
