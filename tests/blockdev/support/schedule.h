// Schedule: a disk on a SimulatedHost with two clients, each with a queue of its own.
//
// Everything runs on one thread, in an order that a test arranges or a seed chooses. What breaks
// the promise fails the test.
//
// Thread: one.

#pragma once

#include <array>
#include <memory>
#include <string>

#include "tests/blockdev/support/durable_image.h"
#include "tests/blockdev/support/io_log.h"
#include "tests/blockdev/support/model_client.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/simulated_host.h"
#include "tests/blockdev/support/sparse_image.h"

namespace blockdev::test {

class Schedule final {
 public:
  explicit Schedule(const ImageShape& shape, u64 seed = 1);

  SimulatedHost& host() { return host_; }
  ModelClient& client(u64 index) { return *clients_[index]; }
  SectorHistory& history() { return history_; }
  const IoLog& log() const { return log_; }
  const std::string& path() const { return image_.path(); }

  void write(u64 client, u64 sector, u64 count, Stamp stamp);
  void discard(u64 client, u64 sector, u64 count);
  void read(u64 client, u64 sector, u64 count);
  void flush(u64 client);
  // Both clients send requests that the seed chooses, until so many are done.
  void play_random(u64 requests);
  // Client 0 reads compressed clusters. When the first of them is mapped and its bytes are not read
  // yet, client 1 writes to all clusters, and what that frees is used again.
  // REQUIRES: small_shape() with compressed clusters; nothing happened yet.
  void rewrite_under_reader();

  u32 in_flight(u64 client) const { return clients_[client]->in_flight_count(); }
  // Of both clients, everything.
  void finish();
  // A crash now, with all that was given to the host, and with only what is durable.
  void expect_crash_keeps_the_promise();
  // Reads all, closes, and has the image checked: no corruption, no leak.
  void close_and_check();

 private:
  // Calls of one client do not come while it is in another.
  void start(u64 client, const ModelClient::Request& request, Stamp stamp = 0);
  bool poll(u64 client);
  SparseImage read_image() const;

  ImageShape shape_;
  u64 seed_;
  TempDir dir_{"/dev/shm"};
  QemuDaemon daemon_;
  DurableImage image_;
  SimulatedHost host_;
  Timeline timeline_;
  IoLog log_;
  SectorHistory history_;
  SparseImage start_;
  std::unique_ptr<Disk> disk_;
  std::array<std::unique_ptr<ModelClient>, 2> clients_;
  std::array<bool, 2> is_busy_{};
};

// Of 64 clusters of 4 KiB over a raw image.
ImageShape small_shape();
// A small image over another, of a shape that `seed` chooses.
ImageShape schedule_shape(u64 seed);

}  // namespace blockdev::test
