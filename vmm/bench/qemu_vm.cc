#include "vmm/bench/qemu_vm.h"

#include <unistd.h>

#include <ctime>
#include <nlohmann/json.hpp>
#include <span>

#include "vmm/control/json_reader.h"
#include "vmm/control/unix_socket.h"

namespace bench {
namespace {

constexpr char kQemu[] = "qemu-system-x86_64";
constexpr char kSaveRequest[] =
    R"({"execute":"human-monitor-command","arguments":{"command-line":"savevm ready"}})";
constexpr char kLoadRequest[] =
    R"({"execute":"human-monitor-command","arguments":{"command-line":"loadvm ready"}})";

Result<base::Fd> connect_to(const std::string& path, const Child& child) {
  constexpr int kStepMs = 2;
  for (int waited_ms = 0;; waited_ms += kStepMs) {
    Result<base::Fd> socket = control::connect_unix(path);
    if (socket) return socket;
    if (waited_ms >= kPatienceMs / 6) {
      return std::move(socket.error()).with_context("QEMU").with_hint(child.errors());
    }
    const timespec step{0, long{kStepMs} * 1'000'000};
    ::nanosleep(&step, nullptr);
  }
}

Result<void> make_disk(const Workspace& workspace, const std::string& path) {
  Child tool = TRY(Child::start({"qemu-img", "create", "-q", "-f", "qcow2", path, "1G"},
                                workspace.path(), ChildOutput::none, workspace.file("errors")));
  if (tool.wait() != 0) {
    return make_error(ErrorKind::failed, "qemu-img create failed: {}", tool.errors());
  }
  return {};
}

}  // namespace

std::vector<std::string> qemu_words(const std::string& kernel, u64 memory_mib) {
  return {kQemu,       "-M",          "microvm,acpi=off,rtc=off,pit=off,pic=off,isa-serial=on",
          "-accel",    "kvm",         "-cpu",
          "qemu64",    "-m",          fmt::format("{}M", memory_mib),
          "-display",  "none",        "-kernel",
          kernel,      "-nodefaults", "-no-user-config",
          "-no-reboot"};
}

std::vector<std::string> QemuVm::disk_words(const Workspace& workspace, const std::string& name) {
  return {"-drive", fmt::format("if=none,id=disk,format=qcow2,file={}", disk_path(workspace, name)),
          "-device", "virtio-blk-device,drive=disk"};
}

std::optional<std::string> QemuVm::version(const Workspace& workspace) {
  Result<Child> child = Child::start({kQemu, "--version"}, workspace.path(), ChildOutput::pipe,
                                     workspace.file("errors"));
  if (!child) return std::nullopt;
  std::string line;
  for (;;) {
    const Result<char> byte = read_byte(child->output());
    if (!byte || *byte == '\n') break;
    line.push_back(*byte);
  }
  if (child->wait() != 0) return std::nullopt;
  return line;
}

Result<std::unique_ptr<QemuVm>> QemuVm::start(const Workspace& workspace, const std::string& name,
                                              const BenchVmSpec& spec) {
  const std::string disk = disk_path(workspace, name);
  const std::string console = workspace.file(name + ".console");
  const std::string monitor_path = workspace.file(name + ".qmp");
  TRY(make_disk(workspace, disk));
  std::vector<std::string> words = qemu_words(workspace.dirty_pages_guest(), spec.memory_mib);
  for (std::string& word : disk_words(workspace, name)) words.push_back(std::move(word));
  words.insert(
      words.end(),
      {"-chardev", fmt::format("socket,id=console,path={},server=on,wait=off", console), "-serial",
       "chardev:console", "-qmp", fmt::format("unix:{},server=on,wait=off", monitor_path)});
  Child child = TRY(Child::start(std::move(words), workspace.path(), ChildOutput::none,
                                 workspace.file("errors")));
  base::Fd monitor = TRY(connect_to(monitor_path, child));
  GuestLine guest(TRY(connect_to(console, child)));
  auto vm =
      std::unique_ptr<QemuVm>(new QemuVm(std::move(child), std::move(monitor), std::move(guest)));
  TRY(vm->execute(R"({"execute":"qmp_capabilities"})"));
  TRY(vm->guest_.begin(spec.mapped_pages));
  TRY(vm->snapshot());
  return vm;
}

Result<void> QemuVm::snapshot() {
  TRY(guest_.let_speak());
  return execute(kSaveRequest);
}

Result<RevertTime> QemuVm::revert() {
  const Clock::time_point asked = Clock::now();
  TRY(send(kLoadRequest));
  TRY(guest_.hear());
  const Clock::time_point spoke = Clock::now();
  TRY(receive());
  return RevertTime{.client_us = us_between(asked, spoke), .own_us = 0};
}

Result<void> QemuVm::execute(std::string_view request) {
  TRY(send(request));
  return receive();
}

Result<void> QemuVm::send(std::string_view request) {
  return base::write_all(monitor_,
                         std::span(reinterpret_cast<const u8*>(request.data()), request.size()));
}

Result<void> QemuVm::receive() {
  for (;;) {
    const std::size_t end = received_.find('\n');
    if (end == std::string::npos) {
      received_.push_back(TRY(read_byte(monitor_)));
      continue;
    }
    const nlohmann::json line = TRY(control::parse_json("QEMU's answer", received_.substr(0, end)));
    received_.erase(0, end + 1);
    if (line.contains("error")) {
      return make_error(ErrorKind::failed, "QEMU: {}", line["error"].dump());
    }
    if (!line.contains("return")) continue;
    // A monitor command's complaint is the text of its answer.
    if (line["return"].is_string() && !line["return"].get<std::string>().empty()) {
      return make_error(ErrorKind::failed, "QEMU: {}", line["return"].get<std::string>());
    }
    return {};
  }
}

}  // namespace bench
