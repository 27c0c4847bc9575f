#include "vmm/control/http_request.h"

#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <optional>

namespace control {

namespace http = boost::beast::http;

struct HttpRequestReader::Parser {
  std::optional<http::request_parser<http::string_body>> beast;
};

HttpRequestReader::HttpRequestReader(u32 header_limit_bytes, u64 body_limit_bytes)
    : header_limit_bytes_(header_limit_bytes),
      body_limit_bytes_(body_limit_bytes),
      parser_(std::make_unique<Parser>()) {
  start();
}

HttpRequestReader::~HttpRequestReader() = default;

void HttpRequestReader::start() {
  parser_->beast.emplace();
  parser_->beast->header_limit(header_limit_bytes_);
  parser_->beast->body_limit(body_limit_bytes_);
  parser_->beast->eager(true);
  inside_ = false;
  continue_sent_ = false;
}

HttpRequestReader::Status HttpRequestReader::take(std::string_view input, u64& used) {
  used = 0;
  inside_ = inside_ || !input.empty();
  while (used < input.size()) {
    boost::beast::error_code code;
    const std::size_t count = parser_->beast->put(
        boost::asio::const_buffer(input.data() + used, input.size() - used), code);
    used += count;
    if (code == http::error::need_more) return Status::more;
    if (code == http::error::body_limit) failure_status_ = 413;
    if (code == http::error::header_limit) failure_status_ = 431;
    if (code && failure_status_ == 0) failure_status_ = 400;
    if (code) return Status::bad;
    if (parser_->beast->is_done()) return Status::complete;
    if (count == 0) return Status::more;
  }
  return Status::more;
}

bool HttpRequestReader::is_inside_request() const { return inside_; }

bool HttpRequestReader::wants_continue() {
  if (continue_sent_ || !parser_->beast->is_header_done() || parser_->beast->is_done())
    return false;
  const auto& message = parser_->beast->get();
  continue_sent_ = boost::beast::iequals(message[http::field::expect],
                                         boost::beast::string_view("100-continue"));
  return continue_sent_;
}

HttpRequest HttpRequestReader::take_request() {
  auto message = parser_->beast->release();
  HttpRequest request;
  request.method = std::string(message.method_string());
  request.target = std::string(message.target());
  request.body = std::move(message.body());
  request.keep_alive = message.keep_alive();
  start();
  return request;
}

}  // namespace control
