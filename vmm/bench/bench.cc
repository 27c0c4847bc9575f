#include "vmm/bench/bench.h"

#include <sched.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <nlohmann/json.hpp>

#include "vmm/bench/host_header.h"
#include "vmm/bench/plan.h"
#include "vmm/bench/qemu_vm.h"
#include "vmm/control/output.h"
#include "vmm/control/usage_error.h"

namespace bench {

const std::vector<Question>& revert_questions() {
  static const std::vector<Question> all = {
      {"headline", measure_headline},     {"in-place", measure_in_place},
      {"mapped", measure_mapped},         {"restore", measure_restore},
      {"cold-start", measure_cold_start}, {"resident", measure_resident},
  };
  return all;
}

const std::vector<Question>& image_questions() {
  static const std::vector<Question> all = {
      {"tmpfs", measure_images_tmpfs},   {"cached", measure_images_cached},
      {"direct", measure_images_direct}, {"allocate", measure_images_allocate},
      {"chain", measure_images_chain},   {"overlay", measure_images_overlay},
      {"guest", measure_images_guest},   {"handover", measure_images_handover},
  };
  return all;
}

namespace {

struct Options {
  const std::vector<Question>* questions = nullptr;
  bool quick = false;
  bool no_qemu = false;
  std::vector<std::string> only;
  control::Output output = control::Output::text;
};

bool is_wanted(const Options& options, const Question& question) {
  return options.only.empty() ||
         std::find(options.only.begin(), options.only.end(), question.name) != options.only.end();
}

std::string header_text(const std::vector<std::pair<std::string, std::string>>& header) {
  std::string text;
  for (const auto& [what, which] : header) text += fmt::format("{:<10} {}\n", what, which);
  return text + "\n";
}

// The guests that are measured never sleep, and neither does a VMM that passes their output on: on a
// host of two processors whoever holds the watch would wait for one of them, milliseconds at times. It
// runs before them; its children do not inherit that.
void run_before_the_measured() {
  const sched_param lowest{.sched_priority = 1};
  // Without the permission the measurement is as it was.
  ::sched_setscheduler(0, SCHED_RR | SCHED_RESET_ON_FORK, &lowest);
}

Result<int> measure(const Options& options, const std::vector<std::string>& arguments) {
  // The tables of images wait for programs that end, which need no watch.
  if (options.questions == &revert_questions()) run_before_the_measured();
  const Workspace workspace = TRY(Workspace::create());
  Plan plan{.workspace = workspace, .peer = {}, .quick = options.quick};
  if (!options.no_qemu) plan.peer = QemuVm::version(workspace);
  const auto header = host_header(plan, arguments);
  const bool json = options.output == control::Output::json;
  if (!json) control::put(header_text(header));

  nlohmann::json tables = nlohmann::json::array();
  for (const Question& question : *options.questions) {
    if (!is_wanted(options, question)) continue;
    const Table table = TRY_CONTEXT(question.answer(plan), question.name);
    if (json) {
      tables.push_back(to_json(table));
    } else {
      control::put(to_text(table));
    }
  }
  if (json) {
    nlohmann::json about;
    for (const auto& [what, which] : header) about[what] = which;
    control::put_json({{"host", about}, {"tables", tables}});
  }
  return control::kExitDone;
}

void add_verb(CLI::App& app, Options& options, const std::string& name, const std::string& about,
              const std::vector<Question>& questions) {
  CLI::App& verb = *app.add_subcommand(name, about);
  verb.add_flag("--quick", options.quick, "few measurements: in seconds, for a look");
  if (&questions == &revert_questions()) {
    verb.add_flag("--no-qemu", options.no_qemu, "do not measure QEMU beside it");
  }
  std::vector<std::string> names;
  for (const Question& question : questions) names.emplace_back(question.name);
  verb.add_option("--only", options.only, "this table only; repeatable")
      ->check(CLI::IsMember(names));
  verb.add_flag_callback(
      "--json", [&options] { options.output = control::Output::json; }, "print JSON");
  verb.final_callback([&options, &questions] { options.questions = &questions; });
}

}  // namespace

int main(const std::vector<std::string>& arguments) {
  Options options;
  CLI::App app("Measures Quicksave on this host, beside QEMU where it is installed.",
               "quicksave bench");
  app.require_subcommand(1);
  add_verb(app, options, "revert", "snapshot, revert, restore and start", revert_questions());
  add_verb(app, options, "image", "disk images, beside qemu-img and fio", image_questions());
  if (const auto status = control::parse_words(app, arguments, "quicksave bench")) return *status;
  const Result<int> status = measure(options, arguments);
  return status ? *status : control::report(status.error());
}

}  // namespace bench
