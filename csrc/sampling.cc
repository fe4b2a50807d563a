#include "sampling.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <vector>

namespace realm {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kEnoughCandidates = 256;  // few enough to sort
constexpr int kMaxBisections = 40;

// Philox 4x32-10 (Salmon et al., SC'11), first two words: 53 bits in [0, 1).
double uniform(std::int64_t seed, std::int64_t position) {
  const auto counter = static_cast<std::uint64_t>(position), key = static_cast<std::uint64_t>(seed);
  std::uint32_t a = static_cast<std::uint32_t>(counter), b = static_cast<std::uint32_t>(counter >> 32), c = 0, d = 0;
  std::uint32_t k0 = static_cast<std::uint32_t>(key), k1 = static_cast<std::uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const std::uint64_t first = std::uint64_t{0xD2511F53u} * a, second = std::uint64_t{0xCD9E8D57u} * c;
    a = static_cast<std::uint32_t>(second >> 32) ^ b ^ k0;
    b = static_cast<std::uint32_t>(second);
    c = static_cast<std::uint32_t>(first >> 32) ^ d ^ k1;
    d = static_cast<std::uint32_t>(first);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return ((a >> 5) * 67108864.0 + (b >> 6)) / 9007199254740992.0;
}

// Memory of one thread, kept from call to call.
struct Workspace {
  std::vector<float> adjusted, weights;
  std::vector<double> chunk_sums;
  std::vector<std::int32_t> ids;
};

Workspace& workspace(int vocab_size) {
  thread_local Workspace w;
  const std::size_t n = static_cast<std::size_t>(vocab_size);
  if (w.weights.size() < n) {
    w.adjusted.resize(n);
    w.weights.resize(n);
    w.ids.resize(n);
    w.chunk_sums.resize(n / kSumChunk + 1);
  }
  return w;
}

// One row of logits and what is asked about it.
class Row {
 public:
  Row(const SampleKernels& k, const float* logits, int n, Workspace& w) : k_(k), logits_(logits), n_(n), w_(w) {}

  // Ids in falling order of logit, equal ones by id: the first `count` of [low, high).
  int sorted(float low, float high, int count) const {
    std::int32_t* ids = w_.ids.data();
    const int found = k_.collect(logits_, n_, low, high, ids);
    const int wanted = std::min(count, found);
    std::partial_sort(ids, ids + wanted, ids + found, [this](std::int32_t a, std::int32_t b) {
      return logits_[a] != logits_[b] ? logits_[a] > logits_[b] : a < b;
    });
    return wanted;
  }

  // The `count` likeliest ids, in w.ids; gives how many there are.
  int likeliest(int count, const RowRange& range) const {
    count = std::min(count, n_);
    if (count == 0) return 0;
    float low = range.smallest, high = range.largest;  // at least `count` entries are >= low
    for (int i = 0; i < kMaxBisections; ++i) {
      const float middle = low + 0.5f * (high - low);
      if (!(middle > low && middle < high)) break;
      const int found = k_.at_least(logits_, nullptr, n_, middle).count;
      if (found < count) {
        high = middle;
      } else {
        low = middle;
        if (found <= count + kEnoughCandidates) break;
      }
    }
    const int found = sorted(low, kInfinity, count);
    return found == count ? found : sorted(-kInfinity, kInfinity, count);  // fewer than `count` are finite
  }

  RowCut top_k(int k, const RowRange& range) const {
    const int kept = likeliest(k, range);
    const std::int32_t last = w_.ids[kept - 1];
    return {logits_[last], last, 0.0f};
  }

  // The smallest set of likeliest entries with at least the share `p` of the weight that `w.weights` holds.
  RowCut top_p(float p, double total, const RowRange& range) const {
    const double target = static_cast<double>(p) * total;
    const float* weights = w_.weights.data();
    float low = range.smallest, high = kInfinity, inner = range.largest;
    RowMass above{0.0, 0}, within{total, n_};  // at or above `high`, and `low`
    for (int i = 0; i < kMaxBisections && within.count - above.count > kEnoughCandidates; ++i) {
      const float middle = low + 0.5f * (inner - low);
      if (!(middle > low && middle < high)) break;
      const RowMass m = k_.at_least(logits_, weights, n_, middle);
      if (m.mass >= target) {
        low = middle;
        within = m;
      } else {
        high = inner = middle;
        above = m;
      }
    }
    const int found = sorted(low, high, n_);
    double running = above.mass;
    for (int i = 0; i < found; ++i) {
      running += weights[w_.ids[i]];
      if (running >= target || i == found - 1) return {logits_[w_.ids[i]], w_.ids[i], 0.0f};
    }
    return {range.smallest, n_, 0.0f};
  }

  // The weights left by `cut` stay in w.weights, their sums per chunk in w.chunk_sums; gives the total.
  double keep(const RowCut& cut) const {
    k_.keep(logits_, w_.weights.data(), n_, cut, w_.chunk_sums.data());
    double total = 0.0;
    for (int chunk = 0; chunk * kSumChunk < n_; ++chunk) total += w_.chunk_sums[chunk];
    return total;
  }

  // First id whose running weight exceeds `target`; the last one with any weight if rounding hides that.
  std::int32_t pick(double target) const {
    double running = 0.0;
    std::int32_t last = 0;
    for (int chunk = 0; chunk * kSumChunk < n_; ++chunk) {
      const double sum = w_.chunk_sums[chunk];
      if (sum == 0.0) continue;
      const int begin = chunk * kSumChunk, end = std::min(begin + kSumChunk, n_);
      const bool here = running + sum > target;
      double inner = running;
      for (int i = begin; i < end; ++i) {
        if (w_.weights[i] == 0.0f) continue;
        last = i;
        if (!here) continue;
        inner += w_.weights[i];
        if (inner > target) return i;
      }
      if (here) return last;
      running += sum;
    }
    return last;
  }

