#include "step.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace realm {
namespace {

void require(bool ok, const char* what, long value, long limit) {
  if (!ok) throw std::invalid_argument(std::string(what) + ": " + std::to_string(value) + " (limit " + std::to_string(limit) + ")");
}

// Rows of one request that share each read of its keys and values.
int rows_per_item(int heads_per_kv) { return std::max(1, kMaxItemQueries / heads_per_kv); }

// Appends what `item` reads of the KV pool: keys, then values, block by block.
void append_spans(const AttentionItem& item, const AttentionShape& shape, std::size_t block_bytes, std::vector<Span>& spans) {
  const KVLayout& kv = shape.kv;
  const int head = item.head / shape.heads_per_kv(), end = item.position + item.num_rows;
  const int first = shape.window > 0 ? std::max(0, item.position - shape.window + 1) : 0;
  const std::size_t token_bytes = std::size_t(kv.head_dim) * kv.element_bytes();
  for (int token = first / kv.block_tokens * kv.block_tokens; token < end; token += kv.block_tokens) {
    const std::size_t at = block_bytes * item.block_table[token / kv.block_tokens] + kv.head_bytes() * head;
    const int used = std::min(kv.block_tokens, (end - token + 15) / 16 * 16);
    spans.push_back({at, used * token_bytes});
    spans.push_back({at + kv.values_offset(), used * token_bytes});
  }
}

}  // namespace

void Step::set(const StepInput& input, const StepLimits& limits) {
  require(input.num_tokens >= 1 && input.num_tokens <= limits.max_tokens, "tokens in a step", input.num_tokens, limits.max_tokens);
  require(input.num_logit_rows >= 0 && input.num_logit_rows <= limits.max_logit_rows, "logit rows in a step",
          input.num_logit_rows, limits.max_logit_rows);
  require(input.num_requests >= 1 && input.num_requests <= input.num_tokens, "requests in a step", input.num_requests,
          input.num_tokens);
  require(input.query_starts[0] == 0, "first query start", input.query_starts[0], 0);
  require(input.query_starts[input.num_requests] == input.num_tokens, "last query start",
          input.query_starts[input.num_requests], input.num_tokens);
  for (int i = 0; i < input.num_tokens; ++i)
    require(input.token_ids[i] >= 0 && input.token_ids[i] < limits.vocab_size, "token id", input.token_ids[i], limits.vocab_size);
  for (int i = 0; i < input.num_logit_rows; ++i)
    require(input.logit_rows[i] >= (i > 0 ? input.logit_rows[i - 1] + 1 : 0) && input.logit_rows[i] < input.num_tokens,
            "logit row, in ascending order", input.logit_rows[i], input.num_tokens);
  const int table_tokens = static_cast<int>(std::min<long>(long(input.max_blocks) * limits.block_tokens, limits.max_positions));
  positions_.resize(input.num_tokens);
  blocks_.resize(input.num_tokens);
  num_positions_ = 0;
  for (int r = 0; r < input.num_requests; ++r) {
    const int begin = input.query_starts[r], end = input.query_starts[r + 1], context = input.context_lens[r];
    require(begin < end && end <= input.num_tokens, "query start", end, input.num_tokens);
    require(context >= 0 && context <= table_tokens - (end - begin), "context length", context, table_tokens - (end - begin));
    const std::int32_t* table = input.block_tables + static_cast<std::size_t>(r) * input.max_blocks;
    const int used = (context + end - begin + limits.block_tokens - 1) / limits.block_tokens;
    for (int i = 0; i < used; ++i)
      require(table[i] >= 0 && table[i] < limits.num_blocks, "KV block", table[i], limits.num_blocks);
    num_positions_ = std::max(num_positions_, context + end - begin);
    for (int row = begin; row < end; ++row) {
      positions_[row] = context + row - begin;
      blocks_[row] = table[positions_[row] / limits.block_tokens];
    }
  }
  input_ = input;
}

void Step::append(std::vector<AdapterRun>& runs, int row_begin, int row_end, const PackedAdapter* adapter) {
  if (!runs.empty() && runs.back().adapter == adapter && runs.back().row_end == row_begin) {
    runs.back().row_end = row_end;
  } else {
    runs.push_back({row_begin, row_end, adapter});
  }
}

