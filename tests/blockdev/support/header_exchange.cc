#include "tests/blockdev/support/header_exchange.h"

#include <fcntl.h>
#include <fmt/format.h>

#include "blockdev/qcow2_create.h"
#include "blockdev/qcow2_header.h"
#include "tests/blockdev/support/qemu_tools.h"

namespace blockdev::test {
namespace {

void judge_ours(const std::string& path, const std::string& base, const std::string& format,
                std::vector<std::string>& violations) {
  {
    const base::Fd fd = base::open_file(path, O_RDWR | O_CREAT | O_TRUNC, 0644).value();
    const qcow2::NewImage image = qcow2::overlay_image(base::kMiB, base, format);
    if (!qcow2::create_image(fd, image)) violations.push_back("an overlay cannot be made");
  }
  const std::string info = run_ok("qemu-img info -f qcow2 --output=json " + path);
  for (const std::string& wanted : {fmt::format("\"backing-filename\": \"{}\"", base),
                                    fmt::format("\"backing-filename-format\": \"{}\"", format)}) {
    if (info.find(wanted) != std::string::npos) continue;
    violations.push_back(fmt::format("QEMU does not find {} in ours: {}", wanted, info));
  }
}

void judge_theirs(const std::string& path, const std::string& base, const std::string& format,
                  std::vector<std::string>& violations) {
  run_ok(fmt::format("qemu-img create -q -u -f qcow2 -b {} -F {} {} 1M", base, format, path));
  const base::Fd fd = base::open_file(path, O_RDONLY).value();
  const auto header = qcow2::read_header(fd, base::file_size(fd).value());
  if (!header) {
    violations.push_back("QEMU's overlay cannot be read: " + header.error().message());
  } else if (header->backing_name != base || header->backing_format != format) {
    violations.push_back(fmt::format("we find \"{}\" of format \"{}\" in QEMU's overlay of {}:{}",
                                     header->backing_name, header->backing_format, base, format));
  }
}

}  // namespace

std::vector<std::string> exchange_backing_formats(const std::string& directory) {
  std::vector<std::string> violations;
  for (const char* format : {"raw", "qcow2"}) {
    judge_ours(directory + "/ours", "base." + std::string(format), format, violations);
    judge_theirs(directory + "/theirs", "base." + std::string(format), format, violations);
  }
  return violations;
}

}  // namespace blockdev::test
