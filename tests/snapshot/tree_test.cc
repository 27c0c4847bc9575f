#include "snapshot/tree.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "snapshot/pages.h"
#include "tests/snapshot/support/fixture.h"

namespace {

using namespace snapshot;
using namespace snapshot_test;
using memory::PageSet;

constexpr u64 kPages = 256;

std::shared_ptr<const MemoryImage> empty_image() {
  return MemoryImage::of_copy(PageSet(kPages), base::Mapping(), nullptr);
}

SnapshotNode node(const std::string& name) {
  return {Uuid::random(), name, empty_image(), {}, nullptr};
}

PageSet set(std::initializer_list<u64> pages) {
  PageSet result(kPages);
  for (const u64 page : pages) result.insert(page);
  return result;
}

TEST(SnapshotTree, RevertToWhereTheMachineStandsCopiesWhatIsDirty) {
  SnapshotTree tree(kPages);
  EXPECT_EQ(tree.current(), nullptr);
  tree.note_dirty(set({1}));
  SnapshotNode& a = tree.add(node("a"));
  EXPECT_EQ(tree.current(), &a);
  tree.note_dirty(set({2}));
  tree.note_dirty(set({3}));
  EXPECT_EQ(tree.pages_to_revert(a), set({2, 3}));
  tree.reverted(a);
  EXPECT_TRUE(tree.pages_to_revert(a).empty());
}

TEST(SnapshotTree, RevertThatEndsHalfwayLeavesTheMachineAtItsTargetWithThePagesStillDirty) {
  SnapshotTree tree(kPages);
  SnapshotNode& a = tree.add(node("a"));
  tree.note_dirty(set({1}));
  SnapshotNode& b = tree.add(node("b"));
  tree.note_dirty(set({2}));
  const PageSet& pages = tree.pages_to_revert(a);
  EXPECT_EQ(pages, set({1, 2}));
  tree.copied_back(a);
  EXPECT_EQ(pages, set({1, 2}));
  EXPECT_EQ(tree.current(), &a);
  EXPECT_EQ(tree.pages_to_revert(a), set({1, 2}));
  EXPECT_EQ(tree.pages_to_revert(b), set({1, 2}));
  // To where it stands, where the answer is the tree's own set.
  tree.copied_back(a);
  EXPECT_EQ(tree.pages_to_revert(a), set({1, 2}));
  tree.reverted(a);
  EXPECT_TRUE(tree.pages_to_revert(a).empty());
  EXPECT_EQ(tree.pages_to_revert(b), set({1}));
}

TEST(SnapshotTree, WithdrawnSnapshotIsAsIfItHadNeverBeenTaken) {
  SnapshotTree tree(kPages);
  SnapshotNode& a = tree.add(node("a"));
  tree.note_dirty(set({1}));
  SnapshotNode& bad = tree.add(node("bad"));
  tree.note_dirty(set({2}));
  tree.withdraw(bad);
  EXPECT_EQ(tree.current(), &a);
  EXPECT_EQ(tree.find("bad"), nullptr);
  EXPECT_EQ(tree.pages_to_revert(a), set({1, 2}));
  SnapshotNode& c = tree.add(node("c"));
  tree.reverted(a);
  EXPECT_EQ(tree.pages_to_revert(c), set({1, 2}));
}

TEST(SnapshotTree, WithdrawnSnapshotThatTheMachineLeftChangesNothingElse) {
  SnapshotTree tree(kPages);
  SnapshotNode& a = tree.add(node("a"));
  tree.note_dirty(set({1}));
  SnapshotNode& bad = tree.add(node("bad"));
  tree.reverted(a);
  tree.note_dirty(set({2}));
  tree.withdraw(bad);
  EXPECT_EQ(tree.current(), &a);
  EXPECT_EQ(tree.pages_to_revert(a), set({2}));
}

TEST(SnapshotTree, WithdrawnFirstSnapshotLeavesTheMachineWithoutOne) {
  SnapshotTree tree(kPages);
  tree.withdraw(tree.add(node("bad")));
  EXPECT_EQ(tree.current(), nullptr);
  EXPECT_TRUE(tree.nodes().empty());
  SnapshotNode& a = tree.add(node("a"));
  EXPECT_TRUE(tree.pages_to_revert(a).empty());
}

TEST(SnapshotTree, AdoptingOneThatIsKnownFindsItAgain) {
  SnapshotTree tree(kPages);
  SnapshotNode& a = tree.add(node("a"));
  SnapshotNode again = node("a");
  again.uuid = a.uuid;
  EXPECT_EQ(&tree.adopt(std::move(again)), &a);
  EXPECT_EQ(tree.nodes().size(), 1u);
}

TEST(SnapshotTree, RevertToASiblingGoesThroughTheCommonAncestorOnly) {
  SnapshotTree tree(kPages);
  tree.add(node("root"));
  tree.note_dirty(set({1}));
  SnapshotNode& fork = tree.add(node("fork"));
  tree.note_dirty(set({2}));
  SnapshotNode& left = tree.add(node("left"));
  tree.reverted(fork);
  tree.note_dirty(set({3}));
  tree.add(node("right"));
  tree.note_dirty(set({4}));
  EXPECT_EQ(tree.pages_to_revert(left), set({2, 3, 4}));
  EXPECT_EQ(tree.pages_to_revert(fork), set({3, 4}));
  EXPECT_EQ(tree.pages_to_revert(*tree.find("root")), set({1, 3, 4}));
}

TEST(SnapshotTree, SnapshotFromElsewhereCopiesEveryPage) {
  SnapshotTree tree(kPages);
  SnapshotNode& mine = tree.add(node("mine"));
  SnapshotNode& foreign = tree.adopt(node("foreign"));
  EXPECT_EQ(tree.current(), &mine);
  EXPECT_EQ(tree.pages_to_revert(foreign).count(), kPages);
  tree.reverted(foreign);
  EXPECT_TRUE(tree.pages_to_revert(foreign).empty());
  tree.note_dirty(set({5}));
  SnapshotNode& child = tree.add(node("child"));
  EXPECT_TRUE(tree.pages_to_revert(child).empty());
  EXPECT_EQ(tree.pages_to_revert(foreign), set({5}));
  EXPECT_EQ(tree.pages_to_revert(mine).count(), kPages);
}

TEST(SnapshotTree, FailedRevertForgetsNothing) {
  SnapshotTree tree(kPages);
  SnapshotNode& a = tree.add(node("a"));
  tree.note_dirty(set({7}));
  EXPECT_EQ(tree.pages_to_revert(a), set({7}));  // and then the revert fails
  tree.note_dirty(set({8}));
  EXPECT_EQ(tree.pages_to_revert(a), set({7, 8}));
}

TEST(SnapshotTree, NodeInUseOrWithChildrenStays) {
  SnapshotTree tree(kPages);
  const Uuid a = tree.add(node("a")).uuid;
  const Uuid b = tree.add(node("b")).uuid;
  EXPECT_FALSE(tree.remove(a));
  EXPECT_FALSE(tree.remove(b));
  tree.reverted(*tree.find(a));
  EXPECT_TRUE(tree.remove(b));
  EXPECT_EQ(tree.find(b), nullptr);
  EXPECT_EQ(tree.remove(b).error().kind(), ErrorKind::not_found);
  EXPECT_EQ(tree.nodes().size(), 1u);
}

// One number a page stands for its content: whatever walk through the tree, after the copy memory
// is that of the target.
TEST(SnapshotTree, RandomWalksAgreeWithAModel) {
  for (u64 seed = 0; seed < 30; ++seed) {
    std::mt19937_64 random(seed);
    SnapshotTree tree(kPages);
    std::vector<u64> ram(kPages);
    std::map<Uuid, std::vector<u64>> saved;
    u64 next_value = 1;
    for (int step = 0; step < 200; ++step) {
      PageSet dirty(kPages);
      for (u64 i = random() % 5; i > 0; --i) {
        const u64 page = random() % kPages;
        ram[page] = next_value++;
        dirty.insert(page);
      }
      tree.note_dirty(dirty);
      const std::vector<SnapshotNode*> nodes = tree.nodes();
      const u64 choice = random() % 10;
      if (nodes.empty() || choice < 3) {
        saved[tree.add(node("n")).uuid] = ram;
      } else if (choice == 3) {
        std::vector<u64> foreign(kPages);
        for (u64& value : foreign) value = next_value++;
        saved[tree.adopt(node("f")).uuid] = foreign;
      } else if (choice == 4) {
        const Result<void> removed = tree.remove(nodes[random() % nodes.size()]->uuid);
        (void)removed.has_value();
      } else {
        const SnapshotNode& target = *nodes[random() % nodes.size()];
        const std::vector<u64>& wanted = saved[target.uuid];
        const PageSet& pages = tree.pages_to_revert(target);
        for (u64 page = 0; page < kPages; ++page) {
          if (pages.contains(page)) ram[page] = wanted[page];
        }
        tree.reverted(target);
        ASSERT_EQ(ram, wanted) << "seed " << seed << " step " << step;
      }
    }
  }
}

}  // namespace
