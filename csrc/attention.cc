#include "attention.h"

#include "quantize.h"
#include "simd.h"

namespace realm::REALM_ISA_NAMESPACE {
namespace {

// How many accumulators fit the register file. Grouping changes no bits: each query's chains stay as they are.
#if defined(REALM_ISA_AVX512VNNI)
constexpr int kMaxQueries = 6, kGroups = 4, kVectors = 4;
#else
constexpr int kMaxQueries = 2, kGroups = 2, kVectors = 2;
#endif

constexpr int kTileGroups = kTileTokens / 16;
constexpr float kMasked = -1e30f;

// One query of an item, and where its running softmax stands.
struct Query {
  const float* q;
  float* acc;     // [D]
  float* scores;  // [kTileTokens]: scores, then probabilities of this tile
  int first, last;  // tokens it sees
  float largest, sum, rescale;
  int row, head;
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
  int num_groups;   // those that hold a token anyone sees
};

Tile tile_at(const AttentionArgs& args, const int32_t* block_table, int kv_head, int first_token, int end_token) {
  const KVLayout& kv = args.kv;
  Tile tile;
  tile.first_token = first_token;
  const int left = (end_token - first_token + 15) / 16;
  tile.num_groups = left < kTileGroups ? left : kTileGroups;
  const size_t block_bytes = kv.block_bytes(), head_offset = kv.head_bytes() * kv_head;
  const size_t group_bytes = size_t(16) * kv.head_dim * kv.element_bytes();
  for (int g = 0; g < kTileGroups; ++g) {
    // Groups past the end repeat the last one: readable, and masked.
    const int token = first_token + 16 * (g < tile.num_groups ? g : tile.num_groups - 1);
    const uint8_t* head = args.pool + block_bytes * block_table[token / kv.block_tokens] + head_offset;
    const int in_block = token % kv.block_tokens;
    tile.keys[g] = head + group_bytes * (in_block / 16);
    tile.values[g] = tile.keys[g] + kv.values_offset();
    tile.key_scales[g] = reinterpret_cast<const float*>(head + kv.key_scales_offset()) + in_block;
    tile.value_scales[g] = reinterpret_cast<const float*>(head + kv.value_scales_offset()) + in_block;
  }
  return tile;
}

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

// scores[i][16 g + lane] = q_i . k for `n` queries and kGroups groups of 16 tokens, from group `g0` on.
// Meanwhile the same lines of `next` are fetched: a burst of them would stall, spread over the work they are free.
template <class T, int n>
REALM_INLINE void score_groups(const Query* queries, const Tile& tile, const Tile& next, int g0, int dim) {
  const T* keys[kGroups];
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g) keys[g] = reinterpret_cast<const T*>(tile.keys[g0 + g]);
  f32x16 sum[n][kGroups];
#pragma GCC unroll 6
  for (int i = 0; i < n; ++i)
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) sum[i][g] = zero();
  for (int d = 0; d < dim; ++d) {
    if (d % (64 / int(16 * sizeof(T))) == 0) {
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) prefetch(next.keys[g0 + g] + 16 * sizeof(T) * d);
    }
    f32x16 k[kGroups];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) k[g] = load_element(keys[g] + 16 * d);
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i) {
      const f32x16 q = set1(queries[i].q[d]);
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) sum[i][g] = fma(q, k[g], sum[i][g]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < n; ++i)
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) store(queries[i].scores + 16 * (g0 + g), sum[i][g]);
}

// The same from int8 keys: exact integer dots, then the two scales.
template <int n>
REALM_INLINE void score_groups_int8(const Query* queries, const Tile& tile, const Tile& next, int g0, int dim) {
  i32x16 sum[n][kGroups];
#pragma GCC unroll 6
  for (int i = 0; i < n; ++i)
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) sum[i][g] = iset1(kBiasedDotStart ? -128 * queries[i].q8_sum : 0);
  for (int d = 0; d < dim; d += 4) {
    u8x64 k[kGroups];
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) {
      prefetch(next.keys[g0 + g] + 16 * d);
      k[g] = load_u8x64(tile.keys[g0 + g] + 16 * d);
    }
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i)
#pragma GCC unroll 4
      for (int g = 0; g < kGroups; ++g) sum[i][g] = dot4_biased(sum[i][g], k[g], queries[i].q8 + d);
  }
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g) {
    const f32x16 key_scale = load(tile.key_scales[g0 + g]);
#pragma GCC unroll 6
    for (int i = 0; i < n; ++i)
      store(queries[i].scores + 16 * (g0 + g), to_f32(sum[i][g]) * (key_scale * set1(queries[i].q8_scale)));
  }
}

