// Passes over one row of logits, for sampling.h. Compiled once per instruction set; the same bits on each.
#pragma once

#include <cstddef>
#include <cstdint>

namespace realm {

constexpr int kSumChunk = 256;  // weights are summed in float within a chunk, in double over chunks

struct RowRange {
  float smallest, largest;  // smallest: of those above -1e30; meaningless if has_nan
  bool has_nan;
};

struct RowMass {
  double mass;
  int count;
};

// Which entries stay: logit above `logit`, or equal to it with an id of at most `last_tie`; and weight at least `weight`.
struct RowCut {
  float logit;
  std::int32_t last_tie;
  float weight;
};

struct SampleKernels {
  RowRange (*range)(const float* logits, int n);
  // First id whose logit equals `value`; n if there is none.
  int (*find)(const float* logits, int n, float value);
  // weights[i] = exp((logits[i] - largest) / temperature); gives their sum. `weights` may be null.
  double (*weigh)(const float* logits, int n, float largest, float temperature, float* weights);
  // Number and total weight of the entries with logit >= threshold.
  RowMass (*at_least)(const float* logits, const float* weights, int n, float threshold);
  // Ids with low <= logit < high, in order; gives their number. `ids` has room for n.
  int (*collect)(const float* logits, int n, float low, float high, std::int32_t* ids);
  // Zeroes the weights of entries that `cut` removes and writes each chunk's sum to `chunk_sums`: [ceil(n / kSumChunk)].
  void (*keep)(const float* logits, float* weights, int n, const RowCut& cut, double* chunk_sums);
};

}  // namespace realm
