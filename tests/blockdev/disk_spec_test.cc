#include "blockdev/disk_spec.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace blockdev {
namespace {

using testing::HasSubstr;

TEST(DiskSpec, ReadsAllKeys) {
  const DiskSpec spec = parse_disk_spec(
                            "a,,b.qcow2,format=qcow2,mode=ro,backing=x:y.img:qcow2,"
                            "backing=base.raw:raw,backing-dir=/imgs")
                            .value();
  EXPECT_EQ(spec.path, "a,b.qcow2");
  EXPECT_EQ(spec.format, ImageFormat::qcow2);
  EXPECT_EQ(spec.mode, DiskMode::ro);
  ASSERT_EQ(spec.backing.size(), 2u);
  EXPECT_EQ(spec.backing[0].path, "x:y.img");
  EXPECT_EQ(spec.backing[1], (BackingSpec{"base.raw", ImageFormat::raw}));
  EXPECT_EQ(spec.backing_dir, "/imgs");
  EXPECT_EQ(parse_disk_spec(format_disk_spec(spec)).value(), spec);
}

TEST(DiskSpec, OverlayIsTheDefault) {
  EXPECT_EQ(parse_disk_spec("a,format=raw").value().mode, DiskMode::overlay);
}

TEST(DiskSpec, EveryModeHasANameThatReadsBack) {
  for (const DiskMode mode : {DiskMode::overlay, DiskMode::persist, DiskMode::ro}) {
    const DiskSpec spec{.path = "a", .mode = mode, .backing = {}, .backing_dir = {}};
    EXPECT_EQ(parse_disk_spec(format_disk_spec(spec)).value(), spec) << disk_mode_name(mode);
  }
}

TEST(DiskSpec, RefusesWithTheReason) {
  const std::pair<const char*, const char*> cases[] = {
      {"", "names no file"},
      {"a.img", "the format is missing"},
      {"a.img,format=vmdk", "format \"vmdk\" is not known"},
      {"a.img,format=raw,cache=none", "unknown key \"cache\""},
      {"a.img,format=raw,ro", "\"ro\" is not key=value"},
      {"a.img,format=raw,format=raw", "format= is given twice"},
      {"a.img,format=raw,mode=rw", "mode=rw"},
      {"a.img,format=raw,mode=persist,mode=ro", "mode= is given twice"},
      {"a.img,format=qcow2,backing=b.img", "does not say the format"},
      {"a.img,format=qcow2,backing-dir=", "names no directory"},
  };
  for (const auto& [text, reason] : cases) {
    const Result<DiskSpec> spec = parse_disk_spec(text);
    ASSERT_FALSE(spec) << text;
    EXPECT_THAT(spec.error().message(), HasSubstr(reason));
    EXPECT_FALSE(spec.error().hint().empty()) << text;
  }
}

}  // namespace
}  // namespace blockdev
