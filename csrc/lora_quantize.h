// How adapter weights become int8: shared by packing and by the scalar reference.
#pragma once

#include <cmath>
#include <vector>

#include "quant_blocks.h"

namespace realm {

inline float largest_magnitude(const float* x, size_t n) {
  float amax = 0.0f;
  for (size_t i = 0; i < n; i++) amax = std::fmax(amax, std::fabs(x[i]));
  return amax;
}

// e such that A * 2^e has its largest magnitude in [1/2, 1): block scales are then well inside the range of f16.
inline int lora_a_exponent(const float* a, size_t n) {
  const float amax = largest_magnitude(a, n);
  return amax >= 1e-30f ? -std::ilogb(amax) - 1 : 0;
}

inline int8_t nearest_int8(float x) {
  return static_cast<int8_t>(std::nearbyintf(std::fmin(std::fmax(x, -127.0f), 127.0f)));
}

// A row of A * 2^exponent as Q8_0. The f16 scale is rounded up, so that no value is cut.
inline std::vector<GgufBlock<QuantType::Q8_0>> lora_quantize_a_row(const float* row, int num_inputs, int exponent) {
  std::vector<GgufBlock<QuantType::Q8_0>> blocks(num_inputs / kBlockInputs);
  for (GgufBlock<QuantType::Q8_0>& block : blocks) {
    const float power = std::ldexp(1.0f, exponent), amax = largest_magnitude(row, kBlockInputs) * power;
    block.d = f16_above(amax / 127.0f);
    const float d = f16_to_f32(block.d);
    for (int k = 0; k < kBlockInputs; k++) block.qs[k] = d > 0.0f ? nearest_int8(row[k] * power / d) : int8_t{0};
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
