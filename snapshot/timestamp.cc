#include <time.h>

#include "snapshot/manifest.h"
#include "vmm/base/check.h"

namespace snapshot {
namespace {

constexpr std::string_view kForm = "dddd-dd-ddTdd:dd:dd.dddddddddZ";

bool has_form(std::string_view text) {
  if (text.size() != kForm.size()) return false;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const bool digit = text[i] >= '0' && text[i] <= '9';
    if (kForm[i] == 'd' ? !digit : text[i] != kForm[i]) return false;
  }
  return true;
}

}  // namespace

Timestamp Timestamp::now() {
  timespec time{};
  CHECK(::clock_gettime(CLOCK_REALTIME, &time) == 0);
  return {time.tv_sec, static_cast<u32>(time.tv_nsec)};
}

Result<Timestamp> Timestamp::parse(std::string_view text) {
  const auto refuse = [&] {
    return make_error(ErrorKind::corrupt, "\"{}\" is not a time", text.substr(0, 64));
  };
  if (!has_form(text)) return refuse();
  const auto number = [&](std::size_t at, std::size_t count) {
    int value = 0;
    for (const char c : text.substr(at, count)) value = value * 10 + (c - '0');
    return value;
  };
  tm parts{};
  parts.tm_year = number(0, 4) - 1900;
  parts.tm_mon = number(5, 2) - 1;
  parts.tm_mday = number(8, 2);
  parts.tm_hour = number(11, 2);
  parts.tm_min = number(14, 2);
  parts.tm_sec = number(17, 2);
  Timestamp time{::timegm(&parts), static_cast<u32>(number(20, 9))};
  // timegm carries 31 February over into March; such a time does not come back as it was.
  if (time.to_string() != text) return refuse();
  return time;
}

std::string Timestamp::to_string() const {
  const time_t time = seconds;
  tm parts{};
  CHECK(::gmtime_r(&time, &parts) != nullptr);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:09}Z", parts.tm_year + 1900,
                     parts.tm_mon + 1, parts.tm_mday, parts.tm_hour, parts.tm_min, parts.tm_sec,
                     nanoseconds);
}

}  // namespace snapshot
