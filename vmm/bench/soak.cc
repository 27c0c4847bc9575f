#include "vmm/bench/soak.h"

#include <fcntl.h>
#include <sys/socket.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "vmm/bench/quicksave_vm.h"
#include "vmm/bench/resident_memory.h"
#include "vmm/bench/soak_guest.h"
#include "vmm/control/output.h"
#include "vmm/control/size_text.h"
#include "vmm/control/unix_socket.h"
#include "vmm/control/usage_error.h"

namespace bench {
namespace {

constexpr u64 kSamples = 100;
constexpr u64 kDiskBytes = 16 * base::kMiB;
constexpr int kRoundsBeforeTheSnapshot = 20;
// How long the guest may run beyond its first round, at most. Prime, so that the moments differ.
constexpr u64 kLongestRunUs = 1999;

struct SoakOptions {
  u64 reverts = 10'000;
  std::string memory = "64M";
  control::Output output = control::Output::text;
};

class Soak final {
 public:
  static Result<Soak> start(const Workspace& workspace, u64 memory_bytes);

  // The guest runs a little, and is taken back.
  Result<void> revert_once(u64 number);
  Result<SoakSample> look(u64 number) const;

 private:
  Soak(Child child, control::ApiClient api, base::Fd console, u64 memory_bytes,
       std::string snapshots)
      : child_(std::move(child)),
        api_(std::move(api)),
        console_(std::move(console)),
        memory_bytes_(memory_bytes),
        snapshots_(std::move(snapshots)) {}

  Result<void> hear_rounds(int count);
  Result<void> hear_what_waits();

  Child child_;
  control::ApiClient api_;
  base::Fd console_;
  u64 memory_bytes_;
  std::string snapshots_;
};

Result<void> judge(char byte) {
  switch (byte) {
    case '.': return {};
    case 'T': return make_error(ErrorKind::corrupt, "the guest read through a stale mapping");
    case 'd': return make_error(ErrorKind::corrupt, "the guest's disk is not what it wrote");
    case 'e': return make_error(ErrorKind::corrupt, "the guest's disk refused a request");
    default: return make_error(ErrorKind::corrupt, "the guest said {:#x}", static_cast<u8>(byte));
  }
}

Result<Soak> Soak::start(const Workspace& workspace, u64 memory_bytes) {
  const std::string kernel = workspace.file("soak.elf");
  const std::string disk = workspace.file("soak.raw");
  {
    const base::Fd file = TRY(base::open_file(kernel, O_WRONLY | O_CREAT | O_EXCL));
    TRY(base::write_all(file, kSoakGuest));
    const base::Fd image = TRY(base::open_file(disk, O_WRONLY | O_CREAT | O_EXCL));
    if (::ftruncate(image.get(), kDiskBytes) != 0) return errno_error("make \"{}\"", disk);
  }
  Child child =
      TRY(Child::start({kThisProgram, "run", "--name", "soak", "--kernel", kernel, "-m",
                        control::format_size(memory_bytes), "--disk", disk + ",format=raw"},
                       workspace.path(), ChildOutput::none, workspace.file("errors")));
  const control::VmDirectory directory = vm_directory(workspace, "soak");
  control::ApiClient api = TRY(connect_to(directory, child));
  api.set_timeout_ms(kPatienceMs);
  base::Fd console = TRY(control::connect_unix(directory.console_socket()));
  Soak soak(std::move(child), std::move(api), std::move(console), memory_bytes,
            workspace.file("snapshots"));
  TRY(soak.hear_rounds(kRoundsBeforeTheSnapshot));
  TRY(soak.api_.request("POST", "/v1/snapshots", fmt::format(R"({{"name":"{}"}})", kSnapshotName)));
  return soak;
}

Result<void> Soak::hear_rounds(int count) {
  while (count > 0) {
    const char byte = TRY(read_byte(console_));
    // Its first word, of which no letter is an answer.
    if (byte == '\n' || std::string_view("READY").find(byte) != std::string_view::npos) continue;
    TRY(judge(byte));
    --count;
  }
  return {};
}

Result<void> Soak::hear_what_waits() {
  char bytes[4096];
  for (;;) {
    const ssize_t count = ::recv(console_.get(), bytes, sizeof bytes, MSG_DONTWAIT);
    if (count <= 0) return {};
    for (ssize_t i = 0; i < count; ++i) {
      if (std::string_view("READY\n").find(bytes[i]) == std::string_view::npos) {
        TRY(judge(bytes[i]));
      }
    }
  }
}

Result<void> Soak::revert_once(u64 number) {
  TRY(hear_rounds(1));
  ::usleep(static_cast<useconds_t>(number * 997 % kLongestRunUs));
  TRY(api_.request("POST", "/v1/revert",
                   fmt::format(R"({{"snapshot":"{}","verify":true}})", kSnapshotName)));
  return hear_what_waits();
}

Result<SoakSample> Soak::look(u64 number) const {
  const ResidentMemory memory = TRY(resident_memory_of(child_.pid(), memory_bytes_, snapshots_));
  std::error_code code;
  const std::filesystem::directory_iterator descriptors(fmt::format("/proc/{}/fd", child_.pid()),
                                                        code);
  if (code) return make_error(ErrorKind::failed, "count descriptors: {}", code.message());
  return SoakSample{number, memory.own_bytes,
                    static_cast<u64>(std::distance(begin(descriptors), end(descriptors)))};
}

Result<SoakReport> soak(const SoakOptions& options) {
  SoakReport report;
  report.reverts = options.reverts;
  report.memory_bytes = TRY(control::parse_size("--memory", options.memory, base::kMiB));
  const Workspace workspace = TRY(Workspace::create());
  Soak soak = TRY(Soak::start(workspace, report.memory_bytes));
  const u64 step = std::max<u64>(1, report.reverts / kSamples);
  const Clock::time_point start = Clock::now();
  for (u64 number = 1; number <= report.reverts; ++number) {
    TRY_CONTEXT(soak.revert_once(number), fmt::format("revert {}", number));
    if (number % step == 0) report.samples.push_back(TRY(soak.look(number)));
  }
  report.seconds = us_between(start, Clock::now()) / 1e6;
  return report;
}

}  // namespace

int soak_main(const std::vector<std::string>& arguments) {
  SoakOptions options;
  CLI::App app("Reverts one VM again and again, compares everything, watches for growth.",
               "quicksave soak");
  app.add_option("--reverts", options.reverts, "default 10000")->check(CLI::Range(1, 100'000'000));
  app.add_option("-m,--memory", options.memory, "the guest's; default 64M");
  app.add_flag_callback(
      "--json", [&options] { options.output = control::Output::json; }, "print JSON");
  if (const auto status = control::parse_words(app, arguments, "quicksave soak")) return *status;
  const Result<SoakReport> report = soak(options);
  if (!report) return control::report(report.error());
  if (options.output == control::Output::json) {
    control::put_json(report->to_json());
  } else {
    control::put(report->to_text());
  }
  const Result<void> steady = report->check_growth();
  return steady ? control::kExitDone : control::report(steady.error());
}

}  // namespace bench
