// Causal attention of a few queries over the paged KV cache (online softmax, arXiv 2205.14135; paging, arXiv 2309.06180).
//
// Bits depend on a query's own position only. Per query, with keys in tiles of 64 tokens counted from position 0:
//   s[t] = fma chain over d of q[d] * k[t][d]                  (one lane per token)
//   m' = max(m, max s); p[t] = 2^(s[t] - m'); a = 2^(m - m')   (tokens outside the window or after the query: p = 0)
//   sums[lane] = fma(sums[lane], a, tree over the tile's p[t] of that lane)
//   acc[d] = acc[d] * a, then fma chain over t of p[t] * v[t][d]
// and out = acc / tree(sums); the scale on q includes log2(e). int8 keys and values: s[t] = float(q8 . k8[t]) * (dq * dk[t])
// with q quantised per head as activations are; p[t] * dv[t] becomes a 14-bit integer per tile (two 7-bit halves), the sum
// over the tile is exact.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kv_layout.h"
#include "rows.h"

namespace realm {

constexpr int kTileTokens = 64;
constexpr int kMaxItemQueries = 12;

struct AttentionArgs {
  const float* q;          // row r, head h at q + r * row_stride + h * D; rotated, and scaled by log2(e) more than softmax wants
  std::size_t row_stride;  // floats
  int heads_per_kv;        // H / G
  int window;              // position p sees p - window + 1 .. p; 0: everything
  KVLayout kv;
  KVLayer layer;
  Sink out;                  // [T, H*D]; panels only if D is a multiple of 32
};

// Consecutive rows of one request times consecutive heads of one KV head; at most kMaxItemQueries queries.
struct AttentionItem {
  std::int32_t row, num_rows;
  std::int32_t out_row;   // where the first row's result goes
  std::int32_t position;  // of the first row
  std::int32_t head, num_heads;
  const std::int32_t* block_table;
};

// Floats of scratch: of one query (sums of values, scores, sums, then the query and its probabilities as bytes), and of
// one thread.
inline std::size_t query_scratch(int head_dim) {
  return std::size_t(head_dim) + kTileTokens + 16 + (std::size_t(head_dim) + 2 * kTileTokens) / 4;
}
inline std::size_t attention_scratch(int head_dim) { return kMaxItemQueries * query_scratch(head_dim); }

struct AttentionKernels {
  // `next` is the item that this thread takes afterwards (its first keys are prefetched), or null.
  void (*attend)(const AttentionArgs&, const AttentionItem&, const AttentionItem* next, float* scratch);
};

}  // namespace realm
