#include "tests/blockdev/support/schedule.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include "tests/blockdev/support/crash_judge.h"
#include "tests/blockdev/support/crash_replay.h"
#include "tests/blockdev/support/random_requests.h"

namespace blockdev::test {

Schedule::Schedule(const ImageShape& shape, u64 seed)
    : shape_(shape),
      seed_(seed),
      daemon_(dir_.root()),
      image_(dir_.root(), shape, daemon_, seed),
      host_(seed),
      log_(timeline_),
      history_(shape.sector_count(), HistoryKeeping::all) {
  image_.tell(history_);
  start_ = read_image();
  DiskOptions options;
  options.make_engine = recording_engines(host_.engines(), log_);
  options.executor = host_.executor();
  disk_ = open_durable(image_.chain(), options).value();
  for (auto& client : clients_) {
    client = std::make_unique<ModelClient>(*disk_->backend, history_, timeline_);
    if (shape.has_compressed) client->set_discard_granularity(shape.cluster_bytes());
  }
  for (u64 index = 0; index < clients_.size(); ++index) {
    host_.add_actor([this, index] { return poll(index); });
  }
}

void Schedule::start(u64 client, const ModelClient::Request& request, Stamp stamp) {
  is_busy_[client] = true;
  clients_[client]->start(request, stamp);
  is_busy_[client] = false;
}

bool Schedule::poll(u64 client) {
  if (clients_[client] == nullptr || is_busy_[client]) return false;  // closed
  const u32 before = in_flight(client);
  is_busy_[client] = true;
  clients_[client]->poll();
  is_busy_[client] = false;
  return in_flight(client) != before;
}

void Schedule::write(u64 client, u64 sector, u64 count, Stamp stamp) {
  start(client, {.op = BlockOp::write, .first_sector = sector, .sector_count = count}, stamp);
}

void Schedule::discard(u64 client, u64 sector, u64 count) {
  start(client, {.op = BlockOp::discard, .first_sector = sector, .sector_count = count});
}

void Schedule::read(u64 client, u64 sector, u64 count) {
  start(client, {.op = BlockOp::read, .first_sector = sector, .sector_count = count});
}

void Schedule::flush(u64 client) { start(client, {.op = BlockOp::flush}); }

void Schedule::play_random(u64 requests) {
  // Requests meet in a few clusters, which move on: what only the first write to a cluster can get
  // wrong must not be written over before it is read.
  const u64 unit = shape_.cluster_bytes() / kSectorBytes;
  const u64 window = seed_ % 2 == 0 ? 10 : 3;
  const u64 steps = shape_.sector_count() / unit - window;
  struct Play {  // the actors stay
    RandomRequests requests;
    u64 started = 0;
    Stamp stamp = 1;
  };
  const auto play =
      std::make_shared<Play>(Play{{seed_,
                                   window * unit,
                                   shape_.cluster_bytes(),
                                   shape_.cluster_bytes() / (shape_.is_extended ? 32 : 1),
                                   {.writes = 50, .zeroes = 15, .discards = 15, .flushes = 8}}});
  for (u64 index = 0; index < 2; ++index) {
    host_.add_actor([=, this] {
      if (play->started == requests || is_busy_[index] || in_flight(index) >= 6) return false;
      ModelClient::Request request = play->requests.next();
      request.first_sector += play->started++ * steps / requests * unit;
      start(index, request, play->stamp);
      play->stamp += request.sector_count;
      return true;
    });
  }
  ASSERT_TRUE(host_.run_until(
      [&] { return play->started == requests && in_flight(0) + in_flight(1) == 0; }));
}

void Schedule::rewrite_under_reader() {
  const u64 unit = shape_.cluster_bytes() / kSectorBytes;
  const u64 count = shape_.sector_count() / unit;
  // What a writer needs of the tables is in memory afterwards.
  write(1, (count - 1) * unit, unit, 1'000);
  finish();
  bool was_interrupted = false;
  // QEMU packs compressed data at any byte; tables begin where sectors do.
  host_.interrupt_read(
      [](const IoOperation& operation) { return operation.offset % kSectorBytes != 0; },
      [&] {
        was_interrupted = true;
        write(1, 0, count / 2 * unit, 2'000);
        host_.settle();
        flush(1);
        host_.settle();  // with the frees
        write(1, count / 2 * unit, count / 2 * unit, 10'000);
        host_.settle();
      });
  for (u64 cluster = 0; cluster < count / 2 && !was_interrupted; ++cluster) {
    read(0, cluster * unit, unit);
    finish();
  }
  EXPECT_TRUE(was_interrupted) << "no cluster was compressed";
}

void Schedule::finish() {
  host_.release();
  ASSERT_TRUE(host_.run_until([&] { return in_flight(0) + in_flight(1) == 0; }))
      << "stuck with " << in_flight(0) << " and " << in_flight(1) << " requests in flight";
}

SparseImage Schedule::read_image() const {
  return SparseImage::read(base::open_file(image_.path(), O_RDONLY).value());
}

void Schedule::expect_crash_keeps_the_promise() {
  CrashReplay replay(start_, log_.operations());
  CrashJudge judge(history_, shape_.format, image_.lower_layers(), dir_.root());
  replay.run(
      {.random_subsets = 2, .torn_subsets = 1}, history_.flush_ends(),
      [&](u64 time) { return history_.promise_at(time); },
      [&](const SparseImage& crashed, u64 time, CrashReplay::Seen) {
        const auto violation = judge.judge(crashed, time);
        EXPECT_EQ(violation, std::nullopt) << *violation;
      });
}

void Schedule::close_and_check() {
  finish();
  constexpr u64 kSectorsAtOnce = 8;
  for (u64 at = 0; at < shape_.sector_count(); at += kSectorsAtOnce) {
    read(0, at, std::min(kSectorsAtOnce, shape_.sector_count() - at));
    finish();
  }
  for (auto& client : clients_) {
    for (const std::string& violation : client->violations()) ADD_FAILURE() << violation;
    EXPECT_EQ(client->failed_count(), 0u) << "requests failed";
    client.reset();
  }
  disk_.reset();
  const QemuVerdict verdict = qemu_check(image_.path());
  EXPECT_EQ(verdict.status, 0) << verdict.output;
  CrashJudge judge(history_, shape_.format, image_.lower_layers(), dir_.root());
  const auto violation = judge.judge(read_image(), timeline_.next());
  EXPECT_EQ(violation, std::nullopt) << *violation;
}

ImageShape small_shape() {
  return {.cluster_bits = 12, .size_bytes = 64 * 4096, .below = {BelowKind::raw}};
}

ImageShape schedule_shape(u64 seed) {
  ImageShape shape{.below = {BelowKind::raw}};
  shape.is_extended = seed % 3 == 0;
  // Subclusters and clusters of a sector never have to be filled; larger ones do.
  shape.cluster_bits = shape.is_extended ? seed % 2 == 0 ? 14 : 16 : seed % 4 == 0 ? 9 : 12;
  shape.size_bytes = 40 * shape.cluster_bytes();
  shape.filled = 0.3;
  shape.has_compressed = seed % 4 == 1;
  return shape;
}

}  // namespace blockdev::test