// acc_i[slice] = acc_i[slice] * rescale_i + sum over tokens of p_i[t] * v[t][slice], for m vectors of 16 dimensions.
template <class T, int n, int m>
REALM_INLINE void add_values(const Query* queries, const Tile& tile, const Tile& next, int d0, int dim) {
  f32x16 acc[n][m];
#pragma GCC unroll 6
  for (int i = 0; i < n; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < m; ++j) acc[i][j] = load(queries[i].acc + d0 + 16 * j) * set1(queries[i].rescale);
  for (int g = 0; g < tile.num_groups; ++g) {
    const T* values = reinterpret_cast<const T*>(tile.values[g]) + d0;
    const T* ahead = reinterpret_cast<const T*>(next.values[g]) + d0;
    for (int t = 0; t < 16; ++t) {
#pragma GCC unroll 4
      for (int j = 0; j < m; j += 64 / int(16 * sizeof(T))) prefetch(ahead + t * dim + 16 * j);
      f32x16 v[m];
#pragma GCC unroll 4
      for (int j = 0; j < m; ++j) v[j] = load_element(values + t * dim + 16 * j);
#pragma GCC unroll 6
      for (int i = 0; i < n; ++i) {
        const f32x16 p = set1(queries[i].scores[16 * g + t]);
#pragma GCC unroll 4
        for (int j = 0; j < m; ++j) acc[i][j] = fma(p, v[j], acc[i][j]);
      }
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < n; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < m; ++j) store(queries[i].acc + d0 + 16 * j, acc[i][j]);
}

// The same from int8 values: the tile's sum is an exact integer, 128 * high + low, then one fma per tile.
template <int n, int m>
REALM_INLINE void add_values_int8(const Query* queries, const Tile& tile, const Tile& next, int d0, int dim) {
#pragma GCC unroll 6
  for (int i = 0; i < n; ++i) {
    const Query& query = queries[i];
    i32x16 high[m], low[m];
#pragma GCC unroll 4
    for (int j = 0; j < m; ++j) high[j] = low[j] = izero();
    int32_t high_sum = 0, low_sum = 0;
    for (int g = 0; g < tile.num_groups; ++g) {
      const uint8_t* values = tile.values[g] + 4 * d0;
      const uint8_t* ahead = next.values[g] + 4 * d0;
      const int8_t* p = query.p8 + 16 * g;
      for (int t = 0; t < 16; t += 4) {
        const uint8_t* four = values + t * dim;
#pragma GCC unroll 4
        for (int j = 0; j < m; ++j) {
          if (i == 0) prefetch(ahead + t * dim + 64 * j);
          const u8x64 v = load_u8x64(four + 64 * j);
          high[j] = dot4_biased(high[j], v, p + t);
          low[j] = dot4_biased(low[j], v, p + kTileTokens + t);
        }
        for (int k = 0; k < 4; ++k) {
          high_sum += p[t + k];
          low_sum += p[kTileTokens + t + k];
        }
      }
    }
    const i32x16 start = iset1(kBiasedDotStart ? -128 * (128 * high_sum + low_sum) : 0);
    const f32x16 scale = set1(query.p8_scale), rescale = set1(query.rescale);
#pragma GCC unroll 4
    for (int j = 0; j < m; ++j) {
      const f32x16 total = to_f32(shl<7>(high[j]) + low[j] + start);
      float* acc = query.acc + d0 + 16 * j;
      store(acc, fma(total, scale, load(acc) * rescale));
    }
  }
}

// e^x for x <= 0, as simd_math.h's but without its care for other x: never 0, e^-87 for all x below.
REALM_INLINE f32x16 exp_nonpositive(f32x16 x) {
  x = max(x, set1(-87.0f));
  const i32x16 n = to_i32(x * set1(1.44269504f));
  const f32x16 nf = to_f32(n);
  f32x16 r = fnma(nf, set1(0.693359375f), x);
  r = fnma(nf, set1(-2.12194440e-4f), r);
  f32x16 p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r + set1(1.0f));
  return p * as_f32(shl<23>(n + iset1(127)));
}

// Which tokens of a tile a query sees; `all` saves the masking.
struct Sight {
  bool none, all;
};

REALM_INLINE Sight sight(const Query& query, const Tile& tile) {
  const int first = tile.first_token, end = first + kTileTokens;
  return {query.last < first || query.first >= end, query.first <= first && query.last >= end - 1};
}

