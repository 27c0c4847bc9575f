// Strict reading of JSON that came from outside.
//
// parse_json() refuses what the library would let pass in silence: a key given twice in one object,
// nesting beyond a limit, numbers that are not integers. JsonObject then hands out the members of
// one object by name and type; finish() refuses those that nobody asked for. Every message names
// the place: "disks[0].layers[1].file".

#pragma once

#include <nlohmann/json.hpp>

#include <set>
#include <string>
#include <string_view>

#include "vmm/base/result.h"
#include "vmm/base/types.h"

namespace snapshot {

Result<nlohmann::json> parse_json(std::string_view text);

class JsonObject final {
 public:
  // `place` is the path of `value` within the document, empty for the document itself.
  static Result<JsonObject> of(const nlohmann::json& value, std::string place);

  // Strings may not hold a NUL and are at most `limit` bytes long.
  Result<std::string> text(const char* key, u64 limit = 4096);
  Result<u64> number(const char* key, u64 limit = ~u64{0});
  Result<i64> signed_number(const char* key);
  Result<const nlohmann::json*> object(const char* key);
  Result<const nlohmann::json*> array(const char* key, u64 limit);
  // As text(), and parsed by `parse` (Uuid::parse and its like).
  template <class Parse>
  auto parsed(const char* key, Parse parse) -> decltype(parse(std::string_view())) {
    const std::string value = TRY(text(key));
    return TRY_CONTEXT(parse(std::string_view(value)), place_of(key));
  }
  bool is_null(const char* key) const;
  // Takes the member without looking at it.
  Result<void> skip(const char* key);

  Result<void> finish() const;
  std::string place_of(std::string_view key) const;

 private:
  JsonObject(const nlohmann::json& value, std::string place)
      : value_(value), place_(std::move(place)) {}
  Result<const nlohmann::json*> member(const char* key);
  Error wrong_type(const char* key, const char* wanted) const;

  const nlohmann::json& value_;
  std::string place_;
  std::set<std::string, std::less<>> taken_;
};

}  // namespace snapshot
