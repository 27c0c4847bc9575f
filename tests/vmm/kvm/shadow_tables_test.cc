// What KVM with shadow paging keeps of guest page tables that the host rewrites, and what makes it
// forget: the ground on which a revert leaves most translations in place.

#include <algorithm>
#include <thread>

#include "tests/vmm/kvm/support/tiny_guest.h"
#include "vmm/kvm/page_zapper.h"
#include "vmm/memory/page_table.h"

namespace kvm {
namespace {

constexpr u64 kLookedAt = 0x10'0000;
constexpr u64 kEntry = kTestTable + kLookedAt / base::kPageBytes * 8;
constexpr u64 kValue = 0x11'0000;    // what the guest shall write next
constexpr u64 kAddress = 0x11'0008;  // and where; 0: nowhere
constexpr u16 kLooked = 0x51;
constexpr u16 kWrote = 0x52;

constexpr u64 entry_of(u64 page) { return page * base::kPageBytes | 7; }

// A guest that tells which page kLookedAt maps, and writes what it is told to.
class ShadowTablesTest : public KvmTest {
 protected:
  void SetUp() override {
    KvmTest::SetUp();
    if (IsSkipped()) return;
    if (*find_stale_translations(*test_kvm()) != StaleTranslations::shadow_tables) {
      GTEST_SKIP() << "two-dimensional paging: nothing goes stale but the TLB";
    }
    guest = std::make_unique<TinyGuest>();
    for (u8 i = 0; i < 4; ++i) guest->put_u64(kLookedAt + i * base::kPageBytes, 1 + u64{i});
    // l: mov al, [kLookedAt]; out kLooked, al; mov rax, [kValue]; mov rbx, [kAddress];
    //    test rbx, rbx; jz +3; mov [rbx], rax; out kWrote, al; jmp l
    guest->put(kTestCode,
               {0x8a, 0x04, 0x25, 0x00, 0x00, 0x10, 0x00, 0xe6, kLooked, 0x48, 0x8b, 0x04, 0x25,
                0x00, 0x00, 0x11, 0x00, 0x48, 0x8b, 0x1c, 0x25, 0x08,    0x00, 0x11, 0x00, 0x48,
                0x85, 0xdb, 0x74, 0x03, 0x48, 0x89, 0x03, 0xe6, kWrote,  0xeb, 0xdb});
    guest->start(0, kTestCode);
    at_start = guest->processors->save();
  }

  int look() {
    if (has_looked) guest->run_to_port(kWrote);
    has_looked = true;
    return guest->run_to_port(kLooked);
  }
  void let_guest_write(u64 address, u64 value) {
    guest->put_u64(kValue, value);
    guest->put_u64(kAddress, address);
    guest->run_to_port(kWrote);
    guest->put_u64(kAddress, 0);
    has_looked = false;
  }
  // As a revert does: registers as they were, all of them.
  void restore(RootPolicy roots) {
    ASSERT_OK(guest->vcpu().finish_pending_exit([](const VcpuExit&) {}));
    guest->processors->set_root_policy(roots);
    ASSERT_OK(guest->processors->restore(at_start));
    has_looked = false;
  }
  void zap(std::vector<u64> gpas) {
    ASSERT_OK(guest->vcpu().finish_pending_exit([](const VcpuExit&) {}));
    PageZapper zapper(*guest->vm);
    ASSERT_OK(zapper.zap(guest->vcpu(), at_start.vcpus[0], gpas));
    ASSERT_OK(guest->processors->restore_run_state(at_start, 0));
    has_looked = false;
  }

