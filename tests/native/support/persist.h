// Persist: a VM on a disk that is written through to its image (mode=persist), what its guest wrote
// there, and what QEMU finds in the files.

#pragma once

#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "snapshot/disk_heads.h"
#include "tests/native/support/vm_process.h"

namespace native {

namespace fs = std::filesystem;

inline constexpr unsigned kDiskBytes = 16 << 20;
inline constexpr unsigned kSectorBytes = 512;

// What the guest `workload` writes to a sector (guests/workload.c, fill_sectors()).
std::string pattern(u64 first, u64 count, u64 seed);

class Persist : public NativeTest {
 protected:
  VmHome home_;
  VmProcess vm_{home_, "t"};

  void SetUp() override {
    if (std::system("qemu-img --version >/dev/null 2>&1 && qemu-io --version >/dev/null 2>&1")) {
      GTEST_SKIP() << "qemu-img and qemu-io are not installed";
    }
    NativeTest::SetUp();
  }

  // The output of a command; a failure of it fails the test.
  std::string shell(const std::string& command) const {
    const std::string out = home_.file("shell.out");
    EXPECT_EQ(
        std::system(("cd " + home_.path() + " && (" + command + ") >" + out + " 2>&1").c_str()), 0)
        << command << "\n"
        << read_file(out);
    return read_file(out);
  }
  std::string image(const std::string& name, const std::string& options = "") const {
    shell("qemu-img create -q -f qcow2 " + options + " " + name + " 16M");
    return home_.file(name);
  }
  static std::string persist(const std::string& file, const std::string& format = "qcow2") {
    return file + ",format=" + format + ",mode=persist";
  }
  void start(const std::string& disk, std::vector<std::string> options = {}) {
    options.insert(options.end(), {"--disk", disk});
    vm_.start("workload", options);
    ASSERT_TRUE(vm_.wait_for("READY"));
  }
  static void write(VmProcess& vm, u64 first, u64 count, u64 seed) {
    EXPECT_EQ(vm.ask("disk-write 0 " + std::to_string(first) + " " + std::to_string(count) + " " +
                     std::to_string(seed)),
              "STATUS 0\n");
  }
  static void flush(VmProcess& vm) { EXPECT_EQ(vm.ask("disk-flush 0"), "STATUS 0\n"); }
  static void expect(VmProcess& vm, u64 first, u64 count, u64 seed) {
    EXPECT_EQ(vm.ask("disk-check 0 " + std::to_string(first) + " " + std::to_string(count) + " " +
                     std::to_string(seed)),
              "MATCH\n")
        << first << " " << seed;
  }
  void power_off(VmProcess& vm) const {
    vm.send("off\n");
    EXPECT_TRUE(vm.wait_until_gone());
  }

  // By QEMU's eyes: the image has no fault (a leak after a crash is none), and these are its bytes.
  void expect_clean(const std::string& file, bool leaks_allowed = false) const {
    const std::string out = home_.file("check.out");
    const int status = WEXITSTATUS(
        std::system(("qemu-img check -f qcow2 " + file + " >" + out + " 2>&1").c_str()));
    EXPECT_TRUE(status == 0 || (leaks_allowed && status == 3)) << file << ": " << status << "\n"
                                                               << read_file(out);
  }
  std::string content(const std::string& file, const std::string& format = "qcow2") const {
    shell("qemu-img convert -f " + format + " -O raw " + file + " raw.out");
    return read_file(home_.file("raw.out"));
  }
  static void expect_pattern(const std::string& content, u64 first, u64 count, u64 seed) {
    const std::string expected = pattern(first, count, seed);
    std::string wrong;
    u64 wrong_count = 0;
    for (u64 i = 0; i < count; ++i) {
      if (content.compare((first + i) * kSectorBytes, kSectorBytes, expected, i * kSectorBytes,
                          kSectorBytes) == 0) {
        continue;
      }
      if (++wrong_count <= 20) wrong += " " + std::to_string(first + i);
    }
    EXPECT_EQ(wrong_count, 0u) << "of " << count << " sectors from " << first << " on, seed "
                               << seed << "; wrong are" << wrong;
  }

  std::string vm_directory(const std::string& vm = "t") const {
    return home_.path() + "/vms/" + vm;
  }
  // The newest state of a VM's disk.
  std::string head(const std::string& vm = "t") const {
    const auto heads = snapshot::read_disk_heads(vm_directory(vm));
    if (!heads || heads->size() != 1) return "no head";
    return vm_directory(vm) + "/" + heads->front().file;
  }
  std::string object(const std::string& name, const std::string& vm = "t") const {
    std::string uuid = read_file(vm_directory(vm) + "/refs/" + name);
    if (!uuid.empty()) uuid.pop_back();
    return home_.path() + "/snapshots/" + uuid;
  }
  std::vector<std::string> heads_on_disk(const std::string& vm = "t") const {
    std::vector<std::string> found;
    for (const auto& entry : fs::directory_iterator(vm_directory(vm))) {
      const std::string name = entry.path().filename();
      if (name.ends_with(".qcow2")) found.push_back(name);
    }
    return found;
  }
  // What is removed or opened in the background after the guest goes on.
  template <class Condition>
  bool comes_true(Condition condition) const {
    for (int look = 0; look < 500; ++look) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
    }
    return false;
  }
};

}  // namespace native
