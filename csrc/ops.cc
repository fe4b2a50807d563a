#include "ops.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "pack.h"
#include "thread_pool.h"

namespace realm {
namespace {

constexpr int kColumns = 32;  // threads share columns in these: one block of activations, two weight tiles
constexpr std::size_t kGatedScratchFloats = 32768;  // stays in a core's L2 cache

struct Rectangle {
  int row_begin, row_end, block_begin, block_end;
};

// Rows over threads if there are plenty (whole panels, so that no two threads write one cache line), else blocks.
Rectangle share_rectangle(int num_rows, int num_blocks, const Lane& lane) {
  const int panels = (num_rows + kPanelRows - 1) / kPanelRows;
  if (panels >= 2 * lane.num_threads) {
    const Share s = share_of(panels, lane.thread, lane.num_threads);
    return {s.begin * kPanelRows, std::min(num_rows, s.end * kPanelRows), 0, num_blocks};
  }
  const Share s = share_of(num_blocks, lane.thread, lane.num_threads);
  return {0, num_rows, s.begin, s.end};
}

class Embed final : public Op {
 public:
  Embed(const Matrix* table, float scale, Value out, int site)
      : Op("embed", out.judged), table_(table), scale_(scale), out_(out), site_(site) {}
  void run(const Step& step, const Lane& lane) const override {
    const Share s = share_of(step.num_tokens(), lane.thread, lane.num_threads);
    const std::vector<LoraRun>& runs = step.lora_runs(site_);
    std::size_t run = 0;
    for (int row = s.begin; row < s.end; ++row) {
      float* out = out_.rows + row * out_.row_stride;
      const int token = step.input().token_ids[row];
      unpack_row(table_->type_id, table_->packed, table_->num_rows, token, table_->num_inputs, out);
      while (run < runs.size() && runs[run].row_end <= row) ++run;
      if (run < runs.size() && runs[run].row_begin <= row) add_change(*runs[run].module, token, out);
      if (scale_ != 1.0f)
        for (int i = 0; i < table_->num_inputs; ++i) out[i] *= scale_;
    }
  }

 private:
  // out += scale * B (column `token` of A); ranks in order, so that a row's bits depend on nothing else.
  void add_change(const LoraModule& module, int token, float* out) const {
    const LoraPart& part = module.parts[0];
    const float* a = reinterpret_cast<const float*>(module.a) + static_cast<std::size_t>(token) * part.rank;
    const float* b = reinterpret_cast<const float*>(part.b);
    for (int r = 0; r < part.rank; ++r, b += table_->num_inputs) {
      const float t = part.scale * a[r];
      for (int i = 0; i < table_->num_inputs; ++i) out[i] += t * b[i];
    }
  }

  const Matrix* table_;
  float scale_;
  Value out_;
  int site_;
};

class RmsNorm final : public Op {
 public:
  RmsNorm(const Kernels& k, Value x, const float* weight, float eps, const float* residual, Value out)
      : Op("norm", x.judged), kernel_(k.rows.rms_norm) {
    args_ = {x.rows, x.row_stride, weight, eps, x.width, residual, out.row_stride, out.sink()};
  }
  void run(const Step& step, const Lane& lane) const override {
    const Rectangle r = share_rectangle(num_rows(step), args_.out.num_blocks, lane);
    kernel_(args_, r.row_begin, r.row_end, r.block_begin, r.block_end);
  }

 private:
  decltype(RowKernels::rms_norm) kernel_;
  NormArgs args_;
};

class KeepJudged final : public Op {
 public:
  explicit KeepJudged(Value x) : Op("keep judged", true), x_(x) {}
  // Rows ascend: where all are judged, each is where it should be.
  bool idle(const Step& step) const override { return num_rows(step) == 0 || num_rows(step) == step.num_tokens(); }
  void run(const Step& step, const Lane& lane) const override {
    const Share s = share_of(x_.num_blocks(), lane.thread, lane.num_threads);
    for (int row = 0; row < num_rows(step); ++row) {
      const int from = step.input().logit_rows[row];
      if (from == row) continue;
      std::memcpy(x_.rows + row * x_.row_stride + s.begin * kColumns, x_.rows + from * x_.row_stride + s.begin * kColumns,
                  sizeof(float) * kColumns * (s.end - s.begin));
    }
  }

