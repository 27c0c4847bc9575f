// `quicksave image resize`, `rebase` and `commit`: images that are there, changed as qemu-img
// changes them.

#include <algorithm>

#include "tests/native/support/image.h"

namespace native {
namespace {

TEST_F(Image, ResizeDoesWhatQemuDoes) {
  // Clusters of 512 bytes: the L1 table grows with the disk.
  for (const std::string kind :
       {"compat=1.1", "cluster_size=512", "compat=0.10", "cluster_size=16k,extended_l2=on"}) {
    SCOPED_TRACE(kind);
    shell("qemu-img create -q -f qcow2 -o " + kind + " a.qcow2 9M && " + kWrites + "a.qcow2");
    shell("cp a.qcow2 b.qcow2");
    for (const char* size : {"20M", "+1M", "100M", "-2M", "6000640", "4M", "+512", "9M"}) {
      SCOPED_TRACE(size);
      image_ok({"resize", "-f", "qcow2", "--shrink", "a.qcow2", size});
      shell(std::string("qemu-img resize -q -f qcow2 --shrink b.qcow2 ") + size);
      shell("qemu-img check -q -f qcow2 a.qcow2");
      shell("qemu-img compare -f qcow2 -F qcow2 a.qcow2 b.qcow2");
      EXPECT_EQ(shape_of("a.qcow2"), shape_of("b.qcow2"));
    }
  }
  shell("truncate -s 3M a.raw");
  image_ok({"resize", "-f", "raw", "a.raw", "+1M"});
  EXPECT_EQ(std::filesystem::file_size("a.raw"), 4u << 20);
  image_ok({"resize", "-f", "raw", "--shrink", "a.raw", "-1M"});
  EXPECT_EQ(std::filesystem::file_size("a.raw"), 3u << 20);
  expect_refused({"resize", "-f", "raw", "a.raw", "1M"}, "--shrink");
  expect_refused({"resize", "-f", "raw", "--shrink", "a.raw", "-3M"}, "-3M");
  expect_refused({"resize", "-f", "raw", "--shrink", "a.raw", "+16777215T"}, "16777215T");
  expect_refused({"resize", "-f", "raw", "a.raw", "4000001"}, "512");
  expect_refused({"resize", "a.raw", "4M"}, "never guessed");
  expect_refused({"resize", "-f", "raw", "--preallocation=full", "a.raw", "4M"}, "--preallocation");
}

// A larger overlay does not let shine through what its backing file has there.
TEST_F(Image, ResizedOverlayReadsZerosWhereItGrew) {
  shell("head -c 9M /dev/urandom >base.raw");
  shell("qemu-img create -q -f qcow2 -b base.raw -F raw a.qcow2 5M");
  expect_refused({"resize", "-f", "qcow2", "a.qcow2", "9M"}, "names inside images");
  image_ok({"resize", "-f", "qcow2", "--backing", "base.raw:raw", "a.qcow2", "9M"});
  shell("qemu-img check -q -f qcow2 a.qcow2");
  shell("qemu-io -f qcow2 -r -c 'read -q -P 0 5M 4M' a.qcow2");
  shell("qemu-img convert -f qcow2 -O raw a.qcow2 a.raw && cmp -n 5242880 a.raw base.raw");
}

TEST_F(Image, RebaseKeepsWhatTheDiskReadsAs) {
  for (const char* kind : {"compat=1.1", "cluster_size=512", "cluster_size=16k,extended_l2=on"}) {
    SCOPED_TRACE(kind);
    make_chain(shell, kind);
    shell("qemu-img convert -f qcow2 -O raw top.qcow2 expected.raw");
    shell("cp expected.raw near.raw && printf x | dd of=near.raw bs=1 seek=700000 conv=notrunc");
    shell("head -c 12M /dev/urandom >other.raw");
    for (const std::vector<std::string>& target :
         std::vector<std::vector<std::string>>{{"-b", "base.raw", "-F", "raw"},
                                               {"-b", "near.raw", "-F", "raw"},
                                               {"-b", "other.raw", "-F", "raw"},
                                               {"-b", ""}}) {
      SCOPED_TRACE(target[1]);
      std::vector<std::string> words = {"rebase", "-p", "-f", "qcow2", "--backing-dir", "."};
      words.insert(words.end(), target.begin(), target.end());
      words.push_back("top.qcow2");
      image_ok(words);
      shell("qemu-img check -q -f qcow2 top.qcow2");
      EXPECT_EQ(shape_of("top.qcow2").value("backing-filename", ""), target[1]);
      shell("qemu-img convert -f qcow2 -O raw top.qcow2 a.raw");
      EXPECT_EQ(hash_of("a.raw"), hash_of("expected.raw"));
    }
  }
}

// What a disk without a backing file does not have is zero, whatever is put below it.
TEST_F(Image, RebaseOntoAFirstBackingFileKeepsZeros) {
  shell("head -c 4M /dev/urandom >base.raw");
  for (const char* kind : {"compat=1.1", "cluster_size=512", "cluster_size=16k,extended_l2=on"}) {
    SCOPED_TRACE(kind);
    shell(std::string("qemu-img create -q -f qcow2 -o ") + kind + " a.qcow2 4M");
    shell("qemu-io -f qcow2 -c 'write -q -P 7 1M 300k' a.qcow2");
    shell("qemu-img convert -f qcow2 -O raw a.qcow2 expected.raw");
    image_ok({"rebase", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "a.qcow2"});
    shell("qemu-img check -q -f qcow2 a.qcow2");
    shell("qemu-img convert -f qcow2 -O raw a.qcow2 a.raw && cmp a.raw expected.raw");
  }
  shell("qemu-img create -q -f qcow2 -o compat=0.10 old.qcow2 4M");
  expect_refused({"rebase", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "old.qcow2"},
                 "version 2");
}

// What QEMU leaves behind the end of a disk that it makes smaller, and what we do.
TEST_F(Image, DiskThatWasSmallerGrowsByZeros) {
  for (const char* kind : {"compat=1.1", "compat=0.10", "cluster_size=16k,extended_l2=on"}) {
    for (const bool by_qemu : {false, true}) {
      SCOPED_TRACE(kind);
      shell(std::string("qemu-img create -q -f qcow2 -o ") + kind + " a.qcow2 4M");
      shell("qemu-io -f qcow2 -c 'write -q -P 7 0 4M' a.qcow2");
      if (by_qemu) {
        shell("qemu-img resize -q -f qcow2 --shrink a.qcow2 1049088");
      } else {
        image_ok({"resize", "-f", "qcow2", "--shrink", "a.qcow2", "1049088"});
      }
      image_ok({"resize", "-f", "qcow2", "a.qcow2", "3M"});
      shell("qemu-img check -q -f qcow2 a.qcow2");
      shell(
          "qemu-io -f qcow2 -r -c 'read -q -P 7 0 1049088' -c 'read -q -P 0 1049088 2096640' "
          "a.qcow2");
    }
  }
}

// Where an image in between is short, the disk reads zeros, and does so afterwards.
TEST_F(Image, CommitOverAShorterImageKeepsItsZeros) {
  shell("head -c 4M /dev/urandom >base.raw");
  shell("qemu-img create -q -f qcow2 -b base.raw -F raw mid.qcow2 1M");
  shell("qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2 4M");
  shell("qemu-io -f qcow2 -c 'write -q -P 7 2M 64k' top.qcow2");
  shell("qemu-img convert -f qcow2 -O raw top.qcow2 expected.raw");
  image_ok({"commit", "-f", "qcow2", "--backing-dir", ".", "-b", "base.raw", "top.qcow2"});
  shell("cmp base.raw expected.raw");
}

TEST_F(Image, RebaseOfTheNameAloneIsWhatQemuMakesOfIt) {
  const std::string long_name = std::string(900, 'x') + ".qcow2";
  for (const char* kind : {"compat=1.1", "compat=0.10", "cluster_size=2k"}) {
    SCOPED_TRACE(kind);
    shell(std::string("qemu-img create -q -f qcow2 -o ") + kind + " a.qcow2 9M");
    shell("cp a.qcow2 b.qcow2");
    for (const std::string name :
         {"missing.raw", "m.raw", long_name.c_str(), "another/name.raw", ""}) {
      SCOPED_TRACE(name);
      const std::string format = name.ends_with("qcow2") ? "qcow2" : "raw";
      image_ok({"rebase", "-u", "-f", "qcow2", "-b", name, "-F", format, "a.qcow2"});
      shell("qemu-img rebase -u -f qcow2 -b '" + name + "' -F " + format + " b.qcow2");
      EXPECT_EQ(shape_of("a.qcow2"), shape_of("b.qcow2"));
    }
    shell("qemu-img check -q -f qcow2 a.qcow2");
  }
  expect_refused({"rebase", "-u", "-f", "qcow2", "-b", "x", "a.qcow2"}, "never guessed");
  expect_refused({"rebase", "-u", "-f", "qcow2", "a.qcow2"}, "-b");
  expect_refused({"rebase", "-f", "qcow2", "-b", "x", "-F", "raw", "a.qcow2"}, "\"x\"");
}

TEST_F(Image, CommitPutsIntoTheBackingFileWhatQemuPutsThere) {
  for (const std::string kind :
       {"compat=1.1", "cluster_size=512", "cluster_size=16k,extended_l2=on"}) {
    for (const std::string base : {"", "base.raw"}) {
      SCOPED_TRACE(kind + " " + base);
      make_chain(shell, kind);
      shell(
          "rm -rf theirs && mkdir theirs && cp --sparse=always top.qcow2 mid.qcow2 base.raw "
          "theirs");
      shell("qemu-img convert -f qcow2 -O raw top.qcow2 expected.raw");
      std::vector<std::string> words = {"commit", "-p", "-f", "qcow2", "--backing-dir", "."};
      if (!base.empty()) words.insert(words.end(), {"-b", base});
      words.push_back("top.qcow2");
      image_ok(words);
      shell("cd theirs && qemu-img commit -q -f qcow2 " + (base.empty() ? "" : "-b " + base) +
            " top.qcow2");
      shell("qemu-img check -q -f qcow2 top.qcow2 && qemu-img check -q -f qcow2 mid.qcow2");
      shell("qemu-img convert -f qcow2 -O raw top.qcow2 a.raw");
      EXPECT_EQ(hash_of("a.raw"), hash_of("expected.raw"));
      const std::string target = base.empty() ? "mid.qcow2" : base;
      const std::string format = base.empty() ? "qcow2" : "raw";
      shell("qemu-img compare -f " + format + " -F " + format + " " + target + " theirs/" + target);
      const json ours = json::parse(qemu_img("map -f qcow2 --output=json top.qcow2").out);
      const bool has_own = std::any_of(ours.begin(), ours.end(), [](const json& part) {
        return part.value("depth", 0) == 0 && part.value("present", false);
      });
      EXPECT_EQ(has_own, !base.empty()) << "emptied, unless it was not the backing file";
    }
  }
  expect_refused({"commit", "-f", "qcow2", "--backing-dir", ".", "-b", "nobody", "top.qcow2"},
                 "nobody");
  shell("qemu-img create -q -f qcow2 alone.qcow2 1M");
  expect_refused({"commit", "-f", "qcow2", "alone.qcow2"}, "no backing file");
  expect_refused({"commit", "-f", "qcow2", "top.qcow2"}, "names inside images");
  expect_refused({"commit", "-d", "-f", "qcow2", "top.qcow2"}, "-d");
}

// Everything that can be known is looked at before the first byte is written below.
TEST_F(Image, CommitThatIsRefusedLeavesWhatLiesBelowAlone) {
  const auto refuse = [&](const std::string& damage, const std::string& named,
                          std::vector<std::string> more = {}) {
    SCOPED_TRACE(damage);
    shell("rm -rf other && mkdir other && qemu-img create -q -f qcow2 base.qcow2 1M");
    shell("qemu-io -f qcow2 -c 'write -q -P 1 0 1M' base.qcow2 && cp base.qcow2 other");
    shell("qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
    shell("qemu-io -f qcow2 -c 'write -q -P 2 0 128k' top.qcow2 && " + damage);
    const std::string before = hash_of("base.qcow2") + hash_of("other/base.qcow2");
    const std::string top = hash_of("top.qcow2");
    std::vector<std::string> words = {"commit", "-f", "qcow2", "top.qcow2"};
    if (more.empty()) more = {"--backing-dir", "."};
    words.insert(words.end(), more.begin(), more.end());
    expect_refused(words, named);
    EXPECT_EQ(hash_of("base.qcow2") + hash_of("other/base.qcow2"), before);
    EXPECT_EQ(hash_of("top.qcow2"), top);
  };
  refuse("qemu-img snapshot -c one top.qcow2", "internal snapshots");
  refuse("printf '\\2' | dd of=top.qcow2 bs=1 seek=79 conv=notrunc", "marked corrupt");
  refuse("true", "names \"base.qcow2\"", {"--backing", "other/base.qcow2:qcow2"});
  // Beside the image lies another one of that name than where it is told to look.
  refuse("true", "two files", {"--backing-dir", "other"});
  refuse("true", "two files", {"--backing-dir", "other", "-b", "base.qcow2"});
}

TEST_F(Image, NameThatLeadsToTwoFilesIsNotFollowed) {
  shell("mkdir d && qemu-img create -q -f qcow2 base.qcow2 1M");
  shell("cd d && qemu-img create -q -f qcow2 base.qcow2 1M");
  shell("cd d && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
  expect_refused({"map", "-f", "qcow2", "--backing-dir", ".", "d/top.qcow2"},
                 "/base.qcow2:qcow2 if that is the one");
  expect_refused({"rebase", "-f", "qcow2", "--backing-dir", ".", "-b", "", "d/top.qcow2"},
                 "two files");
  image_ok({"map", "-f", "qcow2", "--backing-dir", "d", "d/top.qcow2"});
  image_ok({"map", "-f", "qcow2", "--backing", "base.qcow2:qcow2", "d/top.qcow2"});
  shell("mkdir alone && mv d/top.qcow2 alone");
  image_ok({"map", "-f", "qcow2", "--backing-dir", "d", "alone/top.qcow2"});
}

// The file that the user typed, before one that the image would call so.
TEST_F(Image, CommitTakesTheNameAsItsUserSeesIt) {
  shell("mkdir d && qemu-img create -q -f qcow2 base.qcow2 1M");
  shell("cd d && qemu-img create -q -f qcow2 -b ../base.qcow2 -F qcow2 base.qcow2");
  shell("cd d && qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 top.qcow2");
  shell("qemu-io -f qcow2 -c 'write -q -P 7 0 64k' d/top.qcow2");
  const std::string between = hash_of("d/base.qcow2");
  image_ok({"commit", "-f", "qcow2", "--backing", "d/base.qcow2:qcow2", "--backing",
            "base.qcow2:qcow2", "-b", "base.qcow2", "d/top.qcow2"});
  EXPECT_EQ(hash_of("d/base.qcow2"), between);
  shell("qemu-io -r -f qcow2 -c 'read -q -P 7 0 64k' base.qcow2");
}

TEST_F(Image, MarkOfCorruptionIsNotTakenAwayInPassing) {
  shell("qemu-img create -q -f qcow2 a.qcow2 1M");
  shell("printf '\\2' | dd of=a.qcow2 bs=1 seek=79 conv=notrunc");
  const std::string before = hash_of("a.qcow2");
  expect_refused({"resize", "--shrink", "-f", "qcow2", "a.qcow2", "512k"}, "marked corrupt");
  expect_refused({"rebase", "-u", "-f", "qcow2", "-b", "", "a.qcow2"}, "marked corrupt");
  EXPECT_EQ(hash_of("a.qcow2"), before);
}

// By a name that no reader takes, an image would be lost.
TEST_F(Image, BackingNameThatCannotBeReadIsNotWritten) {
  shell("qemu-img create -q -f qcow2 base.qcow2 1M");
  shell("qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 a.qcow2");
  const std::string before = hash_of("a.qcow2");
  std::string longest;
  for (int i = 0; i < 512; ++i) longest += "./";
  longest += "base.qcow2";
  shell("cp base.qcow2 $(printf 'c\\033')");
  for (const auto& [name, named] : std::vector<std::pair<std::string, std::string>>{
           {longest, "at most 1023"}, {"c\033", "not plain text"}}) {
    expect_refused({"rebase", "-u", "-f", "qcow2", "-b", name, "-F", "qcow2", "a.qcow2"}, named);
    expect_refused({"rebase", "-f", "qcow2", "--backing", "base.qcow2:qcow2", "-b", name, "-F",
                    "qcow2", "a.qcow2"},
                   named);
    expect_refused({"create", "-u", "-f", "qcow2", "-b", name, "-F", "qcow2", "new.img", "1M"},
                   named);
  }
  EXPECT_EQ(hash_of("a.qcow2"), before);
}

TEST_F(Image, EmptyNameIsNoName) {
  shell("qemu-img create -q -f qcow2 base.qcow2 1M");
  shell("qemu-img create -q -f qcow2 -b base.qcow2 -F qcow2 a.qcow2");
  expect_refused({"create", "-f", "qcow2", "-b", "", "new.img", "1M"}, "empty");
  expect_refused({"commit", "-f", "qcow2", "--backing-dir", ".", "-b", "", "a.qcow2"}, "empty");
  expect_refused({"convert", "-f", "qcow2", "-O", "qcow2", "-B", "", "base.qcow2", "new.img"},
                 "empty");
}

TEST_F(Image, CommitKnowsNamesAsTheImagesSpellThem) {
  shell(
      "mkdir s && cd s && qemu-img create -q -f qcow2 base.qcow2 1M && "
      "qemu-img create -q -f qcow2 -b ./base.qcow2 -F qcow2 mid.qcow2 && "
      "qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2 && "
      "qemu-io -f qcow2 -c 'write -q -P 7 0 64k' top.qcow2");
  for (const char* name : {"base.qcow2", "s/base.qcow2", "./s/base.qcow2", "./base.qcow2"}) {
    SCOPED_TRACE(name);
    image_ok({"commit", "-f", "qcow2", "--backing-dir", "s", "-b", name, "s/top.qcow2"});
  }
  shell("qemu-io -r -f qcow2 -c 'read -q -P 7 0 64k' s/base.qcow2");
}

}  // namespace
}  // namespace native
