// The copy of memory, its file, and putting it back, each against plain arrays.

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <cstring>
#include <random>

#include "snapshot/pages.h"
#include "tests/snapshot/support/fixture.h"

namespace {

using namespace snapshot;
using namespace snapshot_test;
using memory::GuestMemory;
using memory::PageSet;

// 513 pages more than two chunks: the last chunk is short, the last word of a PageSet too.
constexpr u64 kPages = 2 * 512 + 513;
constexpr u64 kBytes = kPages * base::kPageBytes;

void fill_page(GuestMemory& memory, u64 page, u64 seed) {
  std::mt19937_64 random(seed * 1'000'003 + page);
  u8* const to = memory.quiet_ram().data() + page * base::kPageBytes;
  for (u64 i = 0; i < base::kPageBytes; i += 8) {
    const u64 value = random();
    std::memcpy(to + i, &value, sizeof value);
  }
}

std::shared_ptr<const MemoryImage> copy(GuestMemory& memory, PageSet pages,
                                        std::shared_ptr<const MemoryImage> base = nullptr) {
  CopyBuffer buffer = CopyBuffer::prepare(memory.size_bytes(), pages.count()).value();
  return copy_memory(memory, std::move(pages), std::move(buffer), std::move(base)).value();
}

bool same(const MemoryImage& image, const std::vector<u8>& bytes) {
  for (u64 page = 0; page < image.page_count(); ++page) {
    if (std::memcmp(image.page(page), bytes.data() + page * base::kPageBytes, base::kPageBytes) !=
        0) {
      return false;
    }
  }
  return true;
}

std::vector<u8> bytes_of(GuestMemory& memory) {
  return {memory.quiet_ram().begin(), memory.quiet_ram().end()};
}

TEST(MemoryCopy, HasEveryTouchedPageAndSkipsTheOthers) {
  auto memory = GuestMemory::create(kBytes).value();
  for (const u64 page : {u64{0}, u64{63}, u64{64}, u64{65}, u64{700}, kPages - 1}) {
    fill_page(*memory, page, 1);
  }
  const PageSet pages = populated_pages(*memory, RamOrigin::zeros);
  EXPECT_TRUE(pages.contains(700));
  const auto image = copy(*memory, pages);
  const std::vector<u8> then = bytes_of(*memory);
  fill_page(*memory, 0, 2);
  EXPECT_TRUE(same(*image, then));
  EXPECT_EQ(image->copied_bytes(), pages.count() * base::kPageBytes);
}

TEST(MemoryCopy, UntouchedMemoryIsNotCopied) {
  auto memory = GuestMemory::create(64 * base::kMiB).value();
  ::madvise(memory->quiet_ram().data(), memory->size_bytes(), MADV_NOHUGEPAGE);
  fill_page(*memory, 9, 1);
  EXPECT_EQ(populated_pages(*memory, RamOrigin::zeros).count(), 1u);
}

TEST(MemoryCopy, PagesInSwapAreThere) {
  // Without swap the advice leaves the page where it is; either way it must be in the set.
  auto memory = GuestMemory::create(kBytes).value();
  fill_page(*memory, 9, 1);
  ::madvise(memory->quiet_ram().data(), memory->size_bytes(), MADV_PAGEOUT);
  EXPECT_TRUE(populated_pages(*memory, RamOrigin::zeros).contains(9));
}

TEST(MemoryCopy, MemoryThatBeganAsAFileIsTakenWhole) {
  const TemporaryDirectory directory;
  auto first = GuestMemory::create(kBytes).value();
  fill_page(*first, 3, 1);
  const base::Fd fd = base::open_file(directory.path(), O_RDONLY | O_DIRECTORY).value();
  const MemoryLayer layer =
      write_memory_file(fd, *copy(*first, populated_pages(*first, RamOrigin::zeros))).value();
  const base::Fd file = open_memory_file(fd, layer).value();
  auto second = GuestMemory::create_from_file(file, kBytes, data_parts(fd, layer).value()).value();
  const auto image = copy(*second, populated_pages(*second, RamOrigin::file));
  EXPECT_TRUE(same(*image, bytes_of(*first)));
}

// On tmpfs a fault in a hole takes a page of the file system, for reading too.
TEST(MemoryCopy, GuestThatTouchesZerosDoesNotFillTheFile) {
  const TemporaryDirectory directory("/dev/shm");
  constexpr u64 kSize = 5 * kChunkBytes / 2;
  auto first = GuestMemory::create(kSize).value();
  fill_page(*first, 0, 1);
  fill_page(*first, kSize / base::kPageBytes - 1, 2);
  const base::Fd fd = base::open_file(directory.path(), O_RDONLY | O_DIRECTORY).value();
  const MemoryLayer layer =
      write_memory_file(fd, *copy(*first, populated_pages(*first, RamOrigin::zeros))).value();
  const std::vector<memory::FilePart> parts = data_parts(fd, layer).value();
  ASSERT_EQ(parts.size(), 2u);
  EXPECT_EQ(parts[0].length_bytes, kChunkBytes);
  EXPECT_EQ(parts[1].offset, 2 * kChunkBytes);
  EXPECT_EQ(parts[1].length_bytes, kChunkBytes / 2);
  const base::Fd file = open_memory_file(fd, layer).value();
  auto second = GuestMemory::create_from_file(file, kSize, parts).value();
  EXPECT_TRUE(same(*copy(*second, populated_pages(*second, RamOrigin::file)), bytes_of(*first)));
  struct stat before {};
  ASSERT_EQ(::fstat(file.get(), &before), 0);
  std::memset(second->quiet_ram().data() + kChunkBytes, 7, kChunkBytes);
  struct stat after {};
  ASSERT_EQ(::fstat(file.get(), &after), 0);
  EXPECT_EQ(after.st_blocks, before.st_blocks);
}

TEST(MemoryCopy, DeltasOverDeltasAgreeWithAModel) {
  std::mt19937_64 random(7);
  auto memory = GuestMemory::create(kBytes).value();
  std::vector<std::shared_ptr<const MemoryImage>> images;
  std::vector<std::vector<u8>> model;
  for (u64 step = 0; step < 6; ++step) {
    PageSet dirty(kPages);
    for (u64 i = 0; i < 300; ++i) {
      const u64 page = random() % kPages;
      const u64 run = 1 + random() % 5;
      for (u64 p = page; p < std::min(page + run, kPages); ++p) {
        if (random() % 8 == 0) {
          std::memset(memory->quiet_ram().data() + p * base::kPageBytes, 0, base::kPageBytes);
        } else {
          fill_page(*memory, p, step);
        }
        dirty.insert(p);
      }
    }
    images.push_back(copy(*memory, dirty, images.empty() ? nullptr : images.back()));
    model.push_back(bytes_of(*memory));
  }
  for (std::size_t i = 0; i < images.size(); ++i) EXPECT_TRUE(same(*images[i], model[i])) << i;
  // Pieces cover every range exactly, whatever its start.
  for (int i = 0; i < 2000; ++i) {
    const u64 first = random() % kPages;
    const u64 limit = 1 + random() % (kPages - first);
    const MemoryImage::Piece piece = images.back()->piece(first, limit);
    ASSERT_GE(piece.page_count, 1u);
    ASSERT_LE(piece.page_count, limit);
    if (piece.data == nullptr) continue;
    ASSERT_EQ(std::memcmp(piece.data, model.back().data() + first * base::kPageBytes,
                          piece.page_count * base::kPageBytes),
              0);
  }
}

TEST(Pages, RestoredRunsAgreeWithAModelAndTouchNothingElse) {
  std::mt19937_64 random(11);
  auto memory = GuestMemory::create(kBytes).value();
  for (u64 page = 0; page < kPages; page += 3) fill_page(*memory, page, 1);
  const auto base_image = copy(*memory, populated_pages(*memory, RamOrigin::zeros));
  PageSet changed(kPages);
  for (u64 page = 0; page < kPages; page += 7) {
    fill_page(*memory, page, 2);
    changed.insert(page);
  }
  const auto image = copy(*memory, changed, base_image);
  const std::vector<u8> then = bytes_of(*memory);
  for (int round = 0; round < 20; ++round) {
    PageSet dirty(kPages);
    for (int i = 0; i < 100; ++i) {
      const u64 page = random() % kPages;
      fill_page(*memory, page, 100 + random());
      dirty.insert(page);
    }
    const Comparison before = compare_all(*memory, *image, PageSet(kPages));
    EXPECT_EQ(before.differing_pages, dirty.count());
    restore_pages(*memory, *image, dirty);
    ASSERT_EQ(bytes_of(*memory), then);
  }
}

TEST(Pages, OnlyTheGivenPagesAreCopied) {
  auto memory = GuestMemory::create(kBytes).value();
  const auto image = copy(*memory, PageSet(kPages));
  fill_page(*memory, 10, 1);
  fill_page(*memory, 12, 1);
  PageSet dirty(kPages);
  dirty.insert(10);
  restore_pages(*memory, *image, dirty);
  const Comparison result = compare_all(*memory, *image, PageSet(kPages));
  EXPECT_EQ(result.differing_pages, 1u);
  EXPECT_EQ(result.first_page, 12u);
}

TEST(Pages, OneByteAnywhereIsFoundAndAllowedPagesAreNot) {
  auto memory = GuestMemory::create(kBytes).value();
  const auto image = copy(*memory, PageSet(kPages));
  PageSet allowed(kPages);
  for (const u64 byte : {u64{0}, base::kPageBytes - 1, base::kPageBytes, kBytes - 1}) {
    memory->quiet_ram()[byte] = 1;
    const Comparison found = compare_all(*memory, *image, allowed);
    EXPECT_EQ(found.differing_pages, 1u) << byte;
    EXPECT_EQ(found.first_page, byte / base::kPageBytes);
    memory->quiet_ram()[byte] = 0;
  }
  memory->quiet_ram()[0] = 1;
  allowed.insert(0);
  EXPECT_TRUE(compare_all(*memory, *image, allowed).equal());
}

class MemoryFile : public testing::Test {
 protected:
  MemoryFile() : memory_(GuestMemory::create(kBytes).value()) {
    for (const u64 page : {u64{1}, u64{2}, u64{600}, kPages - 1}) fill_page(*memory_, page, 1);
    std::memset(memory_->quiet_ram().data() + 601 * base::kPageBytes, 0, base::kPageBytes);
    image_ = copy(*memory_, populated_pages(*memory_, RamOrigin::zeros));
    fd_ = base::open_file(directory_.path(), O_RDONLY | O_DIRECTORY).value();
  }
  std::string path() const { return directory_.path() + "/memory"; }

