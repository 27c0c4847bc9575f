// What the library that parses command lines found wrong, in our form: named, and where to read on.

#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>
#include <vector>

#include "vmm/base/result.h"
#include "vmm/control/output.h"

namespace control {

// `command` is what stands before the words that `app` was given: "quicksave", "quicksave bench".
inline Error usage_error(const CLI::App& app, const CLI::ParseError& error, std::string command) {
  const CLI::App* deepest = &app;
  while (!deepest->get_subcommands().empty()) {
    deepest = deepest->get_subcommands().front();
    command += " " + deepest->get_name();
  }
  const bool lacks_verb = deepest->get_require_subcommand_min() > 0;
  std::string message = error.what();
  // What is unknown goes before what is missing: it is most likely a slip for that.
  if (const std::vector<std::string> unknown = app.remaining(true); !unknown.empty()) {
    const std::string& first = unknown.front();
    const char* const kind = first.starts_with('-') ? "option" : lacks_verb ? "verb" : "word";
    message = fmt::format("unknown {} \"{}\"", kind, first);
  } else if (lacks_verb) {
    message = fmt::format("no verb is given after \"{}\"", command);
  }
  return make_error(ErrorKind::usage, "{}", message).with_hint(command + " --help");
}

// Gives `app` the words behind `command`. A value: the status to end with, all is said.
inline std::optional<int> parse_words(CLI::App& app, const std::vector<std::string>& words,
                                      const std::string& command) {
  try {
    // CLI11 takes them from the back.
    app.parse(std::vector<std::string>(words.rbegin(), words.rend()));
  } catch (const CLI::CallForHelp&) {
    put(app.help());
    return kExitDone;
  } catch (const CLI::ParseError& error) {
    return report(usage_error(app, error, command));
  }
  return std::nullopt;
}

}  // namespace control
