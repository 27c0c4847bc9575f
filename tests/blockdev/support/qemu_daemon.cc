#include "tests/blockdev/support/qemu_daemon.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "vmm/base/check.h"
#include "vmm/base/wire.h"

namespace blockdev::test {
namespace {

// NBD protocol, "Fixed newstyle negotiation", "Request message", "Simple reply message".
constexpr u64 kOptionMagic = 0x49484156454f5054;
constexpr u32 kRequestMagic = 0x25609513;
constexpr u32 kReplyMagic = 0x67446698;
constexpr u32 kExportNameOption = 1;
constexpr u16 kRead = 0;
constexpr u16 kWrite = 1;
constexpr u16 kFlush = 3;
constexpr u16 kTrim = 4;
constexpr u16 kWriteZeroes = 6;
constexpr u16 kNoHole = 1 << 1;

constexpr u64 kNoUnit = u64{1} << 62;  // the whole disk

struct WireGreeting {
  be64 magic;
  be64 option_magic;
  be16 flags;
};
struct WireOption {
  be32 client_flags;
  be64 magic;
  be32 option;
  be32 length;
  u8 name[1] = {'d'};
};
struct WireExport {
  be64 size;
  be16 flags;
};
struct WireRequest {
  be32 magic;
  be16 flags;
  be16 type;
  be64 handle;
  be64 offset;
  be32 length;
};
struct WireReply {
  be32 magic;
  be32 error;
  be64 handle;
};
static_assert(sizeof(WireGreeting) == 18 && sizeof(WireOption) == 21 && sizeof(WireExport) == 10);
static_assert(sizeof(WireRequest) == 28 && sizeof(WireReply) == 16);

void send_all(const base::Fd& socket, const void* data, u64 size) {
  const u8* bytes = static_cast<const u8*>(data);
  while (size > 0) {
    const ssize_t count = ::send(socket.get(), bytes, size, MSG_NOSIGNAL);
    CHECK(count > 0);
    bytes += count;
    size -= static_cast<u64>(count);
  }
}

void receive_all(const base::Fd& socket, void* data, u64 size) {
  u8* bytes = static_cast<u8*>(data);
  while (size > 0) {
    const ssize_t count = ::recv(socket.get(), bytes, size, MSG_WAITALL);
    CHECK(count > 0);
    bytes += count;
    size -= static_cast<u64>(count);
  }
}

std::string node(const std::vector<BackingSpec>& chain, u64 level, bool writable) {
  const BackingSpec& image = chain[level];
  const std::string file =
      fmt::format(R"({{"driver":"file","filename":"{}","discard":"unmap","read-only":{}}})",
                  image.path, !writable);
  const std::string common =
      fmt::format(R"("discard":"unmap","read-only":{},"file":{})", !writable, file);
  if (image.format == ImageFormat::raw) return R"("driver":"raw",)" + common;
  const std::string below =
      level + 1 == chain.size() ? "null" : "{" + node(chain, level + 1, false) + "}";
  return R"("driver":"qcow2",)" + common + R"(,"backing":)" + below;
}

}  // namespace

bool has_qemu_daemon() {
  static const bool has = std::system("qemu-storage-daemon --version >/dev/null 2>&1") == 0;
  return has;
}

QemuDaemon::QemuDaemon(const std::string& directory) : socket_path_(directory + "/nbd.sock") {
  int in[2];
  int out[2];
  CHECK(::pipe2(in, O_CLOEXEC) == 0 && ::pipe2(out, O_CLOEXEC) == 0);
  to_ = base::Fd(in[1]);
  from_ = base::Fd(out[0]);
  posix_spawn_file_actions_t actions;
  ::posix_spawn_file_actions_init(&actions);
  ::posix_spawn_file_actions_adddup2(&actions, in[0], 0);
  ::posix_spawn_file_actions_adddup2(&actions, out[1], 1);
  const std::string server = "addr.type=unix,addr.path=" + socket_path_;
  // It goes with the thread that started it, also when that is killed.
  const char* arguments[] = {"setpriv",      "--pdeathsig",  "TERM",      "qemu-storage-daemon",
                             "--chardev",    "stdio,id=m",   "--monitor", "chardev=m",
                             "--nbd-server", server.c_str(), nullptr};
  CHECK(::posix_spawnp(&pid_, arguments[0], &actions, nullptr, const_cast<char**>(arguments),
                       environ) == 0);
  ::posix_spawn_file_actions_destroy(&actions);
  ::close(in[0]);
  ::close(out[1]);
  (void)read_line();  // the greeting
  execute(R"({"execute":"qmp_capabilities"})");
}

QemuDaemon::~QemuDaemon() {
  ::kill(pid_, SIGTERM);
  ::waitpid(pid_, nullptr, 0);
}

std::string QemuDaemon::read_line() {
  for (;;) {
    const std::size_t end = unread_.find('\n');
    if (end != std::string::npos) {
      const std::string line = unread_.substr(0, end);
      unread_.erase(0, end + 1);
      return line;
    }
    char buffer[4096];
    const ssize_t count = ::read(from_.get(), buffer, sizeof buffer);
    if (count <= 0) return R"({"error": "qemu-storage-daemon is gone"})";
    unread_.append(buffer, static_cast<std::size_t>(count));
  }
}

std::string QemuDaemon::execute(const std::string& command) {
  const std::string line = command + "\n";
  CHECK(::write(to_.get(), line.data(), line.size()) == static_cast<ssize_t>(line.size()));
  for (;;) {
    const std::string answer = read_line();
    if (answer.find("\"event\":") != std::string::npos) continue;
    EXPECT_EQ(answer.find("\"error\":"), std::string::npos) << command << "\n" << answer;
    return answer;
  }
}

QemuDisk::QemuDisk(QemuDaemon& daemon, const std::vector<BackingSpec>& chain, Access access,
                   u64 unit_bytes)
    : daemon_(daemon), access_(access), unit_(unit_bytes) {
  daemon_.execute(
      fmt::format(R"({{"execute":"blockdev-add","arguments":{{"node-name":"top",{}}}}})",
                  node(chain, 0, access != Access::read_only)));
  if (access == Access::compressing) {
    daemon_.execute(
        R"({"execute":"blockdev-add","arguments":{"node-name":"d","driver":"compress","file":"top"}})");
  }
  connect();
}

QemuDisk::~QemuDisk() {
  disconnect();
  if (access_ == Access::compressing) {
    daemon_.execute(R"({"execute":"blockdev-del","arguments":{"node-name":"d"}})");
  }
  daemon_.execute(R"({"execute":"blockdev-del","arguments":{"node-name":"top"}})");
}

void QemuDisk::connect() {
  daemon_.execute(fmt::format(
      R"({{"execute":"block-export-add","arguments":{{"type":"nbd","id":"e","name":"d","node-name":"{}","writable":{}}}}})",
      access_ == Access::compressing ? "d" : "top", access_ != Access::read_only));
  socket_ = base::Fd(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::strncpy(address.sun_path, daemon_.socket_path().c_str(), sizeof address.sun_path - 1);
  CHECK(::connect(socket_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
  WireGreeting greeting;
  receive_all(socket_, &greeting, sizeof greeting);
  WireOption option;
  option.client_flags = 3;  // fixed newstyle, no zeroes after the export's flags
  option.magic = kOptionMagic;
  option.option = kExportNameOption;
  option.length = sizeof option.name;
  send_all(socket_, &option, sizeof option);
  WireExport exported;
  receive_all(socket_, &exported, sizeof exported);
  size_ = exported.size;
}

void QemuDisk::disconnect() {
  settle();
  socket_.reset();
  daemon_.execute(R"({"execute":"block-export-del","arguments":{"id":"e","mode":"hard"}})");
  // The export goes when its last request has; its name and node are free only then.
  while (daemon_.execute(R"({"execute":"query-block-exports"})").find("\"id\"") !=
         std::string::npos) {
    ::usleep(200);
  }
}

void QemuDisk::send(u16 flags, u16 type, u64 offset, u64 length, std::span<const u8> bytes) {
  WireRequest request;
  request.magic = kRequestMagic;
  request.flags = flags;
  request.type = type;
  request.offset = offset;
  request.length = static_cast<u32>(length);
  send_all(socket_, &request, sizeof request);
  send_all(socket_, bytes.data(), bytes.size());
}

void QemuDisk::receive(std::span<u8> bytes) {
  WireReply reply;
  receive_all(socket_, &reply, sizeof reply);
  CHECK(reply.magic == kReplyMagic);
  EXPECT_EQ(u32{reply.error}, 0u) << "QEMU reported an error";
  if (reply.error == 0) receive_all(socket_, bytes.data(), bytes.size());
}

void QemuDisk::change(u16 flags, u16 type, u64 offset, u64 length, std::span<const u8> bytes) {
  constexpr u64 kMostInFlight = 16;
  ByteRange range{0, kNoUnit};
  if (unit_ != 0) {
    range.offset = offset / unit_ * unit_;
    range.length = (offset + length + unit_ - 1) / unit_ * unit_ - range.offset;
  }
  const bool meets_other = std::ranges::any_of(in_flight_, [&](const ByteRange& other) {
    return range.offset < other.offset + other.length && other.offset < range.offset + range.length;
  });
  if (meets_other || in_flight_.size() == kMostInFlight) settle();
  send(flags, type, offset, length, bytes);
  in_flight_.push_back(range);
}

void QemuDisk::settle() {
  for (u64 i = 0; i < in_flight_.size(); ++i) receive({});
  in_flight_.clear();
}

std::vector<u8> QemuDisk::read(u64 offset, u64 length) {
  settle();
  std::vector<u8> bytes(length, 0xdd);
  constexpr u64 kMost = 16 * base::kMiB;
  for (u64 at = 0; at < length; at += kMost) {
    const u64 piece = std::min(kMost, length - at);
    send(0, kRead, offset + at, piece, {});
    receive(std::span(bytes).subspan(at, piece));
  }
  return bytes;
}

void QemuDisk::write(u64 offset, std::span<const u8> bytes) {
  change(0, kWrite, offset, bytes.size(), bytes);
}

void QemuDisk::write_zeroes(u64 offset, u64 length, Unmap unmap) {
  change(unmap == Unmap::yes ? 0 : kNoHole, kWriteZeroes, offset, length, {});
}

void QemuDisk::discard(u64 offset, u64 length) { change(0, kTrim, offset, length, {}); }

void QemuDisk::flush() {
  settle();
  send(0, kFlush, 0, 0, {});
  receive({});
}

void QemuDisk::resize(u64 size) {
  disconnect();
  daemon_.execute(fmt::format(
      R"({{"execute":"block_resize","arguments":{{"node-name":"top","size":{}}}}})", size));
  connect();
}

}  // namespace blockdev::test
