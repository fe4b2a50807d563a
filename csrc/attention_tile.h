// Products of a few queries with one tile of keys and values: scores, and sums of values.
#pragma once

#include "attention.h"
#include "simd.h"

namespace realm::REALM_ISA_NAMESPACE {
namespace {

// How many accumulators fit the register file. Grouping changes no bits: each query's chains stay as they are.
#if defined(REALM_ISA_AVX512VNNI)
constexpr int kMaxQueries = 6, kGroups = 4, kVectors = 4, kInt8Queries = 3, kInt8ScoreQueries = 3;
#else
constexpr int kMaxQueries = 2, kGroups = 2, kVectors = 2, kInt8Queries = 1, kInt8ScoreQueries = 2;
#endif

constexpr int kTileGroups = kTileTokens / 16;

// One query of an item, and where its running softmax stands.
struct Query {
  const float* q;
  float* acc;     // [D]
  float* scores;  // [kTileTokens]: scores, then probabilities of this tile
  float* sums;    // [16]: sums of probabilities, of the tokens of each lane
  int first, last;  // tokens it sees
  float largest, rescale;
  int out_row, head;
  int8_t* q8;
  float q8_scale;
  int32_t q8_sum;
  int8_t* p8;  // [2][kTileTokens]: high and low 7 bits
  float p8_scale;
};

// The bytes of one tile of one KV head: pointers for each 16 tokens.
struct Tile {
  const uint8_t* keys[kTileGroups];
  const uint8_t* values[kTileGroups];
  const float* key_scales[kTileGroups];  // int8 only
  const float* value_scales[kTileGroups];
  int first_token;  // position of the tile's first token
  int num_tokens;   // those from the first on that anyone sees
  REALM_INLINE int num_groups() const { return (num_tokens + 15) / 16; }
};

template <class T>
REALM_INLINE f32x16 load_element(const T* p);
template <>
REALM_INLINE f32x16 load_element<uint16_t>(const uint16_t* p) {
  return load_f16(p);
}
template <>
REALM_INLINE f32x16 load_element<float>(const float* p) {
  return load(p);
}

// scores[i][16 g + lane] = q_i . k for `n` queries and `m` groups of 16 tokens, from group `g0` on.
// Meanwhile the same lines of `next`, of kGroups groups, are fetched: a burst of them would stall, spread over the work they are
// free.
template <class T, int n, int m>
REALM_INLINE void score_groups(const Query* queries, const Tile& tile, const Tile& next, int g0, int dim) {
  const T* keys[m];
  REALM_UNROLL
  for (int g = 0; g < m; ++g) keys[g] = reinterpret_cast<const T*>(tile.keys[g0 + g]);
  f32x16 sum[n][m];
  REALM_UNROLL
  for (int i = 0; i < n; ++i)
    REALM_UNROLL
    for (int g = 0; g < m; ++g) sum[i][g] = zero();
  for (int d = 0; d < dim; ++d) {
    if (d % (64 / int(16 * sizeof(T))) == 0) {
      REALM_UNROLL
      for (int g = 0; g < kGroups; ++g) prefetch(next.keys[g0 + g] + 16 * sizeof(T) * d);
    }
    f32x16 k[m];
    REALM_UNROLL
    for (int g = 0; g < m; ++g) k[g] = load_element(keys[g] + 16 * d);
    REALM_UNROLL
    for (int i = 0; i < n; ++i) {
      const f32x16 q = set1(queries[i].q[d]);
      REALM_UNROLL
      for (int g = 0; g < m; ++g) sum[i][g] = fma(q, k[g], sum[i][g]);
    }
  }
  REALM_UNROLL
  for (int i = 0; i < n; ++i)
    REALM_UNROLL
    for (int g = 0; g < m; ++g) store(queries[i].scores + 16 * (g0 + g), sum[i][g]);
}

// The same from int8 keys: exact integer dots, then the two scales.
template <int n>
REALM_INLINE void score_groups_int8(const Query* queries, const Tile& tile, const Tile& next, int g0, int dim) {
  i32x16 sum[n][kGroups];
  REALM_UNROLL
  for (int i = 0; i < n; ++i)
    REALM_UNROLL
    for (int g = 0; g < kGroups; ++g) sum[i][g] = iset1(kBiasedDotStart ? -128 * queries[i].q8_sum : 0);
  for (int d = 0; d < dim; d += 4) {
    u8x64 k[kGroups];
    REALM_UNROLL
    for (int g = 0; g < kGroups; ++g) {
      prefetch(next.keys[g0 + g] + 16 * d);
      k[g] = load_u8x64(tile.keys[g0 + g] + 16 * d);
    }
    REALM_UNROLL
    for (int i = 0; i < n; ++i)
      REALM_UNROLL
      for (int g = 0; g < kGroups; ++g) sum[i][g] = dot4_biased(sum[i][g], k[g], queries[i].q8 + d);
  }
  REALM_UNROLL
  for (int g = 0; g < kGroups; ++g) {
    prefetch(next.key_scales[g0 + g]);
    prefetch(next.value_scales[g0 + g]);
    const f32x16 key_scale = load(tile.key_scales[g0 + g]);
    REALM_UNROLL
    for (int i = 0; i < n; ++i)
      store(queries[i].scores + 16 * (g0 + g), to_f32(sum[i][g]) * (key_scale * set1(queries[i].q8_scale)));
  }
}

// acc_i[slice] = acc_i[slice] * rescale_i + sum over tokens of p_i[t] * v[t][slice], for m vectors of 16 dimensions.
template <class T, int n, int m>
REALM_INLINE void add_values(const Query* queries, const Tile& tile, const Tile& next, int d0, int dim) {
  f32x16 acc[n][m];
  REALM_UNROLL
  for (int i = 0; i < n; ++i)
    REALM_UNROLL
    for (int j = 0; j < m; ++j) acc[i][j] = load(queries[i].acc + d0 + 16 * j) * set1(queries[i].rescale);
  for (int g = 0; g < tile.num_groups(); ++g) {
    const T* values = reinterpret_cast<const T*>(tile.values[g]) + d0;
    const T* ahead = reinterpret_cast<const T*>(next.values[g]) + d0;
    const int left = tile.num_tokens - 16 * g, num_tokens = left < 16 ? left : 16;
    for (int t = 0; t < num_tokens; ++t) {
      REALM_UNROLL
      for (int j = 0; j < m; j += 64 / int(16 * sizeof(T))) prefetch(ahead + t * dim + 16 * j);
      f32x16 v[m];
      REALM_UNROLL
      for (int j = 0; j < m; ++j) v[j] = load_element(values + t * dim + 16 * j);
      REALM_UNROLL
      for (int i = 0; i < n; ++i) {
        const f32x16 p = set1(queries[i].scores[16 * g + t]);
        REALM_UNROLL
        for (int j = 0; j < m; ++j) acc[i][j] = fma(p, v[j], acc[i][j]);
      }
    }
  }
  REALM_UNROLL
  for (int i = 0; i < n; ++i)
    REALM_UNROLL
    for (int j = 0; j < m; ++j) store(queries[i].acc + d0 + 16 * j, acc[i][j]);
}

// The same from int8 values, for `n` queries: the tile's sum is an exact integer, 128 * high + low, then one fma per tile.
template <int n, int m>
REALM_INLINE void add_values_int8(const Query* queries, const Tile& tile, const Tile& next, int d0, int dim) {
  i32x16 high[n][m], low[n][m];
  REALM_UNROLL
  for (int i = 0; i < n; ++i)
    REALM_UNROLL
    for (int j = 0; j < m; ++j) high[i][j] = low[i][j] = izero();
  for (int g = 0; g < tile.num_groups(); ++g) {
    const uint8_t* values = tile.values[g] + 4 * d0;
    const uint8_t* ahead = next.values[g] + 4 * d0;
    for (int t = 0; t < 16; t += 4) {
      u8x64 v[m];
      REALM_UNROLL
      for (int j = 0; j < m; ++j) {
        prefetch(ahead + t * dim + 64 * j);
        v[j] = load_u8x64(values + t * dim + 64 * j);
      }
      REALM_UNROLL
      for (int i = 0; i < n; ++i) {
        const int8_t* p = queries[i].p8 + 16 * g + t;
        const u8x64 high_p = broadcast4(p), low_p = broadcast4(p + kTileTokens);
        REALM_UNROLL
        for (int j = 0; j < m; ++j) {
          high[i][j] = dot4_small(high[i][j], high_p, v[j]);
          low[i][j] = dot4_small(low[i][j], low_p, v[j]);
        }
      }
    }
  }
  REALM_UNROLL
  for (int i = 0; i < n; ++i) {
    const Query& query = queries[i];
    const f32x16 scale = set1(query.p8_scale), rescale = set1(query.rescale);
    REALM_UNROLL
    for (int j = 0; j < m; ++j) {
      const f32x16 total = to_f32(shl<7>(high[i][j]) + low[i][j]);
      float* acc = query.acc + d0 + 16 * j;
      store(acc, fma(total, scale, load(acc) * rescale));
    }
  }
}

}  // namespace
}  // namespace realm::REALM_ISA_NAMESPACE