  std::unique_ptr<TinyGuest> guest;
  ProcessorsState at_start;
  bool has_looked = false;
};

TEST_F(ShadowTablesTest, UsedEntryThatTheHostRewritesStaysStale) {
  ASSERT_EQ(look(), 1);
  guest->put_u64(kEntry, entry_of(0x101));
  restore(RootPolicy::reload);
  EXPECT_EQ(look(), 1) << "no longer stale: nothing would have to be zapped";
}

// Why rewrite_page() may pass over what was not accessed.
TEST_F(ShadowTablesTest, EntryThatWasNotAccessedHasLeftNothing) {
  const u64 next = kEntry + 8;
  ASSERT_EQ(look(), 1);
  ASSERT_EQ(guest->get_u64(next), entry_of(0x101)) << "it has the accessed flag";
  guest->put_u64(next, entry_of(0x103));
  restore(RootPolicy::reload);
  guest->put(kTestCode, {0x8a, 0x04, 0x25, 0x00, 0x10, 0x10, 0x00});  // look at the next page
  EXPECT_EQ(look(), 4);
}

// Why it may pass over what the guest has changed and not flushed, if the roots are loaded again.
TEST_F(ShadowTablesTest, TableThatTheGuestChangedAndDidNotFlushIsLookedAtAgain) {
  ASSERT_EQ(look(), 1);
  const u64 then = guest->get_u64(kEntry);
  for (int round = 0; round < 20; ++round) {
    let_guest_write(kEntry, entry_of(0x101));
    restore(RootPolicy::reload);
    ASSERT_EQ(look(), 2) << round;
    let_guest_write(kEntry, 0);
    guest->put_u64(kEntry, then);
    restore(RootPolicy::reload);
    ASSERT_EQ(look(), 1) << round;
  }
}

// Why pages that we have written count in any case: nothing in them tells what KVM remembers.
TEST_F(ShadowTablesTest, TableThatADeviceWroteStaysStaleThoughNoUsedEntryIsLeft) {
  ASSERT_EQ(look(), 1);
  const u64 then = guest->get_u64(kEntry);
  let_guest_write(kEntry, entry_of(0x101));
  restore(RootPolicy::reload);
  ASSERT_EQ(look(), 2);
  guest->put_u64(kEntry, 0);
  guest->put_u64(kEntry, then);
  restore(RootPolicy::reload);
  EXPECT_EQ(look(), 2);
  zap({kTestTable});
  EXPECT_EQ(look(), 1);
}

TEST_F(ShadowTablesTest, ZappedTableIsReadAnew) {
  for (int round = 0; round < 20; ++round) {
    const bool odd = round % 2 != 0;
    ASSERT_EQ(look(), odd ? 2 : 1) << round;
    guest->put_u64(kEntry, entry_of(odd ? 0x100 : 0x101));
    zap({kTestTable});
  }
}

TEST_F(ShadowTablesTest, ZappedDirectoryIsReadAnew) {
  constexpr u64 kDirectory = 0x4000;
  constexpr u64 kCopy = 0x7000;
  for (u64 i = 0; i < 512; ++i) guest->put_u64(kCopy + i * 8, guest->get_u64(kTestTable + i * 8));
  guest->put_u64(kCopy + (kEntry - kTestTable), entry_of(0x102));
  for (int round = 0; round < 20; ++round) {
    const bool odd = round % 2 != 0;
    ASSERT_EQ(look(), odd ? 3 : 1) << round;
    guest->put_u64(kDirectory, (odd ? kTestTable : kCopy) | 7);
    zap({kDirectory});
  }
}

TEST_F(ShadowTablesTest, ZapReachesItsTableAmongManyPages) {
  ASSERT_EQ(look(), 1);
  guest->put_u64(kEntry, entry_of(0x101));
  std::vector<u64> pages{kTestTable};
  for (u64 page = 0x200; pages.size() < PageZapper::kMaximumPages; ++page) {
    pages.push_back(page * base::kPageBytes);
  }
  zap(pages);
  EXPECT_EQ(look(), 2);
}

TEST_F(ShadowTablesTest, ZapChangesNothingInRam) {
  std::vector<u64> pages;
  for (u64 page = 0x180; page < 0x1a0; ++page) {
    guest->put_u64(page * base::kPageBytes, 0x1122'3344'5566'7788 * page);
    pages.push_back(page * base::kPageBytes);
  }
  const std::vector<u8> before(guest->memory->quiet_ram().begin(),
                               guest->memory->quiet_ram().end());
  zap(pages);
  EXPECT_TRUE(std::ranges::equal(before, guest->memory->quiet_ram()));
}

TEST_F(ShadowTablesTest, ZapReachesAllVcpus) {
  guest = std::make_unique<TinyGuest>(2);
  guest->put_u64(kLookedAt, 1);
  guest->put_u64(kLookedAt + base::kPageBytes, 2);
  // l: mov al, [kLookedAt]; out kLooked, al; jmp l
  guest->put(kTestCode, {0x8a, 0x04, 0x25, 0x00, 0x00, 0x10, 0x00, 0xe6, kLooked, 0xeb, 0xf5});
  guest->start(0, kTestCode);
  guest->start(1, kTestCode);
  at_start = guest->processors->save();
  for (int round = 0; round < 20; ++round) {
    const bool odd = round % 2 != 0;
    std::thread other([&] { EXPECT_EQ(guest->run_to_port(kLooked, 1), odd ? 2 : 1) << round; });
    EXPECT_EQ(guest->run_to_port(kLooked, 0), odd ? 2 : 1) << round;
    other.join();
    guest->put_u64(kEntry, entry_of(odd ? 0x100 : 0x101));
    zap({kTestTable});
  }
}

}  // namespace
}  // namespace kvm
