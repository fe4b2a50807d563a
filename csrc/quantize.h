// Activations to int8 panels (layout.h). Compiled once per instruction set.
#pragma once

#include "layout.h"
#include "simd.h"

namespace realm::REALM_ISA_NAMESPACE {

// Quantises 32 values of row `row` (0..7 in its panel) to one block.
REALM_INLINE void quantize_block(f32x16 first, f32x16 last, ActivationBlock* block, int row) {
  const float amax = reduce_max(max(abs(first), abs(last)));
  const bool is_zero = !(amax >= 1e-30f);  // 127 / amax would leave the range of floats
  const float d = is_zero ? 0.0f : amax / 127.0f;
  const f32x16 inverse = set1(is_zero ? 0.0f : 127.0f / amax);
  const i32x16 q0 = to_i32(first * inverse), q1 = to_i32(last * inverse);
  store_i8(block->q[0][row], q0);
  store_i8(block->q[1][row], q1);
  const int32_t sum0 = reduce_add(q0), sum1 = reduce_add(q1);
  block->d[row] = d;
  block->d_sum[row] = d * static_cast<float>(sum0 + sum1);
  block->neg_sum[row] = -(sum0 + sum1);
  block->neg_sum16[0][row] = -sum0;
  block->neg_sum16[1][row] = -sum1;
}

// The block of 32 inputs `block` of row `row` in the panels of rows with `num_inputs` values.
REALM_INLINE ActivationBlock* activation_block(uint8_t* panels, int num_inputs, int row, int block) {
  return reinterpret_cast<ActivationBlock*>(panels + row / kPanelRows * panel_bytes(num_inputs)) + block;
}

// Quantises the blocks [block_begin, block_end) of row `row` of a step. `x` is the whole row: [num_inputs]. Threads may
// share the work by rows or by blocks.
inline void quantize_row(const float* x, int num_inputs, uint8_t* panels, int row, int block_begin, int block_end) {
  ActivationBlock* block = activation_block(panels, num_inputs, row, block_begin);
  for (int b = block_begin; b < block_end; b++, block++)
    quantize_block(load(x + b * kBlockInputs), load(x + b * kBlockInputs + 16), block, row % kPanelRows);
}

}  // namespace realm::REALM_ISA_NAMESPACE
