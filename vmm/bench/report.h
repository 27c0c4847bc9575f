// Report: the tables of a benchmark, one for each question, printed as each is done or all together
// as JSON.
//
// Thread: one.

#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <vector>

#include "vmm/base/types.h"

namespace bench {

// What a table has to show. `unmeasured`: the peer that it is about is not there.
enum class Verdict : u8 { met, missed, unmeasured };

struct Bar {
  std::string text;      // "60 times faster than loadvm at 1 GiB"
  std::string measured;  // "71.2 times"
  Verdict verdict = Verdict::unmeasured;
};

// A bar that holds while `value` is at least, or at most, `limit`.
enum class BarSide : u8 { at_least, at_most };
Verdict judge(double value, BarSide side, double limit);

struct Table {
  std::string name;   // "headline": what --only takes
  std::string title;  // the question
  std::vector<std::string> columns;
  std::vector<std::vector<std::string>> rows;
  std::vector<Bar> bars;
  std::vector<std::string> notes;
};

std::string to_text(const Table& table);
nlohmann::json to_json(const Table& table);

// "812 us" and "44.1 ms" would not be comparable by eye: one unit for a column, said in its heading.
std::string us_text(double us);
std::string ms_text(double us);
std::string ratio_text(double ratio);
std::string memory_text(u64 memory_mib);

}  // namespace bench
