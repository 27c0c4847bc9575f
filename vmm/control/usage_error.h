// What the library that parses command lines found wrong, in our form: named, and where to read on.

#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "vmm/base/result.h"

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

}  // namespace control
