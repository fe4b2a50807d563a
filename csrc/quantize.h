// Activations to int8 panels (layout.h). Compiled once per instruction set.
#pragma once

#include "layout.h"
#include "simd.h"

namespace realm::REALM_ISA_NAMESPACE {

// Quantises 16 values, the largest of magnitude `amax`, of row `row` (0..7 in its panel) to half a block.
REALM_INLINE i32x16 quantize_half(f32x16 x, float amax, ActivationBlock* block, int half, int row) {
  const bool is_zero = !(amax >= 1e-30f);  // 127 / amax would leave the range of floats
  const i32x16 q = to_i32(x * set1(is_zero ? 0.0f : 127.0f / amax));
  store_i8(block->q[half][row], q);
  block->d[half][row] = is_zero ? 0.0f : amax / 127.0f;
  block->neg_sum[half][row] = -reduce_add(q);
  return q;
}

REALM_INLINE void set_x_sum(ActivationBlock* block, int row) {
  const float sum0 = static_cast<float>(-block->neg_sum[0][row]), sum1 = static_cast<float>(-block->neg_sum[1][row]);
  block->x_sum[row] = __builtin_fmaf(block->d[1][row], sum1, block->d[0][row] * sum0);
}

// What `block`'s quants leave of row `row`, to `residual`. A panel's rows come in order.
inline void quantize_residual(f32x16 first, f32x16 last, ActivationBlock* block, int row, ActivationBlock* residual) {
  uint64_t rows_before = 0;
  memcpy(&rows_before, block->has_residual, row);
  if (rows_before == 0) {
    memset(residual->d, 0, sizeof residual->d);
    memset(residual->x_sum, 0, sizeof residual->x_sum);
    block->residual_offset = reinterpret_cast<uint8_t*>(residual) - reinterpret_cast<uint8_t*>(block);
  }
  block->has_residual[row] = 1;
  quantize_half(first, reduce_max(abs(first)), residual, 0, row);
  quantize_half(last, reduce_max(abs(last)), residual, 1, row);
  set_x_sum(residual, row);
}

// Quantises 32 values of row `row` to one block; values above `outlier` have it leave a residual.
REALM_INLINE void quantize_block(f32x16 first, f32x16 last, ActivationBlock* block, int row, float outlier = 0.0f,
                                 ActivationBlock* residual = nullptr) {
  const float amax0 = reduce_max(abs(first)), amax1 = reduce_max(abs(last));
  const i32x16 q0 = quantize_half(first, amax0, block, 0, row), q1 = quantize_half(last, amax1, block, 1, row);
  set_x_sum(block, row);
  block->has_residual[row] = 0;
  if (residual != nullptr && (amax0 > outlier || amax1 > outlier))
    quantize_residual(fnma(to_f32(q0), set1(block->d[0][row]), first), fnma(to_f32(q1), set1(block->d[1][row]), last), block,
                      row, residual);
}

// The block of 32 inputs `block` of row `row` in the panels of rows with `num_inputs` values.
REALM_INLINE ActivationBlock* activation_block(uint8_t* panels, int num_inputs, int row, int block) {
  return reinterpret_cast<ActivationBlock*>(panels + row / kPanelRows * panel_bytes(num_inputs)) + block;
}

// Quantises the blocks [block_begin, block_end) of row `row` of a step. `x` is the whole row: [num_inputs]. `residuals`:
// panels for the residuals of blocks with values above `outlier`, or null.
inline void quantize_row(const float* x, int num_inputs, uint8_t* panels, int row, int block_begin, int block_end,
                         uint8_t* residuals, float outlier) {
  for (int b = block_begin; b < block_end; b++)
    quantize_block(load(x + b * kBlockInputs), load(x + b * kBlockInputs + 16), activation_block(panels, num_inputs, row, b),
                   row % kPanelRows, outlier, residuals ? activation_block(residuals, num_inputs, row, b) : nullptr);
}

}  // namespace realm::REALM_ISA_NAMESPACE
