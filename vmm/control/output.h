// What verbs print: results on stdout, messages on stderr, and which exit status says what.

#pragma once

#include <nlohmann/json_fwd.hpp>

#include <string>
#include <string_view>
#include <vector>

#include "vmm/base/result.h"

namespace control {

enum class Output : u8 { text, json };

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInfrastructure = 125;

// To stdout, at once. A reader that went away is nobody's error; other failures show in the end.
void put(std::string_view text);
void put_json(const nlohmann::json& value);
// Says so if results were lost, and returns the status to end with: then, done is not done.
int finish_output(int status);

// "error: ..." and "hint: ..." to stderr. Returns the exit status that goes with it.
int report(const Error& error);
void warn(std::string_view text);
// To stderr as it is.
void put_progress(std::string_view text);

// UTF-8 that somebody else wrote, for a terminal: a '?' for each control character.
std::string printable(std::string_view text);

// Columns as wide as their widest cell, made printable; the first row is the heading.
std::string table(std::vector<std::vector<std::string>> rows);

// "850 us", "6.1 ms", "2.4 s"
std::string human_duration(u64 us);

}  // namespace control
