// Bad input: one `error:` line that names the object, a hint where there is a remedy, the
// documented status, nothing left behind, and other VMs untouched.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/native/support/vm_process.h"

namespace native {
namespace {

int lines_that_start_with(const std::string& text, const std::string& start) {
  int count = 0;
  for (size_t position = 0; position < text.size();) {
    count += text.compare(position, start.size(), start) == 0;
    size_t end = text.find('\n', position);
    position = end == std::string::npos ? text.size() : end + 1;
  }
  return count;
}

class BadInput : public NativeTest {
 protected:
  VmHome home_;

  // Refused with one error line that contains `named`, a status other than 0, and no VM left.
  void expect_refused(const std::vector<std::string>& arguments, const std::string& named) {
    CommandResult result = home_.quicksave(arguments);
    EXPECT_TRUE(result.status == 1 || result.status == 2) << result.status << ": " << result.err;
    EXPECT_EQ(lines_that_start_with(result.err, "error:"), 1) << result.err;
    EXPECT_NE(result.err.find(named), std::string::npos) << "'" << named << "' in " << result.err;
    EXPECT_EQ(result.out, "");
    EXPECT_EQ(home_.state_of("bad"), "");
    EXPECT_FALSE(std::filesystem::exists(home_.path() + "/vms/bad")) << "a directory was left";
    EXPECT_FALSE(std::filesystem::exists(home_.path() + "/run/bad")) << "a directory was left";
  }

  std::vector<std::string> run(std::vector<std::string> more) {
    std::vector<std::string> arguments = {"run", "--name", "bad", "-d"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return arguments;
  }
  std::vector<std::string> run_with_disk(const std::string& disk) {
    return run({"--kernel", guest_path("workload"), "--disk", disk});
  }
};

TEST_F(BadInput, MissingKernel) {
  expect_refused(run({"--kernel", "/nonexistent/vmlinuz"}), "/nonexistent/vmlinuz");
}

TEST_F(BadInput, KernelIsADirectory) {
  expect_refused(run({"--kernel", home_.path()}), home_.path());
}

TEST_F(BadInput, UnreadableKernel) {
  if (geteuid() == 0) {
    GTEST_SKIP() << "root can read every file";
  }
  write_file(home_.file("k"), "x");
  chmod(home_.file("k").c_str(), 0);
  expect_refused(run({"--kernel", home_.file("k")}), home_.file("k"));
}

TEST_F(BadInput, EmptyKernel) {
  write_file(home_.file("k"), "");
  expect_refused(run({"--kernel", home_.file("k")}), home_.file("k"));
}

TEST_F(BadInput, KernelOfZeros) {
  write_file(home_.file("k"), std::string(65536, '\0'));
  expect_refused(run({"--kernel", home_.file("k")}), home_.file("k"));
}

TEST_F(BadInput, KernelCutOffAnywhere) {
  std::string whole = read_file(guest_path("workload"));
  for (size_t length : {size_t{1}, size_t{20}, size_t{64}, size_t{120}, whole.size() / 2}) {
    write_file(home_.file("k"), whole.substr(0, length));
    expect_refused(run({"--kernel", home_.file("k")}), home_.file("k"));
  }
}

TEST_F(BadInput, MissingInitrd) {
  expect_refused(run({"--kernel", guest_path("workload"), "--initrd", "/nonexistent/initrd"}),
                 "/nonexistent/initrd");
}

TEST_F(BadInput, MissingDisk) {
  expect_refused(run_with_disk("/nonexistent/d.qcow2,format=qcow2"), "/nonexistent/d.qcow2");
}

TEST_F(BadInput, DiskWithoutItsFormat) {
  make_disk(home_.file("d"), 1 << 20);
  expect_refused(run_with_disk(home_.file("d")), "format");
}

TEST_F(BadInput, DiskThatIsNoQcow2) {
  make_disk(home_.file("d"), 1 << 20);
  expect_refused(run_with_disk(home_.file("d") + ",format=qcow2"), home_.file("d"));
}

TEST_F(BadInput, UnknownKeyOfADisk) {
  make_disk(home_.file("d"), 1 << 20);
  expect_refused(run_with_disk(home_.file("d") + ",format=raw,colour=blue"), "colour");
}

TEST_F(BadInput, UnknownModeOfADisk) {
  make_disk(home_.file("d"), 1 << 20);
  expect_refused(run_with_disk(home_.file("d") + ",format=raw,mode=sideways"), "sideways");
}

TEST_F(BadInput, DiskSmallerThanItsHeaderSays) {
  std::string disk = home_.file("d");
  ASSERT_EQ(system(("qemu-img create -q -f qcow2 " + disk + " 16M").c_str()), 0);
  ASSERT_EQ(system(("qemu-io -f qcow2 -c 'write 0 1M' " + disk + " >/dev/null").c_str()), 0);
  ASSERT_EQ(truncate(disk.c_str(), 3 * 65536), 0);
  expect_refused(run_with_disk(disk + ",format=qcow2"), disk);
}

TEST_F(BadInput, BackingFileThatNobodyAllowed) {
  make_disk(home_.file("base"), 1 << 20);
  std::string disk = home_.file("d");
  ASSERT_EQ(
      system(("qemu-img create -q -f qcow2 -F raw -b " + home_.file("base") + " " + disk).c_str()),
      0);
  expect_refused(run_with_disk(disk + ",format=qcow2"), "base");
}

TEST_F(BadInput, DiskLockedByAnotherProcess) {
  std::string disk = home_.file("d");
  make_disk(disk, 1 << 20);
  int fd = open(disk.c_str(), O_RDWR | O_CLOEXEC);
  // QEMU's "this image is being written" byte, and the whole file.
  struct flock lock = {};
  lock.l_type = F_WRLCK;
  lock.l_whence = SEEK_SET;
  ASSERT_EQ(fcntl(fd, F_OFD_SETLK, &lock), 0);
  expect_refused(run_with_disk(disk + ",format=raw,mode=overlay"), disk);
  close(fd);
}

TEST_F(BadInput, UnknownFlag) {
  expect_refused(run({"--kernel", guest_path("workload"), "--turbo"}), "--turbo");
}

TEST_F(BadInput, UnknownVerb) { expect_refused({"frobnicate"}, "frobnicate"); }

TEST_F(BadInput, MemoryAndProcessorsOutsideTheLimits) {
  for (const char* memory : {"0", "1M", "65G", "12X", "-5M", "99999999999999999999G"}) {
    expect_refused(run({"--kernel", guest_path("workload"), std::string("--memory=") + memory}),
                   "m");
  }
  for (const char* cpus : {"0", "65"}) {
    expect_refused(run({"--kernel", guest_path("workload"), std::string("--cpus=") + cpus}), "CPU");
  }
}

TEST_F(BadInput, NameThatIsNoName) {
  for (const char* name : {"../x", ".hidden", "a b", "a/b"}) {
    expect_refused({"run", std::string("--name=") + name, "--kernel", guest_path("workload"), "-d"},
                   "name");
  }
}

TEST_F(BadInput, VerbsOnAVmThatDoesNotExist) {
  for (const char* verb : {"console", "logs", "pause", "resume", "stop", "kill", "rm", "inspect"}) {
    expect_refused({verb, "nobody"}, "nobody");
  }
  expect_refused({"revert", "nobody", "clean"}, "nobody");
  expect_refused({"snapshot", "create", "nobody", "clean"}, "nobody");
  expect_refused({"restore", "nobody@clean", "--name", "bad", "-d"}, "nobody");
}

// A running VM with one snapshot; what follows spoils the snapshot and must not touch the VM.
class BadSnapshot : public BadInput {
 protected:
  VmProcess vm_{home_, "t"};

