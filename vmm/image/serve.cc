#include "vmm/image/serve.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "snapshot/store.h"
#include "vmm/base/directories.h"
#include "vmm/control/unix_socket.h"
#include "vmm/control/verbs.h"
#include "vmm/control/vm_directory.h"
#include "vmm/image/nbdkit.h"
#include "vmm/image/words.h"

namespace image {
namespace {

using blockdev::DiskSpec;
using snapshot::SnapshotStore;

struct ServeOptions {
  ImageOptions image;                      // `file`: FILE, or VM@SNAPSHOT if there is no format
  std::optional<blockdev::DiskMode> mode;  // of FILE; nothing: ro
  std::string disk;                        // of VM@SNAPSHOT: "vda"; empty: the only one
  std::string socket;                      // empty: one in the runtime directory
  Output output = Output::text;
};

// What the plugin is told, and what must not go while it runs.
struct Served {
  DiskSpec disk;
  std::vector<std::string> layers;  // from bottom to top
  std::optional<snapshot::SnapshotObject> snapshot;
};

Result<Served> image_to_serve(const ServeOptions& options) {
  if (!options.disk.empty()) {
    return make_error(ErrorKind::usage,
                      "--disk chooses a disk of VM@SNAPSHOT; -f says that \"{}\" is an image",
                      options.image.file)
        .with_hint("leave out --disk; or -f, for a snapshot");
  }
  Served served{.disk = TRY(disk_spec_of(options.image, "-f")), .layers = {}, .snapshot = {}};
  // Refused here, where the hint speaks of our options and not of the plugin's. What is odd about a
  // chain, the plugin says.
  if (!blockdev::open_image_chain(served.disk)) TRY(open_chain(served.disk));
  served.disk.mode = options.mode.value_or(blockdev::DiskMode::ro);
  if (served.disk.mode == blockdev::DiskMode::persist) TRY(check_may_write(served.disk.path));
  return served;
}

std::string disk_names(const std::vector<snapshot::Disk>& disks) {
  std::string names;
  for (const snapshot::Disk& disk : disks) names += (names.empty() ? "" : ", ") + disk.name;
  return names;
}

Result<const snapshot::Disk*> chosen_disk(const std::vector<snapshot::Disk>& disks,
                                          const ServeOptions& options) {
  if (options.disk.empty() && disks.size() == 1) return disks.data();
  for (const snapshot::Disk& disk : disks) {
    if (disk.name == options.disk) return &disk;
  }
  if (disks.empty()) {
    return make_error(ErrorKind::not_found, "snapshot '{}' has no disks", options.image.file);
  }
  const std::string hint = fmt::format("--disk says which: {}", disk_names(disks));
  if (options.disk.empty()) {
    return make_error(ErrorKind::usage, "snapshot '{}' has {} disks", options.image.file,
                      disks.size())
        .with_hint(hint);
  }
  return make_error(ErrorKind::not_found, "snapshot '{}' has no disk \"{}\"", options.image.file,
                    options.disk)
      .with_hint(hint);
}

// Read-only: a snapshot never changes. The manifest says what lies below what.
Result<DiskSpec> spec_of_bases(const snapshot::Disk& disk) {
  DiskSpec spec;
  spec.mode = blockdev::DiskMode::ro;
  for (auto base = disk.bases.rbegin(); base != disk.bases.rend(); ++base) {
    const blockdev::ImageFormat format = TRY(blockdev::parse_image_format(base->format));
    if (spec.path.empty()) {
      spec.path = base->path;
      spec.format = format;
    } else {
      spec.backing.push_back({base->path, format});
    }
  }
  return spec;
}

Result<Served> snapshot_to_serve(const ServeOptions& options) {
  if (options.image.file.find('@') == std::string::npos ||
      options.image.file.find('/') != std::string::npos) {
    return make_error(ErrorKind::usage, "the format of \"{}\" is not given", options.image.file)
        .with_hint("-f qcow2 or -f raw for an image, never guessed; or VM@SNAPSHOT");
  }
  if (options.mode || !options.image.backing.empty() || !options.image.backing_dir.empty()) {
    return make_error(ErrorKind::usage,
                      "--mode, --backing and --backing-dir are for images; a snapshot's disks are "
                      "known and read-only");
  }
  const control::Home home = TRY(control::Home::from_environment());
  const control::SnapshotReference reference =
      TRY(control::parse_snapshot_reference(options.image.file));
  const auto store = TRY(SnapshotStore::open(home.snapshots(), home.vms()));
  const snapshot::Uuid uuid = TRY(store.resolve(reference.vm, reference.name));
  Served served{};
  served.snapshot.emplace(
      TRY_CONTEXT(store.open(uuid), fmt::format("snapshot '{}'", options.image.file)));
  const snapshot::Disk* const disk = TRY(chosen_disk(served.snapshot->manifest().disks, options));
  served.disk = TRY(spec_of_bases(*disk));
  for (const snapshot::DiskLayer& layer : disk->layers) {
    served.layers.push_back(store.layer_path(layer));
  }
  return served;
}

// A socket that goes with the object.
class ServerSocket final {
 public:
  static Result<ServerSocket> create(std::string path) {
    if (path.empty()) {
      const control::Home home = TRY(control::Home::from_environment());
      TRY(base::make_directories(home.runtime));
      path = fmt::format("{}/.nbd-{}.sock", home.runtime, ::getpid());
    }
    std::error_code failed;
    const std::string absolute = std::filesystem::absolute(path, failed).string();
    if (!failed) path = absolute;
    base::Fd listener = TRY(control::listen_unix(path));
    return ServerSocket(std::move(path), std::move(listener));
  }
  ServerSocket(ServerSocket&&) = default;
  ServerSocket& operator=(ServerSocket&&) = delete;
  ~ServerSocket() {
    if (listener_) ::unlink(path_.c_str());
  }

