// Snapshots that are whole, but of another host, another version or another CPU: their files are
// rewritten with all checksums right, so that it is the content that is refused. The running VM and
// the names of other VMs stay as they were.

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <functional>
#include <set>

#include "snapshot/manifest.h"
#include "snapshot/state_file.h"
#include "tests/native/support/vm_process.h"
#include "vmm/base/codec.h"
#include "vmm/kvm/kvm.h"
#include "vmm/kvm/processors.h"

namespace native {
namespace {

class OtherHost : public NativeTest {
 protected:
  VmHome home_;
  VmProcess vm_{home_, "t"};

  void SetUp() override {
    NativeTest::SetUp();
    if (IsSkipped()) {
      return;
    }
    make_disk(home_.file("d"), 1 << 20);
    vm_.start("workload", {"--disk", home_.file("d") + ",format=raw"});
    ASSERT_TRUE(vm_.wait_for("READY"));
    vm_.ask("nonce 21\ndisk-write 0 0 8 1");
    vm_.snapshot("clean");
    vm_.ask("nonce 22");
    nlohmann::json list = home_.quicksave_json({"snapshot", "list", "t"});
    object_ = home_.path() + "/snapshots/" + list[0]["uuid"].get<std::string>();
  }

  std::string manifest_text() { return read_file(object_ + "/manifest.json"); }
  void put_manifest(const std::string& text) {
    chmod((object_ + "/manifest.json").c_str(), 0600);
    write_file(object_ + "/manifest.json", text);
  }
  void change_manifest(const std::function<void(snapshot::Manifest&)>& change) {
    Result<snapshot::Manifest> manifest = snapshot::Manifest::parse(manifest_text());
    ASSERT_TRUE(manifest) << manifest.error().message();
    change(*manifest);
    put_manifest(manifest->serialize());
  }

  // Rewrites the section "processors" of the state, and what the manifest says of it.
  void change_processors(const std::function<void(kvm::ProcessorsState&)>& change) {
    Result<base::Fd> directory = base::open_file(object_, O_RDONLY | O_DIRECTORY);
    ASSERT_TRUE(directory);
    change_manifest([&](snapshot::Manifest& manifest) {
      Result<base::Fd> file = base::open_file(object_ + "/state", O_RDONLY);
      ASSERT_TRUE(file);
      auto sections = snapshot::read_state_file(*file, manifest.state);
      ASSERT_TRUE(sections) << sections.error().message();
      for (snapshot::Section& section : *sections) {
        if (section.name != "processors") {
          continue;
        }
        auto state = base::decode_state<kvm::ProcessorsState>(section.payload);
        ASSERT_TRUE(state) << state.error().message();
        change(*state);
        section.payload = base::encode_state(*state);
      }
      unlink((object_ + "/state").c_str());
      auto written = snapshot::write_state_file(*directory, "state", *sections);
      ASSERT_TRUE(written) << written.error().message();
      manifest.state = *written;
    });
  }

  // By restore, which leaves no VM; by a revert of another process, before its VM is touched.
  void expect_refused(const std::string& reason) {
    CommandResult restored = home_.quicksave({"restore", "t@clean", "--name", "bad", "-d"});
    EXPECT_EQ(restored.status, 1);
    EXPECT_EQ(restored.err.rfind("error: snapshot 't@clean': ", 0), 0u) << restored.err;
    EXPECT_NE(restored.err.find(reason), std::string::npos) << restored.err;
    EXPECT_NE(restored.err.find("\nhint: "), std::string::npos) << restored.err;
    EXPECT_EQ(home_.state_of("bad"), "");
    EXPECT_FALSE(std::filesystem::exists(home_.path() + "/vms/bad"));
    EXPECT_FALSE(std::filesystem::exists(home_.path() + "/run/bad"));
    EXPECT_EQ(home_.state_of("t"), "running");
    EXPECT_EQ(vm_.ask("nonce").rfind("NONCE 22\n", 0), 0u);
  }

