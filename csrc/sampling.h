// Sampling: the same rules, in the same order, as kernels/sampling_reference.py, which is their definition.
//
// The passes over the whole vocabulary are kernels of an instruction set; what remains is a few hundred candidates.
#pragma once

#include <cstddef>
#include <cstdint>

#include "dispatch.h"
#include "thread_pool.h"

namespace realm {

constexpr int kSampleChunk = 64;  // logits that share a maximum and a sum
constexpr int kMaxLogprobs = 20;

struct SamplingKernels {
  // maxima[c] = largest of chunk c of x[0..n); false if there is a NaN.
  bool (*chunk_maxima)(const float* x, int n, float* maxima);
  // weights[i] = e^((x[i] - max) / temperature), sums[c] = their sum over chunk c. `weights` may be null.
  void (*weigh)(const float* x, int n, float max, float temperature, float* weights, float* sums);
};

// [S] judged rows; ragged lists are (starts, values). See SampleInputs in sampling_reference.py.
struct SamplingInputs {
  const float* logits;
  std::size_t row_stride;  // floats
  int num_rows, vocab_size;
  const float *temperature, *top_p, *min_p, *repetition_penalty, *presence_penalty, *frequency_penalty;
  const std::int32_t *top_k, *num_logprobs;
  const std::int64_t *seeds, *positions;
  const std::int32_t *bias_starts, *bias_ids;
  const float* bias_values;
  const std::int32_t *history_starts, *history_ids, *history_counts;
};

struct SamplingOutputs {
  std::int32_t* token_ids;  // [S]; -1: a NaN, or no finite maximum
  float* logprobs;          // [S]
  std::int32_t* top_ids;    // [S, kMaxLogprobs]
  float* top_logprobs;      // [S, kMaxLogprobs]
};

// Rows are shared out over the pool's threads; no result depends on how.
void sample_rows(const SamplingInputs& in, const SamplingOutputs& out, Isa isa, ThreadPool& pool);

// token_ids[s] = the largest logit of row s, the lowest id among equals; -1: a NaN, or no finite maximum.
void argmax_rows(const float* logits, std::size_t row_stride, int num_rows, int vocab_size, std::int32_t* token_ids,
                 Isa isa, ThreadPool& pool);

}  // namespace realm
