// The command line.
//
// Exit status: 0 done; 1 refused or failed for the reason printed; 2 the command line makes no
// sense; 125 Quicksave or its host failed (a VM's process died or does not answer). `run` and
// `restore` in the foreground: 0 the guest powered off, 1 it crashed, 125 the VMM failed.
// Results go to stdout; "error: ..." and "hint: ..." to stderr.

#pragma once

#include "vmm/control/launcher.h"

namespace control {

int main(int argc, char** argv, Launcher& launcher);

}  // namespace control
