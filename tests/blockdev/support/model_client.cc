#include "tests/blockdev/support/model_client.h"

#include <algorithm>

#include "vmm/base/check.h"

namespace blockdev::test {

ModelClient::ModelClient(BlockBackend& backend, SectorHistory& history, Timeline& timeline)
    : history_(history),
      timeline_(timeline),
      queue_(backend.open_queue().value()),
      granularity_(backend.discard_granularity_bytes()) {}

ModelClient::~ModelClient() {
  queue_->drain();
  CHECK(in_flight_count() == 0);
}

ModelClient::Slot& ModelClient::take_slot() {
  if (free_.empty()) {
    slots_.push_back(std::make_unique<Slot>());
    free_.push_back(slots_.back().get());
  }
  Slot& slot = *free_.back();
  free_.pop_back();
  slot.is_busy = true;
  return slot;
}

// Odd pieces, so that no code can rely on buffers of sectors; often one, as drivers send them.
void ModelClient::cut_buffers(Slot& slot) {
  slot.buffers.clear();
  const bool in_one = random_() % 2 == 0;
  for (u64 at = 0; at < slot.bytes.size();) {
    const u64 rest = slot.bytes.size() - at;
    const u64 piece = in_one ? rest : std::min<u64>(rest, 1 + random_() % 20000);
    slot.buffers.push_back({slot.bytes.data() + at, piece});
    at += piece;
  }
}

void ModelClient::note_changes(Slot& slot, const Request& request, Stamp stamp) {
  slot.change = history_.begin(slot.submitted);
  const u64 unit = std::max<u64>(1, granularity_ / kSectorBytes);
  const u64 end = request.first_sector + request.sector_count;
  const u64 sure_from = (request.first_sector + unit - 1) / unit * unit;
  const u64 sure_to = end / unit * unit;
  for (u64 sector = request.first_sector; sector < end; ++sector) {
    const bool is_sure =
        request.op != BlockOp::discard || (sector >= sure_from && sector < sure_to);
    const Stamp value =
        request.op == BlockOp::write ? stamp + sector - request.first_sector : kZeroStamp;
    history_.change(slot.change, sector, value,
                    is_sure ? Certainty::certain : Certainty::uncertain);
  }
}

void ModelClient::start(const Request& request, Stamp stamp) {
  Slot& slot = take_slot();
  const bool has_data = request.op == BlockOp::read || request.op == BlockOp::write;
  slot.bytes.assign(has_data ? request.sector_count * kSectorBytes : 0, 0xee);
  if (request.op == BlockOp::write) {
    for (u64 i = 0; i < request.sector_count; ++i) {
      fill_stamp(std::span(slot.bytes).subspan(i * kSectorBytes, kSectorBytes), stamp + i);
    }
  }
  cut_buffers(slot);
  slot.request = {};
  slot.request.op = request.op;
  slot.request.unmap = request.unmap;
  slot.request.offset_bytes = request.first_sector * kSectorBytes;
  slot.request.length_bytes = request.sector_count * kSectorBytes;
  slot.request.buffers = slot.buffers;
  slot.request.client = this;
  slot.submitted = timeline_.next();
  if (request.op != BlockOp::read && request.op != BlockOp::flush) {
    note_changes(slot, request, stamp);
  }
  queue_->submit(slot.request);
}

BlockStatus ModelClient::run(const Request& request, Stamp stamp) {
  start(request, stamp);
  queue_->drain();
  return last_status_;
}

void ModelClient::on_done(BlockRequest& request, BlockStatus status) {
  const u64 done = timeline_.next();
  const auto found = std::ranges::find_if(
      slots_, [&](const auto& candidate) { return &candidate->request == &request; });
  CHECK(found != slots_.end());
  Slot& slot = **found;
  if (!slot.is_busy) violations_.push_back("a request was done twice");
  last_status_ = status;
  if (status != BlockStatus::ok) ++failed_;
  switch (request.op) {
    case BlockOp::read:
      if (status == BlockStatus::ok) judge_read(slot, done);
      break;
    case BlockOp::flush:
      if (status == BlockStatus::ok) history_.flushed(slot.submitted, done);
      break;
    case BlockOp::write:
    case BlockOp::discard:
    case BlockOp::write_zeroes:
      history_.end(slot.change, done,
                   status == BlockStatus::ok ? Certainty::certain : Certainty::uncertain);
      break;
  }
  slot.is_busy = false;
  free_.push_back(&slot);
}

void ModelClient::judge_read(const Slot& slot, u64 done) {
  const u64 first = slot.request.offset_bytes / kSectorBytes;
  for (u64 i = 0; i * kSectorBytes < slot.bytes.size(); ++i) {
    const Stamp stamp = stamp_of(std::span(slot.bytes).subspan(i * kSectorBytes, kSectorBytes));
    if (const auto violation = history_.read(first + i, stamp, slot.submitted, done)) {
      violations_.push_back(*violation);
    }
  }
  last_bytes_ = slot.bytes;
}

}  // namespace blockdev::test
