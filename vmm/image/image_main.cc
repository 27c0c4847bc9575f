#include "vmm/image/image_main.h"

#include <CLI/CLI.hpp>
#include <functional>
#include <memory>

#include "vmm/control/usage_error.h"
#include "vmm/image/bench.h"
#include "vmm/image/serve.h"
#include "vmm/image/verbs.h"

namespace image {
namespace {

using Work = std::function<Result<int>()>;

constexpr const char* kImageFooter = R"(
Options, exit statuses and --output=json are qemu-img's. Formats are never guessed: where qemu-img
would, -f or -F has to say it. Names inside images are not followed unless --backing-dir allows it.)";

constexpr const char* kCheckFooter = R"(
Exit status: 0 no errors; 2 corruptions; 3 leaks only; 63 the format has nothing to check;
  1 the check could not be done)";

constexpr const char* kCompareFooter = R"(
Exit status: 0 identical; 1 different; 2 they could not be compared)";

constexpr const char* kSettingsHelp =
    "size, backing_file, backing_fmt, cluster_size, extended_l2=on|off, compat=1.1, "
    "lazy_refcounts=off; KEY=VALUE,... with a comma in a value doubled";

void set_work(CLI::App& verb, Work& work, Work does) {
  verb.final_callback([&work, does = std::move(does)] { work = does; });
}

// One word each time it is given, as often as it is given.
void many(CLI::Option* option) {
  option->expected(1)->allow_extra_args(false)->multi_option_policy(
      CLI::MultiOptionPolicy::TakeAll);
}

// A variable of a script that is not set is no file.
void not_empty(CLI::Option* option) {
  option->check([](const std::string& word) {
    return word.empty() ? std::string("the name is empty") : std::string();
  });
}

void add_format(CLI::App& verb, std::string& format, const char* option = "-f") {
  verb.add_option(option, format, "its format: qcow2 or raw; never guessed");
}

void add_below(CLI::App& verb, ImageOptions& image) {
  many(verb.add_option("--backing", image.backing,
                       "FILE:FORMAT of what lies below; repeatable, from top to bottom"));
  verb.add_option("--backing-dir", image.backing_dir,
                  "follow backing names inside images, below this directory");
}

void add_output(CLI::App& verb, Output& output) {
  verb.add_option_function<std::string>(
          "--output",
          [&output](const std::string& word) {
            output = word == "json" ? Output::json : Output::text;
          },
          "human (default) or json")
      ->check(CLI::IsMember({"human", "json"}));
}

void add_progress(CLI::App& verb, ShowProgress& progress) {
  verb.add_flag_callback(
      "-p", [&progress] { progress = ShowProgress::yes; }, "show progress on stderr");
}

struct Reading {
  ImageOptions image;
  WithChain with_chain = WithChain::no;
  std::string repair;
  Output output = Output::text;
};

void add_info(CLI::App& app, Work& work) {
  CLI::App& verb = *app.add_subcommand("info", "tell what an image is");
  const auto given = std::make_shared<Reading>();
  verb.add_option("FILE", given->image.file, "the image")->required();
  add_format(verb, given->image.format);
  add_output(verb, given->output);
  verb.add_flag_callback(
      "--backing-chain", [given] { given->with_chain = WithChain::yes; },
      "of all images below it too");
  add_below(verb, given->image);
  set_work(verb, work, [given] { return info(given->image, given->with_chain, given->output); });
}

void add_check(CLI::App& app, Work& work) {
  CLI::App& verb = *app.add_subcommand("check", "look for corruptions and leaks");
  verb.footer(kCheckFooter);
  const auto given = std::make_shared<Reading>();
  verb.add_option("FILE", given->image.file, "the image")->required();
  add_format(verb, given->image.format);
  add_output(verb, given->output);
  verb.add_option("-r", given->repair, "repair: leaks, or all")
      ->check(CLI::IsMember({"leaks", "all"}));
  set_work(verb, work, [given] { return check(given->image, given->repair, given->output); });
}

void add_map(CLI::App& app, Work& work) {
  CLI::App& verb = *app.add_subcommand("map", "tell which image each part of the disk comes from");
  const auto given = std::make_shared<Reading>();
  verb.add_option("FILE", given->image.file, "the image")->required();
  add_format(verb, given->image.format);
  add_output(verb, given->output);
  add_below(verb, given->image);
  set_work(verb, work, [given] { return map(given->image, given->output); });
}

void add_create(CLI::App& app, Work& work) {
  CLI::App& verb = *app.add_subcommand("create", "make an image");
  const auto given = std::make_shared<CreateOptions>();
  verb.add_option("FILE", given->file, "the image")->required();
  verb.add_option("SIZE", given->size, "of the disk: 512M, 2G; default: the backing file's");
  add_format(verb, given->format);
  not_empty(
      verb.add_option("-b", given->backing_file, "backing file, relative to FILE's directory"));
  verb.add_option("-F", given->backing_format, "its format: qcow2 or raw");
  verb.add_flag_callback(
      "-u", [given] { given->backing_exists = BackingExists::assumed; },
      "do not look at the backing file");
  many(verb.add_option("-o", given->settings, kSettingsHelp));
  set_work(verb, work, [given] { return create(*given); });
}

