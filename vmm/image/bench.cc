// `quicksave image bench`: how fast the engine answers requests, in qemu-img bench's words.

#include "vmm/image/bench.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <map>
#include <memory>

#include "blockdev/direct_engine.h"
#include "blockdev/disk.h"
#include "blockdev/io_ring.h"
#include "blockdev/sync_engine.h"
#include "vmm/control/size_text.h"
#include "vmm/image/bench_load.h"
#include "vmm/image/words.h"

namespace image {
namespace {

using blockdev::BlockOp;
using blockdev::Disk;

constexpr u64 kMaxBufferBytes = base::kGiB;  // of all requests together
constexpr u32 kMaxDepth = 65'536;

constexpr const char* kFooter = R"(
Every COUNT-th request as qemu-img bench has it, so that both can be compared. A write test writes
through to the image (as mode=persist), or with --throw-away to a layer in memory above it.)";

enum class Target : u8 { image, throw_away };
enum class Cache : u8 { writeback, writethrough, unsafe, none, directsync };

struct BenchOptions {
  ImageOptions image;
  BenchPlan plan;
  std::string request = "4096";
  std::string step;
  std::string offset = "0";
  std::string aio;
  Cache cache = Cache::writeback;
  Target target = Target::image;
  blockdev::ImageLocking locking = blockdev::ImageLocking::shared;
  bool is_quiet = false;
};

bool is_direct(Cache cache) { return cache == Cache::none || cache == Cache::directsync; }

Result<void> check_modes(const BenchOptions& options, const BenchPlan& plan) {
  if (options.aio == "native" && !is_direct(options.cache)) {
    return make_error(ErrorKind::usage, "-i native goes past the page cache")
        .with_hint("add -t none or -t directsync");
  }
  if (options.locking == blockdev::ImageLocking::none && plan.op == BlockOp::write &&
      options.target == Target::image) {
    return make_error(ErrorKind::usage, "-U is for reading: nobody writes an unlocked image")
        .with_hint("leave out -U or -w");
  }
  if (!is_direct(options.cache)) return {};
  for (const u64 bytes : {plan.request_bytes, plan.step_bytes, plan.offset_bytes}) {
    if (bytes % blockdev::kDirectIoBytes == 0) continue;
    return make_error(ErrorKind::usage, "{}: not a multiple of {}", bytes, blockdev::kDirectIoBytes)
        .with_hint("-s, -S and -o go by pages past the page cache");
  }
  return {};
}

Result<BenchPlan> plan_of(const BenchOptions& options) {
  BenchPlan plan = options.plan;
  plan.request_bytes = TRY(control::parse_size("-s", options.request, 1));
  plan.step_bytes =
      options.step.empty() ? plan.request_bytes : TRY(control::parse_size("-S", options.step, 1));
  plan.offset_bytes = TRY(control::parse_size("-o", options.offset, 1));
  for (const u64 bytes : {plan.request_bytes, plan.step_bytes, plan.offset_bytes}) {
    if (bytes % blockdev::kSectorBytes == 0) continue;
    return make_error(ErrorKind::usage, "{}: not a multiple of 512", bytes)
        .with_hint("-s, -S and -o are in bytes and go by sectors");
  }
  if (plan.request_bytes == 0 || plan.request_bytes > kMaxBufferBytes / plan.depth) {
    return make_error(ErrorKind::usage, "-s {} with -d {}: the requests in flight take up to {}",
                      options.request, plan.depth, control::format_size(kMaxBufferBytes))
        .with_hint("make one of them smaller");
  }
  if (plan.op != BlockOp::write && plan.flush_interval != 0) {
    return make_error(ErrorKind::usage, "--flush-interval is for write tests").with_hint("add -w");
  }
  TRY(check_modes(options, plan));
  const bool is_write = plan.op == BlockOp::write;
  const bool is_through =
      options.cache == Cache::writethrough || options.cache == Cache::directsync;
  if (is_through && is_write) plan.flush_interval = 1;
  if (options.cache == Cache::unsafe) plan.flush_interval = 0;
  return plan;
}

blockdev::EngineMaker engine_maker(const std::string& aio, Cache cache) {
  if (is_direct(cache)) {
    return [below = engine_maker(
                aio, Cache::writeback)]() -> Result<std::unique_ptr<blockdev::IoEngine>> {
      return std::unique_ptr<blockdev::IoEngine>(new blockdev::DirectEngine(TRY(below())));
    };
  }
  if (aio == "threads") {
    return []() -> Result<std::unique_ptr<blockdev::IoEngine>> {
      return std::unique_ptr<blockdev::IoEngine>(TRY(blockdev::SyncEngine::create()));
    };
  }
  if (aio == "io_uring" || aio == "native") {
    return []() -> Result<std::unique_ptr<blockdev::IoEngine>> {
      return std::unique_ptr<blockdev::IoEngine>(TRY(blockdev::IoRing::create()));
    };
  }
  return blockdev::make_io_engine;
}

Result<std::unique_ptr<Disk>> open_for(const BenchOptions& options) {
  blockdev::DiskSpec spec = TRY(disk_spec_of(options.image, "-f"));
  if (options.target == Target::throw_away) {
    spec.mode = blockdev::DiskMode::overlay;
  } else {
    spec.mode =
        options.plan.op == BlockOp::write ? blockdev::DiskMode::persist : blockdev::DiskMode::ro;
  }
  if (spec.mode == blockdev::DiskMode::persist) TRY(check_may_write(spec.path));
  std::unique_ptr<Disk> disk =
      TRY(blockdev::open_disk(spec, {.overlay = {},
                                     .make_engine = engine_maker(options.aio, options.cache),
                                     .locking = options.locking,
                                     .executor = {}}));
  if (is_direct(options.cache)) {
    for (const blockdev::ImageIdentity& image : disk->images) {
      TRY(blockdev::check_direct_io(image.path));
    }
  }
  for (const std::string& warning : disk->warnings) warn(warning);
  return disk;
}

void say_what_begins(const BenchPlan& plan) {
  put(fmt::format(
      "Sending {} {} requests, {} bytes each, {} in parallel (starting at offset {}, step size "
      "{})\n",
      plan.count, plan.op == BlockOp::write ? "write" : "read", plan.request_bytes, plan.depth,
      plan.offset_bytes, plan.step_bytes));
  if (plan.flush_interval != 0) {
    put(fmt::format("Sending flush every {}{} requests\n",
                    plan.flush_drains == FlushDrains::yes ? "" : "undrained ",
                    plan.flush_interval));
  }
}

Result<int> bench(const BenchOptions& options) {
  const BenchPlan plan = TRY(plan_of(options));
  const std::unique_ptr<Disk> disk = TRY(open_for(options));
  const u64 disk_bytes = disk->backend->size_bytes();
  if (disk_bytes < plan.request_bytes || plan.offset_bytes > disk_bytes - plan.request_bytes) {
    return make_error(ErrorKind::usage, "\"{}\": a request of {} bytes at {} is not within its {}",
                      options.image.file, plan.request_bytes, plan.offset_bytes, disk_bytes)
        .with_hint("-s and -o say which part is used");
  }
  if (!options.is_quiet) say_what_begins(plan);
  std::chrono::duration<double> took{};
  {
    const std::unique_ptr<blockdev::BlockQueue> queue = TRY(disk->backend->open_queue());
    const std::unique_ptr<BenchLoad> load = TRY(BenchLoad::create(*queue, disk_bytes, plan));
    const auto start = std::chrono::steady_clock::now();
    TRY_CONTEXT(load->run(), fmt::format("\"{}\"", options.image.file));
    took = std::chrono::steady_clock::now() - start;
  }
  if (!options.is_quiet) put(fmt::format("Run completed in {:.3f} seconds.\n", took.count()));
  if (disk->durable != nullptr) TRY_CONTEXT(disk->durable->close(), options.image.file);
  return kExitDone;
}

void add_modes(CLI::App& verb, const std::shared_ptr<BenchOptions>& given) {
  static const std::map<std::string, Cache> kCaches = {{"writeback", Cache::writeback},
                                                       {"writethrough", Cache::writethrough},
                                                       {"unsafe", Cache::unsafe},
                                                       {"none", Cache::none},
                                                       {"directsync", Cache::directsync}};
  verb.add_option_function<std::string>(
          "-t", [given](const std::string& word) { given->cache = kCaches.at(word); },
          "writeback (default); writethrough: a flush after each write; unsafe: no flush at all; "
          "none: whole pages of data go past the page cache; directsync: as none, with a flush "
          "after each write")
      ->check(CLI::IsMember(kCaches));
  verb.add_option("-i", given->aio,
                  "threads: plain system calls; io_uring; native: the same, with -t none; default: "
                  "what is right for each file")
      ->check(CLI::IsMember({"threads", "io_uring", "native"}));
  verb.add_flag_callback(
      "-n", [given] { given->aio = "native"; }, "the same as -i native");
  verb.add_flag_callback(
      "-U,--force-share", [given] { given->locking = blockdev::ImageLocking::none; },
      "read an image that others write; what is read may change meanwhile");
  verb.add_flag_callback(
      "--throw-away", [given] { given->target = Target::throw_away; },
      "write to a layer in memory above the image");
}

}  // namespace

