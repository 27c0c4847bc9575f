#include "snapshot/strict_json.h"

#include <vector>

namespace snapshot {
namespace {

// Deeper than any document of ours; the parser's own memory grows with depth.
constexpr std::size_t kMaximumNesting = 32;

// Looks at the stream of tokens only. Its functions have the names and signatures that the library
// asks for.
class StrictCheck final : public nlohmann::json_sax<nlohmann::json> {
 public:
  const std::string& complaint() const { return complaint_; }

  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t& text) override {
    return refuse(fmt::format("number {} is not a 64-bit integer", text.substr(0, 64)));
  }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return refuse("binary value"); }
  bool start_object(std::size_t) override { return descend(); }
  bool start_array(std::size_t) override { return descend(); }
  bool end_object() override { return ascend(); }
  bool end_array() override { return ascend(); }
  bool key(string_t& name) override {
    if (keys_.back().insert(name).second) return true;
    return refuse(fmt::format("key \"{}\" is given twice", name.substr(0, 64)));
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::json::exception&) override {
    return refuse(fmt::format("not JSON from byte {} on", position));
  }

 private:
  bool refuse(std::string complaint) {
    complaint_ = std::move(complaint);
    return false;
  }
  bool descend() {
    if (keys_.size() == kMaximumNesting) return refuse("nested too deeply");
    keys_.emplace_back();
    return true;
  }
  bool ascend() {
    keys_.pop_back();
    return true;
  }

  std::vector<std::set<std::string>> keys_;  // one set for each open object or array
  std::string complaint_;
};

}  // namespace

Result<nlohmann::json> parse_json(std::string_view text) {
  StrictCheck check;
  if (!nlohmann::json::sax_parse(text, &check)) {
    return make_error(ErrorKind::corrupt, "{}", check.complaint());
  }
  nlohmann::json value = nlohmann::json::parse(text, nullptr, false);
  if (value.is_discarded()) return make_error(ErrorKind::corrupt, "not JSON");
  return value;
}

Result<JsonObject> JsonObject::of(const nlohmann::json& value, std::string place) {
  if (!value.is_object()) {
    return make_error(ErrorKind::corrupt, "{} is not an object", place.empty() ? "it" : place);
  }
  return JsonObject(value, std::move(place));
}

Result<std::string> JsonObject::text(const char* key, u64 limit) {
  const nlohmann::json* const value = TRY(member(key));
  if (!value->is_string()) return wrong_type(key, "a string");
  const std::string& string = value->get_ref<const std::string&>();
  if (string.size() > limit) {
    return make_error(ErrorKind::corrupt, "{} has {} bytes, more than {}", place_of(key),
                      string.size(), limit);
  }
  if (string.find('\0') != std::string::npos) {
    return make_error(ErrorKind::corrupt, "{} holds a NUL byte", place_of(key));
  }
  return string;
}

Result<u64> JsonObject::number(const char* key, u64 limit) {
  const nlohmann::json* const value = TRY(member(key));
  if (!value->is_number_unsigned()) return wrong_type(key, "a number from 0 on");
  const u64 number = value->get<u64>();
  if (number > limit) {
    return make_error(ErrorKind::corrupt, "{} is {}, more than {}", place_of(key), number, limit);
  }
  return number;
}

Result<i64> JsonObject::signed_number(const char* key) {
  const nlohmann::json* const value = TRY(member(key));
  if (!value->is_number_integer()) return wrong_type(key, "a number");
  if (value->is_number_unsigned() && value->get<u64>() > u64{INT64_MAX}) {
    return make_error(ErrorKind::corrupt, "{} is too large", place_of(key));
  }
  return value->get<i64>();
}

Result<const nlohmann::json*> JsonObject::object(const char* key) {
  const nlohmann::json* const value = TRY(member(key));
  if (!value->is_object()) return wrong_type(key, "an object");
  return value;
}

Result<const nlohmann::json*> JsonObject::array(const char* key, u64 limit) {
  const nlohmann::json* const value = TRY(member(key));
  if (!value->is_array()) return wrong_type(key, "an array");
  if (value->size() > limit) {
    return make_error(ErrorKind::corrupt, "{} has {} elements, more than {}", place_of(key),
                      value->size(), limit);
  }
  return value;
}

bool JsonObject::is_null(const char* key) const {
  const auto found = value_.find(key);
  return found != value_.end() && found->is_null();
}

Result<void> JsonObject::skip(const char* key) {
  TRY(member(key));
  return {};
}

Result<void> JsonObject::finish() const {
  for (const auto& item : value_.items()) {
    if (!taken_.contains(item.key())) {
      return make_error(ErrorKind::corrupt, "unknown key {}", place_of(item.key().substr(0, 64)));
    }
  }
  return {};
}

std::string JsonObject::place_of(std::string_view key) const {
  return place_.empty() ? std::string(key) : fmt::format("{}.{}", place_, key);
}

Result<const nlohmann::json*> JsonObject::member(const char* key) {
  const auto found = value_.find(key);
  if (found == value_.end()) {
    return make_error(ErrorKind::corrupt, "key {} is missing", place_of(key));
  }
  taken_.insert(key);
  return &*found;
}

Error JsonObject::wrong_type(const char* key, const char* wanted) const {
  return make_error(ErrorKind::corrupt, "{} is not {}", place_of(key), wanted);
}

}  // namespace snapshot
