#include "vmm/control/api_session.h"

#include <sys/socket.h>

#include <cerrno>
#include <ctime>
#include <utility>

#include "vmm/control/wire_format.h"

namespace control {
namespace {

std::string_view reason_of(int status) {
  switch (status) {
    case 200: return "OK";
    case 400: return "Bad Request";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 409: return "Conflict";
    case 413: return "Content Too Large";
    case 422: return "Unprocessable Content";
    case 431: return "Request Header Fields Too Large";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 507: return "Insufficient Storage";
    default: return "Internal Server Error";
  }
}

}  // namespace

u64 monotonic_ms() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<u64>(now.tv_sec) * 1000 + static_cast<u64>(now.tv_nsec) / 1'000'000;
}

ApiSession::ApiSession(Loop& loop, base::Fd fd, const ApiLimits& limits, Serve serve,
                       std::function<void(ApiSession&)> closed)
    : loop_(loop),
      fd_(std::move(fd)),
      limits_(limits),
      serve_(std::move(serve)),
      closed_(std::move(closed)),
      reader_(limits.header_bytes, limits.body_bytes) {}

ApiSession::~ApiSession() {
  if (fd_) loop_.unwatch(fd_.get());
}

void ApiSession::start() { watch(); }

void ApiSession::watch() {
  if (is_watching_ || !fd_) return;
  is_watching_ = true;
  loop_.watch_readable(fd_.get(), [self = shared_from_this()] {
    if (self->read_ready() == Reading::go_on) return true;
    self->is_watching_ = false;
    return false;
  });
}

ApiSession::Reading ApiSession::read_ready() {
  if (!fd_ || is_answering()) return Reading::stop;
  char buffer[16 * 1024];
  const ssize_t count = ::recv(fd_.get(), buffer, sizeof buffer, MSG_DONTWAIT);
  if (count < 0 && (errno == EAGAIN || errno == EINTR)) return Reading::go_on;
  if (count <= 0) {
    close();
    return Reading::stop;
  }
  const std::string_view fresh(buffer, static_cast<std::size_t>(count));
  if (inbox_.empty()) {
    take_bytes(fresh);
  } else {
    const std::string all = std::exchange(inbox_, {}).append(fresh);
    take_bytes(all);
  }
  return fd_ && !is_answering() ? Reading::go_on : Reading::stop;
}

void ApiSession::take_bytes(std::string_view bytes) {
  while (!bytes.empty() && fd_ && !is_answering()) {
    u64 used = 0;
    const HttpRequestReader::Status status = reader_.take(bytes, used);
    bytes.remove_prefix(used);
    if (status == HttpRequestReader::Status::bad) {
      refuse(reader_.failure_status(), "not a request that this server takes");
      return;
    }
    if (status == HttpRequestReader::Status::more) {
      if (reader_.wants_continue()) {
        outbox_ += "HTTP/1.1 100 Continue\r\n\r\n";
        send_outbox();
      }
      // From the first byte on, whatever arrives since: one byte a second does not help.
      if (deadline_ms_ == 0) deadline_ms_ = monotonic_ms() + limits_.slow_client_ms;
      break;
    }
    HttpRequest request = reader_.take_request();
    deadline_ms_ = 0;
    keep_alive_ = request.keep_alive;
    owes_answer_ = true;
    serve_(shared_from_this(), std::move(request));
  }
  if (fd_) inbox_.append(bytes);
}

void ApiSession::refuse(int status, std::string_view message) {
  turn_away(status,
            fmt::format(R"({{"error":{{"kind":"usage","message":"{}","hint":""}}}})", message));
}

void ApiSession::turn_away(int status, std::string_view json_body) {
  keep_alive_ = false;
  owes_answer_ = true;
  answer(status, json_body);
}

void ApiSession::answer(int status, std::string_view json_body) {
  if (!fd_ || !owes_answer_) return;
  owes_answer_ = false;
  outbox_ += fmt::format(
      "HTTP/1.1 {} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n{}\r\n{}", status,
      reason_of(status), json_body.size(), keep_alive_ ? "" : "Connection: close\r\n", json_body);
  send_outbox();
  // A request served later than it was read. Posted: the answer may come from inside take_bytes().
  if (fd_ && !is_watching_) loop_.post([self = shared_from_this()] { self->read_on(); });
}

// With what the client sent meanwhile, then with what it sends.
void ApiSession::read_on() {
  if (is_answering() || is_watching_) return;
  const std::string waiting = std::exchange(inbox_, {});
  take_bytes(waiting);
  if (!is_answering()) watch();
}

void ApiSession::send_outbox() {
  while (fd_ && sent_ < outbox_.size()) {
    const ssize_t count = ::send(fd_.get(), outbox_.data() + sent_, outbox_.size() - sent_,
                                 MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0 && errno == EAGAIN) {
      if (deadline_ms_ == 0) deadline_ms_ = monotonic_ms() + limits_.slow_client_ms;
      loop_.watch_writable(fd_.get(), [self = shared_from_this()] {
        self->send_outbox();
        if (self->fd_ && self->has_unsent_bytes()) return true;
        self->read_on();
        return false;
      });
      return;
    }
    if (count < 0) return close();
    sent_ += static_cast<std::size_t>(count);
  }
  outbox_.clear();
  sent_ = 0;
  if (!reader_.is_inside_request()) deadline_ms_ = 0;
  idle_since_ms_ = monotonic_ms();
  if (!keep_alive_ && !owes_answer_) close();
}

bool ApiSession::is_idle() const {
  char byte;
  return !is_answering() && !reader_.is_inside_request() &&
         ::recv(fd_.get(), &byte, 1, MSG_PEEK | MSG_DONTWAIT) < 0;
}

void ApiSession::give_up_on_slow_client() {
  if (has_unsent_bytes()) return close();  // it does not read: nothing more can be said to it
  refuse(408, "the request did not arrive in time");
}

void ApiSession::close() {
  if (!fd_) return;
  loop_.unwatch(fd_.get());
  is_watching_ = false;
  fd_.reset();
  outbox_.clear();
  sent_ = 0;
  deadline_ms_ = 0;
  if (closed_) std::exchange(closed_, nullptr)(*this);
}

}  // namespace control
