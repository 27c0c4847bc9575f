// call(): an ioctl as a Result. `what` is the request's name, for the message.

#pragma once

#include <sys/ioctl.h>

#include <cerrno>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"
#include "vmm/kvm/uapi.h"

namespace kvm {

// `argument` is a pointer or an integer, as the request wants it.
template <class T>
Result<int> call(const base::Fd& fd, unsigned long request, T argument, std::string_view what) {
  int result = -1;
  do {
    result = ::ioctl(fd.get(), request, argument);
  } while (result < 0 && errno == EINTR);
  if (result < 0) return errno_error("{}", what);
  return result;
}

}  // namespace kvm

// KVM_CALL(fd, KVM_SET_REGS, &registers)
#define KVM_CALL(fd, request, argument) ::kvm::call((fd), (request), (argument), #request)
