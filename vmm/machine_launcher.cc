#include "vmm/machine_launcher.h"

#include <sys/resource.h>

#include "vmm/base/log.h"
#include "vmm/bench/bench.h"
#include "vmm/bench/soak.h"
#include "vmm/configurable_vm.h"
#include "vmm/control/api_server.h"
#include "vmm/image/image_main.h"
#include "vmm/kvm/kvm.h"
#include "vmm/kvm/self_test.h"
#include "vmm/live_vm.h"

namespace vmm {
namespace {

int refuse(control::LaunchRequest& request, const Error& error, int status) {
  if (request.ready_pipe) {
    control::report_failure(request.ready_pipe, error);
  } else {
    base::log(base::LogLevel::error, "{}", error.message());
    if (!error.hint().empty()) base::log_line(base::LogLevel::info, "hint: " + error.hint());
  }
  return status;
}

// A VM with many disks and snapshots has many files open, and the usual soft limit of 1024 is there
// for programs that use select(2).
void allow_all_open_files() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);  // what fails here is told by who runs out of them
}

// For those who wait for it.
void say_that_it_ends(const control::LaunchRequest& request) {
  const Result<void> recorded = control::record_ending(request.directory);
  if (!recorded) base::log(base::LogLevel::warning, "{}", recorded.error().message());
}

int launch_unconfigured(const kvm::Kvm& kvm, control::LaunchRequest& request) {
  control::Loop loop;
  ConfigurableVm vm(kvm, request, loop);
  Result<std::unique_ptr<control::ApiServer>> server =
      control::ApiServer::create(loop, vm, request.directory.api_socket());
  if (!server) return refuse(request, server.error(), 125);
  control::end_on_signals(loop, [&vm](int) { vm.kill(); });
  control::report_ready(request.ready_pipe);
  loop.run();
  say_that_it_ends(request);
  vm.finish();
  (*server)->finish();
  return static_cast<int>(vm.exit_status());
}

}  // namespace

std::vector<control::DoctorLine> MachineLauncher::host_report() {
  using control::Health;
  Result<kvm::Kvm> kvm = kvm::Kvm::open();
  if (!kvm) return {{"KVM", Health::bad, kvm.error().message(), kvm.error().hint()}};
  std::vector<control::DoctorLine> lines;
  const bool pvm = kvm->kind() == kvm::KvmKind::pvm;
  lines.push_back(
      {"KVM", pvm ? Health::odd : Health::good,
       fmt::format("{}, up to {} vCPUs", kvm->kind_name(), kvm->capabilities().maximum_vcpus),
       pvm ? "stock Linux does not finish booting on KVM-PVM (its emulator lacks int3); "
             "use a host with hardware virtualisation for it"
           : ""});
  const Result<kvm::StaleTranslations> stale = kvm::find_stale_translations(*kvm);
  if (!stale) {
    lines.push_back({"revert", Health::bad, stale.error().message(), stale.error().hint()});
  } else if (*stale == kvm::StaleTranslations::shadow_tables) {
    lines.push_back(
        {"revert", Health::odd, "shadow paging: a revert also drops KVM's shadow page tables", ""});
  } else {
    lines.push_back({"revert", Health::good, "two-dimensional paging", ""});
  }
  return lines;
}

int MachineLauncher::bench(const std::vector<std::string>& arguments) {
  return ::bench::main(arguments);
}

int MachineLauncher::soak(const std::vector<std::string>& arguments) {
  return ::bench::soak_main(arguments);
}

int MachineLauncher::image(const std::vector<std::string>& arguments) {
  return ::image::main(arguments);
}

int MachineLauncher::launch(control::LaunchRequest request) {
  allow_all_open_files();
  const Result<kvm::Kvm> kvm = kvm::Kvm::open();
  if (!kvm) return refuse(request, kvm.error(), 125);
  if (!request.boot && !request.restore_uuid) return launch_unconfigured(*kvm, request);
  control::Loop loop;
  Result<std::unique_ptr<LiveVm>> vm = LiveVm::create(*kvm, request, loop);
  if (!vm) return refuse(request, vm.error(), 1);
  Result<std::unique_ptr<control::ApiServer>> server =
      control::ApiServer::create(loop, **vm, request.directory.api_socket());
  if (!server) return refuse(request, server.error(), 125);
  control::end_on_signals(loop, [&vm](int) { (*vm)->kill(); });
  (*vm)->start();
  control::report_ready(request.ready_pipe);
  loop.run();
  say_that_it_ends(request);
  (*vm)->finish();
  (*server)->finish();
  return static_cast<int>((*vm)->exit_status());
}

}  // namespace vmm