 private:
  Value x_;
};

class Cast final : public Op {
 public:
  Cast(const Kernels& k, Value x, Value out) : Op("quantize", x.judged), kernel_(k.rows.cast), args_{x.rows, x.row_stride, out.sink()} {}
  void run(const Step& step, const Lane& lane) const override {
    const Rectangle r = share_rectangle(num_rows(step), args_.out.num_blocks, lane);
    kernel_(args_, r.row_begin, r.row_end, r.block_begin, r.block_end);
  }

 private:
  decltype(RowKernels::cast) kernel_;
  CastArgs args_;
};

int num_units(const Matrix& w) { return (w.num_rows + kColumns - 1) / kColumns; }

// Output columns [32 unit_begin, 32 unit_end) of one matrix, for all rows, to `out` on.
void run_units(const Kernels& k, const Value& x, const MatmulPart& part, int num_rows, int unit_begin, int unit_end,
               float* out, std::size_t out_stride, bool accumulate, const Lane& lane) {
  const Matrix& w = *part.matrix;
  const int first = unit_begin * kColumns, num_columns = std::min(w.num_rows, unit_end * kColumns) - first;
  MatmulArgs args{w.packed, w.num_rows, w.num_inputs, num_rows, x.panels, x.rows, x.row_stride, out - first, out_stride, accumulate};
  args.ahead = lane.ahead;
  k.matmul->matmul[w.type_id](args, first / kTileRows, tiles_of(first + num_columns));
  if (part.bias == nullptr) return;
  const float* bias = part.bias + first;
  for (int row = 0; row < num_rows; ++row)
    for (int i = 0; i < num_columns; ++i) out[row * out_stride + i] += bias[i];
}

class LoraShrink final : public Op {
 public:
  LoraShrink(const Kernels& k, Value x, LoraInlet lora) : Op("lora shrink", x.judged), k_(k), x_(x), lora_(lora) {}
  bool idle(const Step& step) const override { return step.lora_runs(lora_.site).empty(); }
  void run(const Step& step, const Lane& lane) const override {
    lora_shrink(*k_.lora, step.lora_runs(lora_.site), {x_.panels, x_.rows, x_.row_stride}, lora_.ranks->t, lora_.ranks->stride,
                lane.thread, lane.num_threads);
  }

 private:
  const Kernels& k_;
  Value x_;
  LoraInlet lora_;
};

// Adds the adapters' change of part `part` to the columns [32 unit_begin, 32 unit_end); `out` is where the first of them lies.
void run_adapters(const Kernels& k, const Step& step, const LoraInlet& lora, int part, const Matrix& w, int unit_begin,
                  int unit_end, float* out, std::size_t out_stride) {
  const std::vector<LoraRun>& runs = step.lora_runs(lora.site);
  if (runs.empty()) return;
  constexpr int tiles = kColumns / kTileRows;
  const int tile_end = std::min(tiles_of(w.num_rows), unit_end * tiles);
  lora_expand(*k.lora, runs, part, w.num_rows, lora.ranks->t, lora.ranks->stride, out - unit_begin * kColumns, out_stride,
              unit_begin * tiles, tile_end);
}

class Matmul final : public Op {
 public:
  Matmul(const Kernels& k, std::string name, Value x, std::vector<MatmulPart> parts, Value out, bool accumulate, LoraInlet lora)
      : Op(std::move(name), x.judged), k_(k), x_(x), parts_(std::move(parts)), out_(out), accumulate_(accumulate), lora_(lora) {
    for (const MatmulPart& part : parts_) units_ += num_units(*part.matrix);
  }
  void run(const Step& step, const Lane& lane) const override {
    const Share share = share_of(units_, lane.thread, lane.num_threads);
    int before = 0, column = 0, index = 0;
    for (const MatmulPart& part : parts_) {
      const int units = num_units(*part.matrix);
      const int begin = std::max(share.begin - before, 0), end = std::min(share.end - before, units);
      if (begin < end) {
        float* out = out_.rows + column + begin * kColumns;
        run_units(k_, x_, part, num_rows(step), begin, end, out, out_.row_stride, accumulate_, lane);
        run_adapters(k_, step, lora_, index, *part.matrix, begin, end, out, out_.row_stride);
      }
      before += units;
      column += part.matrix->num_rows;
      ++index;
    }
  }

