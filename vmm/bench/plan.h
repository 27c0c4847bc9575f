// Plan: how much is measured, and beside whom.

#pragma once

#include <optional>
#include <string>
#include <vector>

#include "vmm/bench/report.h"
#include "vmm/bench/workspace.h"

namespace bench {

struct Plan {
  const Workspace& workspace;
  std::optional<std::string> peer;  // QEMU's version; nothing: measure alone
  bool quick = false;

  // Of each figure that a bar is about, ours and the peer's by turns.
  u32 headline_count() const { return quick ? 10 : 100; }
  // Of each cell of a curve: ours, and the peer's, which are slow and spread little.
  u32 curve_count() const { return quick ? 10 : 100; }
  u32 peer_curve_count() const { return quick ? 2 : 20; }
};

// One for each question, in the order in which they are printed.
struct Question {
  const char* name;
  Result<Table> (*answer)(const Plan& plan);
};
const std::vector<Question>& revert_questions();
const std::vector<Question>& image_questions();

Result<Table> measure_in_place(const Plan& plan);
Result<Table> measure_headline(const Plan& plan);
Result<Table> measure_mapped(const Plan& plan);
Result<Table> measure_restore(const Plan& plan);
Result<Table> measure_cold_start(const Plan& plan);
Result<Table> measure_resident(const Plan& plan);

Result<Table> measure_images_tmpfs(const Plan& plan);
Result<Table> measure_images_cached(const Plan& plan);
Result<Table> measure_images_direct(const Plan& plan);
Result<Table> measure_images_allocate(const Plan& plan);
Result<Table> measure_images_chain(const Plan& plan);
Result<Table> measure_images_overlay(const Plan& plan);
Result<Table> measure_images_guest(const Plan& plan);
Result<Table> measure_images_handover(const Plan& plan);

}  // namespace bench
