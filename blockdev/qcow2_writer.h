// Qcow2Writer: a qcow2 image that is written.
//
// The tables in memory are the truth; the file follows with each flush, in an order that makes any
// state in between a good image (reference/qcow2.md section 2). What readers need they read without
// a lock. What changes is changed under one mutex, and nothing is read or written while it is held:
// a step that lacks a slice of a table or a refcount block lets go, reads it, and starts again.
//
// A write to a cluster that is there goes in place and never takes the mutex. Any other reserves
// host clusters, is carried out by the queue, and only then becomes visible. Two of them never work
// on the same (sub)cluster: the later one waits. With extended L2 entries writes to different
// subclusters of one cluster share the host cluster that the first of them reserved.
//
// Discarding keeps the host cluster: the entry says zero, the host range is punched (3.2, 12). So
// nothing that a plain read or write in flight may still use is ever given to somebody else. Only
// compressed clusters are freed, and who reads one looks again whether it was still there.
//
// Before the first write through a slice of an L2 table all its entries are compared with the
// refcounts and with where metadata lies: a damaged image must not be damaged further. What is
// found sets the corrupt bit, and the image is not written any more.
//
// Not done: extending the file ahead of the cursor. The data write itself extends it before barrier
// A, and two queues that extend and write could cut each other's data off.
//
// Thread: as WritableImage.

#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <memory>
#include <string_view>
#include <vector>

#include "blockdev/qcow2_allocator.h"
#include "blockdev/qcow2_header.h"
#include "blockdev/qcow2_refcount_cache.h"
#include "blockdev/qcow2_tables.h"
#include "blockdev/writable_image.h"
#include "vmm/base/mutex.h"

namespace blockdev {
namespace qcow2 {
struct FlushPlan;
struct OpenedTables;

// What a step under the lock lacks.
struct Missing {
  enum class Kind : u8 { nothing, slice, block } kind = Kind::nothing;
  u64 index = 0;
};
// What such a step came to. `step` counts if nothing is missing.
struct Attempt {
  Missing missing = {};
  WriteStep step = {};
};
}  // namespace qcow2

class Qcow2Writer final : public WritableImage {
 public:
  // Whether anything lies below: without, what is not allocated is zero.
  enum class Below : u8 { nothing, layers };
  // Refused, with the remedy: an image that is damaged, marked dirty or corrupt, has internal
  // snapshots, or is of version 2 and has layers below.
  static Result<std::shared_ptr<Qcow2Writer>> create(base::Fd fd, Below below,
                                                     std::unique_ptr<IoEngine> engine);

  u64 size_bytes() const override { return size_bytes_; }
  Result<Extent> map(u64 offset, u64 length) const override;
  Result<void> read_computed(u64 offset, u64 length, IovecCursor& to,
                             ReadScratch& scratch) const override;

  int fd() const override { return fd_.get(); }
  u32 discard_granularity_bytes() const override {
    return static_cast<u32>(geometry_.subcluster_bytes());
  }
  WriteStep begin_write(ByteRange range, WriteKind kind, WriteTicket& ticket,
                        Waker& waker) override;
  void end_write(WriteTicket& ticket, int error_number) override;
  int flush(WaitingIo& io, FlushReason reason) override EXCLUDES_LOCK(flush_mutex_);
  FlushNeed flush_need() const override { return need_.load(std::memory_order_relaxed); }
  Result<void> resize(u64 size_bytes, WaitingIo& io) override;
  Result<void> record_size(WaitingIo& io) override;
  bool may_keep_what_is_behind() const override { return true; }
  Result<void> close(WaitingIo& io) override EXCLUDES_LOCK(flush_mutex_);

  const qcow2::Header& header() const { return header_; }

 private:
  enum class Condition : u8 { good, failed, corrupt };
  using Missing = qcow2::Missing;
  using Attempt = qcow2::Attempt;
  // Where one cluster stands, seen under the lock.
  struct Place {
    qcow2::L2Slice* slice = nullptr;
    qcow2::ClusterEntry entry;
    u64 unit = 0;                         // what is written as a whole here
    const WriteTicket* shared = nullptr;  // has reserved the host cluster
  };

  Qcow2Writer(base::Fd fd, Below below, std::unique_ptr<IoEngine> engine,
              qcow2::OpenedTables opened, qcow2::Tables tables);

