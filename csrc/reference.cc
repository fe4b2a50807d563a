#include "reference.h"

#include <cmath>
#include <numeric>
#include <vector>

#include "lora_quantize.h"
#include "quant_blocks.h"

namespace realm {
namespace {

struct QuantisedHalf {
  float amax, d;
  int q[kHalfInputs];

  explicit QuantisedHalf(const float* x) {
    amax = 0.0f;
    for (int k = 0; k < kHalfInputs; k++) amax = std::fmax(amax, std::fabs(x[k]));
    d = amax >= 1e-30f ? amax / 127.0f : 0.0f;
    const float inverse = amax >= 1e-30f ? 127.0f / amax : 0.0f;
    for (int k = 0; k < kHalfInputs; k++) q[k] = static_cast<int>(std::nearbyintf(x[k] * inverse));
  }
  float sum() const { return static_cast<float>(std::accumulate(q, q + kHalfInputs, 0)); }
};

struct QuantisedBlock {
  QuantisedHalf half[2];

  explicit QuantisedBlock(const float* x) : half{QuantisedHalf(x), QuantisedHalf(x + kHalfInputs)} {}
  bool has_outlier(float outlier) const { return half[0].amax > outlier || half[1].amax > outlier; }
  QuantisedBlock residual(const float* x) const {
    float left[kBlockInputs];
    for (int k = 0; k < kBlockInputs; k++) {
      const QuantisedHalf& h = half[k / kHalfInputs];
      left[k] = std::fmaf(-static_cast<float>(h.q[k % kHalfInputs]), h.d, x[k]);
    }
    return QuantisedBlock(left);
  }
};

// Value of input `k` of a GGUF block, before scales.
template <QuantType type>
int quant(const GgufBlock<type>& s, int k) {
  if constexpr (is_q8_0(type)) {
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

// The inputs [k, k + 16) of a GGUF block times half a block of activations.
template <QuantType type>
float half_dot(const GgufBlock<type>& s, int k, const QuantisedHalf& a) {
  int dot = 0;
  for (int i = 0; i < kHalfInputs; i++) dot += quant<type>(s, k + i) * a.q[i];
  return static_cast<float>(dot);
}

// acc + the inputs [k, k + 32) of a GGUF block times a block of activations.
template <QuantType type>
float add_block_dot(const GgufBlock<type>& s, int k, const QuantisedBlock& x, float acc) {
  constexpr IntegerLayout layout = integer_layout<type>();
  const QuantisedHalf(&a)[2] = x.half;
  const float dot[2] = {half_dot<type>(s, k, a[0]), half_dot<type>(s, k + kHalfInputs, a[1])};
  if (!layout.scale_per_16()) {
    acc = std::fmaf(scale_at<type>(s, k), std::fmaf(dot[1], a[1].d, dot[0] * a[0].d), acc);
    if (layout.has_min()) acc = std::fmaf(min_at<type>(s, k), std::fmaf(a[1].d, a[1].sum(), a[0].d * a[0].sum()), acc);
    return acc;
  }
  for (int half = 0; half < 2; half++) {
    const int at = k + half * kHalfInputs;
    acc = std::fmaf(dot[half], scale_at<type>(s, at) * a[half].d, acc);
    if (layout.has_min()) acc = std::fmaf(min_at<type>(s, at), a[half].d * a[half].sum(), acc);
  }
  return acc;
}

template <QuantType type>
float integer_dot(const uint8_t* row, const float* x, int num_inputs, float outlier) {
  constexpr int block_inputs = gguf_block_inputs<type>();
  float acc = 0.0f;
  for (int begin = 0; begin < num_inputs; begin += block_inputs, row += gguf_block_bytes<type>()) {
    GgufBlock<type> s;
    memcpy(&s, row, sizeof s);
    for (int k = 0; k < block_inputs; k += kBlockInputs) {
      const QuantisedBlock a(x + begin + k);
      acc = add_block_dot<type>(s, k, a, acc);
      if (a.has_outlier(outlier)) acc = add_block_dot<type>(s, k, a.residual(x + begin + k), acc);
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

float reference_dot(int type_id, const uint8_t* row_bytes, const float* x, int num_inputs, float outlier) {
  float dot = 0.0f;
  with_type(type_id, [&](auto tag) {
    if constexpr (is_float(tag.value)) {
      dot = float_dot<tag.value>(row_bytes, x, num_inputs);
    } else {
      dot = integer_dot<tag.value>(row_bytes, x, num_inputs, outlier);
    }
  });
  return dot;
}

void reference_lora(LoraStore store, const float* a, int exponent, const float* b, int rank, float scale, const float* x,
                    int num_inputs, float* y, int num_outputs, float outlier) {
  const bool is_int8 = store == LoraStore::int8;
  std::vector<float> t(rank);
  for (int r = 0; r < rank; r++, a += num_inputs) {
    const auto row = lora_quantize_a_row(a, num_inputs, exponent);
    t[r] = is_int8 ? integer_dot<QuantType::Q8_0>(reinterpret_cast<const uint8_t*>(row.data()), x, num_inputs, outlier)
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
