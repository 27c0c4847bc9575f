// `quicksave image serve`: images and disks of snapshots over NBD, as other people's clients see
// them.

#include <gtest/gtest.h>
#include <signal.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

#include "tests/native/support/vm_process.h"

namespace native {
namespace {

bool runs(const std::string& command) {
  return std::system((command + " >/dev/null 2>&1").c_str()) == 0;
}

class Serve : public testing::Test {
 protected:
  void SetUp() override {
    if (!runs("qemu-img --version") || !runs("qemu-io --version")) {
      GTEST_SKIP() << "qemu-img and qemu-io are not installed";
    }
    if (!runs("nbdkit --version")) {
      GTEST_SKIP() << "nbdkit, libnbd-bin or fio is not installed";
    }
    if (home_.quicksave({"version"}).status != 0) {
      GTEST_SKIP() << "the quicksave program is not built";
    }
    const CommandResult without = home_.quicksave({"image", "serve", "/nowhere", "-f", "raw"});
    if (without.err.find("nbdkit plugin") != std::string::npos) {
      GTEST_SKIP() << "the nbdkit plugin is not built";
    }
  }

  // Starts `image serve WORDS` on the home's socket and waits for its URI, in quotes for a shell.
  std::string serve(std::vector<std::string> words) {
    words.insert(words.begin(), {"image", "serve", "--socket", home_.file("s")});
    pid_ = home_.begin(words);
    std::string uri;
    for (int tries = 0; tries < 500 && uri.empty(); ++tries) {
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      uri = read_file(home_.file(".out"));
    }
    EXPECT_EQ(uri, "nbd+unix:///?socket=" + home_.file("s") + "\n")
        << read_file(home_.file(".err"));
    return "'" + uri.substr(0, uri.find('\n')) + "'";
  }
  // As a user ends it.
  void end(int signal = SIGTERM) {
    ::kill(pid_, signal);
    const CommandResult result = home_.finish(pid_);
    EXPECT_EQ(result.status, 0) << result.err;
    EXPECT_FALSE(std::filesystem::exists(home_.file("s"))) << "the socket is left behind";
  }
  void shell(const std::string& command) const {
    const std::string log = home_.file("shell.log");
    EXPECT_EQ(std::system(("(" + command + ") >>" + log + " 2>&1").c_str()), 0) << command << "\n"
                                                                                << read_file(log);
  }
  void expect_refused(std::vector<std::string> words, const std::string& named,
                      const std::vector<std::string>& environment = {}) const {
    words.insert(words.begin(), {"image", "serve"});
    const CommandResult result = home_.quicksave(words, kPatience, environment);
    EXPECT_EQ(result.status, 1) << result.err;
    EXPECT_NE(result.err.find(named), std::string::npos) << result.err;
    EXPECT_NE(result.err.find("hint: "), std::string::npos) << result.err;
    EXPECT_EQ(result.out, "");
  }

