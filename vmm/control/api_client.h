// ApiClient: one connection to a VM's control socket, one blocking request after the other.
//
// Two ways to fail, and two exit statuses: the VM refused (an Error of the kind it named), or there
// was no answer that could be understood (transport_failed() is true from then on).
//
// Thread: one at a time.

#pragma once

#include <optional>
#include <string>
#include <string_view>

#include "vmm/base/fd.h"
#include "vmm/base/result.h"
#include "vmm/control/vm_directory.h"

namespace control {

class ApiClient final {
 public:
  // `wrong_state` if the VM does not run.
  static Result<ApiClient> connect(const VmDirectory& directory);

  // No answer within the time is a transport failure. 0: wait as long as it takes.
  void set_timeout_ms(u64 timeout_ms);

  // The body of a 2xx answer.
  Result<std::string> request(std::string_view method, std::string_view target,
                              std::string_view body = {});
  // The two halves of request(), for those who look at something else in between.
  Result<void> send_request(std::string_view method, std::string_view target,
                            std::string_view body = {});
  Result<std::string> receive();
  bool transport_failed() const { return transport_failed_; }

 private:
  ApiClient(std::string vm, base::Fd socket) : vm_(std::move(vm)), socket_(std::move(socket)) {}
  Result<void> send(std::string_view bytes);
  Result<std::string> receive_answer(int& status);

  std::string vm_;
  base::Fd socket_;
  bool transport_failed_ = false;
};

}  // namespace control
