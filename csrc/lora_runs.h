// The adapters of one linear layer over the rows of a step, shared out over threads.
//
// A linear layer of a step with adapters is: lora_shrink on every thread, a barrier, then each thread computes its own tiles
// of each matrix and adds to them with lora_expand.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lora.h"

namespace realm {

// One adapter's change of one matrix of the layer; b null: none.
struct LoraPart {
  const uint8_t* b = nullptr;
  int rank = 0;
  int first_rank = 0;  // where its ranks start in t
  float scale = 0.0f;  // alpha / rank, times what lora_pack_a returned
};

// One adapter's change of one layer: A of all parts one after the other, and each part's B.
struct LoraModule {
  LoraStore store;
  const uint8_t* a;
  int num_ranks, num_inputs;
  std::vector<LoraPart> parts;  // one for each matrix of the layer
};

// Rows [row_begin, row_end) of a step, all with this adapter. Runs are in order and do not overlap.
struct LoraRun {
  int row_begin, row_end;
  const LoraModule* module;
};

struct LoraInput {
  const uint8_t* panels;  // for int8 stores
  const float* x;         // for f32 stores
  size_t x_stride;
};

// t = A x of every run: [rows of the step, t_stride], with t_stride at least lora_padded_ranks of every module.
void lora_shrink(const LoraTable& table, const std::vector<LoraRun>& runs, const LoraInput& input, float* t,
                 size_t t_stride, int thread, int num_threads);

// Adds B t to the tiles [tile_begin, tile_end) of matrix `part`; `out` is where its first output of the first row lies.
void lora_expand(const LoraTable& table, const std::vector<LoraRun>& runs, int part, int num_outputs, const float* t,
                 size_t t_stride, float* out, size_t out_stride, int tile_begin, int tile_end);

}  // namespace realm
