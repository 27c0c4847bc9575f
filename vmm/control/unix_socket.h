// Unix sockets below a VM's runtime directory: 0600, for their owner only.

#pragma once

#include <string>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"

namespace control {

// Listens on `path`. A socket that nobody listens on any more is replaced; anything else is left alone
// and refused. REQUIRES: this process holds the VM's lock.
Result<base::Fd> listen_unix(const std::string& path);

Result<base::Fd> connect_unix(const std::string& path);

// The next client, non-blocking; an empty Fd if none waits. Clients of another user are turned
// away.
Result<base::Fd> accept_unix(const base::Fd& listener);

}  // namespace control
