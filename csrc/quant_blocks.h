// GGUF blocks as they lie in a file: ggml's `ggml-common.h`.
#pragma once

#include <cstdint>
#include <cstring>

#include "layout.h"

namespace realm {

inline float f16_to_f32(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16, exponent = (h >> 10) & 31, fraction = h & 0x3ff;
  uint32_t bits;
  float f;
  if (exponent == 0) {
    f = static_cast<float>(fraction) * 5.9604644775390625e-08f;  // 2^-24
    memcpy(&bits, &f, 4);
    bits |= sign;
  } else {
    bits = sign | (exponent == 31 ? 0x7f800000u : (exponent + 112) << 23) | fraction << 13;
  }
  memcpy(&f, &bits, 4);
  return f;
}
// The smallest f16 that is not below `x`, for 0 <= x <= 65504.
inline uint16_t f16_above(float x) {
  if (x >= 0x1p-14f && x <= 65504.0f) {  // f16 has it without denormals: cut the mantissa, and the exponent's offset is 112 less
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return static_cast<uint16_t>(((bits + 0x1fff) >> 13) - (112 << 10));
  }
  uint16_t low = 0, high = 0x7bff;  // f16 bits order like the numbers
  while (low < high) {
    const uint16_t middle = static_cast<uint16_t>((low + high) / 2);
    if (f16_to_f32(middle) < x) {
      low = static_cast<uint16_t>(middle + 1);
    } else {
      high = middle;
    }
  }
  return low;
}
inline float bf16_to_f32(uint16_t h) {
  const uint32_t bits = static_cast<uint32_t>(h) << 16;
  float f;
  memcpy(&f, &bits, 4);
  return f;
}

template <QuantType type>
struct GgufBlock;

template <>
struct GgufBlock<QuantType::Q4_0> {
  uint16_t d;
  uint8_t qs[16];  // low nibbles: inputs 0..15, high nibbles: 16..31
};
template <>
struct GgufBlock<QuantType::Q4_1> {
  uint16_t d, m;
  uint8_t qs[16];
};
template <>
struct GgufBlock<QuantType::Q5_0> {
  uint16_t d;
  uint8_t qh[4];  // bit k: fifth bit of input k
  uint8_t qs[16];
};
template <>
struct GgufBlock<QuantType::Q5_1> {
  uint16_t d, m;
  uint8_t qh[4];
  uint8_t qs[16];
};
template <>
struct GgufBlock<QuantType::Q8_0> {
  uint16_t d;
  int8_t qs[32];
};
template <>
struct GgufBlock<QuantType::Q8_0_PLANES> : GgufBlock<QuantType::Q8_0> {};
template <>
struct GgufBlock<QuantType::Q2_K> {
  uint8_t scales[16];  // low nibble scale, high nibble min, per 16 inputs
  uint8_t qs[64];      // byte 32n + l: inputs 128n + 32j + l in bits 2j
  uint16_t d, dmin;
};
template <>
struct GgufBlock<QuantType::Q3_K> {
  uint8_t hmask[32];   // byte l, bit b: third bit of input 32b + l
  uint8_t qs[64];      // as in Q2_K
  uint8_t scales[12];  // 16 scales of 6 bits, less 32
  uint16_t d;
};
template <>
struct GgufBlock<QuantType::Q4_K> {
  uint16_t d, dmin;
  uint8_t scales[12];  // 8 scales and 8 mins of 6 bits
  uint8_t qs[128];     // byte 32c + l: input 64c + l low nibble, 64c + 32 + l high
};
template <>
struct GgufBlock<QuantType::Q5_K> {
  uint16_t d, dmin;
  uint8_t scales[12];
  uint8_t qh[32];  // byte l, bit b: fifth bit of input 32b + l
  uint8_t qs[128];
};
template <>
struct GgufBlock<QuantType::Q6_K> {
  uint8_t ql[128];  // byte 64n + l: inputs 128n + l (low nibble) and 128n + 64 + l (high), l < 64
  uint8_t qh[64];   // byte 32n + l: inputs 128n + 32j + l in bits 2j
  int8_t scales[16];
  uint16_t d;
};

template <QuantType type>
constexpr int gguf_block_inputs() {
  if constexpr (is_float(type)) return 1;
  return kBlockInputs * integer_layout<type>().group_blocks();
}
template <QuantType type>
constexpr int gguf_block_bytes() {
  if constexpr (is_float(type)) {
    return float_bytes<type>();
  } else {
    return sizeof(GgufBlock<type>);
  }
}
template <QuantType type>
constexpr size_t gguf_row_bytes(int num_inputs) {
  return static_cast<size_t>(num_inputs) / gguf_block_inputs<type>() * gguf_block_bytes<type>();
}

static_assert(gguf_block_bytes<QuantType::Q4_0>() == 18 && gguf_block_bytes<QuantType::Q4_1>() == 20);
static_assert(gguf_block_bytes<QuantType::Q5_0>() == 22 && gguf_block_bytes<QuantType::Q5_1>() == 24);
static_assert(gguf_block_bytes<QuantType::Q8_0>() == 34 && gguf_block_bytes<QuantType::Q2_K>() == 84);
static_assert(gguf_block_bytes<QuantType::Q3_K>() == 110 && gguf_block_bytes<QuantType::Q4_K>() == 144);
static_assert(gguf_block_bytes<QuantType::Q5_K>() == 176 && gguf_block_bytes<QuantType::Q6_K>() == 210);

// Scale and min `j` (0..7) out of the 12 bytes of Q4_K and Q5_K.
inline void scale_min_k4(const uint8_t* s, int j, uint8_t* scale, uint8_t* min) {
  if (j < 4) {
    *scale = s[j] & 63;
    *min = s[j + 4] & 63;
  } else {
    *scale = static_cast<uint8_t>((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
    *min = static_cast<uint8_t>((s[j + 4] >> 4) | (s[j] >> 6) << 4);
  }
}
// Scale `j` (0..15) out of the 12 bytes of Q3_K.
inline int8_t scale_q3(const uint8_t* s, int j) {
  const int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
  const int high = (s[8 + j % 4] >> 2 * (j / 4)) & 3;
  return static_cast<int8_t>((low | high << 4) - 32);
}

}  // namespace realm
