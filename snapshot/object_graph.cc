#include "snapshot/object_graph.h"

#include "snapshot/disk_heads.h"
#include "snapshot/store_files.h"

namespace snapshot {
namespace {

Result<std::set<Uuid>> needs_of(const std::string& path) {
  const std::string text =
      TRY(base::read_whole_file(path + "/" + kManifestFile, kMaximumManifestBytes));
  const Manifest manifest = TRY(Manifest::parse(text));
  std::set<Uuid> needs;
  if (manifest.parent) needs.insert(*manifest.parent);
  for (const Disk& disk : manifest.disks) {
    for (const DiskLayer& layer : disk.layers) needs.insert(layer.owner);
  }
  needs.erase(manifest.uuid);
  return needs;
}

}  // namespace

Result<ObjectGraph> ObjectGraph::read(const std::string& snapshots, const std::string& vms) {
  ObjectGraph graph;
  const std::vector<std::string> owners = TRY(names_in(vms));
  for (const std::string& vm : owners) {
    const std::string refs = fmt::format("{}/{}/refs", vms, vm);
    const std::vector<std::string> names = TRY(names_in(refs));
    for (const std::string& name : names) {
      if (name.starts_with('.')) continue;
      const std::string who = fmt::format("snapshot \"{}\" of VM \"{}\"", name, vm);
      const Result<std::string> text = base::read_whole_file(refs + "/" + name, 64);
      const Result<Uuid> uuid =
          Uuid::parse(text ? std::string_view(*text).substr(0, 36) : std::string_view());
      if (uuid) {
        graph.names_[*uuid].push_back(who);
      } else {
        graph.damaged_.push_back(who);
      }
    }
  }
  for (const std::string& vm : owners) {
    if (!check_plain_name("VM name", vm)) continue;
    const auto heads = read_disk_heads(fmt::format("{}/{}", vms, vm));
    if (!heads) {
      graph.damaged_.push_back(fmt::format("VM \"{}\": {}", vm, heads.error().message()));
      continue;
    }
    for (const DiskHead& head : *heads) {
      for (const DiskLayer& layer : head.below.layers) {
        graph.heads_[layer.owner].push_back(
            fmt::format("disk {} of VM \"{}\"", head.below.name, vm));
      }
    }
  }
  const std::vector<std::string> entries = TRY(names_in(snapshots));
  for (const std::string& entry : entries) {
    const Result<Uuid> uuid = Uuid::parse(entry);
    if (!uuid) continue;  // not ours
    const Result<std::set<Uuid>> needs = needs_of(snapshots + "/" + entry);
    graph.objects_[*uuid] = needs ? *needs : std::set<Uuid>();
    if (needs) continue;
    for (const std::string& who : graph.names_[*uuid]) graph.damaged_.push_back(who);
  }
  return graph;
}

std::vector<std::string> ObjectGraph::children_of(const Uuid& uuid) const {
  std::vector<std::string> children;
  for (const auto& [child, needs] : objects_) {
    if (!needs.contains(uuid)) continue;
    const auto names = names_.find(child);
    const bool named = names != names_.end() && !names->second.empty();
    children.push_back(
        named ? names->second.front()
              : fmt::format("snapshot {}, which has no name but is in use", child.to_string()));
  }
  return children;
}

const std::vector<std::string>& ObjectGraph::heads_on(const Uuid& uuid) const {
  static const std::vector<std::string> kNone;
  const auto found = heads_.find(uuid);
  return found == heads_.end() ? kNone : found->second;
}

u32 ObjectGraph::name_count(const Uuid& uuid) const {
  const auto names = names_.find(uuid);
  return names == names_.end() ? 0 : static_cast<u32>(names->second.size());
}

void ObjectGraph::add_needed(const Uuid& uuid, std::set<Uuid>& needed) const {
  std::vector<Uuid> open{uuid};
  while (!open.empty()) {
    const Uuid next = open.back();
    open.pop_back();
    if (!needed.insert(next).second) continue;
    const auto object = objects_.find(next);
    if (object == objects_.end()) continue;
    open.insert(open.end(), object->second.begin(), object->second.end());
  }
}

}  // namespace snapshot
