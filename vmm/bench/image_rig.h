// ImageRig: the images that the image tables are about, and the three programs that are measured
// with them: `quicksave image bench`, `qemu-img bench -i io_uring` and fio.
//
// Invariant: each program finds the same content, and files in the same cache.
// Thread: one.

#pragma once

#include <string>
#include <vector>

#include "vmm/bench/samples.h"
#include "vmm/bench/workspace.h"

namespace bench {

// One run, in the words that both bench verbs take.
struct ImageWords {
  enum class Op : u8 { read, write };
  enum class Target : u8 { image, throw_away };  // ours alone has the latter
  enum class Cache : u8 { used, passed };        // passed: O_DIRECT, for all of them

  Op op = Op::read;
  u64 count = 0;
  u64 depth = 0;
  u64 step_bytes = 4096;
  Target target = Target::image;
  Cache cache = Cache::used;
};

// Seconds for all requests of a run.
struct ImageSeries {
  Samples ours;
  Samples peer;       // empty: no qemu-img here
  Samples fio_ring;   // empty: no fio here, or not asked for
  Samples fio_psync;  // the same

  double peer_ratio() const { return peer.median() / ours.median(); }
  double fio_best() const;
  double of_fio() const { return fio_best() / ours.median(); }
};

class ImageRig final {
 public:
  // A raw image of `disk_bytes` full of data and the same as qcow2, in `directory`.
  static Result<ImageRig> create(const Workspace& workspace, const std::string& directory,
                                 u64 disk_bytes);

  std::string raw() const { return directory_ + "/image.raw"; }
  std::string qcow2() const { return directory_ + "/image.qcow2"; }
  // Empty, above qcow2(). `kind`: "64k" or "128k-extended".
  std::string overlay(const std::string& kind) const;

  enum class Image : u8 { as_it_is, fresh };
  Result<ImageSeries> by_turns(const std::string& image, const ImageWords& words,
                               const std::string& fio_mode, Image state, u32 rounds) const;

  // Seconds that `quicksave image bench` says it took.
  Result<double> our_seconds(const std::string& image, const ImageWords& words) const;

  // The uppermost of so many qcow2 images, each with the clusters whose number leaves another
  // remainder; all together hold the whole disk.
  Result<std::string> make_chain(u64 layers) const;
  // Our writes, one to each cluster and far from the one before, are where they belong.
  Result<void> verify_scattered(const std::string& kind, u64 cluster_bytes) const;

 private:
  ImageRig(const Workspace& workspace, std::string directory, u64 disk_bytes);

  Result<void> make_images() const;
  Result<void> make_overlay(const std::string& kind) const;
  Result<double> peer_seconds(const std::string& image, const ImageWords& words) const;
  Result<double> fio_seconds(const char* engine, const std::string& mode,
                             const ImageWords& words) const;
  Result<std::string> run(std::vector<std::string> words) const;

  const Workspace* workspace_;
  std::string directory_;
  u64 disk_bytes_;
  bool has_qemu_ = false;
  bool has_fio_ = false;
};

}  // namespace bench
