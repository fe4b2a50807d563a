#include "drafting.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <stdexcept>
#include <vector>

#include "kernels.h"

namespace realm {
namespace {

using Clock = std::chrono::steady_clock;

struct Request {
  int drafting;   // its place in the plan's arrays
  int request;    // its place in the first step
  int position;   // tokens that the program has seen of it
  float chance;   // that everything drafted so far is right
};

// The likeliest token of a row of logits and its probability; token -1 where the logits are not finite.
struct Guess {
  std::int32_t token;
  float probability;
};

Guess guess(const SampleKernels& k, const float* logits, int n) {
  const RowRange range = k.range(logits, n);
  if (range.has_nan || !std::isfinite(range.largest)) return {-1, 0.0f};
  const double sum = k.weigh(logits, n, range.largest, 1.0f, nullptr);
  return {k.find(logits, n, range.largest), static_cast<float>(1.0 / sum)};
}

// The next step: the latest draft of each request that goes on.
class NextStep {
 public:
  void clear() {
    tokens_.clear();
    contexts_.clear();
    tables_.clear();
    rows_.clear();
    slots_.clear();
    starts_.assign(1, 0);
  }
  void add(std::int32_t token, int context, const std::int32_t* table, int max_blocks) {
    rows_.push_back(static_cast<std::int32_t>(tokens_.size()));
    tokens_.push_back(token);
    starts_.push_back(static_cast<std::int32_t>(tokens_.size()));
    contexts_.push_back(context);
    tables_.insert(tables_.end(), table, table + max_blocks);
    slots_.push_back(-1);
  }
  StepInput input(int max_blocks) const {
    const int n = static_cast<int>(tokens_.size());
    return {n, n, n, max_blocks, tokens_.data(), starts_.data(), contexts_.data(), tables_.data(), rows_.data(), slots_.data()};
  }

 private:
  std::vector<std::int32_t> tokens_, starts_, contexts_, tables_, rows_, slots_;
};

std::vector<Request> judged(const StepInput& first) {
  std::vector<Request> requests;
  int request = 0;
  for (int s = 0; s < first.num_logit_rows; ++s) {
    while (request < first.num_requests && first.query_starts[request + 1] <= first.logit_rows[s]) ++request;
    if (request == first.num_requests || first.query_starts[request + 1] != first.logit_rows[s] + 1)
      throw std::invalid_argument("a request drafts after its last token");
    const int num_tokens = first.query_starts[request + 1] - first.query_starts[request];
    requests.push_back({s, request, first.context_lens[request] + num_tokens, 1.0f});
  }
  return requests;
}

}  // namespace

int draft(Program& program, const DraftPlan& plan, const DraftResult& result) {
  const SampleKernels& kernels = realm::kernels(program.config().isa).sample;
  const ScopedFlushDenormals flush;
  const StepInput& first = plan.first;
  std::vector<Request> active = judged(first), going_on;
  std::fill_n(result.num_guesses, first.num_logit_rows, 0);
  std::fill_n(result.num_drafts, first.num_logit_rows, 0);
  NextStep next;
  StepInput input = first;
  for (int step = 0;; ++step) {
    const Clock::time_point began = Clock::now();
    program.step(input);
    going_on.clear();
    next.clear();
    for (std::size_t row = 0; row < active.size(); ++row) {
      Request& r = active[row];
      const int s = r.drafting;
      const Guess g = guess(kernels, program.logits_data() + row * program.logits_stride(), program.num_outputs());
      if (g.token < 0) continue;
      const std::int32_t token = plan.token_ids == nullptr ? g.token : plan.token_ids[g.token];
      const int sureness = static_cast<int>(std::upper_bound(plan.bounds, plan.bounds + plan.num_classes - 1, g.probability) - plan.bounds);
      const std::size_t at = static_cast<std::size_t>(s) * plan.max_steps + step;
      result.tokens[at] = token;
      result.classes[at] = sureness;
      ++result.num_guesses[s];
      r.chance *= plan.rates[s * plan.num_classes + sureness];
      if (result.num_drafts[s] >= plan.limits[s] || r.chance <= plan.worth_verifying) continue;
      ++result.num_drafts[s];
      if (result.num_drafts[s] >= plan.limits[s] || r.chance * plan.means[s] <= plan.worth_drafting) continue;
      next.add(token, r.position++, first.block_tables + static_cast<std::size_t>(r.request) * first.max_blocks, first.max_blocks);
      going_on.push_back(r);
    }
    result.step_rows[step] = input.num_tokens;
    result.step_seconds[step] = std::chrono::duration<double>(Clock::now() - began).count();
    if (going_on.empty() || step + 1 == plan.max_steps) return step + 1;
    active.swap(going_on);
    input = next.input(first.max_blocks);
  }
}

}  // namespace realm
