#include "vmm/bench/report.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "vmm/control/output.h"

namespace bench {
namespace {

std::string_view name_of(Verdict verdict) {
  switch (verdict) {
    case Verdict::met: return "met";
    case Verdict::missed: return "missed";
    case Verdict::unmeasured: return "unmeasured";
  }
  return "unmeasured";
}

}  // namespace

Verdict judge(double value, BarSide side, double limit) {
  const bool holds = side == BarSide::at_least ? value >= limit : value <= limit;
  return holds ? Verdict::met : Verdict::missed;
}

std::string to_text(const Table& table) {
  std::string text = fmt::format("== {}: {}\n", table.name, table.title);
  std::vector<std::vector<std::string>> cells = {table.columns};
  cells.insert(cells.end(), table.rows.begin(), table.rows.end());
  text += control::table(cells);
  for (const std::string& note : table.notes) text += fmt::format("  {}\n", note);
  for (const Bar& bar : table.bars) {
    text += fmt::format("  {:<10} {}: {}\n", name_of(bar.verdict), bar.text, bar.measured);
  }
  return text + "\n";
}

nlohmann::json to_json(const Table& table) {
  nlohmann::json bars = nlohmann::json::array();
  for (const Bar& bar : table.bars) {
    bars.push_back(
        {{"bar", bar.text}, {"measured", bar.measured}, {"verdict", name_of(bar.verdict)}});
  }
  return {{"name", table.name}, {"title", table.title}, {"columns", table.columns},
          {"rows", table.rows}, {"bars", bars},         {"notes", table.notes}};
}

std::string us_text(double us) { return fmt::format("{:.0f}", us); }
std::string ms_text(double us) { return fmt::format("{:.2f}", us / 1000); }
std::string ratio_text(double ratio) { return fmt::format("{:.1f}", ratio); }

std::string memory_text(u64 memory_mib) {
  if (memory_mib % 1024 == 0) return fmt::format("{} GiB", memory_mib / 1024);
  return fmt::format("{} MiB", memory_mib);
}

}  // namespace bench
