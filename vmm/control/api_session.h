// ApiSession: one client of the API server: bytes in, requests out, answers back.
//
// One request at a time: while an answer is owed or not all of it is sent, nothing more is read, so a
// client cannot make the server queue. All I/O is non-blocking.
//
// Thread: the loop's.

#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "vmm/base/fd.h"
#include "vmm/control/api_server.h"
#include "vmm/control/http_request.h"
#include "vmm/control/loop.h"

namespace control {

u64 monotonic_ms();

class ApiSession final : public std::enable_shared_from_this<ApiSession> {
 public:
  // `serve` gets each request and sees to it that answer() is called, now or later.
  using Serve = std::function<void(const std::shared_ptr<ApiSession>&, HttpRequest)>;
  // `closed` is called once, when the connection is over for whatever reason.
  ApiSession(Loop& loop, base::Fd fd, const ApiLimits& limits, Serve serve,
             std::function<void(ApiSession&)> closed);
  ~ApiSession();

  void start();
  void answer(int status, std::string_view json_body);
  // Answers whatever the client is about to ask, and closes.
  void turn_away(int status, std::string_view json_body);
  void close();

  // Between two requests, or before the first, and nothing of the next has come.
  bool is_idle() const;
  u64 idle_since_ms() const { return idle_since_ms_; }

  // Milliseconds of the monotonic clock at which this client has been too slow; 0: it is not due.
  u64 deadline_ms() const { return deadline_ms_; }
  void give_up_on_slow_client();
  bool has_unsent_bytes() const { return sent_ < outbox_.size(); }
  // Sends what the socket takes.
  void send_outbox();
  int fd() const { return fd_.get(); }

 private:
  enum class Reading : u8 { go_on, stop };
  Reading read_ready();
  // Serves every request that `bytes` completes.
  void take_bytes(std::string_view bytes);
  bool is_answering() const { return owes_answer_ || has_unsent_bytes(); }
  void read_on();
  void refuse(int status, std::string_view message);
  void watch();

  Loop& loop_;
  base::Fd fd_;
  const ApiLimits limits_;
  Serve serve_;
  std::function<void(ApiSession&)> closed_;
  HttpRequestReader reader_;
  std::string inbox_;   // received, not taken by the reader yet
  std::string outbox_;  // sent_ bytes of it are on their way
  std::size_t sent_ = 0;
  u64 deadline_ms_ = 0;
  u64 idle_since_ms_ = monotonic_ms();  // REQUIRES: is_idle()
  bool owes_answer_ = false;
  bool keep_alive_ = true;
  bool is_watching_ = false;
};

}  // namespace control
