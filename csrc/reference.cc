#include "reference.h"

#include <cmath>
#include <vector>

#include "lora_quantize.h"
#include "quant_blocks.h"

namespace realm {
namespace {

struct QuantisedBlock {
  float d;
  int q[kBlockInputs];

  explicit QuantisedBlock(const float* x) {
    float amax = 0.0f;
    for (int k = 0; k < kBlockInputs; k++) amax = std::fmax(amax, std::fabs(x[k]));
    d = amax >= 1e-30f ? amax / 127.0f : 0.0f;
    const float inverse = amax >= 1e-30f ? 127.0f / amax : 0.0f;
    for (int k = 0; k < kBlockInputs; k++) q[k] = static_cast<int>(std::nearbyintf(x[k] * inverse));
  }
  int sum(int first, int count) const {
    int s = 0;
    for (int k = first; k < first + count; k++) s += q[k];
    return s;
  }
};

// Value of input `k` of a GGUF block, before scales.
template <QuantType type>
int quant(const GgufBlock<type>& s, int k) {
  if constexpr (type == QuantType::Q8_0) {
    return s.qs[k];
  } else if constexpr (type == QuantType::Q6_K) {
    const int n = k / 128, j = k / 32 % 4, l = k % 32;
    const int low = s.ql[64 * n + k % 64] >> 4 * (k / 64 % 2) & 15, high = s.qh[32 * n + l] >> 2 * j & 3;
    return (low | high << 4) - 32;
  } else if constexpr (type == QuantType::Q2_K || type == QuantType::Q3_K) {
    const int low = s.qs[k / 128 * 32 + k % 32] >> 2 * (k / 32 % 4) & 3;
    if constexpr (type == QuantType::Q3_K) return low - (s.hmask[k % 32] >> k / 32 & 1 ? 0 : 4);
    return low;
  } else if constexpr (type == QuantType::Q4_K || type == QuantType::Q5_K) {
    const int low = s.qs[k / 64 * 32 + k % 32] >> 4 * (k / 32 % 2) & 15;
    if constexpr (type == QuantType::Q5_K) return low | (s.qh[k % 32] >> k / 32 & 1) << 4;
    return low;
  } else {
    const int low = s.qs[k % 16] >> 4 * (k / 16) & 15;
    if constexpr (type == QuantType::Q4_0) return low - 8;
    if constexpr (type == QuantType::Q4_1) return low;
    if constexpr (type == QuantType::Q5_0) return (low | (s.qh[k / 8] >> k % 8 & 1) << 4) - 16;
    if constexpr (type == QuantType::Q5_1) return low | (s.qh[k / 8] >> k % 8 & 1) << 4;
  }
}

// Scale, and what a value of 0 stands for, of the inputs around `k` of a GGUF block.
template <QuantType type>
float scale_at(const GgufBlock<type>& s, [[maybe_unused]] int k) {
  const float d = f16_to_f32(s.d);
  if constexpr (type == QuantType::Q2_K) return d * static_cast<float>(s.scales[k / 16] & 15);
  if constexpr (type == QuantType::Q3_K) return d * static_cast<float>(scale_q3(s.scales, k / 16));
  if constexpr (type == QuantType::Q6_K) return d * static_cast<float>(s.scales[k / 16]);
  if constexpr (type == QuantType::Q4_K || type == QuantType::Q5_K) {
    uint8_t scale, min;
    scale_min_k4(s.scales, k / 32, &scale, &min);
    return d * static_cast<float>(scale);
  }
  return d;
}
template <QuantType type>
float min_at(const GgufBlock<type>& s, [[maybe_unused]] int k) {
  if constexpr (type == QuantType::Q4_1 || type == QuantType::Q5_1) return f16_to_f32(s.m);
  if constexpr (type == QuantType::Q2_K) return -(f16_to_f32(s.dmin) * static_cast<float>(s.scales[k / 16] >> 4));
  if constexpr (type == QuantType::Q4_K || type == QuantType::Q5_K) {
    uint8_t scale, min;
    scale_min_k4(s.scales, k / 32, &scale, &min);
    return -(f16_to_f32(s.dmin) * static_cast<float>(min));
  }
  return 0.0f;
}

template <QuantType type>
float integer_dot(const uint8_t* row, const float* x, int num_inputs) {
  constexpr IntegerLayout layout = integer_layout<type>();
  constexpr int block_inputs = gguf_block_inputs<type>(), span = layout.scale_per_16() ? 16 : 32;
  float acc = 0.0f;
  for (int begin = 0; begin < num_inputs; begin += block_inputs, row += gguf_block_bytes<type>()) {
    GgufBlock<type> s;
    memcpy(&s, row, sizeof s);
    for (int k = 0; k < block_inputs; k += span) {
      const QuantisedBlock a(x + begin + k / kBlockInputs * kBlockInputs);
      const int first = k % kBlockInputs;
      int dot = 0;
      for (int i = 0; i < span; i++) dot += quant<type>(s, k + i) * a.q[first + i];
      acc = std::fmaf(static_cast<float>(dot), scale_at<type>(s, k) * a.d, acc);
      if (layout.has_min()) acc = std::fmaf(min_at<type>(s, k), a.d * static_cast<float>(a.sum(first, span)), acc);
    }
  }
  return acc;
}

template <QuantType type>
float weight_at(const uint8_t* row, int k) {
  uint16_t half;
  float full;
  memcpy(&full, row + (type == QuantType::F32 ? 4 * k : 0), sizeof full);
  memcpy(&half, row + 2 * k, sizeof half);
  return type == QuantType::F32 ? full : type == QuantType::F16 ? f16_to_f32(half) : bf16_to_f32(half);
}

template <QuantType type>
float float_dot(const uint8_t* row, const float* x, int num_inputs) {
  float acc[2] = {};
  for (int k = 0; k < num_inputs; k++) acc[k % 2] = std::fmaf(x[k], weight_at<type>(row, k), acc[k % 2]);
  return acc[0] + acc[1];
}

}  // namespace

float reference_dot(int type_id, const uint8_t* row_bytes, const float* x, int num_inputs) {
  float dot = 0.0f;
  with_type(type_id, [&](auto tag) {
    if constexpr (is_float(tag.value)) {
      dot = float_dot<tag.value>(row_bytes, x, num_inputs);
    } else {
      dot = integer_dot<tag.value>(row_bytes, x, num_inputs);
    }
  });
  return dot;
}

void reference_lora(LoraStore store, const float* a, int exponent, const float* b, int rank, float scale, const float* x,
                    int num_inputs, float* y, int num_outputs) {
  const bool is_int8 = store == LoraStore::int8;
  std::vector<float> t(rank);
  for (int r = 0; r < rank; r++, a += num_inputs) {
    const auto row = lora_quantize_a_row(a, num_inputs, exponent);
    t[r] = is_int8 ? integer_dot<QuantType::Q8_0>(reinterpret_cast<const uint8_t*>(row.data()), x, num_inputs)
                   : float_dot<QuantType::F32>(reinterpret_cast<const uint8_t*>(a), x, num_inputs);
  }
  if (is_int8) scale *= std::ldexp(1.0f, -exponent);
  for (int n = 0; n < num_outputs; n++, b += rank) {
    const uint16_t b_scale = lora_b_scale(b, rank);
    float acc[2] = {};
    for (int r = 0; r < rank; r++)
      acc[r % 2] = std::fmaf(t[r], is_int8 ? static_cast<float>(lora_b_quant(b[r], b_scale)) : b[r], acc[r % 2]);
    y[n] = std::fmaf(acc[0] + acc[1], is_int8 ? bf16_to_f32(b_scale) * scale : scale, y[n]);
  }
}

}  // namespace realm