// Turns this tile's scores into probabilities relative to the new running maximum.
void soften(Query& query, const Tile& tile) {
  const Sight seen = sight(query, tile);
  query.rescale = 1.0f;
  if (seen.none) {
    for (int g = 0; g < kTileGroups; ++g) store(query.scores + 16 * g, zero());
    return;
  }
  f32x16 s[kTileGroups];
  mask16 after[kTileGroups], before[kTileGroups];
  for (int g = 0; g < kTileGroups; ++g) s[g] = load(query.scores + 16 * g);
  if (!seen.all) {
    // Bounds as floats: positions are far below 2^24, and the vectors offer no integer compare.
    const f32x16 first = set1(static_cast<float>(query.first)), last = set1(static_cast<float>(query.last));
    for (int g = 0; g < kTileGroups; ++g) {
      const f32x16 position = to_f32(lane_index() + iset1(tile.first_token + 16 * g));
      after[g] = gt(position, last);
      before[g] = lt(position, first);
      s[g] = select(before[g], set1(kMasked), select(after[g], set1(kMasked), s[g]));
    }
  }
  const float tile_largest = reduce_max(max(max(s[0], s[1]), max(s[2], s[3])));
  if (tile_largest > query.largest) {
    float rescale[16];
    store(rescale, exp_nonpositive(set1(query.largest - tile_largest)));
    query.rescale = rescale[0];
    query.largest = tile_largest;
  }
  const f32x16 shift = set1(query.largest);
  for (int g = 0; g < kTileGroups; ++g) {
    s[g] = exp_nonpositive(s[g] - shift);
    if (!seen.all) s[g] = select(before[g], zero(), select(after[g], zero(), s[g]));
    store(query.scores + 16 * g, s[g]);
  }
  query.sum = query.sum * query.rescale + reduce_add((s[0] + s[1]) + (s[2] + s[3]));
}

// p[t] * dv[t] as 14-bit integers relative to the tile's largest.
void quantize_probabilities(Query& query, const Tile& tile) {
  f32x16 p[kTileGroups], largest = zero();
  for (int g = 0; g < kTileGroups; ++g) {
    p[g] = load(query.scores + 16 * g) * load(tile.value_scales[g]);
    largest = max(p[g], largest);
  }
  const float top = reduce_max(largest);
  const f32x16 inverse = set1(top > 0.0f ? 16383.0f / top : 0.0f);
  query.p8_scale = top / 16383.0f;
  for (int g = 0; g < kTileGroups; ++g) {
    const i32x16 q = to_i32(p[g] * inverse), high = shr<7>(q);
    store_i8(query.p8 + 16 * g, high);
    store_i8(query.p8 + kTileTokens + 16 * g, q - shl<7>(high));
  }
}

template <int n>
void score(const Query* queries, const Tile& tile, const Tile& next, const KVLayout& kv) {
  for (int g = 0; g < tile.num_groups; g += kGroups) {
    if (kv.type == KVType::f16)
      score_groups<uint16_t, n>(queries, tile, next, g, kv.head_dim);
    else if (kv.type == KVType::f32)
      score_groups<float, n>(queries, tile, next, g, kv.head_dim);
    else
      score_groups_int8<n>(queries, tile, next, g, kv.head_dim);
  }
}

template <int n, int m>
void accumulate_slice(const Query* queries, const Tile& tile, const Tile& next, int d, const KVLayout& kv) {
  if (kv.type == KVType::f16)
    add_values<uint16_t, n, m>(queries, tile, next, d, kv.head_dim);
  else if (kv.type == KVType::f32)
    add_values<float, n, m>(queries, tile, next, d, kv.head_dim);
  else
    add_values_int8<n, m>(queries, tile, next, d, kv.head_dim);
}

template <int n>
void run_tile(Query* queries, const Tile& tile, const Tile& next, const KVLayout& kv) {
  score<n>(queries, tile, next, kv);
  for (int i = 0; i < n; ++i) {
    soften(queries[i], tile);
    if (kv.type == KVType::int8) quantize_probabilities(queries[i], tile);
  }
  int d = 0;
  for (; d + 16 * kVectors <= kv.head_dim; d += 16 * kVectors) accumulate_slice<n, kVectors>(queries, tile, next, d, kv);
  for (; d < kv.head_dim; d += 16) accumulate_slice<n, 1>(queries, tile, next, d, kv);
}