  const std::string& path() const { return path_; }
  const base::Fd& listener() const { return listener_; }
  // The NBD project's "NBD URI": a path in it keeps letters, digits, -._~ and slashes.
  std::string uri() const {
    std::string text = "nbd+unix:///?socket=";
    for (const char c : path_) {
      const bool is_plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                            (c >= '0' && c <= '9') ||
                            std::string_view("-._~/").find(c) != std::string_view::npos;
      text += is_plain ? std::string(1, c) : fmt::format("%{:02X}", static_cast<u8>(c));
    }
    return text;
  }

 private:
  ServerSocket(std::string path, base::Fd listener)
      : path_(std::move(path)), listener_(std::move(listener)) {}

  std::string path_;
  base::Fd listener_;
};

Result<int> serve(const ServeOptions& options) {
  const std::string nbdkit = TRY(find_nbdkit());
  const std::string plugin = TRY(find_nbdkit_plugin());
  const Served served =
      options.image.format.empty() ? TRY(snapshot_to_serve(options)) : TRY(image_to_serve(options));
  const ServerSocket socket = TRY(ServerSocket::create(options.socket));
  std::vector<std::string> words = {nbdkit, plugin,
                                    "disk=" + blockdev::format_disk_spec(served.disk)};
  for (const std::string& layer : served.layers) words.push_back("layer=" + layer);
  NbdkitProcess process = TRY(NbdkitProcess::start(std::move(words), socket.listener()));
  TRY(process.wait_until_ready());
  if (options.output == Output::json) {
    put_json({{"uri", socket.uri()}, {"socket", socket.path()}, {"pid", process.pid()}});
  } else {
    put(socket.uri() + "\n");
  }
  TRY(process.wait_for_end());
  return kExitDone;
}

constexpr const char* kServeFooter = R"(
Prints the NBD URI and serves until a signal comes. Needs nbdkit, and nbdkit-quicksave-plugin.so
beside this program or where $QUICKSAVE_NBDKIT_PLUGIN says.)";

}  // namespace

void add_serve(CLI::App& app, std::function<Result<int>()>& work) {
  CLI::App& verb = *app.add_subcommand("serve", "serve a disk over NBD on a unix socket");
  verb.footer(kServeFooter);
  const auto given = std::make_shared<ServeOptions>();
  verb.add_option("FILE", given->image.file, "the image, with -f; or VM@SNAPSHOT")->required();
  verb.add_option("-f", given->image.format, "its format: qcow2 or raw; never guessed");
  verb.add_option("--backing", given->image.backing,
                  "FILE:FORMAT of what lies below; repeatable, from top to bottom")
      ->expected(1)
      ->allow_extra_args(false)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  verb.add_option("--backing-dir", given->image.backing_dir,
                  "follow backing names inside images, below this directory");
  verb.add_option_function<std::string>(
          "--mode",
          [given](const std::string& word) {
            given->mode = word == "persist"   ? blockdev::DiskMode::persist
                          : word == "overlay" ? blockdev::DiskMode::overlay
                                              : blockdev::DiskMode::ro;
          },
          "ro (default); overlay: what is written is thrown away; persist: it is written to the "
          "image")
      ->check(CLI::IsMember({"ro", "overlay", "persist"}));
  verb.add_option("--disk", given->disk, "which disk of the snapshot: vda, vdb, ...");
  verb.add_option("--socket", given->socket, "default: a new one in the runtime directory");
  verb.add_option_function<std::string>(
          "--output",
          [given](const std::string& word) {
            given->output = word == "json" ? Output::json : Output::text;
          },
          "human (default) or json")
      ->check(CLI::IsMember({"human", "json"}));
  verb.final_callback([&work, given] { work = [given] { return serve(*given); }; });
}

}  // namespace image
