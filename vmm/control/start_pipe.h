// The pipe on which a detached VM tells its parent how the start went (launcher.h: report_ready,
// report_failure).

#pragma once

#include <string>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace control {

struct StartPipe {
  base::Fd read_end;
  base::Fd write_end;
  static Result<StartPipe> create();
};

enum class StartOutcome : u8 { running, refused, vanished };

// Waits until the VM runs or its process said why not. `message` is what to print: an "error:" line
// and perhaps a "hint:" line.
StartOutcome wait_for_start(const base::Fd& read_end, std::string& message);

}  // namespace control
