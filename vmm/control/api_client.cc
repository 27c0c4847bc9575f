#include "vmm/control/api_client.h"

#include <sys/socket.h>
#include <sys/time.h>

#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>

#include "vmm/control/unix_socket.h"
#include "vmm/control/wire_format.h"

namespace control {

namespace http = boost::beast::http;

Result<ApiClient> ApiClient::connect(const VmDirectory& directory) {
  const std::optional<u32> owner = TRY(owner_of(directory));
  if (!owner) {
    return make_error(ErrorKind::wrong_state, "VM \"{}\" does not run", directory.name)
        .with_hint("quicksave ps shows what runs");
  }
  Result<base::Fd> socket = connect_unix(directory.api_socket());
  if (!socket) {
    return make_error(ErrorKind::wrong_state, "VM \"{}\" (process {}) does not listen yet: {}",
                      directory.name, *owner, socket.error().message())
        .with_hint("it is starting or ending; try again");
  }
  return ApiClient(directory.name, std::move(*socket));
}

void ApiClient::set_timeout_ms(u64 timeout_ms) {
  timeval time{};
  time.tv_sec = static_cast<time_t>(timeout_ms / 1000);
  time.tv_usec = static_cast<suseconds_t>(timeout_ms % 1000 * 1000);
  ::setsockopt(socket_.get(), SOL_SOCKET, SO_RCVTIMEO, &time, sizeof time);
  ::setsockopt(socket_.get(), SOL_SOCKET, SO_SNDTIMEO, &time, sizeof time);
}

Result<void> ApiClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t count = ::send(socket_.get(), bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EPIPE) return {};  // it closed: what it said before that says why
    if (count < 0) return errno_error("VM \"{}\" takes no request", vm_);
    bytes.remove_prefix(static_cast<std::size_t>(count));
  }
  return {};
}

Result<std::string> ApiClient::receive_answer(int& status) {
  constexpr u64 kMaximumAnswerBytes = 16 * base::kMiB;
  http::response_parser<http::string_body> parser;
  parser.body_limit(kMaximumAnswerBytes);
  parser.eager(true);
  std::string received;
  while (!parser.is_done()) {
    char buffer[16 * 1024];
    const ssize_t count = ::recv(socket_.get(), buffer, sizeof buffer, 0);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) {
      return make_error(ErrorKind::failed, "VM \"{}\" does not answer", vm_)
          .with_hint(fmt::format("quicksave kill {} ends it in any case", vm_));
    }
    if (count <= 0) {
      return make_error(ErrorKind::failed, "VM \"{}\" ended before it answered", vm_)
          .with_hint(fmt::format("quicksave logs --vmm {} tells why", vm_));
    }
    received.append(buffer, static_cast<std::size_t>(count));
    boost::beast::error_code code;
    const std::size_t used =
        parser.put(boost::asio::const_buffer(received.data(), received.size()), code);
    received.erase(0, used);
    if (code && code != http::error::need_more) {
      return make_error(ErrorKind::failed, "VM \"{}\" answered something that is not HTTP", vm_);
    }
  }
  status = static_cast<int>(parser.get().result_int());
  return std::move(parser.get().body());
}

Result<void> ApiClient::send_request(std::string_view method, std::string_view target,
                                     std::string_view body) {
  Result<void> sent = send(fmt::format("{} {} HTTP/1.1\r\nHost: vm\r\nContent-Length: {}\r\n\r\n{}",
                                       method, target, body.size(), body));
  transport_failed_ = !sent;
  return sent;
}

Result<std::string> ApiClient::receive() {
  int status = 0;
  Result<std::string> answer = receive_answer(status);
  transport_failed_ = !answer;
  if (answer && (status < 200 || status > 299)) return error_of_answer(status, *answer);
  return answer;
}

Result<std::string> ApiClient::request(std::string_view method, std::string_view target,
                                       std::string_view body) {
  TRY(send_request(method, target, body));
  return receive();
}

}  // namespace control
