#include "vmm/control/output.h"

#include <unistd.h>

#include <algorithm>
#include <nlohmann/json.hpp>

namespace control {
namespace {

// The errno with which results were lost, or 0. There is one stdout, so there is one of this.
int g_lost_output = 0;

// An errno, or 0.
int write_to(int fd, std::string_view text) {
  while (!text.empty()) {
    const ssize_t count = ::write(fd, text.data(), text.size());
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return count < 0 ? errno : EIO;
    text.remove_prefix(static_cast<std::size_t>(count));
  }
  return 0;
}

}  // namespace

void put(std::string_view text) {
  const int failed = write_to(STDOUT_FILENO, text);
  if (failed != 0 && failed != EPIPE) g_lost_output = failed;
}

int finish_output(int status) {
  if (g_lost_output == 0) return status;
  report(Error::from_errno(g_lost_output, "write the output"));
  return status == kExitDone ? kExitInfrastructure : status;
}

void put_json(const nlohmann::json& value) {
  put(value.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

int report(const Error& error) {
  std::string text = fmt::format("error: {}\n", error.message());
  if (!error.hint().empty()) text += fmt::format("hint: {}\n", error.hint());
  write_to(STDERR_FILENO, text);
  return error.kind() == ErrorKind::usage ? kExitUsage : kExitFailed;
}

void warn(std::string_view text) { write_to(STDERR_FILENO, fmt::format("warning: {}\n", text)); }

void put_progress(std::string_view text) { write_to(STDERR_FILENO, text); }

std::string printable(std::string_view text) {
  std::string shown;
  for (std::size_t i = 0; i < text.size(); ++i) {
    const u8 byte = static_cast<u8>(text[i]);
    // U+0080 to U+009F, to which terminals listen as well.
    const bool is_c1 = byte == 0xc2 && i + 1 < text.size() && static_cast<u8>(text[i + 1]) < 0xa0;
    shown += byte < ' ' || byte == 0x7f || is_c1 ? '?' : text[i];
    if (is_c1) ++i;
  }
  return shown;
}

std::string table(std::vector<std::vector<std::string>> rows) {
  std::vector<std::size_t> widths;
  for (auto& row : rows) {
    widths.resize(std::max(widths.size(), row.size()));
    for (std::string& cell : row) cell = printable(cell);
    for (std::size_t i = 0; i < row.size(); ++i) widths[i] = std::max(widths[i], row[i].size());
  }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (std::size_t i = 0; i < row.size(); ++i) {
      line += row[i];
      if (i + 1 < row.size()) line.append(widths[i] - row[i].size() + 2, ' ');
    }
    line.erase(line.find_last_not_of(' ') + 1);
    text += line + "\n";
  }
  return text;
}

std::string human_duration(u64 us) {
  if (us < 1000) return fmt::format("{} us", us);
  const auto tenths = [](u64 value, u64 unit, const char* name) {
    return fmt::format("{}.{} {}", value / unit, value % unit * 10 / unit, name);
  };
  if (us < 1'000'000) {
    // Below 10 ms the second digit behind the point is the one that is compared.
    if (us < 10'000) return fmt::format("{}.{:02} ms", us / 1000, us % 1000 / 10);
    return tenths(us, 1000, "ms");
  }
  return tenths(us, 1'000'000, "s");
}

}  // namespace control
