// What the snapshot tests share: a temporary directory and a small whole snapshot.

#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "snapshot/memory_copy.h"
#include "snapshot/memory_file.h"
#include "snapshot/state_file.h"
#include "snapshot/store.h"

namespace snapshot_test {

inline constexpr u64 kRamBytes = 4 * base::kMiB;

class TemporaryDirectory final {
 public:
  explicit TemporaryDirectory(const std::string& parent = "/tmp")
      : path_(parent + "/snapshot-test-XXXXXX") {
    EXPECT_NE(::mkdtemp(path_.data()), nullptr);
  }
  ~TemporaryDirectory() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

template <class T>
std::string message(const Result<T>& result) {
  return result ? "ok" : result.error().message();
}

inline std::string read_text(const std::string& path) {
  return base::read_whole_file(path, base::kGiB).value();
}

inline void write_text(const std::string& path, const std::string& text) {
  std::filesystem::remove(path);
  std::ofstream(path, std::ios::binary) << text;
  std::filesystem::permissions(path, std::filesystem::perms::owner_read);
}

inline snapshot::Manifest small_manifest() {
  snapshot::Manifest manifest;
  manifest.uuid = snapshot::Uuid::random();
  manifest.vm = "t";
  manifest.name = "clean";
  manifest.description = "before the test";
  manifest.created = snapshot::Timestamp::now();
  manifest.program = "0.1.0";
  manifest.machine = {{"cpus", 2}, {"kernel", "/boot/vmlinuz"}};
  manifest.host = {"pvm", "AuthenticAMD", 25, 1, "AMD EPYC", "6.18.0"};
  manifest.memory = {{"memory", kRamBytes, 4096, "memory.sums", 56, {}}};
  manifest.state = {"state", 100, {}};
  return manifest;
}

// Writes memory, state and one disk layer into the draft; the manifest says so.
inline snapshot::Manifest fill(const snapshot::SnapshotDraft& draft, const std::string& vm,
                               const std::string& name) {
  snapshot::Manifest manifest = small_manifest();
  manifest.uuid = draft.uuid();
  manifest.vm = vm;
  manifest.name = name;
  auto memory = memory::GuestMemory::create(kRamBytes).value();
  memory->quiet_ram()[5 * base::kPageBytes] = 77;
  memory::PageSet pages = snapshot::populated_pages(*memory, snapshot::RamOrigin::zeros);
  auto buffer = snapshot::CopyBuffer::prepare(kRamBytes, pages.count()).value();
  auto image = snapshot::copy_memory(*memory, pages, std::move(buffer), nullptr).value();
  manifest.memory = {snapshot::write_memory_file(draft.directory(), *image).value()};
  const std::vector<snapshot::Section> sections{{"serial", {1, 2, 3}}, {"vcpu.0", {4}}};
  manifest.state = snapshot::write_state_file(draft.directory(), "state", sections).value();
  std::ofstream(draft.file_path("disk-0.qcow2")) << "layer of " << draft.uuid().to_string();
  const base::Fd layer = base::open_file(draft.file_path("disk-0.qcow2"), O_RDONLY).value();
  snapshot::Disk disk;
  disk.name = "vda";
  disk.mode = "overlay";
  disk.virtual_bytes = base::kMiB;
  disk.bases = {snapshot::BaseImage::identify("/proc/self/exe", "raw").value()};
  disk.layers = {{draft.uuid(), "disk-0.qcow2", base::file_size(layer).value(),
                  snapshot::checksum64_of_file(layer).value()}};
  manifest.disks = {disk};
  return manifest;
}

inline snapshot::Uuid make_snapshot(const snapshot::SnapshotStore& store, const std::string& vm,
                                    const std::string& name,
                                    std::optional<snapshot::Uuid> parent = std::nullopt) {
  auto draft = store.begin(vm, name).value();
  snapshot::Manifest manifest = fill(draft, vm, name);
  manifest.parent = parent;
  const snapshot::Uuid uuid = draft.uuid();
  auto object = store.publish(std::move(draft), std::move(manifest));
  EXPECT_TRUE(object) << message(object);
  return uuid;
}

}  // namespace snapshot_test
