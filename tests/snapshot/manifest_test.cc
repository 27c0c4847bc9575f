#include "snapshot/manifest.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/time.h>

#include "tests/snapshot/support/fixture.h"

namespace {

using namespace snapshot;
using namespace snapshot_test;

// The text with `change` made to the document and a checksum that fits again: what a forger writes.
template <class Change>
std::string forged(Change change) {
  Manifest manifest = small_manifest();
  const Uuid owner = Uuid::random();
  manifest.disks = {{0,
                     "vda",
                     "overlay",
                     4096,
                     {{"/d.raw", "raw", 4096, 5, 6, 7}},
                     {{owner, "disk-0.qcow2", 9, 1}}}};
  nlohmann::json document = nlohmann::json::parse(manifest.serialize());
  document.erase("checksum");
  change(document);
  std::string body = document.dump(2);
  body.resize(body.size() - 2);
  return body + ",\n  \"checksum\": \"" + Checksum::of(body).to_string() + "\"\n}\n";
}

std::string refusal(const std::string& text) { return message(Manifest::parse(text)); }

TEST(Manifest, ComesBackAsItWasWritten) {
  Manifest manifest = small_manifest();
  manifest.parent = Uuid::random();
  manifest.disks = {{0,
                     "vda",
                     "overlay",
                     8192,
                     {{"/d.qcow2", "qcow2", 1, -5, 6, 7}},
                     {{Uuid::random(), "disk-0.qcow2", 9, 0xfedcba9876543210},
                      {Uuid::random(), "disk-0.qcow2", 9, std::nullopt}}}};
  const Result<Manifest> back = Manifest::parse(manifest.serialize());
  ASSERT_TRUE(back) << message(back);
  EXPECT_EQ(back->serialize(), manifest.serialize());
  EXPECT_EQ(back->disks, manifest.disks);
  EXPECT_EQ(back->machine, manifest.machine);
  EXPECT_EQ(back->parent, manifest.parent);
  EXPECT_EQ(back->created, manifest.created);
  EXPECT_TRUE(nlohmann::json::accept(manifest.serialize()));
}

TEST(Manifest, TruncatedAtAnyByteIsRefused) {  // S01
  const std::string text = small_manifest().serialize();
  for (std::size_t length = 0; length < text.size(); ++length) {
    ASSERT_FALSE(Manifest::parse(text.substr(0, length))) << length;
  }
}

TEST(Manifest, AnyFlippedBitIsRefused) {
  const std::string text = small_manifest().serialize();
  for (std::size_t bit = 0; bit < text.size() * 8; ++bit) {
    std::string broken = text;
    broken[bit / 8] = static_cast<char>(broken[bit / 8] ^ (1 << (bit % 8)));
    ASSERT_FALSE(Manifest::parse(broken)) << bit;
  }
}

TEST(Manifest, OtherVersionOrArchitectureIsNamed) {  // S07
  EXPECT_EQ(refusal(forged([](auto& d) { d["version"] = 1; })),
            "manifest: format version 1; this program reads version 3");
  EXPECT_NE(refusal(forged([](auto& d) { d["architecture"] = "arm64"; })).find("arm64"),
            std::string::npos);
}

TEST(Manifest, SecondLayerOfMemoryIsRefused) {
  EXPECT_EQ(refusal(forged([](auto& d) {
              d["memory"].push_back(d["memory"][0]);
              d["memory"][1]["file"] = "memory-2";
              d["memory"][1]["sums_file"] = "memory-2.sums";
            })),
            "manifest: memory has 2 layers, not 1");
  EXPECT_EQ(refusal(forged([](auto& d) { d["memory"].clear(); })),
            "manifest: memory has 0 layers, not 1");
}

TEST(Manifest, DiskInAnotherPlaceThanItsSlotIsRefused) {
  EXPECT_EQ(refusal(forged([](auto& d) { d["disks"][0]["slot"] = 1; })),
            "manifest: disks[0].slot is 1");
  EXPECT_EQ(refusal(forged([](auto& d) { d["disks"].push_back(d["disks"][0]); })),
            "manifest: disks[1].slot is 0");
}

TEST(Manifest, EveryMissingAndEveryUnknownKeyIsNamedWithItsPlace) {
  EXPECT_EQ(refusal(forged([](auto& d) { d["extra"] = 1; })), "manifest: unknown key extra");
  EXPECT_EQ(refusal(forged([](auto& d) { d["disks"][0]["layers"][0]["x"] = 1; })),
            "manifest: unknown key disks[0].layers[0].x");
  EXPECT_EQ(refusal(forged([](auto& d) { d["disks"][0]["bases"].clear(); })),
            "manifest: disks[0].bases is empty");
  EXPECT_EQ(refusal(forged([](auto& d) { d["disks"][0]["bases"][0].erase("inode"); })),
            "manifest: key disks[0].bases[0].inode is missing");
  for (const char* key : {"uuid", "vm", "name", "description", "created", "parent", "program",
                          "machine", "host", "memory", "state", "disks"}) {
    EXPECT_EQ(refusal(forged([&](auto& d) { d.erase(key); })),
              fmt::format("manifest: key {} is missing", key));
    EXPECT_NE(refusal(forged([&](auto& d) { d[key] = true; })).find(key), std::string::npos);
  }
}

TEST(Manifest, KeyGivenTwiceIsRefused) {
  std::string body = small_manifest().serialize();
  body.resize(body.find(",\n  \"checksum\""));
  body += ",\n  \"vm\": \"u\"";
  const std::string text =
      body + ",\n  \"checksum\": \"" + Checksum::of(body).to_string() + "\"\n}\n";
  EXPECT_EQ(refusal(text), "manifest: key \"vm\" is given twice");
}

TEST(Manifest, HostileNestingAndNumbersAreRefused) {  // S16
  const std::string deep = std::string(1'000'000, '[') + std::string(1'000'000, ']');
  EXPECT_NE(refusal(forged([](auto& d) { d["machine"]["x"] = 1.5; })).find("not a 64-bit integer"),
            std::string::npos);
  std::string body = "{\n  \"a\": " + deep;
  EXPECT_EQ(refusal(body + ",\n  \"checksum\": \"" + Checksum::of(body).to_string() + "\"\n}\n"),
            "manifest: nested too deeply");
  EXPECT_NE(
      refusal(forged([](auto& d) { d["memory"][0]["size"] = ~u64{0}; })).find("memory[0].size"),
      std::string::npos);
  EXPECT_NE(refusal(forged([](auto& d) { d["memory"][0]["size"] = 4097; })).find("memory[0].size"),
            std::string::npos);
  EXPECT_NE(refusal(forged([](auto& d) { d["memory"][0]["size"] = -1; })).find("memory[0].size"),
            std::string::npos);
}

TEST(Manifest, OnlyPlainFileNamesAreTaken) {  // S21
  for (const char* name :
       {"../memory", "/etc/passwd", "a/b", "..", ".", "", ".hidden", "lock", "manifest.json"}) {
    EXPECT_FALSE(Manifest::parse(forged([&](auto& d) { d["memory"][0]["file"] = name; }))) << name;
    EXPECT_FALSE(Manifest::parse(forged([&](auto& d) { d["state"]["file"] = name; }))) << name;
  }
  EXPECT_FALSE(
      Manifest::parse(forged([](auto& d) { d["state"]["file"] = std::string("a\0b", 3); })));
  EXPECT_FALSE(
      Manifest::parse(forged([](auto& d) { d["state"]["file"] = std::string(4096, 'a'); })));
  EXPECT_FALSE(
      Manifest::parse(forged([](auto& d) { d["state"]["file"] = d["memory"][0]["file"]; })));
}

TEST(Manifest, SnapshotThatIsItsOwnParentIsRefused) {  // S23
  EXPECT_FALSE(Manifest::parse(forged([](auto& d) { d["parent"] = d["uuid"]; })));
}

TEST(Timestamp, OnlyRealTimesOfTheOneFormAreTaken) {
  const Timestamp time{1795407678, 123456789};
  EXPECT_EQ(Timestamp::parse(time.to_string()).value(), time);
  for (const char* bad : {"", "2026-02-31T00:00:00.000000000Z", "2026-11-23T04:21:18Z",
                          "2026-11-23T04:21:18.123456789+", "2026-13-01T00:00:00.000000000Z"}) {
    EXPECT_FALSE(Timestamp::parse(bad)) << bad;
  }
}

TEST(Uuid, IsRandomVersionFourAndParsesOnlyItsCanonicalForm) {
  const Uuid uuid = Uuid::random();
  EXPECT_EQ(Uuid::parse(uuid.to_string()).value(), uuid);
  EXPECT_NE(uuid, Uuid::random());
  EXPECT_EQ(uuid.to_string()[14], '4');
  for (const char* bad :
       {"", "x", "00000000-0000-0000-0000-00000000000G", "00000000-0000-0000-0000-0000000000000",
        "00000000+0000-0000-0000-000000000000"}) {
    EXPECT_FALSE(Uuid::parse(bad)) << bad;
  }
}

TEST(Host, OtherKvmKindCpuOrMajorKernelIsRefusedNamingBoth) {  // S11, S12
  const HostIdentity host{"pvm", "AuthenticAMD", 25, 1, "AMD EPYC", "6.18.0"};
  EXPECT_TRUE(check_host(host, host));
  HostIdentity other = host;
  other.kernel = "6.19.3";
  other.cpu_name = "AMD EPYC 2";
  EXPECT_TRUE(check_host(host, other));
  other.kernel = "7.0";
  EXPECT_EQ(message(check_host(host, other)),
            "snapshot was taken on Linux 6.18.0, this host has 7.0");
  other = host;
  other.kvm_kind = "svm";
  EXPECT_NE(message(check_host(host, other)).find("pvm, this host has svm"), std::string::npos);
  other = host;
  other.cpu_model = 2;
  EXPECT_FALSE(check_host(host, other));
  other = host;
  other.cpu_vendor = "GenuineIntel";
  EXPECT_FALSE(check_host(host, other));
}

TEST(BaseImage, ChangedSizeOrTimeIsRefusedNamingBoth) {  // S06
  const TemporaryDirectory directory;
  const std::string path = directory.path() + "/base.raw";
  std::ofstream(path) << "content";
  const BaseImage image = BaseImage::identify(path, "raw").value();
  EXPECT_TRUE(image.check_unchanged("since then"));

  const timeval times[2] = {{1000, 0}, {2000, 0}};
  ASSERT_EQ(::utimes(path.c_str(), times), 0);
  EXPECT_NE(message(image.check_unchanged("since then")).find("modification time was 20"),
            std::string::npos);
  std::ofstream(path) << "longer content";
  EXPECT_EQ(message(image.check_unchanged("since then")),
            fmt::format("base image \"{}\" changed since then: size was 7, is 14", path));
  std::filesystem::remove(path);
  EXPECT_FALSE(image.check_unchanged("since then"));
  std::filesystem::create_directory(path);
  EXPECT_FALSE(image.check_unchanged("since then"));
}

}  // namespace
