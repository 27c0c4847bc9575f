// MachineLauncher: turns a process that the command line has prepared into the VM.

#pragma once

#include "vmm/control/launcher.h"

namespace vmm {

class MachineLauncher final : public control::Launcher {
 public:
  std::vector<control::DoctorLine> host_report() override;
  int bench(const std::vector<std::string>& arguments) override;
  int soak(const std::vector<std::string>& arguments) override;
  int image(const std::vector<std::string>& arguments) override;
  int launch(control::LaunchRequest request) override;
};

}  // namespace vmm
