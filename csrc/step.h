// One step's input, checked, and what follows from it: positions, blocks, and who attends to what.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "adapter.h"
#include "attention.h"
#include "matmul_table.h"

namespace realm {

// As `Batch` in core/types.py; the pointers stay valid during the step only.
struct StepInput {
  int num_tokens, num_requests, num_logit_rows, max_blocks;
  const std::int32_t* token_ids;      // [T]
  const std::int32_t* query_starts;   // [R + 1]
  const std::int32_t* context_lens;   // [R]
  const std::int32_t* block_tables;   // [R, M]
  const std::int32_t* logit_rows;     // [S]
  const std::int32_t* adapter_slots;  // [R], -1: none
  bool likeliest_only = false;        // logits that are not the largest of their row may be -infinity
};

struct StepLimits {
  int max_tokens, max_logit_rows, max_positions, vocab_size, num_blocks, block_tokens;
};

// Attention of layers that agree in these is split alike.
struct AttentionShape {
  int num_heads, window;
  bool judged;  // only the rows that are judged attend
  KVLayout kv;
  int heads_per_kv() const { return num_heads / kv.num_kv_heads; }
  bool operator==(const AttentionShape& o) const {
    return num_heads == o.num_heads && window == o.window && judged == o.judged && kv.num_kv_heads == o.kv.num_kv_heads && kv.head_dim == o.kv.head_dim;
  }
};

struct AttentionPlan {
  AttentionShape shape;
  std::vector<std::vector<AttentionItem>> items;  // of each thread
  std::vector<std::vector<Span>> spans;           // of a KVLayer, from its `first` on, that each thread will read
};

// The adapters that a step may use, by slot; null where a slot is empty.
using AdapterSlots = std::vector<std::shared_ptr<const PackedAdapter>>;

class Step {
 public:
  // Throws std::invalid_argument, naming what is wrong, rather than read or write out of bounds later.
  void set(const StepInput& input, const StepLimits& limits);
  // After `set`: which rows use which adapter at which site. Throws on an empty slot.
  void set_adapters(const AdapterSlots& slots, const std::vector<LoraSite>& sites);
  // Fills `plan` for this step.
  void split_attention(AttentionPlan& plan, std::size_t kv_block_bytes, int num_threads) const;

  const StepInput& input() const { return input_; }
  int num_tokens() const { return input_.num_tokens; }
  int num_judged() const { return input_.num_logit_rows; }
  int position(int row) const { return positions_[row]; }
  int num_positions() const { return num_positions_; }  // beyond the last one of any request
  std::int32_t block(int row) const { return blocks_[row]; }
  // Empty where no row of the step has an adapter that changes the site.
  const std::vector<LoraRun>& lora_runs(int site) const { return lora_runs_[site]; }

 private:
  // Consecutive rows of one request; `out_row`: of the first among those that attend.
  struct RowRun {
    int request, row, num_rows, out_row;
  };
  template <class Body>
  void for_each_run(bool judged, Body&& body) const;

  // Consecutive rows of one adapter.
  struct AdapterRun {
    int row_begin, row_end;
    const PackedAdapter* adapter;
  };
  static void append(std::vector<AdapterRun>& runs, int row_begin, int row_end, const PackedAdapter* adapter);

  StepInput input_{};
  int num_positions_ = 0;
  std::vector<std::int32_t> positions_, blocks_;  // [T]
  std::vector<AdapterRun> runs_, judged_runs_;
  std::vector<std::vector<LoraRun>> lora_runs_;  // of each site
};

}  // namespace realm
