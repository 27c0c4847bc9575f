// `quicksave image` beside qemu-img: the same words give the same JSON and the same status.

#include <unistd.h>

#include <algorithm>

#include "tests/native/support/image.h"

namespace native {
namespace {

// One of each kind that differs in what is told of it.
constexpr const char* kKinds[] = {
    "compat=1.1",
    "preallocation=falloc",
    "preallocation=full,cluster_size=16k,extended_l2=on",
    "compat=0.10",
    "cluster_size=512",
    "cluster_size=2M,extended_l2=on",
    "lazy_refcounts=on,refcount_bits=8",
    "compression_type=zstd,cluster_size=4k",
    "preallocation=metadata",
};

TEST_F(Image, InfoTellsWhatQemuTells) {
  shell("qemu-img create -q -f raw base.raw 9M");
  for (const std::string kind : kKinds) {
    SCOPED_TRACE(kind);
    shell("qemu-img create -q -f qcow2 -o " + kind + " a.qcow2 9M");
    shell("qemu-io -f qcow2 -c 'write -q 1M 2M' a.qcow2");
    expect_same_json(image({"info", "-f", "qcow2", "--output=json", "a.qcow2"}),
                     qemu_img("info -f qcow2 --output=json a.qcow2"));
  }
  expect_same_json(image({"info", "-f", "raw", "--output=json", "base.raw"}),
                   qemu_img("info -f raw --output=json base.raw"));
  shell("qemu-img create -q -f qcow2 -b a.qcow2 -F qcow2 top.qcow2");
  shell("qemu-img rebase -u -f qcow2 -b base.raw -F raw a.qcow2");
  expect_same_json(image({"info", "-f", "qcow2", "--output=json", "--backing-chain",
                          "--backing-dir", ".", "top.qcow2"}),
                   qemu_img("info -f qcow2 --output=json --backing-chain top.qcow2"));
}

TEST_F(Image, ChainIsNotFollowedUnlessAllowed) {
  shell("qemu-img create -q -f raw base.raw 9M");
  shell("qemu-img create -q -f qcow2 -b base.raw -F raw top.qcow2");
  const CommandResult refused = image({"info", "-f", "qcow2", "--backing-chain", "top.qcow2"});
  EXPECT_EQ(refused.status, 1);
  EXPECT_NE(refused.err.find("names inside images are not followed"), std::string::npos);
  EXPECT_NE(refused.err.find("--backing"), std::string::npos) << refused.err;
  EXPECT_EQ(
      image({"info", "-f", "qcow2", "--backing-chain", "--backing", "base.raw:raw", "top.qcow2"})
          .status,
      0);
}

TEST_F(Image, CheckFindsWhatQemuFinds) {
  shell("qemu-img create -q -f qcow2 a.qcow2 9M");
  shell("qemu-io -f qcow2 -c 'write -q 1M 2M' a.qcow2");
  const std::vector<std::string> check = {"check", "-f", "qcow2", "--output=json", "a.qcow2"};
  expect_same_json(image(check), qemu_img("check -f qcow2 --output=json a.qcow2"));
  // A leak: the refcount of a cluster that nobody uses.
  shell("truncate -s 4M a.qcow2; printf '\\0\\1' | dd of=a.qcow2 bs=1 seek=131152 conv=notrunc");
  expect_same_json(image(check), qemu_img("check -f qcow2 --output=json a.qcow2"));
  EXPECT_EQ(image(check).status, 3);
  // A corruption: the refcount of the header.
  shell("printf '\\0\\0' | dd of=a.qcow2 bs=1 seek=131072 conv=notrunc");
  expect_same_json(image(check), qemu_img("check -f qcow2 --output=json a.qcow2"));
  EXPECT_EQ(image(check).status, 2);
  EXPECT_EQ(image({"check", "-f", "raw", "a.qcow2"}).status, 63);
  EXPECT_EQ(image({"check", "-f", "qcow2", "missing.qcow2"}).status, 1);
}

TEST_F(Image, CheckRepairsWhatQemuRepairs) {
  const auto damage = [](const std::string& file) {
    shell("qemu-img create -q -f qcow2 " + file + " 9M");
    shell("qemu-io -f qcow2 -c 'write -q 1M 2M' " + file);
    // A leak, and a COPIED flag that is missing in the L1 table.
    shell("truncate -s 4M " + file);
    shell("printf '\\0\\1' | dd bs=1 seek=131152 conv=notrunc of=" + file);
    shell("printf '\\0' | dd bs=1 seek=196608 conv=notrunc of=" + file);
  };
  for (const std::string scope : {"leaks", "all"}) {
    damage("a.qcow2");
    const CommandResult ours =
        image({"check", "-f", "qcow2", "-r", scope, "--output=json", "a.qcow2"});
    damage("a.qcow2");
    expect_same_json(ours, qemu_img("check -f qcow2 -r " + scope + " --output=json a.qcow2"));
  }
  damage("a.qcow2");
  EXPECT_EQ(image({"check", "-f", "qcow2", "a.qcow2"}).status, 2);
  image_ok({"check", "-f", "qcow2", "-r", "all", "a.qcow2"});
  shell("qemu-img check -f qcow2 a.qcow2");
  expect_refused({"check", "-f", "qcow2", "-r", "some", "a.qcow2"}, "some");
}

TEST_F(Image, FormatIsNeverGuessed) {
  shell("qemu-img create -q -f qcow2 a.qcow2 1M");
  for (const char* verb : {"info", "check"}) {
    const CommandResult refused = image({verb, "a.qcow2"});
    EXPECT_EQ(refused.status, 1);
    EXPECT_NE(refused.err.find("never guessed"), std::string::npos) << refused.err;
  }
}

TEST_F(Image, OptionThatIsNotKnownIsNamed) {
  for (const char* option : {"--object", "-T", "-U", "--image-opts", "--force-share"}) {
    const CommandResult refused = image({"check", option, "-f", "qcow2", "a.qcow2"});
    EXPECT_EQ(refused.status, 1);
    EXPECT_NE(refused.err.find(option), std::string::npos) << refused.err;
  }
}

// --- create ---

TEST_F(Image, CreateMakesWhatQemuMakes) {
  shell("qemu-img create -q -f raw base.raw 5M");
  const struct {
    std::vector<std::string> ours;
    const char* theirs;
  } cases[] = {
      {{"a.img", "9M"}, "a.img 9M"},
      {{"a.img", "1000"}, "a.img 1000"},
      {{"-o", "cluster_size=512", "a.img", "1M"}, "-o cluster_size=512 a.img 1M"},
      {{"-o", "cluster_size=2M,extended_l2=on", "-o", "size=1T", "a.img"},
       "-o cluster_size=2M,extended_l2=on,size=1T a.img"},
      {{"-o", "compat=1.1,lazy_refcounts=off,extended_l2=off", "a.img", "1M"}, "a.img 1M"},
      {{"-b", "base.raw", "-F", "raw", "a.img"}, "-b base.raw -F raw a.img"},
      {{"-b", "base.raw", "-F", "raw", "a.img", "7M"}, "-b base.raw -F raw a.img 7M"},
      {{"-o", "backing_file=base.raw,backing_fmt=raw", "a.img"}, "-b base.raw -F raw a.img"},
      {{"-u", "-b", "none", "-F", "qcow2", "a.img", "3G"}, "-u -b none -F qcow2 a.img 3G"},
  };
  for (const auto& test : cases) {
    SCOPED_TRACE(test.theirs);
    std::vector<std::string> words = {"create", "-f", "qcow2"};
    words.insert(words.end(), test.ours.begin(), test.ours.end());
    image_ok(words);
    const json ours = shape_of("a.img");
    if (std::string(test.theirs).find("-u") == std::string::npos) {
      shell("qemu-img check -f qcow2 a.img");
      shell("qemu-io -f qcow2 -c 'write -q -P 3 0 1k' a.img");
      shell("qemu-img check -f qcow2 a.img");
    }
    shell(std::string("qemu-img create -q -f qcow2 ") + test.theirs);
    EXPECT_EQ(ours, shape_of("a.img"));
  }
  image_ok({"create", "-f", "raw", "a.raw", "1000"});
  EXPECT_EQ(std::filesystem::file_size("a.raw"), 1024u);
  image_ok({"create", "-f", "raw", "-o", "size=3M", "a.raw"});
  EXPECT_EQ(std::filesystem::file_size("a.raw"), 3u << 20);
}

// The backing file's own backing file is neither needed nor opened.
TEST_F(Image, CreateLooksAtNoMoreThanTheBackingFile) {
  shell("qemu-img create -q -u -f qcow2 -b missing -F qcow2 base.qcow2 7M");
  image_ok({"create", "-f", "qcow2", "-b", "base.qcow2", "-F", "qcow2", "new.img"});
  EXPECT_EQ(json::parse(image({"info", "-f", "qcow2", "--output=json", "new.img"}).out)
                .value("virtual-size", 0),
            7 << 20);
}

// The name is relative to the new image, not to where the command was given.
TEST_F(Image, CreateFindsTheBackingFileBesideTheImage) {
  shell("mkdir sub && qemu-img create -q -f raw sub/base.raw 5M");
  image_ok({"create", "-f", "qcow2", "-b", "base.raw", "-F", "raw", "sub/a.qcow2"});
  EXPECT_EQ(shape_of("sub/a.qcow2").value("backing-filename", ""), "base.raw");
}

TEST_F(Image, CreateRefusesWhatMakesNoSense) {
  shell("qemu-img create -q -f raw base.raw 5M");
  const std::vector<std::string> start = {"create", "-f", "qcow2", "new.img", "1M"};
  const auto with = [&](std::vector<std::string> more) {
    more.insert(more.begin(), start.begin(), start.end());
    return more;
  };
  expect_refused({"create", "new.img", "1M"}, "never guessed");
  expect_refused({"create", "-f", "vmdk", "new.img", "1M"}, "vmdk");
  expect_refused({"create", "-f", "qcow2", "new.img"}, "size");
  expect_refused({"create", "-f", "qcow2", "new.img", "0"}, "size 0");
  expect_refused({"create", "-f", "qcow2", "new.img", "2P"}, "2P");
  expect_refused({"create", "-f", "qcow2", "-o", "size=1M", "new.img", "1M"}, "twice");
  expect_refused(with({"-o", "cluster_size=3k"}), "cluster_size");
  expect_refused(with({"-o", "cluster_size=256"}), "cluster size");
  expect_refused(with({"-o", "cluster_size=8k,extended_l2=on"}), "extended_l2");
  expect_refused(with({"-o", "compat=0.10"}), "compat=0.10");
  expect_refused(with({"-o", "lazy_refcounts=on"}), "lazy_refcounts=on");
  expect_refused(with({"-o", "preallocation=full"}), "preallocation");
  expect_refused(with({"-o", "refcount_bits=1"}), "refcount_bits");
  expect_refused(with({"-o", "encryption=on"}), "encryption");
  expect_refused(with({"-o", "help"}), "help");
  expect_refused(with({"-b", "base.raw"}), "never guessed");
  expect_refused(with({"-F", "raw"}), "-F without a backing file");
  expect_refused(with({"-b", "missing", "-F", "raw"}), "missing");
  expect_refused(with({"-b", "nbd:x", "-F", "raw"}), "nbd:x");
  expect_refused(with({"-b", "new.img", "-F", "qcow2"}), "new.img");
  expect_refused(with({"--object", "x"}), "--object");
  expect_refused(with({"-q"}), "-q");
  expect_refused({"create", "-f", "raw", "-b", "base.raw", "-F", "raw", "new.img", "1M"},
                 "a raw image has no backing file");
  expect_refused({"create", "-f", "raw", "-o", "cluster_size=4k", "new.img", "1M"}, "cluster_size");
  const std::string before = hash_of("base.raw");
  expect_refused({"create", "-f", "qcow2", "-b", "./base.raw", "-F", "raw", "base.raw"},
                 "own target");
  EXPECT_EQ(hash_of("base.raw"), before);
}

TEST_F(Image, CreateLeavesAnImageInUseAlone) {
  shell("qemu-img create -q -f qcow2 a.qcow2 5M");
  const std::string before = hash_of("a.qcow2");
  // qemu-io holds the lock until its standard input ends.
  std::FILE* holder = ::popen("qemu-io -f qcow2 a.qcow2 >/dev/null", "w");
  ASSERT_NE(holder, nullptr);
  std::fputs("write 0 512\n", holder);
  std::fflush(holder);
  for (int i = 0; i < 200 && image({"info", "-f", "qcow2", "a.qcow2"}).status == 0; ++i) {
    ::usleep(20'000);
  }
  expect_refused({"create", "-f", "qcow2", "a.qcow2", "1M"}, "is locked by");
  ::pclose(holder);
  EXPECT_EQ(shape_of("a.qcow2").value("virtual-size", 0), 5 << 20);
}

TEST_F(Image, MapTellsWhatQemuTells) {
  for (const char* kind : {"compat=1.1", "compat=0.10", "cluster_size=512",
                           "cluster_size=16k,extended_l2=on", "cluster_size=2M"}) {
    SCOPED_TRACE(kind);
    make_chain(shell, kind);
    expect_same_json(
        image({"map", "-f", "qcow2", "--output=json", "--backing-dir", ".", "top.qcow2"}),
        qemu_img("map -f qcow2 --output=json top.qcow2"));
    EXPECT_EQ(image({"map", "-f", "qcow2", "--backing-dir", ".", "top.qcow2"}).out,
              qemu_img("map -f qcow2 top.qcow2").out);
  }
  expect_same_json(image({"map", "-f", "raw", "--output=json", "base.raw"}),
                   qemu_img("map -f raw --output=json base.raw"));
  shell("qemu-img convert -c -f raw -O qcow2 base.raw packed.qcow2");
  expect_same_json(image({"map", "-f", "qcow2", "--output=json", "packed.qcow2"}),
                   qemu_img("map -f qcow2 --output=json packed.qcow2"));
  EXPECT_EQ(image({"map", "-f", "qcow2", "packed.qcow2"}).status, 1);
  expect_refused({"map", "-f", "qcow2", "top.qcow2"}, "names inside images are not followed");
}

TEST_F(Image, CompareFindsTheFirstDifference) {
  make_chain(shell, "compat=1.1");
  shell("qemu-img convert -f qcow2 -O raw top.qcow2 flat.raw");
  const std::vector<std::string> compare = {"compare",       "-f", "qcow2",     "-F",      "raw",
                                            "--backing-dir", ".",  "top.qcow2", "flat.raw"};
  EXPECT_EQ(image(compare).status, 0);
  EXPECT_EQ(image(compare).out, "Images are identical.\n");
  shell("truncate -s 12M flat.raw");
  EXPECT_EQ(image(compare).status, 0);
  EXPECT_EQ(image(compare).out, qemu_img("compare -f qcow2 -F raw top.qcow2 flat.raw").out);
  for (const char* offset : {"11534335", "7000000", "1600000", "0"}) {
    shell(std::string("printf x | dd of=flat.raw bs=1 conv=notrunc seek=") + offset);
    EXPECT_EQ(image(compare).status, 1);
    EXPECT_EQ(image(compare).out, qemu_img("compare -f qcow2 -F raw top.qcow2 flat.raw").out);
  }
  expect_refused({"compare", "-f", "raw", "-F", "raw", "flat.raw", "missing"}, "missing", 2);
  expect_refused({"compare", "-f", "raw", "flat.raw", "flat.raw"}, "never guessed", 2);
}

TEST_F(Image, ConvertReadsEveryKindThatQemuMakes) {
  shell("qemu-img create -q -f qcow2 start.qcow2 9M && " + std::string(kWrites) + "start.qcow2");
  shell("qemu-img convert -f qcow2 -O raw start.qcow2 expected.raw");
  const std::string expected = hash_of("expected.raw");
  for (const std::string options :
       {"-o compat=0.10", "-o compat=1.1", "-o cluster_size=512", "-o cluster_size=4k",
        "-o cluster_size=2M", "-o cluster_size=16k,extended_l2=on",
        "-o cluster_size=2M,extended_l2=on", "-c", "-c -o compression_type=zstd",
        "-c -o compression_type=zstd,cluster_size=2M", "-c -o cluster_size=512",
        "-c -o compat=0.10", "-o preallocation=metadata", "-o preallocation=falloc",
        "-o preallocation=full", "-o lazy_refcounts=on", "-o refcount_bits=1",
        "-o refcount_bits=64", "-S 0"}) {
    SCOPED_TRACE(options);
    shell("qemu-img convert -f raw -O qcow2 " + options + " expected.raw a.qcow2");
    image_ok({"convert", "-f", "qcow2", "-O", "raw", "a.qcow2", "a.raw"});
    EXPECT_EQ(hash_of("a.raw"), expected);
  }
  make_chain(shell, "compat=1.1");
  shell("qemu-img convert -f qcow2 -O raw top.qcow2 expected.raw");
  image_ok({"convert", "-f", "qcow2", "--backing", "mid.qcow2:qcow2", "--backing", "base.raw:raw",
            "top.qcow2", "a.raw"});
  EXPECT_EQ(hash_of("a.raw"), hash_of("expected.raw"));
}

TEST_F(Image, ConvertWritesWhatQemuReadsTheSame) {
  make_chain(shell, "compat=1.1");
  shell("qemu-img convert -f qcow2 -O raw top.qcow2 expected.raw");
  const auto check_target = [&](std::vector<std::string> more) {
    SCOPED_TRACE(more.empty() ? "" : more.back());
    std::vector<std::string> words = {"convert",       "-p", "-f", "qcow2", "-O", "qcow2",
                                      "--backing-dir", "."};
    words.insert(words.end(), more.begin(), more.end());
    words.insert(words.end(), {"top.qcow2", "a.qcow2"});
    const CommandResult result = image(words);
    EXPECT_EQ(result.status, 0) << result.err;
    EXPECT_NE(result.err.find("(100.00/100%)"), std::string::npos);
    shell("qemu-img check -q -f qcow2 a.qcow2");
    shell("qemu-img convert -f qcow2 -O raw a.qcow2 a.raw");
    EXPECT_EQ(hash_of("a.raw"), hash_of("expected.raw"));
  };
  check_target({});
  check_target({"-o", "cluster_size=512"});
  check_target({"-o", "cluster_size=4k"});
  check_target({"-o", "cluster_size=2M"});
  check_target({"-o", "cluster_size=16k,extended_l2=on"});
  check_target({"-o", "cluster_size=2M,extended_l2=on"});
  check_target({"-S", "0"});
  check_target({"-S", "64k"});
  const auto bytes = [] { return std::filesystem::file_size("a.qcow2"); };
  check_target({"-S", "0"});
  EXPECT_GT(bytes(), 9u << 20);
  // Above a backing file, only what differs from it.
  check_target({"-B", "mid.qcow2", "-F", "qcow2"});
  EXPECT_LT(bytes(), 3u << 20);
  check_target({"-B", "base.raw", "-F", "raw"});
  check_target({"-o", "backing_file=base.raw,backing_fmt=raw,cluster_size=16k,extended_l2=on"});
  // One that has nothing to do with the source.
  shell("head -c 11M /dev/urandom >other.raw");
  check_target({"-B", "other.raw", "-F", "raw"});
  check_target({"-B", "other.raw", "-F", "raw", "-o", "cluster_size=128k,extended_l2=on"});
  // One that is almost the source.
  shell("cp expected.raw near.raw && printf x | dd of=near.raw bs=1 seek=5000000 conv=notrunc");
  check_target({"-B", "near.raw", "-F", "raw"});
  EXPECT_LT(bytes(), 1u << 20);
}

TEST_F(Image, ConvertIntoARawImageThatIsThere) {
  make_chain(shell, "compat=1.1");
  shell("qemu-img convert -f qcow2 -O raw top.qcow2 expected.raw");
  shell("head -c 10M /dev/urandom >a.raw; tail -c 1M a.raw >tail.raw");
  const std::vector<std::string> convert = {
      "convert", "-n", "-f", "qcow2", "-O", "raw", "--backing-dir", ".", "top.qcow2", "a.raw"};
  image_ok(convert);
  shell("cat expected.raw tail.raw | cmp - a.raw");
  shell("truncate -s 8M a.raw");
  expect_refused(convert, "8388608 bytes");
  expect_refused({"convert", "-n", "-f", "raw", "a.raw", "missing"}, "missing");
}

// Nothing remains of a copy that failed; what was there before is not lost to a slip.
TEST_F(Image, ConvertThatFailsLeavesNothing) {
  shell("qemu-img create -q -f qcow2 a.qcow2 9M && " + std::string(kWrites) + "a.qcow2");
  // The first L2 entry points at no cluster's start.
  shell("printf '\\002' | dd of=a.qcow2 bs=1 seek=262150 conv=notrunc");
  expect_refused({"convert", "-f", "qcow2", "-O", "qcow2", "a.qcow2", "new.img"}, "L2 entry");
  expect_refused({"convert", "-f", "qcow2", "-O", "qcow2", "a.qcow2", "a.qcow2"}, "own target");
  expect_refused({"convert", "-f", "raw", "-O", "qcow2", "-S", "100", "a.qcow2", "new.img"}, "-S");
  expect_refused({"convert", "-f", "raw", "-O", "vdi", "a.qcow2", "new.img"}, "vdi");
  expect_refused({"convert", "-O", "qcow2", "a.qcow2", "new.img"}, "never guessed");
  for (const char* option :
       {"-c", "-C", "-W", "--salvage", "--bitmaps", "--target-is-zero", "-m"}) {
    expect_refused({"convert", option, "-f", "raw", "a.qcow2", "new.img"}, option);
  }
}

// --- convert -n into qcow2, resize, rebase, commit ---

TEST_F(Image, ConvertIntoAQcow2ImageThatIsThere) {
  make_chain(shell, "compat=1.1");
  shell("qemu-img convert -f qcow2 -O raw top.qcow2 expected.raw");
  for (const std::string options : {"-o cluster_size=4k", "-o cluster_size=128k,extended_l2=on"}) {
    SCOPED_TRACE(options);
    shell("qemu-img create -q -f qcow2 " + options + " a.qcow2 9M");
    shell("qemu-io -f qcow2 -c 'write -q -P 99 2M 7M' a.qcow2");
    image_ok({"convert", "-n", "-f", "qcow2", "-O", "qcow2", "--backing-dir", ".", "top.qcow2",
              "a.qcow2"});
    shell("qemu-img check -q -f qcow2 a.qcow2");
    shell("qemu-img convert -f qcow2 -O raw a.qcow2 a.raw");
    EXPECT_EQ(hash_of("a.raw"), hash_of("expected.raw"));
  }
  shell("qemu-img create -q -f qcow2 a.qcow2 8M");
  expect_refused(
      {"convert", "-n", "-f", "qcow2", "-O", "qcow2", "--backing-dir", ".", "top.qcow2", "a.qcow2"},
      "8388608 bytes");
}

}  // namespace
}  // namespace native