  TemporaryDirectory directory_;
  std::unique_ptr<GuestMemory> memory_;
  std::shared_ptr<const MemoryImage> image_;
  base::Fd fd_;
};

TEST_F(MemoryFile, IsAsLongAsMemorySparseReadOnlyAndMapsBack) {
  const MemoryLayer layer = write_memory_file(fd_, *image_).value();
  EXPECT_EQ(layer.size_bytes, kBytes);
  EXPECT_EQ(layer.allocated_bytes, 4 * base::kPageBytes);  // the touched zero page is a hole too
  struct stat status {};
  ASSERT_EQ(::stat(path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 07777, 0400u);
  EXPECT_LT(static_cast<u64>(status.st_blocks) * 512, 64 * base::kKiB);
  const auto view = MemoryImage::of_file(open_memory_file(fd_, layer).value(), kBytes).value();
  view->populate();
  EXPECT_EQ(view->copied_bytes(), 0u);
  EXPECT_TRUE(compare_all(*memory_, *view, PageSet(kPages)).equal());
  EXPECT_TRUE(verify_memory_file(fd_, layer));
}

TEST_F(MemoryFile, ShorterOrLongerIsRefusedBeforeItIsMapped) {  // S02
  const MemoryLayer layer = write_memory_file(fd_, *image_).value();
  std::filesystem::permissions(path(), std::filesystem::perms::owner_all);
  for (const u64 size : {kBytes - 1, kBytes - base::kPageBytes, kBytes + 1, u64{0}}) {
    std::filesystem::resize_file(path(), size);
    EXPECT_FALSE(open_memory_file(fd_, layer)) << size;
    const base::Fd file = base::open_file(path(), O_RDONLY).value();
    EXPECT_FALSE(MemoryImage::of_file(file, kBytes)) << size;
    EXPECT_FALSE(verify_memory_file(fd_, layer)) << size;
  }
  std::filesystem::remove(path());
  EXPECT_FALSE(open_memory_file(fd_, layer));
}

TEST_F(MemoryFile, FlippedBitIsFoundWithItsChunk) {  // S04
  const MemoryLayer layer = write_memory_file(fd_, *image_).value();
  std::filesystem::permissions(path(), std::filesystem::perms::owner_all);
  const base::Fd file = base::open_file(path(), O_RDWR).value();
  for (const u64 offset : {u64{0}, 600 * base::kPageBytes + 5, kBytes - 1}) {
    u8 byte = 0;
    ASSERT_TRUE(base::read_exactly(file, {&byte, 1}, offset));
    byte ^= 1;
    ASSERT_TRUE(base::write_exactly(file, {&byte, 1}, offset));
    const std::string found = message(verify_memory_file(fd_, layer));
    EXPECT_NE(found.find(fmt::format("chunk {} ", offset / kChunkBytes)), std::string::npos)
        << found;
    byte ^= 1;
    ASSERT_TRUE(base::write_exactly(file, {&byte, 1}, offset));
  }
  EXPECT_TRUE(verify_memory_file(fd_, layer));
}

TEST_F(MemoryFile, DamagedChecksumsAreRefused) {
  const MemoryLayer layer = write_memory_file(fd_, *image_).value();
  std::string sums = read_text(directory_.path() + "/memory.sums");
  sums[30] = static_cast<char>(sums[30] ^ 1);
  write_text(directory_.path() + "/memory.sums", sums);
  EXPECT_FALSE(verify_memory_file(fd_, layer));
}

TEST_F(MemoryFile, SnapshotOverItsOwnSourceLeavesTheSource) {  // S25
  const MemoryLayer layer = write_memory_file(fd_, *image_).value();
  const auto view = MemoryImage::of_file(open_memory_file(fd_, layer).value(), kBytes).value();
  EXPECT_EQ(write_memory_file(fd_, *view).error().kind(), ErrorKind::exists);
  EXPECT_TRUE(verify_memory_file(fd_, layer));
}

TEST_F(MemoryFile, NoRoomIsAnErrorAndLeavesNothing) {  // H01, H02
  PageSet all(kPages);
  all.insert_all();
  for (u64 page = 0; page < kPages; ++page) fill_page(*memory_, page, 3);
  const auto full = copy(*memory_, all);
  // Within the limit lies less than the file: what a full disk looks like, without one.
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto old_handler = ::signal(SIGXFSZ, SIG_IGN);
  for (const u64 limit : {u64{0}, 3 * base::kMiB, kBytes - 1}) {
    const rlimit small{limit, old.rlim_max};
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    const Result<MemoryLayer> layer = write_memory_file(fd_, *full);
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
    EXPECT_FALSE(layer);
    EXPECT_TRUE(std::filesystem::is_empty(directory_.path())) << limit;
  }
  ::signal(SIGXFSZ, old_handler);
}

}  // namespace
