// Float weights (f32, f16, bf16) times float activations.
//
// For each output, two accumulators take the even and the odd inputs in order, acc = fma(x, w, acc), and are added at the
// end: two chains, so that one row alone is not bound by the latency of one.
#pragma once

#include "layout.h"
#include "matmul_output.h"
#include "simd.h"

namespace realm::REALM_ISA_NAMESPACE {

template <QuantType type>
REALM_INLINE f32x16 load_weights(const uint8_t* w) {
  if constexpr (type == QuantType::F16) return load_f16(w);
  if constexpr (type == QuantType::BF16) return load_bf16(w);
  f32x16 v;
  memcpy(&v, w, sizeof v);
  return v;
}

template <QuantType type, int R>
__attribute__((noinline)) void float_tile(const uint8_t* w, const float* x, size_t x_stride, int num_inputs, float* out,
                                          size_t out_stride, int num_lanes, bool accumulate) {
  constexpr int vector_bytes = kTileRows * float_bytes<type>();
  f32x16 even[R], odd[R];
  REALM_UNROLL
  for (int r = 0; r < R; r++) even[r] = odd[r] = zero();
  for (int k = 0; k < num_inputs; k += 2, w += 2 * vector_bytes) {
    prefetch(w + 5120);
    if constexpr (type == QuantType::F32) prefetch(w + 5120 + 64);
    const f32x16 w0 = load_weights<type>(w), w1 = load_weights<type>(w + vector_bytes);
    REALM_UNROLL
    for (int r = 0; r < R; r++) {
      even[r] = fma(set1(x[r * x_stride + k]), w0, even[r]);
      odd[r] = fma(set1(x[r * x_stride + k + 1]), w1, odd[r]);
    }
  }
  REALM_UNROLL
  for (int r = 0; r < R; r++) store_tile_row(out + r * out_stride, even[r] + odd[r], num_lanes, accumulate);
}

}  // namespace realm::REALM_ISA_NAMESPACE
