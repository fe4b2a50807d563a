// Draws tokens from rows of logits. Each row alone, so a request's token depends on nothing but its own row and
// parameters. The definition, in numpy, is src/realm/kernels/sampling_reference.py; this follows it but for rounding:
// weights are float (relative error below 1e-6) where those are double, sums are double over chunks of 256.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "thread_pool.h"

namespace realm {

constexpr int kMaxLogprobs = 20;

// As SampleInputs in sampling_reference.py.
struct SampleInput {
  const float* logits;
  std::size_t row_stride;  // floats
  int num_rows, vocab_size;
  const float *temperature, *top_p, *min_p, *repetition_penalty, *presence_penalty, *frequency_penalty;  // [S]
  const std::int32_t *top_k, *num_logprobs;                                                              // [S]
  const std::int64_t *seeds, *positions;                                                                 // [S]
  const std::int32_t *bias_starts, *bias_ids;                                                            // [S + 1], ragged
  const float* bias_values;
  const std::int32_t *history_starts, *history_ids, *history_counts;
};

struct SampleOutput {
  std::int32_t* token_ids;  // [S]; -1: a NaN, or no finite maximum
  float* logprobs;          // [S]
  std::int32_t* top_ids;    // [S, kMaxLogprobs]
  float* top_logprobs;      // [S, kMaxLogprobs]
};

// `pool` may be null: then the caller does all rows. The input's ids and starts must have been checked.
void sample_rows(const Kernels& k, ThreadPool* pool, const SampleInput& in, const SampleOutput& out);

// The largest logit of each row, lowest id among equals, or -1 as above.
void argmax_rows(const Kernels& k, ThreadPool* pool, const float* logits, std::size_t row_stride, int num_rows,
                 int vocab_size, std::int32_t* token_ids);

}  // namespace realm
