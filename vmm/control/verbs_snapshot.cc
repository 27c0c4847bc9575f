#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>

#include "snapshot/store.h"
#include "vmm/control/json_reader.h"
#include "vmm/control/live_vm.h"
#include "vmm/control/size_text.h"
#include "vmm/control/verbs.h"

namespace control {
namespace {

using nlohmann::json;
using snapshot::ListedSnapshot;
using snapshot::Manifest;

Result<snapshot::SnapshotStore> open_store(const Home& home) {
  return snapshot::SnapshotStore::open(home.snapshots(), home.vms());
}

u64 memory_bytes(const Manifest& manifest) {
  u64 sum = 0;
  for (const auto& layer : manifest.memory) sum += layer.allocated_bytes;
  return sum;
}

// The parent as people know it: its name, with its VM's if that is another one.
std::string parent_name(const ListedSnapshot& of, const std::vector<ListedSnapshot>& all) {
  if (!of.manifest || !of.manifest->parent) return "";
  for (const ListedSnapshot& other : all) {
    if (other.uuid != *of.manifest->parent) continue;
    return other.vm == of.vm ? other.name : fmt::format("{}@{}", other.vm, other.name);
  }
  return of.manifest->parent->to_string();
}

json to_json(const snapshot::SnapshotStore& store, const ListedSnapshot& listed,
             const std::vector<ListedSnapshot>& all,
             const std::map<std::string, std::string>& current) {
  const std::string parent = parent_name(listed, all);
  json value = {{"vm", listed.vm}, {"name", listed.name}, {"uuid", listed.uuid.to_string()}};
  value["parent"] = parent.empty() ? json(nullptr) : json(parent);
  value["created"] = listed.manifest ? json(listed.manifest->created.to_string()) : json(nullptr);
  value["damage"] = listed.damage.empty() ? json(nullptr) : json(listed.damage);
  const auto found = current.find(listed.vm);
  value["current"] = found != current.end() && found->second == listed.name;
  const std::optional<Manifest>& manifest = listed.manifest;
  value["description"] = manifest ? json(manifest->description) : json(nullptr);
  value["memory_bytes"] = manifest ? json(memory_bytes(*manifest)) : json(nullptr);
  value["disk_bytes"] = manifest ? json(store.disk_bytes(*manifest)) : json(nullptr);
  return value;
}

// Which snapshot each live VM stands on.
std::map<std::string, std::string> current_snapshots(const Home& home,
                                                     const std::vector<ListedSnapshot>& listed) {
  constexpr u64 kGlanceMs = 1000;
  std::map<std::string, std::string> current;
  for (const ListedSnapshot& entry : listed) {
    if (current.contains(entry.vm)) continue;
    std::string& name = current[entry.vm];
    const Result<VmDirectory> directory = find_vm_directory(home, entry.vm);
    if (!directory) continue;
    Result<ApiClient> client = ApiClient::connect(*directory);
    if (!client) continue;
    client->set_timeout_ms(kGlanceMs);
    const Result<json> info = ask(*client, "GET", "/v1/vm");
    if (info && info->is_object()) name = info->value("current_snapshot", "");
  }
  return current;
}

// "2026-11-23 04:21"
std::string human_time(const json& created) {
  if (!created.is_string()) return "?";
  std::string text = created.get<std::string>().substr(0, 16);
  std::replace(text.begin(), text.end(), 'T', ' ');
  return text;
}

std::string size_of(const json& bytes) {
  return bytes.is_number() ? human_size(bytes.get<u64>()) : "?";
}

std::string label_of(const json& entry) {
  const json& damage = entry["damage"];
  if (damage.is_string()) return "DAMAGED: " + printable(damage.get<std::string>());
  const std::string description = printable(entry["description"].get<std::string>());
  return fmt::format("{}  memory {}  disk {}{}", human_time(entry["created"]),
                     size_of(entry["memory_bytes"]), size_of(entry["disk_bytes"]),
                     description.empty() ? "" : fmt::format("  \"{}\"", description));
}

class TreePrinter final {
 public:
  explicit TreePrinter(const json& entries) : entries_(entries) {
    for (const json& entry : entries) {
      const json& parent = entry["parent"];
      std::string key = parent.is_string() ? parent.get<std::string>() : "";
      if (!key.empty() && key.find('@') == std::string::npos) key = vm_of(entry) + "@" + key;
      if (!is_listed(key)) key = "";
      children_[key].push_back(&entry);
    }
  }

