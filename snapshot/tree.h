// SnapshotTree: the snapshots that this process can revert to in place, and which pages of RAM
// differ between them.
//
// Each edge parent -> child holds the pages dirtied between the two. A revert from X (where the
// machine stands) to Y copies back the pages dirtied since X and those of all edges on the path
// from X to Y through their lowest common ancestor. A snapshot that came from elsewhere (adopted)
// has no edge: reverting to or from it copies every page.
//
// The dirty logs of KVM and GuestMemory forget what they hand out; the tree keeps it (note_dirty),
// so that a snapshot or revert that fails half-way loses nothing.
//
// Thread: one thread at a time (the machine's control thread).

#pragma once

#include <memory>
#include <string>
#include <vector>

#include "snapshot/memory_image.h"
#include "snapshot/uuid.h"
#include "vmm/base/stateful.h"
#include "vmm/memory/page_set.h"

namespace snapshot {

// What the machine remembers with a snapshot that this folder knows nothing of: disk marks, clock.
class MachineMark {
 public:
  virtual ~MachineMark() = default;
};

struct SnapshotNode {
  Uuid uuid;
  std::string name;
  std::shared_ptr<const MemoryImage> image;
  std::vector<std::unique_ptr<base::SavedState>> states;  // in the machine's order of Statefuls
  std::unique_ptr<MachineMark> mark;
};

class SnapshotTree final {
 public:
  explicit SnapshotTree(u64 page_count);
  ~SnapshotTree();
  SnapshotTree(const SnapshotTree&) = delete;
  SnapshotTree& operator=(const SnapshotTree&) = delete;

  // Where the machine stands; null before the first snapshot.
  SnapshotNode* current();
  SnapshotNode* find(const Uuid& uuid);
  SnapshotNode* find(std::string_view name);  // of two with one name, the newest
  std::vector<SnapshotNode*> nodes();         // oldest first

  // Pages written since the machine stood on current(); adds up until add() or reverted().
  void note_dirty(const memory::PageSet& pages);
  const memory::PageSet& dirty_since_current() const { return dirty_; }

  // A snapshot was taken: the node becomes current() and a child of the one before.
  SnapshotNode& add(SnapshotNode node);
  // A snapshot that this process did not take. It is known from now on; current() stays. One that is
  // known already is returned as it is.
  // The snapshot that a new process was restored from is adopted, then reverted().
  SnapshotNode& adopt(SnapshotNode node);

  // The pages to copy so that memory is that of `target`. Valid until the next call.
  // REQUIRES: `target` is in the tree.
  const memory::PageSet& pages_to_revert(const SnapshotNode& target);
  // These pages have been copied back: `target` becomes current(), whatever fails from here on. The
  // pages stay dirty until reverted(): not all of them may be under the dirty log's eyes yet.
  // What pages_to_revert() returned stays valid and the same.
  void copied_back(const SnapshotNode& target);
  // Memory is that of `target` now and its dirty log is armed: nothing is dirty.
  void reverted(const SnapshotNode& target);

  // Refused for current() and for a node with children. By value: `uuid` may be that of the very node.
  Result<void> check_may_remove(Uuid uuid) const;
  Result<void> remove(Uuid uuid);
  // As if the snapshot had never been taken: if the machine stands on it, it stands on the one before
  // from now on, with the pages of the edge dirty. REQUIRES: no children.
  void withdraw(const SnapshotNode& node);

 private:
  struct Entry;
  Entry* entry_of(const SnapshotNode& node);

  u64 page_count_;
  std::vector<std::unique_ptr<Entry>> entries_;
  Entry* current_ = nullptr;
  memory::PageSet dirty_;
  memory::PageSet scratch_;
};

}  // namespace snapshot
