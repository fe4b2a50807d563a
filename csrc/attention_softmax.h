// The running softmax of a few queries over one tile of scores.
#pragma once

#include "attention_tile.h"

namespace realm::REALM_ISA_NAMESPACE {
namespace {

constexpr float kMasked = -1e30f;

// 2^x for x <= 0 with a relative error below 2e-7; never 0: 2^-125 for all x below. 2^0 is 1 exactly.
// Adding 1.5 * 2^23 rounds x to the nearest integer, in the low bits; a minimax polynomial gives the rest.
REALM_INLINE f32x16 exp2_nonpositive(f32x16 x) {
  x = max(x, set1(-125.0f));
  const f32x16 magic = set1(12582912.0f), rounded = x + magic;
  const f32x16 r = x - (rounded - magic);
  f32x16 p = set1(1.326472731307149e-3f);
  p = fma(p, r, set1(9.671512991189957e-3f));
  p = fma(p, r, set1(5.550733581185341e-2f));
  p = fma(p, r, set1(2.4022242426872253e-1f));
  p = fma(p, r, set1(6.931470036506653e-1f));
  p = fma(p, r, set1(1.0f));
  return as_f32(as_i32(p) + shl<23>(as_i32(rounded)));
}

REALM_INLINE bool sees_all(const Query& query, const Tile& tile) {
  return query.first <= tile.first_token && query.last >= tile.first_token + kTileTokens - 1;
}

// Which of 16 tokens a query sees. Bounds as floats: positions are at most 2^24, and the vectors offer no integer compare.
struct Mask {
  mask16 before, after;
  REALM_INLINE f32x16 apply(f32x16 x, f32x16 hidden) const { return select(before, hidden, select(after, hidden, x)); }
};
REALM_INLINE Mask mask_of(const Query& query, int first_token) {
  const f32x16 position = to_f32(lane_index() + iset1(first_token));
  return {lt(position, set1(static_cast<float>(query.first))), gt(position, set1(static_cast<float>(query.last)))};
}

// p[t] * dv[t] as 14-bit integers relative to the tile's largest, in two halves.
REALM_INLINE void quantize_probabilities(Query& query, const f32x16* p, const Tile& tile) {
  f32x16 scaled[kTileGroups];
  REALM_UNROLL
  for (int g = 0; g < kTileGroups; ++g) scaled[g] = p[g] * load(tile.value_scales[g]);
  const float top = reduce_max(max(max(scaled[0], scaled[1]), max(scaled[2], scaled[3])));
  const f32x16 inverse = set1(top > 0.0f ? 16383.0f / top : 0.0f);
  query.p8_scale = top * (1.0f / 16383.0f);
  REALM_UNROLL
  for (int g = 0; g < kTileGroups; ++g) {
    const i32x16 q = to_i32(scaled[g] * inverse), high = shr<7>(q);
    store_i8(query.p8 + 16 * g, high);
    store_i8(query.p8 + kTileTokens + 16 * g, q - shl<7>(high));
  }
}

// Turns this tile's scores of `n` queries into probabilities relative to the new running maxima. The queries go side by
// side: each is a chain of dependent operations that would leave most of the machine idle.
template <int n, bool quantized>
void soften(Query* queries, const Tile& tile) {
  bool all = true;
  for (int i = 0; i < n; ++i) all = all && sees_all(queries[i], tile);
  float largest[n], change[16] = {};
  REALM_UNROLL
  for (int i = 0; i < n; ++i) {
    float* scores = queries[i].scores;
    f32x16 s[kTileGroups];
    REALM_UNROLL
    for (int g = 0; g < kTileGroups; ++g) s[g] = load(scores + 16 * g);
    if (!all) {
      for (int g = 0; g < kTileGroups; ++g) {
        s[g] = mask_of(queries[i], tile.first_token + 16 * g).apply(s[g], set1(kMasked));
        store(scores + 16 * g, s[g]);
      }
    }
    const float before = queries[i].largest, here = reduce_max(max(max(s[0], s[1]), max(s[2], s[3])));
    largest[i] = here > before ? here : before;
    change[i] = before - largest[i];
  }
  float rescale[16];
  store(rescale, exp2_nonpositive(load(change)));
  REALM_UNROLL
  for (int i = 0; i < n; ++i) {
    Query& query = queries[i];
    const f32x16 shift = set1(largest[i]);
    f32x16 p[kTileGroups];
    REALM_UNROLL
    for (int g = 0; g < kTileGroups; ++g) p[g] = exp2_nonpositive(load(query.scores + 16 * g) - shift);
    if (!all)
      for (int g = 0; g < kTileGroups; ++g) p[g] = mask_of(query, tile.first_token + 16 * g).apply(p[g], zero());
    if constexpr (quantized) {
      quantize_probabilities(query, p, tile);
    } else {
      REALM_UNROLL
      for (int g = 0; g < kTileGroups; ++g) store(query.scores + 16 * g, p[g]);
    }
    query.largest = largest[i];
    query.rescale = rescale[i];
    store(query.sums, fma(load(query.sums), set1(rescale[i]), (p[0] + p[1]) + (p[2] + p[3])));
  }
}

}  // namespace
}  // namespace realm::REALM_ISA_NAMESPACE
