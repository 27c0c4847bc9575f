#include "blockdev/qcow2_backing_name.h"

#include "blockdev/qcow2_header.h"
#include "blockdev/qcow2_header_writer.h"

namespace blockdev::qcow2 {

Result<void> set_backing_name(const base::Fd& fd, const std::string& name) {
  const u64 file_bytes = TRY(base::file_size(fd));
  const Header header = TRY(read_header(fd, file_bytes));
  if (header.backing_name == name) return {};
  std::vector<u8> first_cluster(header.cluster_bytes());
  TRY(base::read_exactly(
      fd, std::span(first_cluster).first(std::min<u64>(first_cluster.size(), file_bytes)), 0));
  HeaderParts parts = take_header_apart(header.wire, first_cluster);
  const std::size_t old_end = header.wire.backing_file_offset + parts.backing_name.size();
  parts.backing_name = name;
  std::vector<u8> composed = TRY(compose_header(std::move(parts)));
  // Nothing of a longer name stays behind.
  if (composed.size() < old_end) composed.resize(old_end);
  TRY(base::write_exactly(fd, composed, 0));
  return base::sync_file(fd);
}

}  // namespace blockdev::qcow2
