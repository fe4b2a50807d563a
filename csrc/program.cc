#include "program.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <map>
#include <stdexcept>

#include "pack.h"

namespace realm {
namespace {

void require(bool ok, const std::string& what) {
  if (!ok) throw std::invalid_argument(what);
}

std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

constexpr std::size_t kAlignment = 64;
constexpr double kLog2E = 1.4426950408889634;  // attention's softmax is in powers of 2
constexpr int kMaxAdapterSlots = 1 << 16;
constexpr int kRopePositions = 256;  // made at a time

double microseconds_now() {
  return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

Program::Program(const ProgramConfig& config, const Program* beside)
    : config_(config),
      kernels_(kernels(config.isa)),
      pool_(beside != nullptr ? beside->pool_ : std::make_shared<ThreadPool>(config.num_threads, config.pin_threads)) {
  require(config.num_threads >= 1, "num_threads must be at least 1");
  require(beside == nullptr || beside->config_.num_threads == config.num_threads, "programs that share threads have equally many");
  require(config.limits.max_tokens >= 1, "max_tokens must be at least 1");
  require(config.limits.max_logit_rows >= 1 && config.limits.max_logit_rows <= config.limits.max_tokens,
          "max_logit_rows must be 1..max_tokens");
  require(config.limits.max_positions >= 1 && config.limits.max_positions <= 1 << 24, "max_positions must be 1..2^24");
  require(config.limits.num_blocks >= 1, "num_blocks must be at least 1");
  require(config.limits.block_tokens >= 16 && config.limits.block_tokens % 16 == 0, "block_tokens must be a multiple of 16");
  scratch_.resize(config.num_threads);
}

void Program::reserve_weights(std::size_t num_bytes) {
  require(weights_.data() == nullptr, "weights are reserved once");
  weights_ = HugeBuffer(num_bytes + kAlignment);
}

int Program::add_matrix(int type_id, const std::uint8_t* gguf, std::size_t num_bytes, int num_rows, int num_inputs) {
  require(num_rows >= 1 && num_inputs >= 1, "a matrix needs rows and inputs");
  require(can_pack(type_id, num_inputs), "no kernel for rows of " + std::to_string(num_inputs) + " values of type " + std::to_string(type_id));
  require(gguf_row_bytes(type_id, num_inputs) * num_rows == num_bytes, "a matrix's bytes do not fit its shape");
  const std::size_t size = round_up(packed_bytes(type_id, num_rows, num_inputs), kAlignment);
  require(weights_used_ + size <= weights_.size(), "more weights than reserved");
  std::uint8_t* packed = weights_.data() + weights_used_;
  weights_used_ += size;
  const int num_tiles = tiles_of(num_rows);
  std::vector<float> low_norms(config_.num_threads);
  pool_->run([&](int thread) {
    const Share share = share_of(num_tiles, thread, config_.num_threads);
    pack(type_id, gguf, num_rows, num_inputs, packed, share.begin, share.end);
    if (static_cast<QuantType>(type_id) == QuantType::Q8_0_PLANES)
      low_norms[thread] = screen_low_norm(gguf, num_inputs, share.begin * kTileRows, std::min(num_rows, share.end * kTileRows));
  });
  matrices_.push_back({type_id, num_rows, num_inputs, packed, *std::max_element(low_norms.begin(), low_norms.end())});
  return static_cast<int>(matrices_.size()) - 1;
}

int Program::share_matrix(const Program& owner, int id) {
  require(owner.config_.isa == config_.isa, "programs that share weights have one instruction set");
  matrices_.push_back(*owner.matrix(id));
  return static_cast<int>(matrices_.size()) - 1;
}

int Program::add_vector(const float* values, std::size_t n) {
  std::vector<float> padded(round_up(n, 32), 0.0f);
  std::copy(values, values + n, padded.begin());
  vectors_.push_back(std::move(padded));
  return static_cast<int>(vectors_.size()) - 1;
}

int Program::add_rope(const double* inverse_frequencies, std::size_t n, bool interleaved, double scale) {
  const std::size_t num_bytes = static_cast<std::size_t>(config_.limits.max_positions) * 2 * n * sizeof(float);
  const HugeBuffer& table = buffers_.emplace_back(num_bytes);
  rope_sources_.push_back({{inverse_frequencies, inverse_frequencies + n}, scale, reinterpret_cast<float*>(table.data())});
  ropes_.push_back({rope_sources_.back().table, static_cast<int>(n), interleaved});
  num_rope_positions_ = 0;
  return static_cast<int>(ropes_.size()) - 1;
}

void Program::fill_ropes(int num_positions) {
  if (num_positions <= num_rope_positions_) return;
  num_positions = std::min(static_cast<int>(round_up(num_positions, kRopePositions)), config_.limits.max_positions);
  for (const RopeSource& rope : rope_sources_) {
    const std::size_t n = rope.inverse_frequencies.size();
    for (int position = num_rope_positions_; position < num_positions; ++position) {
      float* cosine = rope.table + static_cast<std::size_t>(position) * 2 * n;
      for (std::size_t i = 0; i < n; ++i) {
        const double angle = position * rope.inverse_frequencies[i];
        cosine[i] = static_cast<float>(std::cos(angle) * rope.scale);
        cosine[n + i] = static_cast<float>(std::sin(angle) * rope.scale);
      }
    }
  }
  num_rope_positions_ = num_positions;
}

Value Program::make_value(int width, int num_rows, bool rows, bool panels) {
  require(width >= 1, "a value needs columns");
  Value v;
  v.width = width;
  v.row_stride = round_up(width, 32);
  const int padded_rows = static_cast<int>(round_up(num_rows, kPanelRows));
  if (rows) {
    buffers_.emplace_back(padded_rows * v.row_stride * sizeof(float));
    v.rows = reinterpret_cast<float*>(buffers_.back().data());
  }
  if (panels) {
    buffers_.emplace_back(panels_bytes(padded_rows, static_cast<int>(v.row_stride)));
    v.panels = buffers_.back().data();
  }
  return v;
}

int Program::add_value(int width, bool rows, bool panels, bool judged) {
  values_.push_back(make_value(width, config_.limits.max_tokens, rows, panels));
  values_.back().judged = judged;
  return static_cast<int>(values_.size()) - 1;
}

Value Program::value(int id) const {
  require(id >= 0 && id < static_cast<int>(values_.size()), "no such value");
  return values_[id];
}

const Matrix* Program::matrix(int id) const {
  require(id >= 0 && id < static_cast<int>(matrices_.size()), "no such matrix");
  return &matrices_[id];
}

const float* Program::vector(int id, std::size_t at_least) const {
  if (id == -1) return nullptr;
  require(id >= 0 && id < static_cast<int>(vectors_.size()), "no such vector");
  require(vectors_[id].size() >= at_least, "a vector is too short");
  return vectors_[id].data();
}

void Program::need_scratch(std::size_t floats) {
  if (floats <= scratch_floats_) return;
  scratch_floats_ = floats;
  for (HugeBuffer& buffer : scratch_) buffer = HugeBuffer(floats * sizeof(float));
}

int Program::embed(int table, float scale, int out) {
  const Matrix* m = matrix(table);
  const Value v = value(out);
  require(v.rows != nullptr && v.width == m->num_inputs && !v.judged, "embed: output");
  require(m->num_rows >= config_.limits.vocab_size, "embed: fewer rows than the vocabulary");
  const int site = static_cast<int>(sites_.size());
  sites_.push_back({LoraStore::f32, m->num_rows, {m->num_inputs}, false, true});
  add_op(make_embed(m, scale, v, site));
  return site;
}

void Program::rms_norm(int x, int weight, float eps, int residual, int out) {
  const Value from = value(x);
  Value to = value(out);
  require(from.rows != nullptr && from.width == to.width && from.judged == to.judged, "rms_norm: output");
  if (to.panels != nullptr && to.residuals == nullptr) {
    buffers_.emplace_back(panels_bytes(config_.limits.max_tokens, static_cast<int>(to.row_stride)));
    to.residuals = values_[out].residuals = buffers_.back().data();
  }
  const float* add_to = nullptr;
  if (residual != -1) {
    add_to = value(residual).rows;
    require(add_to != nullptr && value(residual).width == to.width && value(residual).judged == to.judged && to.rows != nullptr,
            "rms_norm: residual");
  }
  add_op(make_rms_norm(kernels_, from, vector(weight, to.row_stride), eps, add_to, to));
}

int Program::keep_judged(int x) {
  Value v = value(x);
  require(v.rows != nullptr && v.panels == nullptr && !v.judged, "keep_judged: rows of all tokens");
  v.judged = true;
  values_.push_back(v);
  add_op(make_keep_judged(v));
  return static_cast<int>(values_.size()) - 1;
}

void Program::cast(int x, int out) {
  require(value(x).rows != nullptr && value(x).width == value(out).width && value(x).judged == value(out).judged, "cast: output");
  add_op(make_cast(kernels_, value(x), value(out)));
}

std::vector<MatmulPart> Program::parts(const Value& x, const std::vector<int>& matrices, const std::vector<int>& biases) const {
  require(!matrices.empty() && matrices.size() == biases.size(), "matmul: one bias or -1 for each matrix");
  std::vector<MatmulPart> parts;
  for (std::size_t i = 0; i < matrices.size(); ++i) {
    const Matrix* m = matrix(matrices[i]);
    require(m->num_inputs == x.width, "matmul: " + std::to_string(m->num_inputs) + " inputs, got " + std::to_string(x.width));
    require(is_float(static_cast<QuantType>(m->type_id)) ? x.rows != nullptr : x.panels != nullptr, "matmul: form of the input");
    parts.push_back({m, vector(biases[i], m->num_rows)});
  }
  return parts;
}

LoraInlet Program::add_site(const Value& x, const std::vector<MatmulPart>& parts) {
  LoraSite site{x.panels != nullptr ? LoraStore::int8 : LoraStore::f32, x.width, {}, x.judged};
  for (const MatmulPart& part : parts) site.num_outputs.push_back(part.matrix->num_rows);
  sites_.push_back(std::move(site));
  const LoraInlet lora{static_cast<int>(sites_.size()) - 1, &ranks_};
  add_op(make_lora_shrink(kernels_, x, lora));
  return lora;
}

std::shared_ptr<const PackedAdapter> Program::pack_adapter(std::vector<LoraChange> changes) const {
  return std::make_shared<const PackedAdapter>(sites_, std::move(changes));
}

void Program::set_adapter(int slot, std::shared_ptr<const PackedAdapter> adapter) {
  require(slot >= 0 && slot < kMaxAdapterSlots, "adapter slot out of range");
  std::lock_guard<std::mutex> one_step(stepping_);
  if (static_cast<int>(adapters_.size()) <= slot) adapters_.resize(slot + 1);
  if (adapter != nullptr && static_cast<std::size_t>(adapter->padded_ranks()) > ranks_.stride) {
    ranks_.stride = round_up(adapter->padded_ranks(), 16);
    ranks_memory_ = HugeBuffer(config_.limits.max_tokens * ranks_.stride * sizeof(float));
    ranks_.t = reinterpret_cast<float*>(ranks_memory_.data());
  }
  adapters_[slot] = std::move(adapter);
}

int Program::matmul(int x, const std::vector<int>& matrices, const std::vector<int>& biases, int out, bool accumulate) {
  const Value from = value(x), to = value(out);
  std::vector<MatmulPart> p = parts(from, matrices, biases);
  int width = 0;
  for (const MatmulPart& part : p) width += part.matrix->num_rows;
  require(to.rows != nullptr && to.width == width && to.judged == from.judged, "matmul: output");
  const LoraInlet lora = add_site(from, p);
  std::string name = "matmul " + std::to_string(to.width) + "x" + std::to_string(from.width);
  add_op(make_matmul(kernels_, std::move(name), from, std::move(p), to, accumulate, lora));
  return lora.site;
}

int Program::gated_matmul(int x, int gate, int up, int gate_bias, int up_bias, Activation activation, int out) {
  const Value from = value(x), to = value(out);
  const std::vector<MatmulPart> p = parts(from, {gate, up}, {gate_bias, up_bias});
  require(p[0].matrix->num_rows == to.width && p[1].matrix->num_rows == to.width && to.judged == from.judged,
          "gated_matmul: output");
  require(to.width % 32 == 0, "gated_matmul: width must be a multiple of 32");
  need_scratch(gated_scratch(config_.limits.max_tokens));
  const LoraInlet lora = add_site(from, p);
  add_op(make_gated_matmul(kernels_, from, p[0], p[1], activation, to, lora));
  return lora.site;
}

void Program::gated(int gate_up, Activation activation, int out) {
  const Value from = value(gate_up), to = value(out);
  require(from.rows != nullptr && from.width == 2 * to.width && to.width % 32 == 0 && to.judged == from.judged, "gated: output");
  add_op(make_gated(kernels_, from, activation, to));
}

void Program::add(int x, int y, int out) {
  const Value a = value(x), b = value(y), to = value(out);
  require(a.rows != nullptr && b.rows != nullptr && to.rows != nullptr && a.width == to.width && b.width == to.width, "add: width");
  require(a.judged == to.judged && b.judged == to.judged, "add: rows");
  add_op(make_add(kernels_, a, b, to));
}

AttentionPlan* Program::plan(const AttentionShape& shape) {
  for (AttentionPlan& plan : plans_)
    if (plan.shape == shape) return &plan;
  plans_.push_back({shape, {}, {}});
  return &plans_.back();
}

void Program::attention(int qkv, const HeadSpec& spec, int out) {
  const Value from = value(qkv), to = value(out);
  require(spec.num_kv_heads >= 1 && spec.num_heads % spec.num_kv_heads == 0, "attention: heads per KV head");
  require(spec.head_dim >= 16 && spec.head_dim % 16 == 0 && spec.head_dim <= 512, "attention: head_dim must be a multiple of 16, at most 512");
  require(from.rows != nullptr && !from.judged && from.width == (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim, "attention: width of q, k, v");
  require(to.width == spec.num_heads * spec.head_dim && (to.panels == nullptr || spec.head_dim % 32 == 0), "attention: output");
  require(spec.rope >= 0 && spec.rope < static_cast<int>(ropes_.size()), "attention: no such rope");
  require(2 * ropes_[spec.rope].num_pairs <= spec.head_dim, "attention: more rotated dimensions than head_dim");
  const KVLayout layout{config_.kv_type, config_.limits.block_tokens, spec.num_kv_heads, spec.head_dim};
  const std::size_t offset = kv_pool_.block_bytes;
  kv_pool_.block_bytes += layout.layer_bytes();
  HeadArgs heads{from.rows, from.row_stride, spec.num_heads, vector(spec.q_norm, spec.head_dim), vector(spec.k_norm, spec.head_dim),
                 spec.norm_eps, static_cast<float>(spec.scale * kLog2E), ropes_[spec.rope], layout, {}};
  add_op(make_heads(kernels_, heads, kv_pool_, offset));
  need_scratch(attention_scratch(spec.head_dim));
  AttentionArgs args{from.rows, from.row_stride, spec.num_heads / spec.num_kv_heads, spec.window, layout, {}, to.sink()};
  attention_ops_.push_back(ops_.size());
  add_op(make_attend(kernels_, args, kv_pool_, offset, plan({spec.num_heads, spec.window, to.judged, layout})));
}

int Program::logits(int x, const std::vector<int>& matrices, const std::vector<int>& biases) {
  std::vector<MatmulPart> p = parts(value(x), matrices, biases);
  require(value(x).judged, "logits: of the rows judged");
  int width = 0;
  for (const MatmulPart& part : p) width += part.matrix->num_rows;
  require(width <= config_.limits.vocab_size, "logits: the head has more rows than the vocabulary");
  logits_ = make_value(width, config_.limits.max_logit_rows, true, false);
  kv_pool_.memory = HugeBuffer(kv_pool_.block_bytes * config_.limits.num_blocks);
  const LoraInlet lora = add_site(value(x), p);
  for (OpPtr& op : make_head(kernels_, value(x), std::move(p), logits_, lora, config_.num_threads, &skipped_bytes_)) add_op(std::move(op));
  return lora.site;
}

void Program::step(const StepInput& input) {
  std::lock_guard<std::mutex> one_step(stepping_);
  require(logits_.rows != nullptr, "a program ends in logits");
  step_.set(input, config_.limits);
  step_.set_adapters(adapters_, sites_);
  fill_ropes(step_.num_positions());
  for (AttentionPlan& plan : plans_) step_.split_attention(plan, kv_pool_.block_bytes, config_.num_threads);
  op_microseconds_.resize(ops_.size());
  pool_->run([&](int thread) {
    FetchAhead ahead;
    const Lane lane{thread, config_.num_threads, reinterpret_cast<float*>(scratch_[thread].data()), &ahead};
    auto attention = attention_ops_.begin();
    if (attention != attention_ops_.end()) ops_[*attention]->announce(lane);
    const bool timed = profiling_ && thread == 0;
    double before = timed ? microseconds_now() : 0.0;
    for (std::size_t i = 0; i < ops_.size(); ++i) {
      if (ops_[i]->idle(step_)) continue;
      ops_[i]->run(step_, lane);
      pool_->barrier();
      if (attention != attention_ops_.end() && *attention == i) {
        ahead = {};
        if (++attention != attention_ops_.end()) ops_[*attention]->announce(lane);
      }
      if (!timed) continue;
      const double now = microseconds_now();
      op_microseconds_[i] += now - before;
      before = now;
    }
  });
}

void Program::set_profiling(bool on) {
  std::lock_guard<std::mutex> one_step(stepping_);
  profiling_ = on;
  op_microseconds_.assign(ops_.size(), 0.0);
}

std::vector<OpTime> Program::profile() const {
  std::map<std::string, double> by_name;
  for (std::size_t i = 0; i < op_microseconds_.size(); ++i) by_name[ops_[i]->name()] += op_microseconds_[i];
  std::vector<OpTime> out;
  for (const auto& [name, time] : by_name) out.push_back({name, time});
  std::sort(out.begin(), out.end(), [](const OpTime& a, const OpTime& b) { return a.microseconds > b.microseconds; });
  return out;
}

}  // namespace realm
