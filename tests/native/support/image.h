// Image: a test of `quicksave image` beside qemu-img and qemu-io, in a directory of its own.

#pragma once

#include <gtest/gtest.h>

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "tests/native/support/vm_process.h"

namespace native {

using nlohmann::json;

bool has_program(const std::string& command);

// Every test has its own directory and works in it.
class Image : public testing::Test {
 protected:
  void SetUp() override {
    if (!has_program("qemu-img --version") || !has_program("qemu-io --version")) {
      GTEST_SKIP() << "qemu-img and qemu-io are not installed";
    }
    before_ = std::filesystem::current_path();
    std::filesystem::current_path(home_.path());
    if (home_.quicksave({"version"}).status != 0) {
      GTEST_SKIP() << "the quicksave program is not built";
    }
  }
  void TearDown() override {
    if (!before_.empty()) std::filesystem::current_path(before_);
  }

  static void shell(const std::string& command) {
    EXPECT_EQ(std::system(("(" + command + ") >>shell.log 2>&1").c_str()), 0)
        << command << "\n"
        << read_file("shell.log");
  }
  // What qemu-img prints as JSON and the status it ends with.
  static CommandResult qemu_img(const std::string& words) {
    const int status = std::system(("qemu-img " + words + " >theirs.out 2>theirs.err").c_str());
    return {WEXITSTATUS(status), read_file("theirs.out"), read_file("theirs.err")};
  }
  CommandResult image(std::vector<std::string> words) const {
    words.insert(words.begin(), "image");
    return home_.quicksave(words);
  }
  void expect_same_json(const CommandResult& ours, const CommandResult& theirs) const {
    EXPECT_EQ(ours.status, theirs.status) << ours.err << theirs.err;
    EXPECT_EQ(json::parse(ours.out, nullptr, false), json::parse(theirs.out, nullptr, false));
  }

  void image_ok(std::vector<std::string> words) const {
    const CommandResult result = image(words);
    EXPECT_EQ(result.status, 0) << words.front() << ": " << result.err;
  }
  // Refused with status 1 (or `status`) and a message that names `named`; nothing is made.
  void expect_refused(std::vector<std::string> words, const std::string& named,
                      int status = 1) const {
    const CommandResult result = image(words);
    EXPECT_EQ(result.status, status) << named << result.err;
    EXPECT_NE(result.err.find(named), std::string::npos) << named << ": " << result.err;
    EXPECT_FALSE(std::filesystem::exists("new.img"));
  }
  // What qemu-img tells of an image, without what depends on how it was written.
  static json shape_of(const std::string& file) {
    json info = json::parse(qemu_img("info -U -f qcow2 --output=json " + file).out);
    info.erase("filename");
    info.erase("actual-size");
    return info;
  }
  static std::string hash_of(const std::string& file) {
    shell("sha256sum <" + file + " >hash");
    return read_file("hash");
  }

  VmHome home_;

 private:
  std::filesystem::path before_;
};

// --- map, compare, convert ---

inline constexpr const char* kWrites =
    "qemu-io -f qcow2 -c 'write -q -P 1 0 64k' -c 'write -q -P 2 100k 300k' "
    "-c 'write -q -P 3 4095k 1025k' -c 'write -q -z 128k 64k' -c 'write -q -P 4 3M 5k' "
    "-c 'discard -q 140k 700k' -c 'write -q -P 5 9215k 1k' -c 'write -q -z 4100k 13k' ";

// base.raw (sparse, 4 MiB less 24 KiB) below mid.qcow2 (6 MiB) below top.qcow2 (9 MiB).
void make_chain(const std::function<void(const std::string&)>& shell, const std::string& kind);

}  // namespace native