  std::int32_t draw(const RowRange& range, float temperature, int top_k_limit, float top_p_share, float min_p, double u) const {
    double total = k_.weigh(logits_, n_, range.largest, temperature, w_.weights.data());
    if (top_k_limit > 0 && top_k_limit < n_) total = keep(top_k(top_k_limit, range));
    if (top_p_share < 1.0f) keep(top_p(top_p_share, total, range));
    // Also without a rule: it is what sums the chunks.
    return pick(u * keep({-kInfinity, n_, min_p}));
  }

  void log_probabilities(const RowRange& range, std::int32_t token, int num_top, float* logprob, std::int32_t* top_ids,
                         float* top_logprobs) const {
    const double shift = std::log(k_.weigh(logits_, n_, range.largest, 1.0f, nullptr));
    const auto of = [&](std::int32_t id) {
      return static_cast<float>(static_cast<double>(logits_[id]) - static_cast<double>(range.largest) - shift);
    };
    *logprob = of(token);
    const int found = likeliest(num_top, range);
    for (int i = 0; i < found; ++i) {
      top_ids[i] = w_.ids[i];
      top_logprobs[i] = of(w_.ids[i]);
    }
  }

 private:
  const SampleKernels& k_;
  const float* logits_;
  int n_;
  Workspace& w_;
};

bool drawable(const RowRange& range) { return !range.has_nan && std::isfinite(range.largest); }

// Bias, then penalties, in float32: gives the row to draw from, which is `row` itself where nothing applies.
const float* adjust(const SampleInput& in, int s, const float* row, Workspace& w) {
  const std::int32_t bias_begin = in.bias_starts[s], bias_end = in.bias_starts[s + 1];
  const std::int32_t history_begin = in.history_starts[s], history_end = in.history_starts[s + 1];
  if (bias_begin == bias_end && history_begin == history_end) return row;
  float* out = w.adjusted.data();
  std::copy(row, row + in.vocab_size, out);
  for (std::int32_t i = bias_begin; i < bias_end; ++i) out[in.bias_ids[i]] += in.bias_values[i];
  for (std::int32_t i = history_begin; i < history_end; ++i) {
    float& x = out[in.history_ids[i]];
    x = x > 0.0f ? x / in.repetition_penalty[s] : x * in.repetition_penalty[s];
    if (in.history_counts[i] > 0) x -= in.presence_penalty[s];
    x -= in.frequency_penalty[s] * static_cast<float>(in.history_counts[i]);
  }
  return out;
}

void sample_row(const SampleKernels& k, const SampleInput& in, const SampleOutput& out, int s) {
  const float* raw = in.logits + s * in.row_stride;
  const int n = in.vocab_size;
  Workspace& w = workspace(n);
  const RowRange raw_range = k.range(raw, n);
  if (!drawable(raw_range)) {
    out.token_ids[s] = -1;
    return;
  }
  const float* logits = adjust(in, s, raw, w);
  const RowRange range = logits == raw ? raw_range : k.range(logits, n);
  if (!drawable(range)) {
    out.token_ids[s] = -1;
    return;
  }
  if (in.temperature[s] == 0.0f || in.top_k[s] == 1) {
    out.token_ids[s] = k.find(logits, n, range.largest);
  } else {
    const double u = uniform(in.seeds[s], in.positions[s]);
    out.token_ids[s] = Row(k, logits, n, w).draw(range, in.temperature[s], in.top_k[s], in.top_p[s], in.min_p[s], u);
  }
  if (in.num_logprobs[s] >= 0) {
    const std::size_t at = static_cast<std::size_t>(s) * kMaxLogprobs;
    const int num_top = std::min<int>(in.num_logprobs[s], kMaxLogprobs);
    Row(k, raw, n, w).log_probabilities(raw_range, out.token_ids[s], num_top, out.logprobs + s, out.top_ids + at,
                                        out.top_logprobs + at);
  }
}

// Rows differ in cost, and no row's result depends on who works it out: the next free thread takes the next row.
template <class Work>
void for_rows(ThreadPool* pool, int num_rows, Work&& work) {
  if (pool == nullptr || num_rows < 2) {
    const ScopedFlushDenormals flush;
    for (int s = 0; s < num_rows; ++s) work(s);
    return;
  }
  std::atomic<int> next{0};
  pool->run([&](int) {
    for (int s; (s = next.fetch_add(1, std::memory_order_relaxed)) < num_rows;) work(s);
  });
}

}  // namespace

void sample_rows(const Kernels& k, ThreadPool* pool, const SampleInput& in, const SampleOutput& out) {
  for_rows(pool, in.num_rows, [&](int s) { sample_row(k.sample, in, out, s); });
}

void argmax_rows(const Kernels& k, ThreadPool* pool, const float* logits, std::size_t row_stride, int num_rows,
                 int vocab_size, std::int32_t* token_ids) {
  for_rows(pool, num_rows, [&](int s) {
    const float* row = logits + s * row_stride;
    const RowRange range = k.sample.range(row, vocab_size);
    token_ids[s] = drawable(range) ? k.sample.find(row, vocab_size, range.largest) : -1;
  });
}

}  // namespace realm
