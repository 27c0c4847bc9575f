// QemuDaemon and QemuDisk: QEMU's block layer as a disk that a test reads and writes.
//
// One qemu-storage-daemon serves a whole test: images are opened, resized and closed by its monitor
// on a pipe, and their content goes over NBD on a unix socket, at some 30 us a request. qemu-io
// would need a process for each reopening and can only compare bytes with one pattern.
//
// Changes are sent without waiting for the one before, but never two of one cluster: QEMU 7.2
// corrupts an image when a write and a discard of the same range are in flight together
// (reference/qcow2.md 4.4).
//
// Thread: one.

#pragma once

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "blockdev/block_backend.h"
#include "blockdev/disk_spec.h"
#include "blockdev/layer.h"
#include "vmm/base/fd.h"

namespace blockdev::test {

bool has_qemu_daemon();
#define SKIP_WITHOUT_QEMU_DAEMON() \
  if (!blockdev::test::has_qemu_daemon()) GTEST_SKIP() << "qemu-storage-daemon is not installed"

class QemuDaemon final {
 public:
  explicit QemuDaemon(const std::string& directory);
  ~QemuDaemon();

  // A command of the monitor as JSON. An answer that is an error fails the test.
  std::string execute(const std::string& command);
  const std::string& socket_path() const { return socket_path_; }

 private:
  std::string read_line();

  std::string socket_path_;
  base::Fd to_;
  base::Fd from_;
  std::string unread_;
  int pid_ = -1;
};

class QemuDisk final {
 public:
  enum class Access : u8 { read_only, writable, compressing };

  // `chain` from top to bottom; all but the first are opened read-only. `unit_bytes`: the top's
  // clusters; without, changes are made one at a time.
  QemuDisk(QemuDaemon& daemon, const std::vector<BackingSpec>& chain, Access access,
           u64 unit_bytes = 0);
  ~QemuDisk();

  u64 size_bytes() const { return size_; }
  std::vector<u8> read(u64 offset, u64 length);
  // An error of one of these fails the test, by the next settle() at the latest.
  void write(u64 offset, std::span<const u8> bytes);
  void write_zeroes(u64 offset, u64 length, Unmap unmap);
  void discard(u64 offset, u64 length);
  void flush();
  // Returns when all changes are done. All but the three changes above begin with it.
  void settle();
  void resize(u64 size);

 private:
  void connect();
  void disconnect();
  void change(u16 flags, u16 type, u64 offset, u64 length, std::span<const u8> bytes);
  void send(u16 flags, u16 type, u64 offset, u64 length, std::span<const u8> bytes);
  void receive(std::span<u8> bytes);

  QemuDaemon& daemon_;
  Access access_;
  base::Fd socket_;
  u64 unit_;
  u64 size_ = 0;
  std::vector<ByteRange> in_flight_;  // in whole units
};

}  // namespace blockdev::test