void add_bench(CLI::App& app, std::function<Result<int>()>& work) {
  CLI::App& verb = *app.add_subcommand("bench", "measure requests a second");
  verb.footer(kFooter);
  const auto given = std::make_shared<BenchOptions>();
  BenchPlan& plan = given->plan;
  verb.add_option("FILE", given->image.file, "the image")->required();
  verb.add_option("-f", given->image.format, "its format: qcow2 or raw; never guessed");
  verb.add_option("--backing", given->image.backing, "FILE:FORMAT of what lies below; repeatable")
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  verb.add_option("--backing-dir", given->image.backing_dir,
                  "follow backing names inside images, below this directory");
  verb.add_option("-c", plan.count, "how many requests; default 75000")
      ->check(CLI::Range(u64{1}, ~u64{0} >> 1));
  verb.add_option("-d", plan.depth, "how many at the same time; default 64")
      ->check(CLI::Range(1u, kMaxDepth));
  verb.add_option("-s", given->request, "bytes of each; default 4096");
  verb.add_option("-S", given->step, "from the start of one to that of the next; default -s");
  verb.add_option("-o", given->offset, "where the first one starts; default 0");
  verb.add_flag_callback(
      "-w", [given] { given->plan.op = BlockOp::write; }, "write; default: read");
  verb.add_option_function<u32>(
          "--pattern", [given](u32 byte) { given->plan.pattern = static_cast<u8>(byte); },
          "the byte that is written; default 0")
      ->check(CLI::Range(0u, 255u));
  verb.add_option("--flush-interval", plan.flush_interval,
                  "a flush each time so many requests are left, with none in flight");
  verb.add_flag_callback(
      "--no-drain", [given] { given->plan.flush_drains = FlushDrains::no; },
      "flushes while requests are in flight");
  verb.add_flag("-q", given->is_quiet, "say nothing");
  add_modes(verb, given);
  verb.final_callback([&work, given] { work = [given] { return bench(*given); }; });
}

}  // namespace image