 private:
  const Kernels& k_;
  Value x_;
  std::vector<MatmulPart> parts_;
  Value out_;
  bool accumulate_;
  LoraInlet lora_;
  int units_ = 0;
};

class GatedMatmul final : public Op {
 public:
  GatedMatmul(const Kernels& k, Value x, MatmulPart gate, MatmulPart up, Activation activation, Value out, LoraInlet lora)
      : Op("gated matmul", x.judged), k_(k), x_(x), gate_(gate), up_(up), activation_(activation), out_(out), lora_(lora) {}
  void run(const Step& step, const Lane& lane) const override {
    const Share share = share_of(num_units(*gate_.matrix), lane.thread, lane.num_threads);
    const int at_once = std::max<int>(1, static_cast<int>(kGatedScratchFloats / (std::size_t(num_rows(step)) * 2 * kColumns)));
    for (int begin = share.begin; begin < share.end; begin += at_once)
      run_columns(step, begin, std::min(share.end, begin + at_once), lane);
  }

 private:
  void run_columns(const Step& step, int begin, int end, const Lane& lane) const {
    const int rows = num_rows(step);
    float* scratch = lane.scratch;
    const std::size_t half = std::size_t(end - begin) * kColumns, stride = 2 * half;
    run_units(k_, x_, gate_, rows, begin, end, scratch, stride, false, lane);
    run_units(k_, x_, up_, rows, begin, end, scratch + half, stride, false, lane);
    run_adapters(k_, step, lora_, 0, *gate_.matrix, begin, end, scratch, stride);
    run_adapters(k_, step, lora_, 1, *up_.matrix, begin, end, scratch + half, stride);
    k_.rows.gated({scratch, scratch + half, stride, activation_, out_.sink()}, 0, rows, begin, end);
  }

  const Kernels& k_;
  Value x_;
  MatmulPart gate_, up_;
  Activation activation_;
  Value out_;
  LoraInlet lora_;
};

class Gated final : public Op {
 public:
  Gated(const Kernels& k, Value gate_up, Activation activation, Value out)
      : Op("gated", gate_up.judged), kernel_(k.rows.gated), x_(gate_up), activation_(activation), out_(out) {}
  void run(const Step& step, const Lane& lane) const override {
    const Rectangle r = share_rectangle(num_rows(step), out_.num_blocks(), lane);
    const float* gate = x_.rows + r.block_begin * kColumns;
    kernel_({gate, gate + out_.width, x_.row_stride, activation_, out_.sink()}, r.row_begin, r.row_end, r.block_begin, r.block_end);
  }

 private:
  decltype(RowKernels::gated) kernel_;
  Value x_;
  Activation activation_;
  Value out_;
};

class Add final : public Op {
 public:
  Add(const Kernels& k, Value x, Value y, Value out)
      : Op("add", out.judged), kernel_(k.rows.add), args_{x.rows, y.rows, out.rows, out.row_stride}, num_blocks_(out.num_blocks()) {}
  void run(const Step& step, const Lane& lane) const override {
    const Rectangle r = share_rectangle(num_rows(step), num_blocks_, lane);
    kernel_(args_, r.row_begin, r.row_end, r.block_begin, r.block_end);
  }

