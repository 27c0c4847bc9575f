// ObjectGraph: who needs whom among the snapshot objects on disk, read once.
//
// An object is needed by its names, by the objects whose manifest calls it parent or owner of a
// disk layer, by the VMs whose disks rest on a layer of it, and by live processes. What cannot be
// read is never guessed: while a named object has no valid manifest, or a VM's record of its disks is
// damaged, nobody can say what they rest on, and nothing that could be needed goes.
//
// REQUIRES: the store's lock is held exclusively.

#pragma once

#include <map>
#include <set>
#include <string>
#include <vector>

#include "snapshot/manifest.h"
#include "snapshot/uuid.h"
#include "vmm/base/result.h"

namespace snapshot {

class ObjectGraph final {
 public:
  static Result<ObjectGraph> read(const std::string& snapshots, const std::string& vms);

  // Who needs `uuid`, for a message: "snapshot \"b\" of VM \"t\"".
  std::vector<std::string> children_of(const Uuid& uuid) const;
  // The VMs' disks that rest on a layer of it, for a message: "disk vda of VM \"t\"".
  const std::vector<std::string>& heads_on(const Uuid& uuid) const;
  u32 name_count(const Uuid& uuid) const;
  // Names whose object has no valid manifest, and VMs whose record of disks is damaged.
  const std::vector<std::string>& damaged() const { return damaged_; }

  // Objects without a name that no needed object rests on. `in_use` says whether a process holds
  // it.
  template <class InUse>
  std::vector<Uuid> without_need(InUse in_use) const {
    if (!damaged_.empty()) return {};
    std::set<Uuid> needed;
    for (const auto& [uuid, needs] : objects_) {
      if (name_count(uuid) != 0 || !heads_on(uuid).empty() || in_use(uuid)) {
        add_needed(uuid, needed);
      }
    }
    std::vector<Uuid> rest;
    for (const auto& [uuid, needs] : objects_) {
      if (!needed.contains(uuid)) rest.push_back(uuid);
    }
    return rest;
  }

 private:
  void add_needed(const Uuid& uuid, std::set<Uuid>& needed) const;

  std::map<Uuid, std::set<Uuid>> objects_;  // object -> what it rests on
  std::map<Uuid, std::vector<std::string>> names_;
  std::map<Uuid, std::vector<std::string>> heads_;
  std::vector<std::string> damaged_;
};

}  // namespace snapshot
