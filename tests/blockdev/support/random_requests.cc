#include "tests/blockdev/support/random_requests.h"

#include <algorithm>

namespace blockdev::test {

ModelClient::Request RandomRequests::next() {
  ModelClient::Request request;
  u64 dice = below(100);
  const auto hits = [&](u32 share) {
    if (dice < share) return true;
    dice -= share;
    return false;
  };
  if (hits(mix_.writes)) {
    request.op = BlockOp::write;
  } else if (hits(mix_.zeroes)) {
    request.op = BlockOp::write_zeroes;
    request.unmap = below(2) == 0 ? Unmap::yes : Unmap::no;
  } else if (hits(mix_.discards)) {
    request.op = BlockOp::discard;
  } else if (hits(mix_.flushes)) {
    request.op = BlockOp::flush;
    return request;
  }
  choose_range(request);
  return request;
}

void RandomRequests::choose_range(ModelClient::Request& request) {
  const u64 step = below(3) == 0 ? subunit_ : unit_;
  // Half of all requests meet in an eighth of the disk.
  const u64 reach =
      below(2) == 0 ? std::max<u64>(sectors_ / 8, std::min(sectors_, 2 * unit_)) : sectors_;
  u64 first = below(reach);
  if (below(2) == 0) first = first / step * step;
  if (below(8) == 0 && first > 0) --first;
  if (below(32) == 0) first = sectors_ - 1 - below(std::min(sectors_, unit_));
  u64 most = limit_ != 0 ? limit_ : 4 * unit_;
  if (below(2) == 0) most = std::min<u64>(most, 16);
  u64 count = 1 + below(most);
  if (below(3) == 0) count = std::max<u64>(1, count / step) * step;
  request.first_sector = std::min(first, sectors_ - 1);
  request.sector_count = std::min(count, sectors_ - request.first_sector);
}

}  // namespace blockdev::test