 private:
  decltype(RowKernels::add) kernel_;
  AddArgs args_;
  int num_blocks_;
};

class Heads final : public Op {
 public:
  Heads(const Kernels& k, HeadArgs args, const KVPool& pool, std::size_t offset)
      : Op("rope and store", false), kernel_(k.rows.heads), args_(args), pool_(pool), offset_(offset) {}
  void run(const Step& step, const Lane& lane) const override {
    const int num_heads = args_.num_heads + 2 * args_.kv.num_kv_heads;
    Share rows{0, step.num_tokens()}, heads{0, num_heads};
    if (step.num_tokens() >= 2 * lane.num_threads)
      rows = share_of(step.num_tokens(), lane.thread, lane.num_threads);
    else
      heads = share_of(num_heads, lane.thread, lane.num_threads);
    HeadArgs args = args_;
    args.layer = pool_.layer(offset_);
    for (int row = rows.begin; row < rows.end; ++row)
      kernel_(args, row, step.position(row), step.block(row), heads.begin, heads.end);
  }

 private:
  decltype(RowKernels::heads) kernel_;
  HeadArgs args_;
  const KVPool& pool_;
  std::size_t offset_;
};

class Attend final : public Op {
 public:
  Attend(const Kernels& k, AttentionArgs args, const KVPool& pool, std::size_t offset, const AttentionPlan* plan)
      : Op("attention", plan->shape.judged), kernel_(k.attention.attend), args_(args), pool_(pool), offset_(offset), plan_(plan) {}
  void run(const Step&, const Lane& lane) const override {
    AttentionArgs args = args_;
    args.layer = pool_.layer(offset_);
    const std::vector<AttentionItem>& items = plan_->items[lane.thread];
    for (std::size_t i = 0; i < items.size(); ++i)
      kernel_(args, items[i], i + 1 < items.size() ? &items[i + 1] : nullptr, lane.scratch);
  }
  void announce(const Lane& lane) const override {
    const std::vector<Span>& spans = plan_->spans[lane.thread];
    *lane.ahead = {pool_.layer(offset_).first, spans.data(), spans.data() + spans.size()};
  }

 private:
  decltype(AttentionKernels::attend) kernel_;
  AttentionArgs args_;
  const KVPool& pool_;
  std::size_t offset_;
  const AttentionPlan* plan_;
};

}  // namespace

OpPtr make_embed(const Matrix* table, float scale, Value out, int site) {
  return std::make_unique<Embed>(table, scale, out, site);
}
OpPtr make_rms_norm(const Kernels& k, Value x, const float* weight, float eps, const float* residual, Value out) {
  return std::make_unique<RmsNorm>(k, x, weight, eps, residual, out);
}
OpPtr make_keep_judged(Value x) { return std::make_unique<KeepJudged>(x); }
OpPtr make_cast(const Kernels& k, Value x, Value out) { return std::make_unique<Cast>(k, x, out); }
OpPtr make_lora_shrink(const Kernels& k, Value x, LoraInlet lora) { return std::make_unique<LoraShrink>(k, x, lora); }
OpPtr make_matmul(const Kernels& k, std::string name, Value x, std::vector<MatmulPart> parts, Value out, bool accumulate, LoraInlet lora) {
  return std::make_unique<Matmul>(k, std::move(name), x, std::move(parts), out, accumulate, lora);
}
OpPtr make_gated_matmul(const Kernels& k, Value x, MatmulPart gate, MatmulPart up, Activation activation, Value out, LoraInlet lora) {
  return std::make_unique<GatedMatmul>(k, x, gate, up, activation, out, lora);
}
OpPtr make_gated(const Kernels& k, Value gate_up, Activation activation, Value out) {
  return std::make_unique<Gated>(k, gate_up, activation, out);
}
OpPtr make_add(const Kernels& k, Value x, Value y, Value out) { return std::make_unique<Add>(k, x, y, out); }
OpPtr make_heads(const Kernels& k, HeadArgs args, const KVPool& pool, std::size_t offset) {
  return std::make_unique<Heads>(k, args, pool, offset);
}
OpPtr make_attend(const Kernels& k, AttentionArgs args, const KVPool& pool, std::size_t offset, const AttentionPlan* plan) {
  return std::make_unique<Attend>(k, args, pool, offset, plan);
}

std::size_t gated_scratch(int max_tokens) {
  return std::max<std::size_t>(kGatedScratchFloats, std::size_t(max_tokens) * 2 * kColumns);
}

}  // namespace realm
