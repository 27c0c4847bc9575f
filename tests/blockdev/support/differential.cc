#include "tests/blockdev/support/differential.h"

#include <fcntl.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <set>

#include "blockdev/executor.h"
#include "blockdev/qcow2_check.h"
#include "tests/blockdev/support/crash_judge.h"
#include "tests/blockdev/support/model_client.h"
#include "tests/blockdev/support/qemu_tools.h"
#include "tests/blockdev/support/test_engines.h"

namespace blockdev::test {

struct Differential::Round {
  ImageShape shape;  // its size changes
  u64 seed;
  u32 number = 0;
  u32 request_count;
  std::vector<BackingSpec> ours;
  std::vector<BackingSpec> theirs;
  SectorHistory history;
  Timeline timeline;
  RandomRequests requests;
  Stamp next_stamp = 1;
  QemuDisk* qemu = nullptr;
  ModelClient* client = nullptr;
  std::vector<ClusterState> states;  // of our file when it was opened
  std::set<u64> touched;             // clusters since

  Round(const DurableImage& image, u64 seed_value, u32 requests_each)
      : shape(image.shape()),
        seed(seed_value),
        request_count(requests_each),
        ours(image.chain()),
        theirs(image.chain()),
        history(shape.sector_count(), HistoryKeeping::present),
        requests(seed_value, shape.sector_count(), shape.cluster_bytes(),
                 shape.is_extended ? shape.cluster_bytes() / 32 : shape.cluster_bytes(),
                 {.writes = 42, .zeroes = 16, .discards = 12, .flushes = 4}) {
    image.tell(history);
  }
};

ImageShape random_shape(u64 seed) {
  std::mt19937_64 random(seed);
  ImageShape shape;
  shape.cluster_bits = static_cast<u32>(9 + seed % 13);
  shape.is_extended = shape.cluster_bits >= 14 && random() % 2 == 0;
  constexpr u32 kWidths[] = {16, 1, 2, 4, 8, 32, 64, 16};
  shape.refcount_bits = kWidths[random() % 8];
  // Enough for several L2 tables with small clusters; a few clusters of the large ones.
  const u64 clusters = shape.cluster_bits <= 12 ? 200 : shape.cluster_bits <= 16 ? 48 : 6;
  shape.has_compressed = random() % 2 == 0;
  shape.size_bytes = clusters * shape.cluster_bytes();
  if (!shape.has_compressed) shape.size_bytes += random() % 3 * 1536;
  for (u64 depth = random() % 4; depth > 0; --depth) {
    constexpr BelowKind kKinds[] = {BelowKind::qcow2, BelowKind::compressed, BelowKind::extended,
                                    BelowKind::raw};
    shape.below.push_back(kKinds[random() % (depth == 1 ? 4 : 3)]);
  }
  if (!shape.below.empty() && random() % 2 == 0) {
    const i64 half = static_cast<i64>(shape.size_bytes / 2 / kSectorBytes * kSectorBytes);
    shape.below_extra_bytes = random() % 2 == 0 ? -half : half;
  }
  shape.filled = random() % 3 == 0 ? 0 : 0.4;
  return shape;
}

void Differential::run(const ImageShape& shape, u64 seed, u32 rounds, u32 requests_each) {
  ++counts_.scenarios;
  const DurableImage image(directory_, shape, daemon_, seed);
  Round round(image, seed, requests_each);
  round.theirs[0].path = directory_ + "/theirs";
  std::filesystem::copy_file(round.ours[0].path, round.theirs[0].path,
                             std::filesystem::copy_options::overwrite_existing);
  for (; round.number < rounds && counts_.violations.empty(); ++round.number) {
    play_round(round);
    compare(round);
    if (round.requests.random()() % 2 == 0) {
      std::swap(round.ours[0], round.theirs[0]);
      ++counts_.swaps;
    }
    if (round.requests.random()() % 6 == 0) resize(round);
  }
}

void Differential::violated(const Round& round, const std::string& what) {
  counts_.violations.push_back(fmt::format("seed {}, round {}, {}: {}", round.seed, round.number,
                                           round.shape.describe(), what));
}

void Differential::play_round(Round& round) {
  ++counts_.reopenings;
  DiskOptions options;
  options.executor = std::make_shared<ManualExecutor>();
  // Most rounds without a ring: it is the mapping that is compared here.
  if (round.number % 4 != 3) options.make_engine = make_sync_engine;
  if (round.shape.format == ImageFormat::qcow2) {
    round.states = read_cluster_states(base::open_file(round.ours[0].path, O_RDONLY).value());
  }
  round.touched.clear();
  auto disk = open_durable(round.ours, options);
  if (!disk) return violated(round, "cannot open ours: " + disk.error().message());
  QemuDisk qemu(daemon_, round.theirs, QemuDisk::Access::writable, round.shape.cluster_bytes());
  ModelClient client(*(*disk)->backend, round.history, round.timeline);
  // A part of a compressed cluster cannot be discarded.
  if (round.shape.has_compressed) client.set_discard_granularity(round.shape.cluster_bytes());
  round.qemu = &qemu;
  round.client = &client;
  for (u32 i = 0; i < round.request_count && client.violations().empty(); ++i) {
    const ModelClient::Request request = round.requests.next();
    count_states(round, request);
    ++counts_.requests;
    const BlockStatus status = client.run(request, round.next_stamp);
    if (status != BlockStatus::ok) violated(round, "a request failed");
    mirror(round, request, round.next_stamp);
    round.next_stamp += request.sector_count;
  }
  // All of it, as ours reads it: what a discard left open is known from here on.
  for (u64 at = 0; at < round.history.sector_count(); at += 2048) {
    client.run({.op = BlockOp::read,
                .first_sector = at,
                .sector_count = std::min<u64>(2048, round.history.sector_count() - at)});
  }
  for (const std::string& violation : client.violations()) violated(round, violation);
}

void Differential::count_states(Round& round, const ModelClient::Request& request) {
  if (request.op == BlockOp::flush || round.states.empty()) return;
  const u64 unit = round.shape.cluster_bytes() / kSectorBytes;
  const u64 end = request.first_sector + request.sector_count;
  for (u64 cluster = request.first_sector / unit; cluster * unit < end; ++cluster) {
    const bool is_read = request.op == BlockOp::read;
    if (round.touched.contains(cluster)) continue;
    if (!is_read) round.touched.insert(cluster);
    const bool is_whole = request.first_sector <= cluster * unit && (cluster + 1) * unit <= end;
    counts_.reached.add(round.states.at(cluster), request.op, is_whole, !round.shape.below.empty());
  }
}

void Differential::mirror(Round& round, const ModelClient::Request& request, Stamp stamp) {
  const u64 offset = request.first_sector * kSectorBytes;
  const u64 length = request.sector_count * kSectorBytes;
  switch (request.op) {
    // What QEMU reads is compared as a whole at the end of the round.
    case BlockOp::read: break;
    case BlockOp::flush: round.qemu->flush(); break;
    case BlockOp::write_zeroes: round.qemu->write_zeroes(offset, length, request.unmap); break;
    case BlockOp::discard: mirror_discard(round, request); break;
    case BlockOp::write: {
      std::vector<u8> bytes(length);
      for (u64 i = 0; i < request.sector_count; ++i) {
        fill_stamp(std::span(bytes).subspan(i * kSectorBytes, kSectorBytes), stamp + i);
      }
      round.qemu->write(offset, bytes);
      break;
    }
  }
}

// QEMU ignores what is not a whole cluster, ours what is not a whole subcluster: what ours made of
// the rest is read, and told to QEMU as zeros.
void Differential::mirror_discard(Round& round, const ModelClient::Request& request) {
  const u64 unit = round.shape.cluster_bytes() / kSectorBytes;
  const u64 end = request.first_sector + request.sector_count;
  const u64 sure_from = (request.first_sector + unit - 1) / unit * unit;
  const u64 sure_to = end / unit * unit;
  if (sure_from < sure_to) {
    round.qemu->discard(sure_from * kSectorBytes, (sure_to - sure_from) * kSectorBytes);
    if (sure_from == request.first_sector && sure_to == end) return;
  }
  round.client->run({.op = BlockOp::read,
                     .first_sector = request.first_sector,
                     .sector_count = request.sector_count});
  for (u64 sector = request.first_sector; sector < end;) {
    const auto is_open_zero = [&](u64 at) {
      const bool is_sure = at >= sure_from && at < sure_to;
      return !is_sure && round.history.only_value(at) == kZeroStamp;
    };
    u64 last = sector;
    while (last < end && is_open_zero(last)) ++last;
    if (last > sector) {
      round.qemu->write_zeroes(sector * kSectorBytes, (last - sector) * kSectorBytes, Unmap::yes);
    }
    sector = std::max(last, sector + 1);
  }
}

void Differential::compare(Round& round) {
  if (!counts_.violations.empty()) return;
  if (round.shape.format == ImageFormat::qcow2) {
    const auto report = qcow2::check_image(base::open_file(round.ours[0].path, O_RDONLY).value());
    if (!report) return violated(round, "ours cannot be checked: " + report.error().message());
    if (report->corruptions + report->leaks + report->check_errors != 0) {
      violated(round, fmt::format("ours: {}", fmt::join(report->findings, "; ")));
    }
    if (round.number % 8 == 0) {
      ++counts_.qemu_checks;
      const QemuVerdict verdict = qemu_check(round.ours[0].path);
      if (verdict.status != 0) violated(round, "qemu-img check of ours: " + verdict.output);
    }
  }
  for (const auto* chain : {&round.ours, &round.theirs}) {
    QemuDisk disk(daemon_, *chain, QemuDisk::Access::read_only);
    if (disk.size_bytes() != round.shape.size_bytes) {
      return violated(round, fmt::format("QEMU finds a disk of {} bytes", disk.size_bytes()));
    }
    const std::vector<u8> bytes = disk.read(0, disk.size_bytes());
    for (u64 sector = 0; sector < round.history.sector_count(); ++sector) {
      const Stamp stamp = stamp_of(std::span(bytes).subspan(sector * kSectorBytes, kSectorBytes));
      if (round.history.only_value(sector) == stamp) continue;
      return violated(round, fmt::format("QEMU reads {} sector {:#x} as {:#x}, the model has {:#x}",
                                         chain == &round.ours ? "our" : "its", sector, stamp,
                                         round.history.only_value(sector).value_or(kForeignStamp)));
    }
  }
}

void Differential::resize(Round& round) {
  if (!counts_.violations.empty()) return;
  ++counts_.resizes;
  std::mt19937_64& random = round.requests.random();
  const u64 unit = round.shape.cluster_bytes();
  const u64 limit = unit <= 65536 ? 600 : 12;
  const u64 clusters = 1 + random() % limit;
  const u64 sectors_more = random() % 4;
  u64 size = clusters * unit + sectors_more * kSectorBytes;
  // What QEMU cuts off within a cluster it shows again when the disk grows.
  if (size < round.shape.size_bytes) size = clusters * unit;
  for (const auto* chain : {&round.ours, &round.theirs}) {
    QemuDisk(daemon_, *chain, QemuDisk::Access::writable).resize(size);
  }
  round.shape.size_bytes = size;
  round.history.resize(size / kSectorBytes);
  round.requests.set_sector_count(size / kSectorBytes);
}

}  // namespace blockdev::test
