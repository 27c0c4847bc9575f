#include "snapshot/tree.h"

#include <algorithm>

#include "vmm/base/check.h"

namespace snapshot {

// `dirtied` is the edge to `parent`: pages that differ between the two. Empty set (no words) and no
// parent for the first snapshot and for adopted ones.
struct SnapshotTree::Entry {
  SnapshotNode node;
  Entry* parent = nullptr;
  memory::PageSet dirtied;
};

SnapshotTree::SnapshotTree(u64 page_count)
    : page_count_(page_count), dirty_(page_count), scratch_(page_count) {}

SnapshotTree::~SnapshotTree() = default;

SnapshotNode* SnapshotTree::current() { return current_ == nullptr ? nullptr : &current_->node; }

SnapshotNode* SnapshotTree::find(const Uuid& uuid) {
  const auto found =
      std::ranges::find_if(entries_, [&](const auto& entry) { return entry->node.uuid == uuid; });
  return found == entries_.end() ? nullptr : &(*found)->node;
}

SnapshotNode* SnapshotTree::find(std::string_view name) {
  const auto found = std::find_if(entries_.rbegin(), entries_.rend(),
                                  [&](const auto& entry) { return entry->node.name == name; });
  return found == entries_.rend() ? nullptr : &(*found)->node;
}

std::vector<SnapshotNode*> SnapshotTree::nodes() {
  std::vector<SnapshotNode*> all;
  for (const auto& entry : entries_) all.push_back(&entry->node);
  return all;
}

void SnapshotTree::note_dirty(const memory::PageSet& pages) { dirty_.unite(pages); }

SnapshotNode& SnapshotTree::add(SnapshotNode node) {
  CHECK(find(node.uuid) == nullptr);
  SnapshotNode& added = adopt(std::move(node));
  Entry* const entry = entries_.back().get();
  if (current_ != nullptr) {
    entry->parent = current_;
    entry->dirtied = dirty_;
  }
  current_ = entry;
  dirty_.reset();
  return added;
}

SnapshotNode& SnapshotTree::adopt(SnapshotNode node) {
  CHECK(node.image != nullptr && node.image->page_count() == page_count_);
  if (SnapshotNode* const known = find(node.uuid); known != nullptr) return *known;
  entries_.push_back(std::make_unique<Entry>());
  entries_.back()->node = std::move(node);
  return entries_.back()->node;
}

const memory::PageSet& SnapshotTree::pages_to_revert(const SnapshotNode& target) {
  Entry* const to = entry_of(target);
  if (to == current_) return dirty_;  // the usual case copies no set
  std::vector<const Entry*> above;    // current and its ancestors
  for (const Entry* entry = current_; entry != nullptr; entry = entry->parent) {
    above.push_back(entry);
  }
  scratch_ = dirty_;
  // Up from the target to the lowest common ancestor, then up from current to the same.
  const Entry* common = to;
  while (common != nullptr && std::ranges::find(above, common) == above.end()) {
    if (common->parent != nullptr) scratch_.unite(common->dirtied);
    common = common->parent;
  }
  if (common == nullptr) {
    scratch_.insert_all();
    return scratch_;
  }
  for (const Entry* entry = current_; entry != common; entry = entry->parent) {
    scratch_.unite(entry->dirtied);
  }
  return scratch_;
}

void SnapshotTree::copied_back(const SnapshotNode& target) {
  Entry* const to = entry_of(target);
  if (to != current_) dirty_ = scratch_;  // where pages_to_revert() put them
  current_ = to;
}

void SnapshotTree::reverted(const SnapshotNode& target) {
  current_ = entry_of(target);
  dirty_.reset();
}

Result<void> SnapshotTree::check_may_remove(Uuid uuid) const {
  const auto found =
      std::ranges::find_if(entries_, [&](const auto& entry) { return entry->node.uuid == uuid; });
  if (found == entries_.end()) {
    return make_error(ErrorKind::not_found, "no snapshot {}", uuid.to_string());
  }
  const Entry* const entry = found->get();
  if (entry == current_) {
    return make_error(ErrorKind::wrong_state, "the machine stands on snapshot \"{}\"",
                      entry->node.name)
        .with_hint("revert to another one first");
  }
  const auto child =
      std::ranges::find_if(entries_, [&](const auto& other) { return other->parent == entry; });
  if (child != entries_.end()) {
    return make_error(ErrorKind::busy, "snapshot \"{}\" rests on snapshot \"{}\"",
                      (*child)->node.name, entry->node.name)
        .with_hint("delete that one first");
  }
  return {};
}

Result<void> SnapshotTree::remove(Uuid uuid) {
  TRY(check_may_remove(uuid));
  std::erase_if(entries_, [&](const auto& entry) { return entry->node.uuid == uuid; });
  return {};
}

void SnapshotTree::withdraw(const SnapshotNode& node) {
  const Entry* const entry = entry_of(node);
  CHECK(std::ranges::none_of(entries_, [&](const auto& other) { return other->parent == entry; }));
  if (current_ == entry) {
    if (entry->parent != nullptr) dirty_.unite(entry->dirtied);
    current_ = entry->parent;
  }
  std::erase_if(entries_, [&](const auto& other) { return other.get() == entry; });
}

SnapshotTree::Entry* SnapshotTree::entry_of(const SnapshotNode& node) {
  const auto found =
      std::ranges::find_if(entries_, [&](const auto& entry) { return &entry->node == &node; });
  CHECK(found != entries_.end());
  return found->get();
}

}  // namespace snapshot
