// SectorHistory: what each sector of a disk may hold, as its requests promise it.
//
// A request is known by the time of its submission and of its end; what a sector was given by two
// requests that overlapped in time may end as either. A later certain write or an observation takes
// what is older away. After a crash a sector may also hold anything written since the last flush
// that had ended by then: old or new, never something else.
//
// Invariant: times come from one Timeline and differ from each other.
// Thread: one, but for Timeline.

#pragma once

#include <atomic>
#include <optional>
#include <string>
#include <vector>

#include "blockdev/layer.h"
#include "tests/blockdev/support/stamps.h"

namespace blockdev::test {

// Thread: any.
class Timeline final {
 public:
  u64 next() { return ++now_; }

 private:
  std::atomic<u64> now_{0};
};
inline constexpr u64 kNever = ~u64{0};

enum class HistoryKeeping : u8 {
  present,  // only what reads may still see
  all,      // for asking what a crash may leave
};

// Whether a change of a sector is sure to have happened when its request has ended. A discard that
// may be ignored and a write that failed are not.
enum class Certainty : u8 { certain, uncertain };

class SectorHistory final {
 public:
  SectorHistory(u64 sector_count, HistoryKeeping keeping);

  u64 sector_count() const { return sectors_.size(); }
  // New sectors are zero. What is cut off is forgotten.
  void resize(u64 sector_count) { sectors_.resize(sector_count, {{kZeroStamp, 0}}); }
  // What the disk held before the first request.
  void set_initial(u64 sector, Stamp stamp) { sectors_[sector].assign(1, {stamp, 0}); }

  // A request that will change sectors; its changes are added one by one before it can end.
  u32 begin(u64 submitted);
  void change(u32 request, u64 sector, Stamp stamp, Certainty certainty);
  void end(u32 request, u64 done, Certainty certainty);

  void flushed(u64 submitted, u64 done) { flushes_.push_back({submitted, done}); }
  const std::vector<u64> flush_ends() const;

  // A read of [submitted, done] found `stamp`. An answer is a violation of the promise.
  std::optional<std::string> read(u64 sector, Stamp stamp, u64 submitted, u64 done);
  // The same for what a crash at `time` left.
  std::optional<std::string> after_crash(u64 sector, Stamp stamp, u64 time) const;
  // A number that is the same for two times if what after_crash() takes for both is.
  u64 promise_at(u64 time) const;
  // The only stamp that a read now can find; nothing if there are several.
  std::optional<Stamp> only_value(u64 sector) const;

 private:
  enum class Kind : u8 { write, observation };
  struct Request {
    u64 submitted = 0;
    u64 done = kNever;
    Kind kind = Kind::write;
    Certainty certainty = Certainty::certain;
  };
  struct Change {
    Stamp stamp = kZeroStamp;
    u32 request = 0;
    Certainty certainty = Certainty::certain;
  };
  struct Flush {
    u64 submitted;
    u64 done;
  };

  bool is_certain(const Change& change) const;
  // Nothing that starts after `time` can find `change` any more.
  bool is_superseded(const std::vector<Change>& changes, const Change& change, u64 time,
                     bool with_observations) const;
  void forget_superseded(std::vector<Change>& changes, u64 time);
  std::string describe(u64 sector, Stamp stamp) const;

  HistoryKeeping keeping_;
  std::vector<Request> requests_;
  std::vector<std::vector<Change>> sectors_;
  std::vector<Flush> flushes_;
};

}  // namespace blockdev::test
