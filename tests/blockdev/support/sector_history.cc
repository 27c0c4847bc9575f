#include "tests/blockdev/support/sector_history.h"

#include <fmt/format.h>

#include <algorithm>

#include "vmm/base/check.h"

namespace blockdev::test {

SectorHistory::SectorHistory(u64 sector_count, HistoryKeeping keeping) : keeping_(keeping) {
  requests_.push_back({.submitted = 0, .done = 0});
  resize(sector_count);
}

u32 SectorHistory::begin(u64 submitted) {
  requests_.push_back({.submitted = submitted});
  return static_cast<u32>(requests_.size() - 1);
}

void SectorHistory::change(u32 request, u64 sector, Stamp stamp, Certainty certainty) {
  std::vector<Change>& changes = sectors_.at(sector);
  // A sequential client keeps one entry for each sector: what is older than everything in flight
  // went when its successor ended.
  if (keeping_ == HistoryKeeping::present) {
    forget_superseded(changes, requests_[request].submitted);
  }
  changes.push_back({stamp, request, certainty});
}

void SectorHistory::end(u32 request, u64 done, Certainty certainty) {
  CHECK(requests_[request].done == kNever);
  requests_[request].done = done;
  requests_[request].certainty = certainty;
}

const std::vector<u64> SectorHistory::flush_ends() const {
  std::vector<u64> ends;
  for (const Flush& flush : flushes_) ends.push_back(flush.done);
  return ends;
}

bool SectorHistory::is_certain(const Change& change) const {
  return change.certainty == Certainty::certain &&
         requests_[change.request].certainty == Certainty::certain;
}

bool SectorHistory::is_superseded(const std::vector<Change>& changes, const Change& change,
                                  u64 time, bool with_observations) const {
  const Request& request = requests_[change.request];
  return std::ranges::any_of(changes, [&](const Change& other) {
    const Request& later = requests_[other.request];
    if (later.kind == Kind::observation && !with_observations) return false;
    // What was observed is as it was written, also before the observation.
    if (later.kind == Kind::observation && other.stamp == change.stamp) return false;
    return is_certain(other) && later.done < time && request.done < later.submitted;
  });
}

void SectorHistory::forget_superseded(std::vector<Change>& changes, u64 time) {
  if (changes.size() < 2) return;
  const std::vector<Change> all = changes;
  std::erase_if(changes,
                [&](const Change& change) { return is_superseded(all, change, time, true); });
}

std::optional<std::string> SectorHistory::read(u64 sector, Stamp stamp, u64 submitted, u64 done) {
  std::vector<Change>& changes = sectors_.at(sector);
  bool found = false;
  for (const Change& change : changes) {
    const Request& request = requests_[change.request];
    if (change.stamp != stamp || request.submitted > done) continue;
    if (request.kind == Kind::observation) continue;
    found = found || !is_superseded(changes, change, submitted, true);
  }
  if (!found) return "read " + describe(sector, stamp);
  // While requests that overlap are in flight, which of them comes last is not decided: what is
  // read meanwhile binds none of them (blockdev/block_backend.h).
  const bool is_settled = std::ranges::none_of(changes, [&](const Change& change) {
    const Request& request = requests_[change.request];
    return request.kind != Kind::observation && request.submitted < done &&
           request.done > submitted;
  });
  if (changes.size() > 1 && is_settled) {
    requests_.push_back({.submitted = submitted, .done = done, .kind = Kind::observation});
    changes.push_back({stamp, static_cast<u32>(requests_.size() - 1), Certainty::certain});
    if (keeping_ == HistoryKeeping::present) forget_superseded(changes, done);
  }
  return std::nullopt;
}

u64 SectorHistory::promise_at(u64 time) const {
  u64 covered = 0;
  for (const Flush& flush : flushes_) {
    if (flush.done <= time) covered = std::max(covered, flush.submitted);
  }
  return covered;
}

std::optional<std::string> SectorHistory::after_crash(u64 sector, Stamp stamp, u64 time) const {
  const std::vector<Change>& changes = sectors_.at(sector);
  const u64 covered = promise_at(time);
  for (const Change& change : changes) {
    const Request& request = requests_[change.request];
    if (change.stamp != stamp || request.submitted > time) continue;
    if (request.kind == Kind::observation) continue;
    if (!is_superseded(changes, change, covered, false)) return std::nullopt;
  }
  return fmt::format("after a crash at {} (flushed up to {}) ", time, covered) +
         describe(sector, stamp);
}

std::optional<Stamp> SectorHistory::only_value(u64 sector) const {
  const std::vector<Change>& changes = sectors_.at(sector);
  std::optional<Stamp> value;
  for (const Change& change : changes) {
    if (requests_[change.request].kind == Kind::observation) continue;
    if (is_superseded(changes, change, kNever, true)) continue;
    if (value && *value != change.stamp) return std::nullopt;
    value = change.stamp;
  }
  return value;
}

std::string SectorHistory::describe(u64 sector, Stamp stamp) const {
  std::string text = fmt::format("sector {:#x} holds {:#x}; it was given:", sector, stamp);
  for (const Change& change : sectors_[sector]) {
    const Request& request = requests_[change.request];
    text += fmt::format(" {:#x}[{}..{}]{}", change.stamp, request.submitted,
                        request.done == kNever ? "" : std::to_string(request.done),
                        is_certain(change) ? "" : "?");
  }
  return text;
}

}  // namespace blockdev::test
