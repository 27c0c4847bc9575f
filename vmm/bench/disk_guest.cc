#include "vmm/bench/disk_guest.h"

#include <fcntl.h>

#include <filesystem>
#include <nlohmann/json.hpp>
#include <span>
#include <sstream>

#include "vmm/bench/disk_load_guest.h"
#include "vmm/bench/quicksave_vm.h"
#include "vmm/control/json_reader.h"
#include "vmm/control/unix_socket.h"

namespace bench {
namespace {

// The guest has 200 KiB of code and data.
constexpr char kMemory[] = "64M";

Result<std::string> disk_load_guest(const Workspace& workspace) {
  std::string path = workspace.file("disk_load.elf");
  if (std::filesystem::exists(path)) return path;
  const base::Fd file = TRY(base::open_file(path, O_WRONLY | O_CREAT | O_EXCL));
  TRY(base::write_all(file, kDiskLoadGuest));
  return path;
}

std::string line_of(const DiskLoad& load) {
  return fmt::format("{} {} {} {} {} {}\n", load.op == DiskLoad::Op::write ? "write" : "read",
                     load.count, load.depth, load.step, load.first, load.blocks);
}

}  // namespace

Result<DiskGuest> DiskGuest::start(const Workspace& workspace, const std::string& disk) {
  static u32 started = 0;
  const std::string name = fmt::format("disk-guest{}", ++started);
  const std::string kernel = TRY(disk_load_guest(workspace));
  Child child = TRY(Child::start(
      {kThisProgram, "run", "--name", name, "--kernel", kernel, "-m", kMemory, "--disk", disk},
      workspace.path(), ChildOutput::none, workspace.file("errors")));
  const control::VmDirectory directory = vm_directory(workspace, name);
  control::ApiClient api = TRY(connect_to(directory, child));
  api.set_timeout_ms(kPatienceMs);
  base::Fd console = TRY(control::connect_unix(directory.console_socket()));
  DiskGuest guest(std::move(child), std::move(api), std::move(console));
  // It may have said so before we listened.
  TRY(guest.send("\n"));
  TRY(guest.hear("READY"));
  return guest;
}

Result<DiskLoadResult> DiskGuest::run(const DiskLoad& load) {
  TRY(send(line_of(load)));
  return hear_result();
}

Result<void> DiskGuest::begin(const DiskLoad& load) { return send(line_of(load)); }

Result<DiskLoadResult> DiskGuest::end() {
  TRY(send("\n"));
  return hear_result();
}

Result<SnapshotCost> DiskGuest::snapshot(const std::string& name) {
  const std::string text =
      TRY(api_.request("POST", "/v1/snapshots", fmt::format(R"({{"name":"{}"}})", name)));
  const nlohmann::json answer = TRY(control::parse_json("the VM's answer", text));
  return SnapshotCost{answer.value("pause_us", 0.0), answer.value("total_us", 0.0),
                      answer.value("disk_bytes", u64{0})};
}

Result<void> DiskGuest::send(const std::string& text) {
  return base::write_all(console_,
                         std::span(reinterpret_cast<const u8*>(text.data()), text.size()));
}

Result<std::string> DiskGuest::hear(std::string_view word) {
  for (std::string line;; line.clear()) {
    for (char byte = 0; (byte = TRY(read_byte(console_))) != '\n';) line += byte;
    if (line.starts_with(word)) return line.substr(word.size());
    if (line.starts_with("FAILED")) return make_error(ErrorKind::failed, "the guest: {}", line);
  }
}

Result<DiskLoadResult> DiskGuest::hear_result() {
  const std::string line = TRY(hear("DONE"));
  std::istringstream fields(line);
  DiskLoadResult result;
  if (fields >> result.requests >> result.us >> result.kicks >> result.median_ns >> result.p99_ns >>
          result.longest_ns &&
      result.requests != 0 && result.us != 0) {
    return result;
  }
  return make_error(ErrorKind::failed, "the guest answered \"{}\"", line);
}

}  // namespace bench
