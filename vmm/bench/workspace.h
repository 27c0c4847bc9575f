// Workspace: a directory of the benchmark's own, with the guests that are part of the program and
// everything that the measured VMs leave behind. It goes when the benchmark ends.
//
// Thread: one.

#pragma once

#include <string>

#include "vmm/base/result.h"

namespace bench {

class Workspace final {
 public:
  // In memory (/dev/shm) if that has room, else in $TMPDIR or /tmp: disks are not what is measured.
  static Result<Workspace> create();
  // On a file system that is no tmpfs, in /var/tmp; without guests.
  static Result<Workspace> create_on_disk();
  Workspace(Workspace&& other) noexcept : path_(std::exchange(other.path_, {})) {}
  Workspace& operator=(Workspace&&) = delete;
  ~Workspace();

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }
  std::string dirty_pages_guest() const { return file("dirty_pages.elf"); }
  std::string hello_guest() const { return file("hello.elf"); }

 private:
  explicit Workspace(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

}  // namespace bench
