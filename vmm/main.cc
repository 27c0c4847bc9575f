#include "vmm/control/cli.h"
#include "vmm/machine_launcher.h"

int main(int argc, char** argv) {
  vmm::MachineLauncher launcher;
  return control::main(argc, argv, launcher);
}
