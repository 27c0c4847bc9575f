// A home of its own for each test, removed at its end; QUICKSAVE_HOME points there meanwhile.

#pragma once

#include <stdlib.h>

#include <filesystem>
#include <string>

#include "vmm/control/vm_directory.h"

namespace control {

class TemporaryHome final {
 public:
  TemporaryHome() {
    std::string pattern = std::filesystem::temp_directory_path() / "quicksave-test-XXXXXX";
    path_ = ::mkdtemp(pattern.data());
    ::setenv("QUICKSAVE_HOME", path_.c_str(), 1);
  }
  ~TemporaryHome() { std::filesystem::remove_all(path_); }
  TemporaryHome(const TemporaryHome&) = delete;
  TemporaryHome& operator=(const TemporaryHome&) = delete;

  const std::string& path() const { return path_; }
  Home home() const { return *Home::from_environment(); }

 private:
  std::string path_;
};

}  // namespace control
