#include "rows.h"

#include "quantize.h"
#include "simd.h"

namespace realm::REALM_ISA_NAMESPACE {
namespace {

constexpr int kBlock = 32;
constexpr int kMaxHeadDim = 512;
// Far below f16's and f32's largest values nothing is lost; beyond them a cached infinity times a masked zero would be
// NaN in rows that must not see it.
constexpr float kLargestF16 = 65504.0f;
constexpr float kLargestF32 = 3.0e38f;

// A norm's values this many times larger than the row's root mean square are outliers (layout.h). A lower bound is more exact
// and slower: a block of a tile of rows is done twice if one of its rows has an outlier there (docs/LOG.md).
constexpr float kOutlierRms = 16.0f;

REALM_INLINE void emit(const Sink& sink, int row, int block, f32x16 lo, f32x16 hi, float outlier = 0.0f,
                       uint8_t* residuals = nullptr) {
  if (sink.rows != nullptr) {
    float* out = sink.rows + static_cast<size_t>(row) * sink.row_stride + block * kBlock;
    store(out, lo);
    store(out + 16, hi);
  }
  if (sink.panels != nullptr)
    quantize_block(lo, hi, activation_block(sink.panels, sink.num_blocks * kBlock, row, block), row % kPanelRows, outlier,
                   residuals != nullptr ? activation_block(residuals, sink.num_blocks * kBlock, row, block) : nullptr);
}

struct SquareSums {
  float of_x, of_weighted;  // of x and of x * weight
};
REALM_INLINE SquareSums square_sums(const float* x, const float* weight, int num_columns_padded) {
  f32x16 even = zero(), odd = zero(), weighted_even = zero(), weighted_odd = zero();
  for (int i = 0; i < num_columns_padded; i += kBlock) {
    const f32x16 a = load(x + i), b = load(x + i + 16);
    even = fma(a, a, even);
    odd = fma(b, b, odd);
    const f32x16 wa = a * load(weight + i), wb = b * load(weight + i + 16);
    weighted_even = fma(wa, wa, weighted_even);
    weighted_odd = fma(wb, wb, weighted_odd);
  }
  return {reduce_add(even + odd), reduce_add(weighted_even + weighted_odd)};
}

void rms_norm(const NormArgs& args, int row_begin, int row_end, int block_begin, int block_end) {
  const int padded = (args.num_columns + kBlock - 1) / kBlock * kBlock;
  for (int row = row_begin; row < row_end; ++row) {
    const float* x = args.x + static_cast<size_t>(row) * args.row_stride;
    const SquareSums sums = square_sums(x, args.weight, padded);
    const float count = static_cast<float>(args.num_columns), rms_inverse = 1.0f / __builtin_sqrtf(sums.of_x / count + args.eps);
    const f32x16 inverse = set1(rms_inverse);
    const float outlier = kOutlierRms * rms_inverse * __builtin_sqrtf(sums.of_weighted / count);
    const float* residual =
        args.residual != nullptr ? args.residual + static_cast<size_t>(row) * args.residual_stride : nullptr;
    for (int block = block_begin; block < block_end; ++block) {
      const int i = block * kBlock;
      f32x16 lo = load(x + i) * inverse * load(args.weight + i);
      f32x16 hi = load(x + i + 16) * inverse * load(args.weight + i + 16);
      if (residual != nullptr) {
        lo = load(residual + i) + lo;
        hi = load(residual + i + 16) + hi;
      }
      emit(args.out, row, block, lo, hi, outlier, args.out.residuals);
    }
  }
}

void cast(const CastArgs& args, int row_begin, int row_end, int block_begin, int block_end) {
  for (int row = row_begin; row < row_end; ++row) {
    const float* x = args.x + static_cast<size_t>(row) * args.row_stride;
    for (int block = block_begin; block < block_end; ++block)
      emit(args.out, row, block, load(x + block * kBlock), load(x + block * kBlock + 16));
  }
}

template <Activation activation>
void gated_as(const GatedArgs& args, int row_begin, int row_end, int block_begin, int block_end) {
  for (int row = row_begin; row < row_end; ++row) {
    const float* gate = args.gate + static_cast<size_t>(row) * args.row_stride;
    const float* up = args.up + static_cast<size_t>(row) * args.row_stride;
    for (int block = block_begin; block < block_end; ++block) {
      f32x16 out[2];
      for (int half = 0; half < 2; ++half) {
        // `up` and `gate` start at block_begin's columns in fused use, so columns count from there.
        const int i = (block - block_begin) * kBlock + half * 16;
        const f32x16 g = load(gate + i);
        out[half] = (activation == Activation::silu ? silu(g) : gelu_tanh(g)) * load(up + i);
      }
      emit(args.out, row, block, out[0], out[1]);
    }
  }
}

void gated(const GatedArgs& args, int row_begin, int row_end, int block_begin, int block_end) {
  if (args.activation == Activation::silu)
    gated_as<Activation::silu>(args, row_begin, row_end, block_begin, block_end);
  else
    gated_as<Activation::gelu_tanh>(args, row_begin, row_end, block_begin, block_end);
}

void add(const AddArgs& args, int row_begin, int row_end, int block_begin, int block_end) {
  for (int row = row_begin; row < row_end; ++row) {
    const size_t at = static_cast<size_t>(row) * args.row_stride;
    for (int i = block_begin * kBlock; i < block_end * kBlock; i += 16)
      store(args.out + at + i, load(args.x + at + i) + load(args.y + at + i));
  }
}

void norm_head(float* x, const float* weight, float eps, int head_dim) {
  f32x16 sum = zero();
  for (int d = 0; d < head_dim; d += 16) sum = fma(load(x + d), load(x + d), sum);
  const f32x16 inverse = set1(1.0f / __builtin_sqrtf(reduce_add(sum) / static_cast<float>(head_dim) + eps));
  for (int d = 0; d < head_dim; d += 16) store(x + d, load(x + d) * inverse * load(weight + d));
}

// Elementwise products and differences only: whatever the compiler makes of the loops, the bits are these.
void rotate_head(float* __restrict x, const RopeTable& rope, int position) {
  const int n = rope.num_pairs;
  const float* __restrict cosine = rope.cos_sin + static_cast<size_t>(position) * 2 * n;
  const float* __restrict sine = cosine + n;
  if (rope.interleaved) {
    for (int i = 0; i < n; ++i) {
      const float a = x[2 * i], b = x[2 * i + 1];
      x[2 * i] = a * cosine[i] - b * sine[i];
      x[2 * i + 1] = a * sine[i] + b * cosine[i];
    }
    return;
  }
  float* __restrict y = x + n;
  for (int i = 0; i < n; ++i) {
    const float a = x[i], b = y[i];
    x[i] = a * cosine[i] - b * sine[i];
    y[i] = a * sine[i] + b * cosine[i];
  }
}

REALM_INLINE f32x16 bounded(f32x16 x, float largest) { return min(max(x, set1(-largest)), set1(largest)); }

// Quantises one head to signed bytes and gives its scale.
float quantize_head(const float* x, int head_dim, int8_t* out) {
  f32x16 largest = zero();
  for (int d = 0; d < head_dim; d += 16) largest = max(abs(load(x + d)), largest);
  const float amax = reduce_max(largest);
  const f32x16 inverse = set1(amax > 0.0f ? 127.0f / amax : 0.0f);
  for (int d = 0; d < head_dim; d += 16) store_i8(out + d, to_i32(load(x + d) * inverse));
  return amax / 127.0f;
}

void store_key(const KVLayout& kv, uint8_t* head, int token, const float* x) {
  const int group = token / 16, lane = token % 16, dim = kv.head_dim;
  if (kv.type == KVType::int8) {
    int8_t q[kMaxHeadDim];
    float* scale = reinterpret_cast<float*>(head + kv.key_scales_offset()) + token;
    *scale = quantize_head(x, dim, q);
    uint8_t* to = head + static_cast<size_t>(group) * 16 * dim + lane * 4;
    for (int d = 0; d < dim; ++d) to[d / 4 * 64 + d % 4] = static_cast<uint8_t>(q[d]) ^ 0x80;
  } else if (kv.type == KVType::f16) {
    uint16_t half[kMaxHeadDim];
    for (int d = 0; d < dim; d += 16) store_f16(half + d, bounded(load(x + d), kLargestF16));
    uint16_t* to = reinterpret_cast<uint16_t*>(head) + static_cast<size_t>(group) * 16 * dim + lane;
    for (int d = 0; d < dim; ++d) to[d * 16] = half[d];
  } else {
    float* to = reinterpret_cast<float*>(head) + static_cast<size_t>(group) * 16 * dim + lane;
    for (int d = 0; d < dim; ++d) to[d * 16] = x[d];
  }
}

void store_value(const KVLayout& kv, uint8_t* head, int token, const float* x) {
  const int dim = kv.head_dim;
  uint8_t* values = head + kv.values_offset();
  if (kv.type == KVType::int8) {
    int8_t q[kMaxHeadDim];
    float bound[kMaxHeadDim];
    for (int d = 0; d < dim; d += 16) store(bound + d, bounded(load(x + d), kLargestF32));
    float* scale = reinterpret_cast<float*>(head + kv.value_scales_offset()) + token;
    *scale = quantize_head(bound, dim, q);
    uint8_t* to = values + static_cast<size_t>(token / 4) * 4 * dim + token % 4;
    for (int d = 0; d < dim; ++d) to[d * 4] = static_cast<uint8_t>(q[d]);
  } else if (kv.type == KVType::f16) {
    uint8_t* to = values + static_cast<size_t>(token) * dim * 2;
    for (int d = 0; d < dim; d += 16) store_f16(to + d * 2, bounded(load(x + d), kLargestF16));
  } else {
    float* to = reinterpret_cast<float*>(values) + static_cast<size_t>(token) * dim;
    for (int d = 0; d < dim; d += 16) store(to + d, bounded(load(x + d), kLargestF32));
  }
}

void heads(const HeadArgs& args, int row, int position, int32_t block, int head_begin, int head_end) {
  const KVLayout& kv = args.kv;
  const int dim = kv.head_dim, first_key = args.num_heads, first_value = first_key + kv.num_kv_heads;
  float* qkv = args.qkv + static_cast<size_t>(row) * args.row_stride;
  uint8_t* page = args.layer.block(block);
  const int token = position % kv.block_tokens;
  for (int head = head_begin; head < head_end; ++head) {
    float* x = qkv + static_cast<size_t>(head) * dim;
    if (head >= first_value) {
      store_value(kv, page + static_cast<size_t>(head - first_value) * kv.head_bytes(), token, x);
      continue;
    }
    const float* norm = head < first_key ? args.q_norm : args.k_norm;
    if (norm != nullptr) norm_head(x, norm, args.eps, dim);
    rotate_head(x, args.rope, position);
    if (head < first_key) {
      const f32x16 scale = set1(args.scale);
      for (int d = 0; d < dim; d += 16) store(x + d, load(x + d) * scale);
    } else {
      store_key(kv, page + static_cast<size_t>(head - first_key) * kv.head_bytes(), token, x);
    }
  }
}

}  // namespace

RowKernels row_kernels() { return {rms_norm, cast, gated, add, heads}; }

}  // namespace realm::REALM_ISA_NAMESPACE