  // Reading (qcow2_writer_map.cc).
  Result<Extent> extent_in(const qcow2::L2Slice& slice, u64 offset, u64 length) const;
  Result<qcow2::ClusterEntry> entry_in(const qcow2::L2Slice& slice, u64 offset) const;
  struct Found {
    const qcow2::L2Slice* slice = nullptr;  // null: no table, or its slice is not in memory
    bool has_table = false;
  };
  Found find_slice(u64 offset) const;
  Result<Extent> map_found(const Found& found, u64 offset, u64 length) const;
  Result<qcow2::ClusterEntry> entry_at(u64 offset) const;
  Result<void> decompress(const qcow2::ClusterEntry& entry, ReadScratch& scratch) const;
  Result<void> read_plain(const qcow2::ClusterEntry& entry, u64 within, u64 length,
                          IovecCursor& to) const;

  // Writing (qcow2_writer.cc, qcow2_writer_zero.cc).
  WriteStep step_in_place(ByteRange range);
  Attempt begin_data(ByteRange range, WriteTicket& ticket, Waker& waker) REQUIRES_LOCK(mutex_);
  Attempt begin_zero(ByteRange range, WriteKind kind, WriteTicket& ticket, Waker& waker)
      REQUIRES_LOCK(mutex_);
  Attempt zero_without_flag(ByteRange range, const Place& place, WriteTicket& ticket, Waker& waker)
      REQUIRES_LOCK(mutex_);
  Attempt zero_run(ByteRange range, const Place& place, WriteTicket& ticket, Waker& waker)
      REQUIRES_LOCK(mutex_);
  Attempt write_zeros(ByteRange range, WriteTicket& ticket, Waker& waker) REQUIRES_LOCK(mutex_);
  Attempt allocate_existing(ByteRange range, const Place& place, WriteTicket& ticket)
      REQUIRES_LOCK(mutex_);
  Attempt allocate_new(ByteRange range, const Place& place, WriteTicket& ticket)
      REQUIRES_LOCK(mutex_);
  u64 count_without_host(ByteRange range, const Place& place) REQUIRES_LOCK(mutex_);
  Attempt find_place(u64 offset, Place& place) REQUIRES_LOCK(mutex_);
  Attempt writable_slice(u64 offset, qcow2::L2Slice*& slice) REQUIRES_LOCK(mutex_);
  Attempt add_table(u64 l1_index) REQUIRES_LOCK(mutex_);
  Attempt check_slice(qcow2::L2Slice& slice) REQUIRES_LOCK(mutex_);
  bool is_shared(const qcow2::ClusterEntry& entry) REQUIRES_LOCK(mutex_);
  bool is_entry_sound(const qcow2::ClusterEntry& entry) REQUIRES_LOCK(mutex_);
  Attempt failed_reservation(qcow2::Reserved result) REQUIRES_LOCK(mutex_);
  void start_ticket(WriteTicket& ticket, const Place& place) REQUIRES_LOCK(mutex_);
  const WriteTicket* overlapping(ByteRange range) const REQUIRES_LOCK(mutex_);
  Attempt wait_for_other(Waker& waker) REQUIRES_LOCK(mutex_);
  Attempt wait_for_flush(Waker& waker) REQUIRES_LOCK(mutex_);
  void wake_waiters();
  void publish(const WriteTicket& ticket) REQUIRES_LOCK(mutex_);
  void publish_cluster(const WriteTicket& ticket, u64 cluster_offset) REQUIRES_LOCK(mutex_);
  void abandon(const WriteTicket& ticket) REQUIRES_LOCK(mutex_);
  void zero_cluster(qcow2::L2Slice& slice, u64 offset, u64 length, qcow2::ClusterEntry entry)
      REQUIRES_LOCK(mutex_);
  u64 punched_offset(const qcow2::ClusterEntry& entry, u64 offset, WriteKind kind) const;
  void free_later(const qcow2::ClusterEntry& entry) REQUIRES_LOCK(mutex_);
  void note_change() REQUIRES_LOCK(mutex_);
  u32 subcluster_mask(u64 cluster_offset, ByteRange covered) const;
  u64 unit_bytes(const qcow2::ClusterEntry& entry) const;
  u64 cluster_end(u64 offset) const;
  u64 slice_end(u64 offset) const;

