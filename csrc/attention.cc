#include "attention.h"

#include "attention_softmax.h"
#include "attention_tile.h"
#include "quantize.h"
#include "simd.h"

namespace realm::REALM_ISA_NAMESPACE {
namespace {

Tile tile_at(const AttentionArgs& args, const int32_t* block_table, int kv_head, int first_token, int end_token) {
  const KVLayout& kv = args.kv;
  Tile tile;
  tile.first_token = first_token;
  const int left = end_token - first_token;
  tile.num_tokens = left < kTileTokens ? left : kTileTokens;
  const size_t head_offset = kv.head_bytes() * kv_head;
  const size_t group_bytes = size_t(16) * kv.head_dim * kv.element_bytes();
  for (int g = 0; g < kTileGroups; ++g) {
    // Groups past the end repeat the last one: readable, and masked.
    const int token = first_token + 16 * (g < tile.num_groups() ? g : tile.num_groups() - 1);
    const uint8_t* head = args.layer.block(block_table[token / kv.block_tokens]) + head_offset;
    const int in_block = token % kv.block_tokens;
    tile.keys[g] = head + group_bytes * (in_block / 16);
    tile.values[g] = tile.keys[g] + kv.values_offset();
    tile.key_scales[g] = reinterpret_cast<const float*>(head + kv.key_scales_offset()) + in_block;
    tile.value_scales[g] = reinterpret_cast<const float*>(head + kv.value_scales_offset()) + in_block;
  }
  return tile;
}

// Scores of the groups that some query sees; what others hold is masked.
template <class T, int n>
REALM_INLINE void score_as(const Query* queries, const Tile& tile, const Tile& next, int dim) {
  const int end = tile.num_groups();
  for (int g = 0; g < end; g += kGroups) {
    if (g + 4 <= end && kGroups >= 4)
      score_groups<T, n, kGroups>(queries, tile, next, g, dim);
    else if (g + 3 <= end && kGroups >= 3)
      score_groups<T, n, kGroups >= 3 ? 3 : kGroups>(queries, tile, next, g, dim);
    else if (g + 2 <= end)
      score_groups<T, n, 2>(queries, tile, next, g, dim);
    else
      score_groups<T, n, 1>(queries, tile, next, g, dim);
  }
}

// More queries at a time than the compiler keeps in registers are two halves.
template <int n>
REALM_INLINE void score_int8(const Query* queries, const Tile& tile, const Tile& next, int g, int dim) {
  constexpr int first = n <= kInt8ScoreQueries ? n : (n + 1) / 2;
  score_groups_int8<first>(queries, tile, next, g, dim);
  if constexpr (first < n) score_groups_int8<n - first>(queries + first, tile, tile, g, dim);
}

template <int n>
void score(const Query* queries, const Tile& tile, const Tile& next, const KVLayout& kv) {
  if (kv.type == KVType::f16)
    score_as<uint16_t, n>(queries, tile, next, kv.head_dim);
  else if (kv.type == KVType::f32)
    score_as<float, n>(queries, tile, next, kv.head_dim);
  else
    for (int g = 0; g < tile.num_groups(); g += kGroups) score_int8<n>(queries, tile, next, g, kv.head_dim);
}

// In chunks of as many queries as there are registers for.
template <int n, int m>
REALM_INLINE void add_all_values_int8(const Query* queries, const Tile& tile, const Tile& next, int d, int dim) {
  int i = 0;
  for (; i + kInt8Queries <= n; i += kInt8Queries)
    add_values_int8<kInt8Queries, m>(queries + i, tile, i == 0 ? next : tile, d, dim);
  constexpr int left = n % kInt8Queries;
  if constexpr (left > 0) add_values_int8<left, m>(queries + i, tile, i == 0 ? next : tile, d, dim);
}

template <int n, int m>
void accumulate_slice(const Query* queries, const Tile& tile, const Tile& next, int d, const KVLayout& kv) {
  if (kv.type == KVType::f16)
    add_values<uint16_t, n, m>(queries, tile, next, d, kv.head_dim);
  else if (kv.type == KVType::f32)
    add_values<float, n, m>(queries, tile, next, d, kv.head_dim);
  else
    add_all_values_int8<n, m>(queries, tile, next, d, kv.head_dim);
}

template <int n>
void run_tile(Query* queries, const Tile& tile, const Tile& next, const KVLayout& kv) {
  score<n>(queries, tile, next, kv);
  if (kv.type == KVType::int8)
    soften<n, true>(queries, tile);
  else
    soften<n, false>(queries, tile);
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
      query.out_row = item.out_row + i;
      query.head = item.head + h;
      query.q = args.q + size_t(item.row + i) * args.row_stride + size_t(query.head) * dim;
      query.last = item.position + i;
      query.first = args.window > 0 && query.last >= args.window ? query.last - args.window + 1 : 0;
      query.largest = kMasked;
      query.acc = scratch;
      query.scores = query.acc + dim;
      query.sums = query.scores + kTileTokens;
      query.q8 = reinterpret_cast<int8_t*>(query.sums + 16);
      query.p8 = query.q8 + dim;
      scratch += query_scratch(dim);
      store(query.sums, zero());
      for (int d = 0; d < dim; d += 16) store(query.acc + d, zero());
      if (args.kv.type == KVType::int8) query.q8_scale = quantize_query(query.q, dim, query.q8, &query.q8_sum);
    }
  }
  return n;
}

void finish_query(const AttentionArgs& args, const Query& query) {
  const int dim = args.kv.head_dim, column = query.head * dim;
  const f32x16 inverse = set1(1.0f / reduce_add(load(query.sums)));
  for (int d = 0; d < dim; d += 16) store(query.acc + d, load(query.acc + d) * inverse);
  if (args.out.rows != nullptr) {
    float* out = args.out.rows + size_t(query.out_row) * args.out.row_stride + column;
    for (int d = 0; d < dim; d += 16) store(out + d, load(query.acc + d));
  }
  if (args.out.panels != nullptr)
    for (int d = 0; d < dim; d += 32)
      quantize_block(load(query.acc + d), load(query.acc + d + 16),
                     activation_block(args.out.panels, args.out.num_blocks * 32, query.out_row, (column + d) / 32),
                     query.out_row % kPanelRows);
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
