#include "vmm/frozen_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include "blockdev/image_file.h"
#include "blockdev/image_lock.h"
#include "blockdev/qcow2_rebase.h"
#include "vmm/base/check.h"

namespace vmm {

Result<void> FrozenFile::finish() {
  base::MutexLock one_at_a_time(finish_mutex_);
  if (is_finished()) return {};
  const std::string context = fmt::format("freeze \"{}\"", file_.path);
  blockdev::WaitingIo io(TRY_CONTEXT(blockdev::make_io_engine(), context));
  const int error = image_->flush(io, blockdev::WritableImage::FlushReason::guest);
  if (error != 0) return Error::from_errno(error, context);
  TRY_CONTEXT(image_->close(io), context);
  auto identity = TRY_CONTEXT(
      snapshot::BaseImage::identify(file_.path, std::string(image_format_name(file_.format))),
      context);
  struct stat status {};
  if (::fstat(image_->fd(), &status) != 0) return errno_error("{}", context);
  if (status.st_dev != identity.device || status.st_ino != identity.inode) {
    return make_error(ErrorKind::wrong_state, "{}: another file has its name now", context)
        .with_hint("put the disk's file back to where it was");
  }
  blockdev::keep_lock_of_reader(image_->fd());
  base::MutexLock lock(mutex_);
  identity_ = std::move(identity);
  return {};
}

Result<void> FrozenFile::set_backing_name(const std::string& name) const {
  CHECK(file_.owner == FileOwner::vm);
  // Not by its path: it may be read-only there by now.
  const base::Fd fd(::fcntl(image_->fd(), F_DUPFD_CLOEXEC, 0));
  if (!fd) return errno_error("duplicate a descriptor");
  TRY_CONTEXT(blockdev::qcow2::set_backing_name(fd, name),
              fmt::format("name what lies below \"{}\"", file_.path));
  return {};
}

bool FrozenFile::is_finished() const {
  base::MutexLock lock(mutex_);
  return identity_.has_value();
}

snapshot::BaseImage FrozenFile::base() const {
  base::MutexLock lock(mutex_);
  CHECK(identity_ && file_.owner == FileOwner::user);
  return *identity_;
}

std::optional<snapshot::DiskLayer> FrozenFile::owned() const {
  base::MutexLock lock(mutex_);
  return owned_;
}

void FrozenFile::set_owned(snapshot::DiskLayer layer) {
  base::MutexLock lock(mutex_);
  owned_ = std::move(layer);
}

}  // namespace vmm
