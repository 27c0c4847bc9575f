// Reading JSON that somebody else wrote: an API body, a configuration, a manifest.
//
// parse_json() is strict where the library is lenient: an object that names a key twice, nesting
// past kMaximumJsonDepth, a byte order mark and bytes after the value are refused. JsonObject then
// takes the keys of one object by name and type; finish() refuses what nobody took. Every message
// names the key with its path ("config.cpus").

#pragma once

#include <nlohmann/json_fwd.hpp>

#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace control {

// Deeper than anything this program writes; shallow enough that no reader's stack is at risk.
inline constexpr u32 kMaximumJsonDepth = 32;

// `what` names the text in the message: "config.json", "request body".
Result<nlohmann::json> parse_json(std::string_view what, std::string_view text);

// Whether JSON can hold it.
bool is_utf8(const std::string& text);

class JsonObject final {
 public:
  // `value` must outlive the reader. `path` is empty for the outermost object.
  static Result<JsonObject> open(const nlohmann::json& value, std::string path);

  Result<std::string> string(const char* key);
  Result<std::optional<std::string>> optional_string(const char* key);
  Result<bool> boolean_or(const char* key, bool otherwise);
  // Refuses what is not a whole number within [minimum, maximum].
  Result<u64> integer(const char* key, u64 minimum, u64 maximum);
  Result<u64> integer_or(const char* key, u64 minimum, u64 maximum, u64 otherwise);
  Result<std::vector<std::string>> strings(const char* key, u64 maximum_count);
  // Null if absent; marks the key as known.
  const nlohmann::json* any(const char* key);

  std::string path_of(std::string_view key) const;
  // Fails with the name of a key that none of the calls above asked for.
  Result<void> finish() const;

 private:
  JsonObject(const nlohmann::json& value, std::string path)
      : value_(&value), path_(std::move(path)) {}
  Result<std::string> as_string(const char* key, const nlohmann::json& value) const;

  const nlohmann::json* value_;
  std::string path_;
  std::set<std::string> known_;
};

}  // namespace control