void add_compare(CLI::App& app, Work& work) {
  struct Given {
    ImageOptions first;
    ImageOptions second;
    ShowProgress progress = ShowProgress::no;
  };
  CLI::App& verb = *app.add_subcommand("compare", "compare the content of two disks");
  verb.footer(kCompareFooter);
  const auto given = std::make_shared<Given>();
  verb.add_option("FILE1", given->first.file, "an image")->required();
  verb.add_option("FILE2", given->second.file, "another one")->required();
  add_format(verb, given->first.format);
  verb.add_option("-F", given->second.format, "the format of FILE2");
  many(verb.add_option("--backing", given->first.backing, "FILE:FORMAT of what lies below FILE1"));
  many(verb.add_option("--backing2", given->second.backing, "the same for FILE2"));
  verb.add_option("--backing-dir", given->first.backing_dir,
                  "follow backing names inside images, below this directory");
  add_progress(verb, given->progress);
  set_work(verb, work, [given] {
    given->second.backing_dir = given->first.backing_dir;
    return compare(given->first, given->second, given->progress);
  });
}

void add_convert(CLI::App& app, Work& work) {
  CLI::App& verb = *app.add_subcommand("convert", "copy a disk into an image of another kind");
  const auto given = std::make_shared<ConvertOptions>();
  verb.add_option("FILE", given->source.file, "the image to read")->required();
  verb.add_option("TARGET", given->target, "the image to write")->required();
  add_format(verb, given->source.format);
  add_below(verb, given->source);
  verb.add_option("-O", given->target_format, "the target's format: raw (default) or qcow2");
  not_empty(verb.add_option("-B", given->backing_file,
                            "the target's backing file: what it reads the same is left out"));
  verb.add_option("-F", given->backing_format, "its format: qcow2 or raw");
  verb.add_flag_callback(
      "-n", [given] { given->target_exists = TargetExists::yes; },
      "the target is there; write into it");
  verb.add_option("-S", given->sparse_size,
                  "so many bytes of zeros become a hole; default 4k, 0: none do");
  many(verb.add_option("-o", given->settings, kSettingsHelp));
  add_progress(verb, given->progress);
  set_work(verb, work, [given] { return convert(*given); });
}

void add_resize(CLI::App& app, Work& work) {
  CLI::App& verb = *app.add_subcommand("resize", "make the disk in an image larger or smaller");
  const auto given = std::make_shared<ResizeOptions>();
  verb.add_option("FILE", given->image.file, "the image")->required();
  verb.add_option("SIZE", given->size, "5G; +1G and -1G are relative")->required();
  add_format(verb, given->image.format);
  add_below(verb, given->image);
  verb.add_flag_callback(
      "--shrink", [given] { given->shrink = Shrink::allowed; },
      "it may become smaller: what lies behind is lost");
  set_work(verb, work, [given] { return resize(*given); });
}

void add_rebase(CLI::App& app, Work& work) {
  CLI::App& verb = *app.add_subcommand("rebase", "give an image another backing file");
  const auto given = std::make_shared<RebaseOptions>();
  verb.add_option("FILE", given->image.file, "the image")->required();
  add_format(verb, given->image.format);
  add_below(verb, given->image);
  verb.add_option("-b", given->backing_file, "the new one; \"\": none");
  verb.add_option("-F", given->backing_format, "its format: qcow2 or raw");
  verb.add_flag_callback(
      "-u", [given] { given->mode = RebaseMode::unsafe; },
      "only change the name: the new one holds the same");
  add_progress(verb, given->progress);
  set_work(verb, work, [given] { return rebase(*given); });
}

void add_commit(CLI::App& app, Work& work) {
  CLI::App& verb = *app.add_subcommand("commit", "write what an image holds into its backing file");
  const auto given = std::make_shared<CommitOptions>();
  verb.add_option("FILE", given->image.file, "the image; it is empty afterwards, unless -b")
      ->required();
  add_format(verb, given->image.format);
  add_below(verb, given->image);
  not_empty(verb.add_option("-b", given->base, "an image further down the chain"));
  add_progress(verb, given->progress);
  set_work(verb, work, [given] { return commit(*given); });
}

// "resize FILE -1G": the last word is no option.
std::vector<std::string> with_negative_size(std::vector<std::string> words) {
  const bool is_negative = words.size() > 2 && words.front() == "resize" &&
                           words.back().size() > 1 && words.back()[0] == '-' &&
                           words.back()[1] >= '0' && words.back()[1] <= '9';
  if (is_negative) words.insert(words.end() - 1, "--");
  return words;
}

}  // namespace

int main(const std::vector<std::string>& words) {
  CLI::App app("make, look at, copy and change disk images", "quicksave image");
  app.footer(kImageFooter);
  app.require_subcommand(1);
  Work work;
  for (const auto add : {add_create, add_info, add_map, add_check, add_compare, add_convert,
                         add_resize, add_rebase, add_commit, add_bench, add_serve}) {
    add(app, work);
  }
  const int failed =
      !words.empty() && words.front() == "compare" ? kExitCannotCompare : kExitFailed;
  if (const std::optional<int> status =
          control::parse_words(app, with_negative_size(words), "quicksave image")) {
    return *status == kExitDone ? kExitDone : failed;
  }
  const Result<int> status = work();
  if (status) return *status;
  control::report(status.error());
  return failed;
}

}  // namespace image
