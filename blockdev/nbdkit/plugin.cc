// The nbdkit plugin: any disk that Quicksave can open, over NBD, for qemu-img, nbdcopy, fio and
// their like.
//
//   nbdkit ./nbdkit-quicksave-plugin.so FILE,format=qcow2[,mode=overlay|persist|ro]...
//
// Everything below is what nbdkit-plugin(3) asks for. The disk is opened after nbdkit has forked
// into the background, because threads do not survive that; `quicksave image serve` therefore hands
// in `ready-fd`, to which one line says how opening went: "ready", or the error and its hint.
//
// Thread: nbdkit calls what has to do with requests from as many threads as it likes, everything
// else from one.

#define NBDKIT_API_VERSION 2
#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

#include <nbdkit-plugin.h>

#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>

#include "blockdev/nbdkit/export.h"
#include "vmm/base/fd.h"
#include "vmm/base/log.h"
#include "vmm/base/ranges.h"

namespace blockdev::nbd {
namespace {

// One reply of block status. Clients ask on from where it ends.
constexpr u64 kMaxExtentCount = 32 * 1024;
// The portable limit of the NBD protocol ("Size constraints"), and half of what nbdkit takes.
constexpr u32 kMaxRequestBytes = 32 * base::kMiB;

// The C interface gives its calls no object, so there is one for the process.
struct Server {
  ExportOptions options;
  base::Fd ready;
  std::unique_ptr<Export> served;
};
Server g_server;

// --- configuration ---

int refuse(const Error& error) {
  const std::string& hint = error.hint();
  if (g_server.ready) {
    const std::string text = error.message() + "\n" + hint;
    if (!base::write_all(g_server.ready, {reinterpret_cast<const u8*>(text.data()), text.size()})) {
      base::log(base::LogLevel::error, "{}", error.message());
    }
    g_server.ready.reset();
  } else {
    nbdkit_error("%s%s%s", error.message().c_str(), hint.empty() ? "" : "; ", hint.c_str());
  }
  return -1;
}

Result<void> take_parameter(std::string_view key, std::string_view value) {
  if (key == "disk") {
    if (!g_server.options.disk.empty()) {
      return make_error(ErrorKind::usage, "disk= is given twice: one server serves one disk");
    }
    TRY(parse_disk_spec(value));
    g_server.options.disk = value;
  } else if (key == "layer") {
    g_server.options.layers.emplace_back(value);
  } else if (key == "ready-fd") {
    int fd = -1;
    const auto [end, failure] = std::from_chars(value.data(), value.data() + value.size(), fd);
    if (failure != std::errc() || end != value.data() + value.size() || fd < 0) {
      return make_error(ErrorKind::usage, "ready-fd={} is not a descriptor", value);
    }
    g_server.ready = base::Fd(fd);
  } else {
    return make_error(ErrorKind::usage, "unknown parameter \"{}\"", key);
  }
  return {};
}

int config(const char* key, const char* value) {
  const Result<void> taken = take_parameter(key, value);
  return taken ? 0 : refuse(taken.error());
}

int config_complete() {
  if (!g_server.options.disk.empty()) return 0;
  return refuse(make_error(ErrorKind::usage, "no disk is given")
                    .with_hint("disk=FILE,format=qcow2|raw[,mode=overlay|persist|ro]..."));
}

int after_fork() {
  Result<std::unique_ptr<Export>> opened = Export::open(g_server.options);
  if (!opened) return refuse(opened.error());
  g_server.served = std::move(*opened);
  if (!g_server.ready) return 0;
  constexpr std::string_view kReady = "ready\n";
  const bool is_told =
      base::write_all(g_server.ready, {reinterpret_cast<const u8*>(kReady.data()), kReady.size()})
          .has_value();
  g_server.ready.reset();
  return is_told ? 0 : -1;  // who started us is gone
}

// Flushes and unlocks the images. After the last connection.
void cleanup() { g_server.served.reset(); }

// --- what the disk can ---

int connection;  // nbdkit wants a handle that is not null; connections have nothing of their own

void* open_connection(int) { return &connection; }

int64_t get_size(void*) { return static_cast<int64_t>(g_server.served->disk().size_bytes()); }

int block_size(void*, uint32_t* minimum, uint32_t* preferred, uint32_t* maximum) {
  const u32 granularity = g_server.served->disk().discard_granularity_bytes();
  *minimum = kSectorBytes;
  *preferred = std::clamp<u32>(granularity, 4096, kMaxRequestBytes);
  *maximum = kMaxRequestBytes;
  return 0;
}

int can_write(void*) { return g_server.served->disk().is_read_only() ? 0 : 1; }

int yes(void*) { return 1; }

int can_fua(void*) {
  return NBDKIT_FUA_EMULATE;  // a flush behind the request: the engine knows nothing cheaper
}

// --- requests ---

int answer(BlockStatus status) {
  switch (status) {
    case BlockStatus::ok: return 0;
    case BlockStatus::io_error:
    case BlockStatus::not_begun: nbdkit_set_error(EIO); break;
    case BlockStatus::no_space: nbdkit_set_error(ENOSPC); break;
    case BlockStatus::read_only: nbdkit_set_error(EROFS); break;
  }
  return -1;
}

// The client was told the block size; nbdkit checks the end of the disk.
bool is_whole_sectors(u32 count, u64 offset) {
  if (base::is_aligned(offset | count, kSectorBytes)) return true;
  nbdkit_set_error(EINVAL);
  return false;
}

int pread(void*, void* to, uint32_t count, uint64_t offset, uint32_t) {
  return is_whole_sectors(count, offset) ? answer(g_server.served->read(offset, count, to)) : -1;
}

int pwrite(void*, const void* from, uint32_t count, uint64_t offset, uint32_t) {
  return is_whole_sectors(count, offset) ? answer(g_server.served->write(offset, count, from)) : -1;
}

int flush(void*, uint32_t) { return answer(g_server.served->flush()); }

// A hint: what is not a whole sector stays.
int trim(void*, uint32_t count, uint64_t offset, uint32_t) {
  const u64 first = base::align_up(offset, kSectorBytes);
  const u64 end = base::align_down(offset + count, kSectorBytes);
  return first < end ? answer(g_server.served->discard(first, end - first)) : 0;
}

int zero(void*, uint32_t count, uint64_t offset, uint32_t flags) {
  if (!is_whole_sectors(count, offset)) return -1;
  const Unmap unmap = (flags & NBDKIT_FLAG_MAY_TRIM) != 0 ? Unmap::yes : Unmap::no;
  return answer(g_server.served->write_zeroes(offset, count, unmap));
}

int extents(void*, uint32_t count, uint64_t offset, uint32_t flags, nbdkit_extents* found) {
  const BlockBackend& disk = g_server.served->disk();
  const u64 first = base::align_down(offset, kSectorBytes);
  const u64 end = base::align_up(offset + count, kSectorBytes);
  const bool is_one = (flags & NBDKIT_FLAG_REQ_ONE) != 0;
  const Result<std::vector<ContentRun>> runs =
      disk.map_content(first, end - first, is_one ? 1 : kMaxExtentCount);
  if (!runs) {
    nbdkit_error("%s", runs.error().message().c_str());
    nbdkit_set_error(EIO);
    return -1;
  }
  u64 at = first;
  for (const ContentRun& run : *runs) {
    const u32 type = run.content == Content::zero ? NBDKIT_EXTENT_HOLE | NBDKIT_EXTENT_ZERO : 0;
    if (nbdkit_add_extent(found, at, run.length_bytes, type) != 0) return -1;
    at += run.length_bytes;
  }
  return 0;
}

nbdkit_plugin make_plugin() {
  nbdkit_plugin plugin{};
  plugin.name = "quicksave";
  plugin.longname = "Quicksave disk";
  plugin.description = "Serves raw and qcow2 images, chains of them and disks of snapshots.";
  plugin.config = config;
  plugin.config_complete = config_complete;
  plugin.config_help =
      "[disk=]FILE,format=qcow2|raw[,mode=overlay|persist|ro][,backing=FILE:FORMAT]...\n"
      "                  The disk, in the words of quicksave run --disk; overlay, the default,\n"
      "                  throws away what is written.\n"
      "layer=FILE        A layer that a snapshot wrote, above it; repeat from bottom to top.\n"
      "ready-fd=N        Where to say that the disk is open; for quicksave image serve.";
  plugin.magic_config_key = "disk";
  plugin.after_fork = after_fork;
  plugin.cleanup = cleanup;
  plugin.open = open_connection;
  plugin.get_size = get_size;
  plugin.block_size = block_size;
  plugin.can_write = can_write;
  plugin.can_flush = yes;
  plugin.can_trim = yes;
  plugin.can_zero = yes;
  plugin.can_fua = can_fua;
  plugin.can_multi_conn = yes;  // a flush covers what completed on every queue (block_backend.h)
  plugin.can_extents = yes;
  plugin.pread = pread;
  plugin.pwrite = pwrite;
  plugin.flush = flush;
  plugin.trim = trim;
  plugin.zero = zero;
  plugin.extents = extents;
  return plugin;
}

nbdkit_plugin g_plugin = make_plugin();

}  // namespace
}  // namespace blockdev::nbd

NBDKIT_REGISTER_PLUGIN(blockdev::nbd::g_plugin)
