// HttpRequestReader: one HTTP/1.1 request after the other out of a stream of bytes.
//
// Thread: one at a time.

#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "vmm/base/types.h"

namespace control {

struct HttpRequest {
  std::string method;
  std::string target;
  std::string body;
  bool keep_alive = true;
};

class HttpRequestReader final {
 public:
  HttpRequestReader(u32 header_limit_bytes, u64 body_limit_bytes);
  ~HttpRequestReader();

  enum class Status : u8 { more, complete, bad };

  // Takes bytes from the front of `input`; `used` says how many. After `complete` it stands at the
  // next request; after `bad` the connection is of no further use.
  Status take(std::string_view input, u64& used);
  // Whether a request has begun and is not complete.
  bool is_inside_request() const;
  HttpRequest take_request();
  // After `bad`: the status to answer with (400, 413, 431).
  int failure_status() const { return failure_status_; }
  // Whether the header is complete, the body is not, and the client waits for "100 Continue".
  bool wants_continue();

 private:
  struct Parser;
  void start();

  u32 header_limit_bytes_;
  u64 body_limit_bytes_;
  int failure_status_ = 0;
  bool inside_ = false;
  bool continue_sent_ = false;
  std::unique_ptr<Parser> parser_;
};

}  // namespace control