  VmHome home_;
  pid_t pid_ = -1;
};

TEST_F(Serve, AnImageIsReadOnlyUnlessTheUserSaysOtherwise) {
  const std::string image = home_.file("a.qcow2");
  shell("qemu-img create -q -f qcow2 " + image + " 4M");
  const std::string uri = serve({image, "-f", "qcow2"});
  shell("! qemu-io -f raw -c 'write 0 4k' " + uri);
  shell("qemu-img compare -f raw -F qcow2 " + uri + " " + image);
  end();
}

TEST_F(Serve, WhatIsWrittenStaysOrIsThrownAway) {
  const std::string image = home_.file("a.qcow2");
  shell("qemu-img create -q -f qcow2 " + image + " 4M");
  shell("qemu-io -f raw -c 'write -P 1 0 1M' " +
        serve({image, "-f", "qcow2", "--mode", "persist"}));
  end(SIGINT);
  shell("qemu-io -f raw -c 'read -P 1 0 1M' -c 'write -P 2 0 1M' " +
        serve({image, "-f", "qcow2", "--mode", "overlay"}));
  end(SIGHUP);
  shell("qemu-img check -f qcow2 " + image);
  shell("qemu-io -f qcow2 -c 'read -P 1 0 1M' " + image);
}

TEST_F(Serve, EndsWithTheProcessThatWasKilled) {
  const std::string image = home_.file("a.qcow2");
  shell("qemu-img create -q -f qcow2 " + image + " 4M");
  serve({image, "-f", "qcow2", "--mode", "persist"});
  ::kill(pid_, SIGKILL);
  home_.finish(pid_);
  // The lock goes with nbdkit.
  shell("for i in $(seq 100); do qemu-io -f qcow2 -c 'write 0 4k' " + image +
        " && exit; sleep 0.1; done; exit 1");
}

TEST_F(Serve, WhatCannotBeServedIsRefusedInOneMessage) {
  const std::string image = home_.file("a.qcow2");
  shell("qemu-img create -q -f qcow2 " + image + " 4M");
  expect_refused({image}, "the format of \"" + image + "\" is not given");
  expect_refused({"nobody@nothing"}, "nobody");
  expect_refused({image, "-f", "qcow2", "--disk", "vda"}, "--disk chooses a disk of VM@SNAPSHOT");
  expect_refused({image, "-f", "qcow2"}, "nbdkit, which serves disks, is not installed",
                 {"PATH=/nowhere"});
  expect_refused({image, "-f", "qcow2"}, "nbdkit plugin \"/nowhere.so\"",
                 {"QUICKSAVE_NBDKIT_PLUGIN=/nowhere.so"});
  shell("qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 " + home_.file("b.qcow2"));
  expect_refused({home_.file("b.qcow2"), "-f", "qcow2"}, "--backing FILE:FORMAT");
  serve({image, "-f", "qcow2", "--mode", "persist"});
  expect_refused({image, "-f", "qcow2"}, "locked for writing");
  end();
}

class ServeSnapshot : public Serve {
 protected:
  void SetUp() override {
    if (const auto reason = why_native_cannot_run()) GTEST_SKIP() << *reason;
    Serve::SetUp();
  }
};

TEST_F(ServeSnapshot, ItsDisksAreAsTheyWereAndTheVmGoesOn) {
  for (const char* name : {"a.raw", "b.raw"}) make_disk(home_.file(name), 16 << 20);
  VmProcess vm(home_, "t");
  vm.start("workload", {"--disk", home_.file("a.raw") + ",format=raw", "--disk",
                        home_.file("b.raw") + ",format=raw,mode=persist"});
  vm.ask("disk-write 0 0 64 1\ndisk-write 1 0 64 1");
  vm.snapshot("one");
  vm.ask("disk-write 0 32 64 2\ndisk-write 1 32 64 2");
  vm.snapshot("two");
  vm.ask("disk-write 0 0 500 3");
  expect_refused({"t@one"}, "--disk says which: vda, vdb");
  expect_refused({"t@one", "--disk", "vdc"}, "no disk \"vdc\"");

  // What `qemu-img` makes of the layers that the snapshot wrote is the judge.
  const std::string layer = "$(ls " + home_.path() + "/snapshots/$(cat " + home_.path() +
                            "/vms/t/refs/NAME)/disk-0.qcow2)";
  for (const std::string name : {"one", "two"}) {
    std::string file = layer;
    file.replace(file.find("NAME"), 4, name);
    const std::string uri = serve({"t@" + name, "--disk", "vda"});
    shell("qemu-img compare -U -f raw -F qcow2 " + uri + " " + file);
    shell("! qemu-img compare -U -f raw -F raw " + uri + " " + home_.file("a.raw"));
    EXPECT_NE(home_.quicksave({"snapshot", "delete", "t@" + name}).status, 0) << "it is in use";
    end();
  }
  // The persistent disk's image is frozen as it was at the first snapshot.
  shell("qemu-img compare -U -f raw -F raw " + serve({"t@one", "--disk", "vdb"}) + " " +
        home_.file("b.raw"));
  end();
  shell("! qemu-img compare -U -f raw -F raw " + serve({"t@two", "--disk", "vdb"}) + " " +
        home_.file("b.raw"));
  end();
  EXPECT_EQ(vm.ask("disk-check 0 0 500 3"), "MATCH\n");
}

}  // namespace
}  // namespace native