  // Reads what is missing. Never with the lock.
  Result<void> fetch(const Missing& missing) const;
  Result<void> fetch_slice(u64 number) const;
  Result<void> fetch_block(u64 index) const;
  bool begin_loading(const Missing& missing) const REQUIRES_LOCK(mutex_);
  void end_loading(const Missing& missing) const REQUIRES_LOCK(mutex_);
  void set_corrupt(std::string_view reason) const;

  // Flushing (qcow2_flush.cc).
  int flush_alone(WaitingIo& io, FlushReason reason) REQUIRES_LOCK(flush_mutex_);
  void collect(qcow2::FlushPlan& plan, FlushReason reason) REQUIRES_LOCK(mutex_);
  enum class LinkWhich : u8 { needed, all };
  std::vector<u64> take_linked(LinkWhich which) REQUIRES_LOCK(mutex_);
  void collect_refcounts(qcow2::FlushPlan& plan) REQUIRES_LOCK(mutex_);
  void collect_links(qcow2::FlushPlan& plan, const std::vector<u64>& linked) REQUIRES_LOCK(mutex_);
  void collect_tables(qcow2::FlushPlan& plan) REQUIRES_LOCK(mutex_);
  void collect_l1(qcow2::FlushPlan& plan) REQUIRES_LOCK(mutex_);
  int carry_out(qcow2::FlushPlan& plan, WaitingIo& io);
  int barrier(WaitingIo& io);
  int write_header(WaitingIo& io);
  void take_back(qcow2::FlushPlan& plan) REQUIRES_LOCK(mutex_);
  void settle(qcow2::FlushPlan& plan) REQUIRES_LOCK(mutex_);
  void end_move(qcow2::FlushPlan& plan) REQUIRES_LOCK(mutex_);
  void end_new_tables(const qcow2::FlushPlan& plan) REQUIRES_LOCK(mutex_);
  void free_clusters(std::vector<u64> clusters, WaitingIo& io);
  bool free_cluster(u64 cluster, u64 references, WaitingIo& io);
  int mark_corrupt(WaitingIo& io);
  Result<void> clear_autoclear_bits();

  // qcow2_resize.cc
  Result<void> move_l1(u64 l1_count, WaitingIo& io);
  Result<u64> write_larger_l1(u64 l1_count, WaitingIo& io);

  const base::Fd fd_;
  const qcow2::Header header_;  // as it was when opened
  const qcow2::Geometry geometry_;
  const Below below_;
  const u64 file_bytes_at_open_;
  u64 size_bytes_;
  mutable WaitingIo reader_;
  // For ReadScratch, which keeps it alive: no other image has it while a scratch does.
  const std::shared_ptr<const void> identity_ = std::make_shared<char>();

  mutable base::Mutex mutex_;
  mutable std::condition_variable_any loaded_;
  // Read without the lock, unless it evicts: see there.
  mutable qcow2::Tables tables_;
  mutable qcow2::RefcountCache refcounts_ GUARDED_BY(mutex_);
  qcow2::Allocator allocator_ GUARDED_BY(mutex_);
  mutable std::vector<Missing> loading_ GUARDED_BY(mutex_);
  std::vector<WriteTicket*> in_flight_ GUARDED_BY(mutex_);
  std::vector<std::shared_ptr<Waker>> waiters_ GUARDED_BY(mutex_);
  // The errno of a flush that failed, for the next write that can only wait for one that does not.
  bool is_flush_waited_for_ GUARDED_BY(mutex_) = false;  // by a write
  bool is_shared_told_ GUARDED_BY(mutex_) = false;
  int refusal_ GUARDED_BY(mutex_) = 0;
  std::vector<u64> pending_frees_ GUARDED_BY(mutex_);  // clusters to lower by one
  base::Mutex flush_mutex_;                            // one flush at a time; taken before mutex_
  // The flush's, and a resize's, which comes while none runs.
  std::array<u8, 512> header_sector_;
  u64 l1_offset_;
  bool is_corrupt_marked_ = false;
  mutable std::atomic<Condition> condition_{Condition::good};
  mutable std::atomic<FlushNeed> need_{FlushNeed::none};
};

}  // namespace blockdev