void Step::set_adapters(const AdapterSlots& slots, const std::vector<LoraSite>& sites) {
  runs_.clear();
  judged_runs_.clear();
  int judged = 0;
  for (int r = 0; r < input_.num_requests; ++r) {
    const int slot = input_.adapter_slots[r], end = input_.query_starts[r + 1], first_judged = judged;
    while (judged < input_.num_logit_rows && input_.logit_rows[judged] < end) ++judged;
    if (slot == -1) continue;
    require(slot >= 0 && slot < static_cast<int>(slots.size()) && slots[slot] != nullptr, "adapter slot", slot,
            static_cast<long>(slots.size()));
    append(runs_, input_.query_starts[r], end, slots[slot].get());
    if (first_judged < judged) append(judged_runs_, first_judged, judged, slots[slot].get());
  }
  lora_runs_.resize(sites.size());
  for (std::size_t site = 0; site < sites.size(); ++site) {
    lora_runs_[site].clear();
    for (const AdapterRun& run : sites[site].judged ? judged_runs_ : runs_)
      if (const LoraModule* module = run.adapter->module(static_cast<int>(site)))
        lora_runs_[site].push_back({run.row_begin, run.row_end, module});
  }
}

template <class Body>
void Step::for_each_run(bool judged, Body&& body) const {
  const std::int32_t* rows = input_.logit_rows;
  for (int r = 0, s = 0; r < input_.num_requests; ++r) {
    const int begin = input_.query_starts[r], end = input_.query_starts[r + 1];
    if (!judged) body(RowRun{r, begin, end - begin, begin});
    while (judged && s < input_.num_logit_rows && rows[s] < end) {
      const int first = s++;
      while (s < input_.num_logit_rows && rows[s] == rows[s - 1] + 1 && rows[s] < end) ++s;
      body(RowRun{r, rows[first], s - first, first});
    }
  }
}

void Step::split_attention(AttentionPlan& plan, std::size_t kv_block_bytes, int num_threads) const {
  const AttentionShape& shape = plan.shape;
  const int heads_per_kv = shape.heads_per_kv(), rows_at_once = rows_per_item(heads_per_kv);
  const auto cost_of = [&](const AttentionItem& item) {
    const int last = item.position + item.num_rows;
    const int seen = shape.window > 0 ? std::min(last, shape.window + item.num_rows) : last;
    // An estimate from kernel timings: to read a tile of keys and values costs about as much as to work one and a half rows through it,
    // to begin and end about as much as a third of a tile.
    return static_cast<std::int64_t>(3 * ((seen + kTileTokens - 1) / kTileTokens) + 1) * (3 + 2 * item.num_rows);
  };
  std::int64_t total = 0;
  const auto for_each_unit = [&](auto&& body) {
    for_each_run(shape.judged, [&](const RowRun& run) {
      const std::int32_t* table = input_.block_tables + static_cast<std::size_t>(run.request) * input_.max_blocks;
      // KV heads outside, rows inside: the keys and values that a request's rows share then stay in the cache.
      for (int head = 0; head < shape.num_heads; head += heads_per_kv)
        for (int i = 0; i < run.num_rows; i += rows_at_once)
          body(AttentionItem{run.row + i, std::min(rows_at_once, run.num_rows - i), run.out_row + i, positions_[run.row + i], head,
                             heads_per_kv, table});
    });
  };
  for_each_unit([&](const AttentionItem& unit) { total += cost_of(unit) * unit.num_heads; });
  // Each thread takes a run of equal cost; where it ends inside a unit, the unit's heads are shared out.
  plan.items.resize(num_threads);
  for (auto& items : plan.items) items.clear();
  std::int64_t done = 0;
  for_each_unit([&](AttentionItem unit) {
    const std::int64_t cost = cost_of(unit);
    int last_thread = -1;
    for (int head = 0; head < heads_per_kv; ++head, done += cost) {
      const int thread = static_cast<int>(std::min<std::int64_t>((2 * done + cost) * num_threads / (2 * total), num_threads - 1));
      std::vector<AttentionItem>& items = plan.items[thread];
      if (thread == last_thread && (items.back().num_heads + 1) * unit.num_rows <= kMaxItemQueries) {
        ++items.back().num_heads;
        continue;
      }
      last_thread = thread;
      items.push_back(unit);
      items.back().head += head;
      items.back().num_heads = 1;
    }
  });
  plan.spans.resize(num_threads);
  for (int thread = 0; thread < num_threads; ++thread) {
    const std::vector<AttentionItem>& items = plan.items[thread];
    plan.spans[thread].clear();
    for (std::size_t i = 0; i < items.size(); ++i) {
      // A prompt's items read the same keys and values one after the other: the last one sees the most.
      const bool is_last = i + 1 == items.size() || items[i + 1].block_table != items[i].block_table ||
                           items[i + 1].head / heads_per_kv != items[i].head / heads_per_kv;
      if (is_last) append_spans(items[i], shape, kv_block_bytes, plan.spans[thread]);
    }
  }
}

}  // namespace realm