  std::string object_;
};

TEST_F(OtherHost, UnchangedItIsRestored) {  // or the rewriting, not its content, would be refused
  change_processors([](kvm::ProcessorsState&) {});
  VmProcess other(home_, "o");
  other.start_from("t@clean", {"--verify"});
  EXPECT_EQ(other.ask("nonce").rfind("NONCE 21\n", 0), 0u);
}

TEST_F(OtherHost, CpuOfAnotherVendorIsRefusedNamingBoth) {
  change_manifest([](snapshot::Manifest& manifest) { manifest.host.cpu_vendor = "CentaurHauls"; });
  expect_refused("snapshot was taken on CPU vendor CentaurHauls, this host has ");
}

TEST_F(OtherHost, CpuOfAnotherModelIsRefusedNamingBoth) {
  change_manifest([](snapshot::Manifest& manifest) { manifest.host.cpu_model += 1; });
  expect_refused("snapshot was taken on CPU family/model ");
}

TEST_F(OtherHost, KindOfKvmIsAWordOfTheFormat) {
  change_manifest([](const snapshot::Manifest& manifest) {
    const std::set<std::string> words = {"svm", "vmx", "pvm", "unknown"};
    EXPECT_TRUE(words.contains(manifest.host.kvm_kind)) << manifest.host.kvm_kind;
  });
}

TEST_F(OtherHost, OtherKindOfKvmIsRefusedNamingBoth) {
  change_manifest([](snapshot::Manifest& manifest) { manifest.host.kvm_kind = "other KVM"; });
  expect_refused("snapshot was taken on KVM kind other KVM, this host has ");
}

TEST_F(OtherHost, CpuFeatureThatThisHostLacksIsNamed) {
  Result<kvm::Kvm> kvm = kvm::Kvm::open();
  ASSERT_TRUE(kvm);
  u32 offered = 0;
  for (const kvm::CpuidEntry& leaf : kvm->supported_cpuid()) {
    offered |= leaf.function == 7 && leaf.index == 0 ? leaf.ebx : 0;
  }
  // SDM volume 2, CPUID leaf 7, EBX: bit 16 is AVX512F; bit 27 only a Xeon Phi has.
  const bool lacks_avx512 = (offered & 1u << 16) == 0;
  change_processors([&](kvm::ProcessorsState& state) {
    for (kvm::CpuidEntry& leaf : state.cpuid) {
      if (leaf.function == 7 && leaf.index == 0) {
        leaf.ebx |= lacks_avx512 ? 1u << 16 : 1u << 27;
      }
    }
  });
  expect_refused(lacks_avx512 ? "taken on a CPU with avx512f, which this host lacks"
                              : "taken on a CPU with CPUID 7.0 EBX bit 27, which this host lacks");
}

TEST_F(OtherHost, OtherVersionOfTheFormatIsRefusedNamingBoth) {
  std::string text = manifest_text();
  const std::string version = "\"version\": " + std::to_string(snapshot::kManifestVersion);
  const size_t at = text.find(version);
  ASSERT_NE(at, std::string::npos);
  text.replace(at, version.size(), "\"version\": 1000");
  // The manifest's sum is its last value and covers all before the comma in front of it.
  const size_t sum = text.rfind("\"checksum\"");
  const size_t end = text.rfind(',', sum);
  const std::string right =
      snapshot::Checksum::of(std::string_view(text).substr(0, end)).to_string();
  text.replace(text.find('"', text.find(':', sum)) + 1, right.size(), right);
  put_manifest(text);
  expect_refused("version 1000");
}

TEST_F(OtherHost, OtherFileInThePlaceOfTheBaseImageIsRefusedNamingIt) {
  std::filesystem::rename(home_.file("d"), home_.file("aside"));
  make_disk(home_.file("d"), 1 << 20);
  expect_refused(home_.file("d"));
}

TEST_F(OtherHost, MissingBaseImageIsRefusedNamingIt) {
  std::filesystem::rename(home_.file("d"), home_.file("aside"));
  expect_refused(home_.file("d"));
}

TEST_F(OtherHost, DiskOfAnotherSizeIsRefusedNamingBoth) {
  change_manifest([](snapshot::Manifest& manifest) { manifest.disks[0].virtual_bytes = 2 << 20; });
  const CommandResult restored = home_.quicksave({"restore", "t@clean", "--name", "bad", "-d"});
  EXPECT_EQ(restored.status, 1);
  EXPECT_NE(restored.err.find("disk \"vda\" has 1048576 bytes here, 2097152 in the manifest"),
            std::string::npos)
      << restored.err;
  EXPECT_EQ(home_.state_of("bad"), "");
}

// What a guest has seen of its processor it sees after a reboot, too, on a host that has more.
TEST_F(OtherHost, GuestFromAHostWithFewerFeaturesReboots) {
  bool removed = false;
  change_processors([&](kvm::ProcessorsState& state) {
    for (kvm::CpuidEntry& leaf : state.cpuid) {
      // What our guests do without: the first feature of leaf 7, or AMD's of leaf 0x80000001, ECX.
      const bool is_leaf7 = leaf.function == 7 && leaf.index == 0;
      u32& features = is_leaf7 ? leaf.ebx : leaf.ecx;
      if (removed || features == 0 || (!is_leaf7 && leaf.function != 0x80000001)) {
        continue;
      }
      features &= features - 1;
      removed = true;
    }
  });
  ASSERT_TRUE(removed);
  VmProcess other(home_, "o");
  other.start_from("t@clean");
  EXPECT_EQ(other.ask("nonce").rfind("NONCE 21\n", 0), 0u);
  const size_t before = other.log().size();
  other.send("reset\n");
  ASSERT_TRUE(other.wait_for("READY", before));
  EXPECT_EQ(other.ask("nonce").rfind("NONCE 0\n", 0), 0u);
  EXPECT_EQ(home_.state_of("o"), "running");
}

}  // namespace
}  // namespace native
