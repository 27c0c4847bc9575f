// `quicksave image ...`, after its options were parsed (image_main.cc): what qemu-img does, in its
// spelling, with its exit statuses and the keys of its --output=json. Images are locked as QEMU
// locks them: for reading against writers, for writing against everybody.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "vmm/base/result.h"
#include "vmm/control/output.h"

namespace image {

using control::kExitDone;
using control::kExitFailed;
using control::Output;

// An image that is read, and what lies below it.
struct ImageOptions {
  std::string file;
  std::string format;                // mandatory: never probed
  std::vector<std::string> backing;  // FILE:FORMAT, from top to bottom
  std::string backing_dir;
};

// Whether what lies below is asked for too.
enum class WithChain : u8 { no, yes };
// Whether progress is shown (on stderr).
enum class ShowProgress : u8 { no, yes };

// --- info_check.cc ---
Result<int> info(const ImageOptions& options, WithChain with_chain, Output output);
Result<int> check(const ImageOptions& options, const std::string& repair, Output output);

// --- create.cc ---
enum class BackingExists : u8 { checked, assumed };
struct CreateOptions {
  std::string file;
  std::string format;
  std::string size;  // empty: that of the backing file
  std::string backing_file;
  std::string backing_format;
  BackingExists backing_exists = BackingExists::checked;
  std::vector<std::string> settings;  // of -o: key=value,...
};
Result<int> create(const CreateOptions& options);

// --- map.cc ---
Result<int> map(const ImageOptions& options, Output output);

// --- compare_convert.cc ---
inline constexpr int kExitDifferent = 1;      // of compare, as the next
inline constexpr int kExitCannotCompare = 2;  // an error
Result<int> compare(const ImageOptions& first, const ImageOptions& second, ShowProgress progress);

enum class TargetExists : u8 { no, yes };
struct ConvertOptions {
  ImageOptions source;
  std::string target;
  std::string target_format = "raw";
  std::string backing_file;
  std::string backing_format;
  TargetExists target_exists = TargetExists::no;
  std::string sparse_size = "4k";
  std::vector<std::string> settings;
  ShowProgress progress = ShowProgress::no;
};
Result<int> convert(const ConvertOptions& options);

// --- change.cc ---
enum class Shrink : u8 { refused, allowed };
struct ResizeOptions {
  ImageOptions image;
  std::string size;  // 5G; +1G and -1G are relative
  Shrink shrink = Shrink::refused;
};
Result<int> resize(const ResizeOptions& options);

enum class RebaseMode : u8 {
  safe,    // what the disk reads as stays as it is
  unsafe,  // only the name changes
};
struct RebaseOptions {
  ImageOptions image;
  std::optional<std::string> backing_file;  // empty: none
  std::string backing_format;
  RebaseMode mode = RebaseMode::safe;
  ShowProgress progress = ShowProgress::no;
};
Result<int> rebase(const RebaseOptions& options);

struct CommitOptions {
  ImageOptions image;
  std::string base;  // empty: the backing file
  ShowProgress progress = ShowProgress::no;
};
Result<int> commit(const CommitOptions& options);

}  // namespace image