  std::string text() {
    print("", "");
    return std::move(text_);
  }

 private:
  static std::string vm_of(const json& entry) { return entry["vm"].get<std::string>(); }
  static std::string full_name(const json& entry) {
    return vm_of(entry) + "@" + entry["name"].get<std::string>();
  }
  bool is_listed(const std::string& name) const {
    return std::any_of(entries_.begin(), entries_.end(),
                       [&](const json& entry) { return full_name(entry) == name; });
  }

  // As deep as a chain of snapshots is long, which disk space bounds.
  void print(const std::string& parent, const std::string& indent) {
    const auto found = children_.find(parent);
    if (found == children_.end()) return;
    for (const json* entry : found->second) {
      const bool is_last = entry == found->second.back();
      const std::string branch = parent.empty() ? "" : is_last ? "└─ " : "├─ ";
      text_ += fmt::format("{}{}{}{}  {}\n", indent, branch, full_name(*entry),
                           entry->value("current", false) ? " *" : "", label_of(*entry));
      const std::string deeper = parent.empty() ? "" : is_last ? "   " : "│  ";
      print(full_name(*entry), indent + deeper);
    }
  }

  const json& entries_;
  std::map<std::string, std::vector<const json*>> children_;
  std::string text_;
};

std::string list_as_table(const json& entries) {
  std::vector<std::vector<std::string>> rows = {
      {"VM", "NAME", "", "PARENT", "CREATED", "MEMORY", "DISK", "DESCRIPTION"}};
  for (const json& entry : entries) {
    const json& parent = entry["parent"];
    rows.push_back(
        {entry["vm"].get<std::string>(), entry["name"].get<std::string>(),
         entry.value("current", false) ? "*" : "",
         parent.is_string() ? parent.get<std::string>() : "-", human_time(entry["created"]),
         size_of(entry["memory_bytes"]), size_of(entry["disk_bytes"]),
         entry["damage"].is_string() ? label_of(entry) : entry["description"].get<std::string>()});
  }
  return table(rows);
}

}  // namespace

Result<SnapshotReference> parse_snapshot_reference(const std::string& text) {
  const std::size_t at = text.find('@');
  if (at == std::string::npos) {
    return make_error(ErrorKind::usage, "\"{}\" is not VM@SNAPSHOT", text)
        .with_hint("quicksave snapshot list shows them");
  }
  SnapshotReference reference{text.substr(0, at), text.substr(at + 1)};
  TRY(check_name("VM", reference.vm));
  TRY(check_name("snapshot", reference.name));
  return reference;
}

Result<int> snapshot_create(const SnapshotCreateOptions& options, Output output) {
  if (!options.name.empty()) TRY(check_name("snapshot", options.name));
  return with_live_vm(options.vm, [&](ApiClient& client) -> Result<int> {
    const json made = TRY(ask(
        client, "POST", "/v1/snapshots",
        {{"name", options.name}, {"description", options.description}, {"wait", options.wait}}));
    if (output == Output::json) {
      put_json(made);
      return kExitDone;
    }
    const std::string stored =
        options.wait
            ? fmt::format("memory {}  disk {}", human_size(made.value("memory_bytes", u64{0})),
                          human_size(made.value("disk_bytes", u64{0})))
            : "being written";
    put(fmt::format("{}  {}  guest paused {}\n", made.value("name", ""), stored,
                    human_duration(made.value("pause_us", u64{0}))));
    return kExitDone;
  });
}

Result<int> snapshot_list(const std::string& vm, ListForm form, Output output) {
  const Home home = TRY(Home::from_environment());
  if (!vm.empty()) TRY(find_vm_directory(home, vm));
  const snapshot::SnapshotStore store = TRY(open_store(home));
  const std::vector<ListedSnapshot> all = TRY(store.list(""));
  std::vector<ListedSnapshot> listed;
  for (const ListedSnapshot& entry : all) {
    if (vm.empty() || entry.vm == vm) listed.push_back(entry);
  }
  const std::map<std::string, std::string> current = current_snapshots(home, listed);
  json entries = json::array();
  for (const ListedSnapshot& entry : listed) entries.push_back(to_json(store, entry, all, current));
  if (output == Output::json) {
    put_json(entries);
  } else if (form == ListForm::tree) {
    put(TreePrinter(entries).text());
  } else {
    put(list_as_table(entries));
  }
  return kExitDone;
}

Result<int> snapshot_show(const std::string& snapshot, Output output) {
  const Home home = TRY(Home::from_environment());
  const SnapshotReference reference = TRY(parse_snapshot_reference(snapshot));
  const snapshot::SnapshotStore store = TRY(open_store(home));
  const snapshot::Uuid uuid = TRY(store.resolve(reference.vm, reference.name));
  const snapshot::SnapshotObject object = TRY(store.open(uuid));
  const json manifest = TRY(parse_json("manifest", object.manifest().serialize()));
  if (output == Output::json) {
    put_json(manifest);
  } else {
    put(fmt::format("{}\n{}\n", object.path(), manifest.dump(2)));
  }
  return kExitDone;
}

Result<int> snapshot_check(const std::string& snapshot, Output output) {
  const Home home = TRY(Home::from_environment());
  const SnapshotReference reference = TRY(parse_snapshot_reference(snapshot));
  const snapshot::SnapshotStore store = TRY(open_store(home));
  const snapshot::Uuid uuid = TRY(store.resolve(reference.vm, reference.name));
  const Result<snapshot::SnapshotObject> object = store.open(uuid);
  Result<void> checked = object ? store.check(*object) : object.error();
  if (output == Output::json) {
    put_json({{"snapshot", snapshot},
              {"uuid", uuid.to_string()},
              {"ok", checked.has_value()},
              {"damage", checked ? json(nullptr) : json(checked.error().message())},
              {"memory_bytes", object ? json(memory_bytes(object->manifest())) : json(nullptr)},
              {"disk_bytes", object ? json(store.disk_bytes(object->manifest())) : json(nullptr)}});
  } else if (checked) {
    put(fmt::format("{}  ok  {} of memory read\n", snapshot,
                    human_size(memory_bytes(object->manifest()))));
  }
  if (!checked) {
    return std::move(checked).error().with_context(fmt::format("snapshot '{}'", snapshot));
  }
  return kExitDone;
}

Result<int> snapshot_delete(const std::string& snapshot) {
  const Home home = TRY(Home::from_environment());
  const SnapshotReference reference = TRY(parse_snapshot_reference(snapshot));
  const Result<VmDirectory> directory = find_vm_directory(home, reference.vm);
  // A live VM uses those that it can revert to, and knows which of them it can do without.
  if (directory && TRY(owner_of(*directory))) {
    return with_live_vm(reference.vm, [&](ApiClient& client) -> Result<int> {
      TRY(ask(client, "DELETE", "/v1/snapshots/" + reference.name));
      return kExitDone;
    });
  }
  const snapshot::SnapshotStore store = TRY(open_store(home));
  TRY(store.remove(reference.vm, reference.name));
  return kExitDone;
}

Result<int> revert(const RevertOptions& options, Output output) {
  const ClockPolicy clock = TRY(parse_clock_policy(options.clock));
  return with_live_vm(options.vm, [&](ApiClient& client) -> Result<int> {
    json request = {{"clock", name_of(clock)}, {"verify", options.verify == Verify::yes}};
    if (!options.snapshot.empty()) request["snapshot"] = options.snapshot;
    const std::string text = TRY(client.request("POST", "/v1/revert", request.dump()));
    if (output == Output::json) {
      put(text + "\n");
      return kExitDone;
    }
    const json done = TRY(parse_json("the VM's answer", text));
    put(fmt::format("reverted {} to '{}' in {} ({} pages, {} clusters discarded)\n", options.vm,
                    done.value("snapshot", ""), human_duration(done.value("total_us", u64{0})),
                    done.value("dirty_pages", u64{0}), done.value("clusters", u64{0})));
    return kExitDone;
  });
}

}  // namespace control