void run_queries(Query* queries, int num_queries, const Tile& tile, const Tile& next, const KVLayout& kv) {
  for (int i = 0; i < num_queries;) {
    const int left = num_queries - i;
    const int n = left < kMaxQueries ? left : kMaxQueries;
    // Only the first chunk fetches the next tile; for the others that is a look at lines they hold.
    const Tile& ahead = i == 0 ? next : tile;
    switch (n) {
#if defined(REALM_ISA_AVX512VNNI)
      case 6: run_tile<6>(queries + i, tile, ahead, kv); break;
      case 5: run_tile<5>(queries + i, tile, ahead, kv); break;
      case 4: run_tile<4>(queries + i, tile, ahead, kv); break;
      case 3: run_tile<3>(queries + i, tile, ahead, kv); break;
#endif
      case 2: run_tile<2>(queries + i, tile, ahead, kv); break;
      default: run_tile<1>(queries + i, tile, ahead, kv); break;
    }
    i += n;
  }
}

float quantize_query(const float* q, int dim, int8_t* out, int32_t* sum) {
  f32x16 largest = zero();
  for (int d = 0; d < dim; d += 16) largest = max(abs(load(q + d)), largest);
  const float amax = reduce_max(largest);
  const f32x16 inverse = set1(amax > 0.0f ? 127.0f / amax : 0.0f);
  i32x16 total = izero();
  for (int d = 0; d < dim; d += 16) {
    const i32x16 rounded = to_i32(load(q + d) * inverse);
    store_i8(out + d, rounded);
    total = total + rounded;
  }
  *sum = reduce_add(total);
  return amax / 127.0f;
}

// Lays the item's queries out over the scratch and starts their running softmax.
int start_queries(const AttentionArgs& args, const AttentionItem& item, float* scratch, Query* queries) {
  const int dim = args.kv.head_dim;
  int n = 0;
  for (int i = 0; i < item.num_rows; ++i) {
    for (int h = 0; h < item.num_heads; ++h, ++n) {
      Query& query = queries[n];
      query.row = item.row + i;
      query.head = item.head + h;
      query.q = args.q + size_t(query.row) * args.row_stride + size_t(query.head) * dim;
      query.last = item.position + i;
      query.first = args.window > 0 && query.last >= args.window ? query.last - args.window + 1 : 0;
      query.largest = kMasked;
      query.sum = 0.0f;
      query.acc = scratch;
      query.scores = query.acc + dim;
      query.q8 = reinterpret_cast<int8_t*>(query.scores + kTileTokens);
      query.p8 = query.q8 + dim;
      scratch += dim + kTileTokens + dim / 4 + 2 * kTileTokens / 4;
      for (int d = 0; d < dim; d += 16) store(query.acc + d, zero());
      if (args.kv.type == KVType::int8) query.q8_scale = quantize_query(query.q, dim, query.q8, &query.q8_sum);
    }
  }
  return n;
}

void finish_query(const AttentionArgs& args, const Query& query) {
  const int dim = args.kv.head_dim, column = query.head * dim;
  const f32x16 inverse = set1(1.0f / query.sum);
  for (int d = 0; d < dim; d += 16) store(query.acc + d, load(query.acc + d) * inverse);
  if (args.out.rows != nullptr) {
    float* out = args.out.rows + size_t(query.row) * args.out.row_stride + column;
    for (int d = 0; d < dim; d += 16) store(out + d, load(query.acc + d));
  }
  if (args.out.panels != nullptr)
    for (int d = 0; d < dim; d += 32)
      quantize_block(load(query.acc + d), load(query.acc + d + 16),
                     activation_block(args.out.panels, args.out.num_blocks * 32, query.row, (column + d) / 32),
                     query.row % kPanelRows);
}

int first_tile(const AttentionArgs& args, const AttentionItem& item) {
  const int first = args.window > 0 && item.position >= args.window ? item.position - args.window + 1 : 0;
  return first / kTileTokens * kTileTokens;
}

void attend(const AttentionArgs& args, const AttentionItem& item, const AttentionItem* next, float* scratch) {
  Query queries[kMaxItemQueries];
  const int num_queries = start_queries(args, item, scratch, queries);
  const int kv_head = item.head / args.heads_per_kv;
  const int end = item.position + item.num_rows;
  int token = first_tile(args, item);
  Tile tile = tile_at(args, item.block_table, kv_head, token, end);
  for (; token < end; token += kTileTokens) {
    Tile ahead = tile;
    if (token + kTileTokens < end)
      ahead = tile_at(args, item.block_table, kv_head, token + kTileTokens, end);
    else if (next != nullptr)
      ahead = tile_at(args, next->block_table, next->head / args.heads_per_kv, first_tile(args, *next),
                      next->position + next->num_rows);
    run_queries(queries, num_queries, tile, ahead, args.kv);
    tile = ahead;
  }
  for (int i = 0; i < num_queries; ++i) finish_query(args, queries[i]);
}

}  // namespace

AttentionKernels attention_kernels() { return {attend}; }

}  // namespace realm::REALM_ISA_NAMESPACE
