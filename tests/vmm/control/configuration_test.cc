// Everything that is parsed: JSON, sizes, names, configurations, the kernel command line.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "vmm/control/json_reader.h"
#include "vmm/control/machine_config.h"
#include "vmm/control/size_text.h"
#include "vmm/control/verbs.h"
#include "vmm/control/vm_directory.h"

namespace control {
namespace {

using nlohmann::json;

MachineConfig some_config() {
  MachineConfig config;
  config.kernel = "/boot/vmlinuz";
  config.initrd = "/boot/initrd";
  config.append = "console=ttyS0 \"quoted\"";
  config.memory_bytes = 3 * base::kGiB;
  config.cpus = 4;
  config.disks = {"/a,,b.qcow2,format=qcow2,mode=ro", "/c.img,format=raw"};
  config.on_enospc = NoSpacePolicy::error;
  return config;
}

TEST(MachineConfig, SurvivesItsJson) {
  const Result<MachineConfig> back = MachineConfig::from_json(some_config().to_json());
  ASSERT_TRUE(back) << back.error().message();
  EXPECT_EQ(*back, some_config());
}

TEST(MachineConfig, NamesTheUnknownKey) {
  json value = some_config().to_json();
  value["memry_bytes"] = 1;
  const Result<MachineConfig> result = MachineConfig::from_json(value);
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().kind(), ErrorKind::usage);
  EXPECT_NE(result.error().message().find("config.memry_bytes"), std::string::npos);
}

TEST(MachineConfig, RefusesWhatIsOutsideTheLimits) {
  const std::pair<const char*, json> bad[] = {
      {"cpus", 0},
      {"cpus", 65},
      {"cpus", -1},
      {"cpus", "1"},
      {"cpus", 1.5},
      {"cpus", json::parse("18446744073709551616")},
      {"memory_bytes", 0},
      {"memory_bytes", 65 * base::kGiB},
      {"memory_bytes", 3 * base::kMiB + 1},
      {"memory_bytes", json::parse("1e300")},
      {"kernel", ""},
      {"kernel", "relative"},
      {"kernel", 7},
      {"kernel", std::string("/a\0b", 4)},
      {"append", "a\nb"},
      {"append", std::string(2048, 'x')},
      {"disks", "x"},
      {"disks", json::array({"/a"})},
      {"disks", json::array({"rel,format=raw"})},
      {"disks", json(std::vector<std::string>(13, "/a,format=raw"))},
      {"on_enospc", "panic"},
  };
  for (const auto& [key, value] : bad) {
    json config = some_config().to_json();
    config[key] = value;
    const Result<MachineConfig> result = MachineConfig::from_json(config);
    EXPECT_FALSE(result) << key << " = " << value.dump();
  }
}

TEST(MachineConfig, NeedsAKernel) {
  EXPECT_FALSE(MachineConfig::from_json(json::object()));
  EXPECT_FALSE(MachineConfig::from_json(json::array()));
}

TEST(Json, RefusesWhatTheLibraryWouldTake) {
  const std::string texts[] = {R"({"a":1,"a":2})",
                               "{} trailing",
                               "\xef\xbb\xbf{}",
                               "{\"a\":\"\xff\"}",
                               "{\"a\":NaN}",
                               "{\"a\":1e309}",
                               "",
                               "{",
                               std::string(100000, '['),
                               R"({"a":{"b":1,"b":1}})"};
  for (const std::string& text : texts) {
    EXPECT_FALSE(parse_json("text", text)) << text.substr(0, 40);
  }
  EXPECT_TRUE(parse_json("text", R"({"a":{"x":1},"b":{"x":1}})"));
}

TEST(Size, ReadsWhatPeopleWrite) {
  EXPECT_EQ(*parse_size("x", "512M", 1), 512 * base::kMiB);
  EXPECT_EQ(*parse_size("x", "2G", 1), 2 * base::kGiB);
  EXPECT_EQ(*parse_size("x", "4k", 1), 4096u);
  EXPECT_EQ(*parse_size("x", "256", base::kMiB), 256 * base::kMiB);
}

TEST(Size, RefusesGarbageAndWrap) {
  for (const char* text : {"", "M", "-1", "+1", " 1", "1 M", "1MM", "1.5G", "1e3", "0x10", "1P",
                           "18446744073709551616", "17592186044416M", "99999999999T"}) {
    EXPECT_FALSE(parse_size("x", text, 1)) << text;
  }
}

TEST(Size, IsWrittenBackExactly) {
  EXPECT_EQ(format_size(2 * base::kGiB), "2G");
  EXPECT_EQ(format_size(1536 * base::kMiB), "1536M");
  EXPECT_EQ(format_size(1000), "1000");
  EXPECT_EQ(format_size(0), "0");
  EXPECT_EQ(human_size(1), "1 B");
  EXPECT_EQ(human_size(1536 * base::kKiB), "1.5 MiB");
  EXPECT_EQ(human_size(2 * base::kGiB), "2.0 GiB");
}

TEST(Name, IsAPlainFileName) {
  for (const char* name : {"t", "a.b-c_9", "vm-3f9a2c"})
    EXPECT_TRUE(check_name("VM", name)) << name;
  const std::string bad[] = {"",
                             ".",
                             "..",
                             "a/b",
                             "-a",
                             ".a",
                             "a b",
                             "\xc3\xa4",
                             std::string(65, 'a'),
                             std::string(300, 'a'),
                             std::string("a\0b", 3)};
  for (const std::string& name : bad) EXPECT_FALSE(check_name("VM", name)) << name;
}

TEST(Name, GeneratedOnesAreValidAndDiffer) {
  EXPECT_TRUE(check_name("VM", generate_name()));
  EXPECT_NE(generate_name(), generate_name());
}

TEST(SnapshotReference, IsTwoNames) {
  const Result<SnapshotReference> good = parse_snapshot_reference("t@clean");
  ASSERT_TRUE(good);
  EXPECT_EQ(good->vm, "t");
  EXPECT_EQ(good->name, "clean");
  for (const char* text : {"", "t", "@", "t@", "@x", "t@../x", "a@b@c"}) {
    EXPECT_FALSE(parse_snapshot_reference(text)) << text;
  }
}

TEST(KernelCommandLine, KeepsTheConsoleUnlessTheUserNamesOne) {
  EXPECT_EQ(kernel_command_line(""), "console=ttyS0 panic=-1");
  EXPECT_EQ(kernel_command_line("root=/dev/vda rw"), "console=ttyS0 panic=-1 root=/dev/vda rw");
  EXPECT_EQ(kernel_command_line("quiet console=ttyS1"), "panic=-1 quiet console=ttyS1");
}

}  // namespace
}  // namespace control
