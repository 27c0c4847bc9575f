#include "vmm/control/json_reader.h"

#include <nlohmann/json.hpp>

namespace control {
namespace {

using nlohmann::json;

// Walks the text without building anything: depth and doubled keys are refused before memory is
// spent on them.
class StrictnessCheck final : public nlohmann::json_sax<json> {
 public:
  bool null() override { return true; }
  bool boolean(bool) override { return true; }
  bool number_integer(number_integer_t) override { return true; }
  bool number_unsigned(number_unsigned_t) override { return true; }
  bool number_float(number_float_t, const string_t&) override { return true; }
  bool string(string_t&) override { return true; }
  bool binary(binary_t&) override { return true; }
  bool start_object(std::size_t) override { return enter(); }
  bool end_object() override { return leave(); }
  bool start_array(std::size_t) override { return enter(); }
  bool end_array() override { return leave(); }
  bool key(string_t& name) override {
    if (keys_.back().insert(name).second) return true;
    problem_ = fmt::format("key \"{}\" stands there twice", name);
    return false;
  }
  bool parse_error(std::size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    // The library's own text carries its name, an identifier and, for bad UTF-8, the bytes.
    problem_ = fmt::format("not JSON at byte {}", position);
    return false;
  }
  const std::string& problem() const { return problem_; }

 private:
  bool enter() {
    keys_.emplace_back();
    if (keys_.size() <= kMaximumJsonDepth) return true;
    problem_ = fmt::format("nested more than {} levels deep", kMaximumJsonDepth);
    return false;
  }
  bool leave() {
    keys_.pop_back();
    return true;
  }

  std::vector<std::set<std::string>> keys_;
  std::string problem_;
};

}  // namespace

bool is_utf8(const std::string& text) {
  try {
    [[maybe_unused]] const std::string written = json(text).dump();
  } catch (const json::type_error&) {
    return false;
  }
  return true;
}

Result<json> parse_json(std::string_view what, std::string_view text) {
  if (text.starts_with("\xef\xbb\xbf")) {
    return make_error(ErrorKind::usage, "{}: starts with a byte order mark", what);
  }
  StrictnessCheck check;
  if (!json::sax_parse(text, &check)) {
    return make_error(ErrorKind::usage, "{}: {}", what, check.problem());
  }
  json value = json::parse(text, nullptr, false);
  if (value.is_discarded()) return make_error(ErrorKind::usage, "{}: not JSON", what);
  return value;
}

Result<JsonObject> JsonObject::open(const json& value, std::string path) {
  if (!value.is_object()) {
    return make_error(ErrorKind::usage, "{}: an object is needed, not {}",
                      path.empty() ? "JSON" : path, value.type_name());
  }
  return JsonObject(value, std::move(path));
}

std::string JsonObject::path_of(std::string_view key) const {
  return path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key);
}

const json* JsonObject::any(const char* key) {
  known_.insert(key);
  const auto found = value_->find(key);
  return found == value_->end() ? nullptr : &*found;
}

Result<std::string> JsonObject::as_string(const char* key, const json& value) const {
  if (!value.is_string()) {
    return make_error(ErrorKind::usage, "\"{}\": a string is needed, not {}", path_of(key),
                      value.type_name());
  }
  const std::string& text = value.get_ref<const std::string&>();
  if (text.find('\0') != std::string::npos) {
    return make_error(ErrorKind::usage, "\"{}\": a zero byte cannot be part of it", path_of(key));
  }
  return text;
}

Result<std::string> JsonObject::string(const char* key) {
  const json* value = any(key);
  if (value == nullptr) return make_error(ErrorKind::usage, "\"{}\" is missing", path_of(key));
  return as_string(key, *value);
}

Result<std::optional<std::string>> JsonObject::optional_string(const char* key) {
  const json* value = any(key);
  if (value == nullptr || value->is_null()) return std::optional<std::string>();
  return std::optional<std::string>(TRY(as_string(key, *value)));
}

Result<bool> JsonObject::boolean_or(const char* key, bool otherwise) {
  const json* value = any(key);
  if (value == nullptr) return otherwise;
  if (!value->is_boolean()) {
    return make_error(ErrorKind::usage, "\"{}\": true or false is needed, not {}", path_of(key),
                      value->type_name());
  }
  return value->get<bool>();
}

Result<u64> JsonObject::integer(const char* key, u64 minimum, u64 maximum) {
  const json* value = any(key);
  if (value == nullptr) return make_error(ErrorKind::usage, "\"{}\" is missing", path_of(key));
  if (!value->is_number_unsigned()) {
    return make_error(ErrorKind::usage, "\"{}\": a whole number of at least {} is needed",
                      path_of(key), minimum);
  }
  const u64 number = value->get<u64>();
  if (number < minimum || number > maximum) {
    return make_error(ErrorKind::usage, "\"{}\" is {}, outside {} to {}", path_of(key), number,
                      minimum, maximum);
  }
  return number;
}

Result<u64> JsonObject::integer_or(const char* key, u64 minimum, u64 maximum, u64 otherwise) {
  if (any(key) == nullptr) return otherwise;
  return integer(key, minimum, maximum);
}

Result<std::vector<std::string>> JsonObject::strings(const char* key, u64 maximum_count) {
  std::vector<std::string> result;
  const json* value = any(key);
  if (value == nullptr) return result;
  if (!value->is_array()) {
    return make_error(ErrorKind::usage, "\"{}\": an array of strings is needed", path_of(key));
  }
  if (value->size() > maximum_count) {
    return make_error(ErrorKind::usage, "\"{}\" has {} entries, more than {}", path_of(key),
                      value->size(), maximum_count);
  }
  for (const json& element : *value) result.push_back(TRY(as_string(key, element)));
  return result;
}

Result<void> JsonObject::finish() const {
  for (const auto& [key, value] : value_->items()) {
    if (!known_.contains(key)) {
      return make_error(ErrorKind::usage, "unknown key \"{}\"", path_of(key));
    }
  }
  return {};
}

}  // namespace control
