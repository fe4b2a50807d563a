// How adapter weights become int8: shared by packing and by the scalar reference.
#pragma once

#include <cmath>
#include <vector>

#include "quant_blocks.h"

namespace realm {

// Of finite values. In eight lanes, so that compilers can use vectors.
inline float largest_magnitude(const float* x, size_t n) {
  float lanes[8] = {};
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    for (int lane = 0; lane < 8; lane++) {
      const float value = std::fabs(x[i + lane]);
      lanes[lane] = lanes[lane] < value ? value : lanes[lane];
    }
  }
  for (; i < n; i++) lanes[0] = std::fmax(lanes[0], std::fabs(x[i]));
  float amax = 0.0f;
  for (float value : lanes) amax = amax < value ? value : amax;
  return amax;
}

// e such that A * 2^e has its largest magnitude in [1/2, 1): block scales are then well inside the range of f16.
inline int lora_a_exponent(const float* a, size_t n) {
  const float amax = largest_magnitude(a, n);
  return amax >= 1e-30f ? -std::ilogb(amax) - 1 : 0;
}

// Ties to even, as nearbyint does, but without a call: at this size floats are whole numbers. Of a finite value.
inline int8_t nearest_int8(float x) {
  constexpr float whole = 0x1.8p23f;
  const float above = x < -127.0f ? -127.0f : x, bounded = above > 127.0f ? 127.0f : above;
  return static_cast<int8_t>(static_cast<int>((bounded + whole) - whole));
}

// A row of A * 2^exponent as Q8_0. The f16 scale is rounded up, so that no value is cut.
inline std::vector<GgufBlock<QuantType::Q8_0>> lora_quantize_a_row(const float* row, int num_inputs, int exponent) {
  std::vector<GgufBlock<QuantType::Q8_0>> blocks(num_inputs / kBlockInputs);
  const float power = std::ldexp(1.0f, exponent);
  for (GgufBlock<QuantType::Q8_0>& block : blocks) {
    const float amax = largest_magnitude(row, kBlockInputs) * power;
    block.d = f16_above(amax / 127.0f);
    const float d = f16_to_f32(block.d);
    const float divisor = d > 0.0f ? d : 1.0f;  // all are 0 where d is
    for (int k = 0; k < kBlockInputs; k++) block.qs[k] = nearest_int8(row[k] * power / divisor);
    row += kBlockInputs;
  }
  return blocks;
}

// Scale (bf16, rounded up) of a row of B, and its int8 values.
inline uint16_t lora_b_scale(const float* row, int rank) {
  const float amax = largest_magnitude(row, rank), scale = amax >= 1e-30f ? amax / 127.0f : 0.0f;
  uint32_t bits;
  memcpy(&bits, &scale, 4);
  return static_cast<uint16_t>((bits + 0xffff) >> 16);
}
inline int8_t lora_b_quant(float b, uint16_t scale) { return scale ? nearest_int8(b / bf16_to_f32(scale)) : int8_t{0}; }

}  // namespace realm
