// LoRA adapters as a program computes with them: packed once, off the steps' way, then shared by the steps that use them.
#pragma once

#include <vector>

#include "lora_runs.h"
#include "memory.h"

namespace realm {

// The matrices that one op multiplies the same input by. Its id is its place in the program.
struct LoraSite {
  LoraStore store;
  int num_inputs;
  std::vector<int> num_outputs;  // of each matrix
  bool judged;                   // its rows are those judged only
  bool of_tokens = false;        // its input is a token id: a column of A is looked up, and B has no padding
};

// The change of one matrix of a site: y += scale * B (A x).
struct LoraChange {
  int site, part;
  const float* a;  // [rank, K]
  const float* b;  // [N, rank]
  int rank;
  float scale;
};

class PackedAdapter {
 public:
  // Throws std::invalid_argument on a site or part that does not exist or is changed twice, or a rank below 1.
  PackedAdapter(const std::vector<LoraSite>& sites, std::vector<LoraChange> changes);
  PackedAdapter(const PackedAdapter&) = delete;
  PackedAdapter& operator=(const PackedAdapter&) = delete;

  // Memory that an adapter with these changes takes; reads their site, part and rank only.
  static std::size_t num_bytes(const std::vector<LoraSite>& sites, const std::vector<LoraChange>& changes);

  // Its change of a site; null if it leaves that alone.
  const LoraModule* module(int site) const { return modules_[site].num_ranks > 0 ? &modules_[site] : nullptr; }
  std::size_t num_bytes() const { return memory_.size(); }
  int padded_ranks() const { return padded_ranks_; }  // of the site that has most

 private:
  HugeBuffer memory_;
  std::vector<LoraModule> modules_;  // of each site
  int padded_ranks_ = 0;
};

}  // namespace realm
