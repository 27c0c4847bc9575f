// CHECK: for what only a mistake of ours can make false. Never for guest input, files or ioctls.

#pragma once

#include <string_view>

namespace base {

[[noreturn]] void check_failed(const char* file, int line, std::string_view condition);

}  // namespace base

#define CHECK(condition)                                    \
  do {                                                      \
    if (!(condition)) [[unlikely]]                          \
      ::base::check_failed(__FILE__, __LINE__, #condition); \
  } while (false)