  void SetUp() override {
    NativeTest::SetUp();
    if (IsSkipped()) {
      return;
    }
    make_disk(home_.file("d"), 16 << 20);
    vm_.start("workload", {"--disk", home_.file("d") + ",format=raw"});
    ASSERT_TRUE(vm_.wait_for("READY"));
    vm_.ask("nonce 21\nfill 0 256 1\ndisk-write 0 0 64 1");
    vm_.snapshot("clean");
    vm_.ask("nonce 22");
  }

  void expect_vm_untouched() {
    EXPECT_EQ(home_.state_of("t"), "running");
    EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 22\n", 0), 0u);
  }
  std::vector<std::string> restore() { return {"restore", "t@clean", "--name", "bad", "-d"}; }
  // The one snapshot's directory.
  std::filesystem::path object() {
    for (const auto& entry : std::filesystem::directory_iterator(home_.path() + "/snapshots")) {
      if (entry.is_directory()) {
        return entry.path();
      }
    }
    ADD_FAILURE() << "no snapshot object";
    return {};
  }
  std::vector<std::filesystem::path> files() {
    std::vector<std::filesystem::path> result;
    for (const auto& entry : std::filesystem::recursive_directory_iterator(object())) {
      if (entry.is_regular_file() && entry.file_size() > 0) {
        result.push_back(entry.path());
      }
    }
    return result;
  }
};

TEST_F(BadSnapshot, UnknownSnapshotIsRefusedAndTheVmGoesOn) {
  expect_refused({"revert", "t", "missing"}, "missing");
  expect_refused({"restore", "t@missing", "--name", "bad", "-d"}, "missing");
  expect_vm_untouched();
}

TEST_F(BadSnapshot, NameThatIsTakenIsRefused) {
  expect_refused({"snapshot", "create", "t", "clean"}, "clean");
  expect_vm_untouched();
}

TEST_F(BadSnapshot, EveryFileCutOffIsRefusedByRestore) {
  for (const std::filesystem::path& file : files()) {
    std::string whole = read_file(file);
    chmod(file.c_str(), 0600);
    for (size_t length : {size_t{0}, whole.size() / 2, whole.size() - 1}) {
      std::filesystem::resize_file(file, length);
      SCOPED_TRACE(file.filename().string() + " cut to " + std::to_string(length));
      expect_refused(restore(), "clean");
      write_file(file, whole);
    }
  }
  expect_vm_untouched();
}

TEST_F(BadSnapshot, EveryMissingFileIsRefusedByRestore) {
  for (const std::filesystem::path& file : files()) {
    SCOPED_TRACE(file.filename().string());
    std::string aside = home_.file("aside");
    std::filesystem::rename(file, aside);
    if (file.filename() != "lock") {
      expect_refused(restore(), "clean");
    }
    std::filesystem::rename(aside, file);
  }
  expect_vm_untouched();
}

TEST_F(BadSnapshot, ManifestOfAnotherVersionIsRefused) {
  std::filesystem::path manifest = object() / "manifest.json";
  ASSERT_TRUE(std::filesystem::exists(manifest));
  nlohmann::json content = nlohmann::json::parse(read_file(manifest));
  for (auto& [key, value] : content.items()) {
    if (key.find("version") != std::string::npos && value.is_number()) {
      value = value.get<int>() + 1000;
    }
  }
  chmod(manifest.c_str(), 0600);
  write_file(manifest, content.dump());
  // The manifest sums itself, so that this is "was changed"; the message for a whole manifest of
  // another version is Manifest.OtherVersionOrArchitectureIsNamed.
  expect_refused(restore(), "clean");
  expect_vm_untouched();
}

TEST_F(BadSnapshot, OneThatIsDamagedKeepsItsKeysInJson) {
  std::filesystem::path manifest = object() / "manifest.json";
  chmod(manifest.c_str(), 0600);
  write_file(manifest, "{}");
  nlohmann::json listed = home_.quicksave_json({"snapshot", "list", "t"})[0];
  CommandResult check = home_.quicksave({"snapshot", "check", "t@clean", "--json"});
  EXPECT_EQ(check.status, 1);
  nlohmann::json checked = nlohmann::json::parse(check.out);
  EXPECT_EQ(checked["ok"], false);
  for (const char* key : {"description", "memory_bytes", "disk_bytes"}) {
    ASSERT_TRUE(listed.contains(key)) << key;
    EXPECT_TRUE(listed[key].is_null()) << key;
  }
  EXPECT_TRUE(listed["damage"].is_string());
  EXPECT_TRUE(checked["damage"].is_string());
  EXPECT_TRUE(checked["disk_bytes"].is_null());
  EXPECT_EQ(home_.quicksave({"snapshot", "list", "--tree"}).status, 0);
}

TEST_F(BadSnapshot, BaseImageWrittenSinceIsRefused) {
  std::fstream disk(home_.file("d"), std::ios::in | std::ios::out | std::ios::binary);
  disk.seekp(12345);
  disk << "changed";
  disk.close();
  std::filesystem::resize_file(home_.file("d"), 32 << 20);
  expect_refused(restore(), home_.file("d"));
}

TEST_F(BadSnapshot, FlippedByteOfMemoryIsFoundByVerifyAndCheck) {
  for (const std::filesystem::path& file : files()) {
    if (file.filename() != "memory") {
      continue;
    }
    chmod(file.c_str(), 0600);
    std::fstream memory(file, std::ios::in | std::ios::out | std::ios::binary);
    memory.seekg(0x400000 + 100);
    char byte = static_cast<char>(memory.get());
    memory.seekp(0x400000 + 100);
    memory.put(static_cast<char>(byte ^ 1));
    memory.close();
    CommandResult check = home_.quicksave({"snapshot", "check", "t@clean", "--json"});
    EXPECT_EQ(check.status, 1) << check.out;
    nlohmann::json found = nlohmann::json::parse(check.out);
    EXPECT_EQ(found["ok"], false);
    EXPECT_NE(found["damage"].get<std::string>().find("checksum"), std::string::npos);
    EXPECT_TRUE(found["memory_bytes"].is_number());
    std::vector<std::string> verified = restore();
    verified.push_back("--verify");
    expect_refused(verified, "clean");
    return;
  }
  FAIL() << "no memory file";
}

}  // namespace
}  // namespace native
