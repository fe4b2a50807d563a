// A model's step as a list of ops, recorded once at load and replayed by one call per step.
#pragma once

#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "memory.h"
#include "ops.h"
#include "thread_pool.h"

namespace realm {

struct ProgramConfig {
  int num_threads;
  bool pin_threads;
  Isa isa;
  StepLimits limits;
  KVType kv_type;
};

struct HeadSpec {
  int num_heads, num_kv_heads, head_dim, window;
  float scale, norm_eps;
  int q_norm, k_norm;  // vectors, or -1
  int rope;
};

struct OpTime {
  std::string name;
  double microseconds;
};

// Builders return ids; -1 stands for "none". They throw std::invalid_argument where sizes do not fit together.
class Program {
 public:
  // `beside`: a program whose threads this one uses too, at other times; null for threads of its own.
  explicit Program(const ProgramConfig& config, const Program* beside = nullptr);

  // Weights. Reserve the packed bytes of all matrices first: they share one run of memory.
  void reserve_weights(std::size_t num_bytes);
  int add_matrix(int type_id, const std::uint8_t* gguf, std::size_t num_bytes, int num_rows, int num_inputs);
  // A matrix of another program, which must outlive this one; no copy.
  int share_matrix(const Program& owner, int id);
  int add_vector(const float* values, std::size_t n);  // padded with zeros to a multiple of 32
  int add_rope(const double* inverse_frequencies, std::size_t n, bool interleaved, double scale);

  // A value [T, width], or [S, width] of the rows judged only; as f32 rows, int8 panels, or both.
  int add_value(int width, bool rows, bool panels, bool judged);

  // Ops, in order of execution.
  // Gives the site by which adapters change the table.
  int embed(int table, float scale, int out);
  void rms_norm(int x, int weight, float eps, int residual, int out);
  // A value of the rows judged only, in the memory of `x`, which is not to be read any more.
  int keep_judged(int x);
  void cast(int x, int out);
  // These three give the site by which adapters change their matrices.
  int matmul(int x, const std::vector<int>& matrices, const std::vector<int>& biases, int out, bool accumulate);
  int gated_matmul(int x, int gate, int up, int gate_bias, int up_bias, Activation activation, int out);
  int logits(int x, const std::vector<int>& matrices, const std::vector<int>& biases);
  void gated(int gate_up, Activation activation, int out);
  void add(int x, int y, int out);
  // `out` of the rows judged: only those attend.
  void attention(int qkv, const HeadSpec& spec, int out);

  // Adapters. Packing reads nothing that steps write: any thread may do it while steps run.
  std::shared_ptr<const PackedAdapter> pack_adapter(std::vector<LoraChange> changes) const;
  const std::vector<LoraSite>& lora_sites() const { return sites_; }
  // Between steps: what rows with this slot compute with; null empties it. Throws on a slot out of range.
  void set_adapter(int slot, std::shared_ptr<const PackedAdapter> adapter);

  // Runs one step; logits_data() then holds [S, V] until the next one. Throws std::invalid_argument on bad input.
  void step(const StepInput& input);
  const float* logits_data() const { return logits_.rows; }
  std::size_t logits_stride() const { return logits_.row_stride; }
  int num_outputs() const { return logits_.width; }  // of the head: at most the vocabulary

  // Time of each kind of op over the steps since profiling was switched on.
  void set_profiling(bool on);
  std::vector<OpTime> profile() const;

  const ProgramConfig& config() const { return config_; }
  std::size_t weights_bytes() const { return weights_used_; }
  // Of the weights, what all steps so far together had no need to read.
  std::int64_t skipped_bytes() const { return skipped_bytes_; }
  std::size_t kv_bytes() const { return kv_pool_.memory.size(); }
  ThreadPool& pool() { return *pool_; }

 private:
  void add_op(OpPtr op) { ops_.push_back(std::move(op)); }
  Value value(int id) const;
  Value make_value(int width, int num_rows, bool rows, bool panels);
  const Matrix* matrix(int id) const;
  const float* vector(int id, std::size_t at_least) const;
  std::vector<MatmulPart> parts(const Value& x, const std::vector<int>& matrices, const std::vector<int>& biases) const;
  AttentionPlan* plan(const AttentionShape& shape);
  void need_scratch(std::size_t floats);
  // Sines and cosines of the first positions: made when a step first gets there, as few contexts are that long.
  void fill_ropes(int num_positions);
  LoraInlet add_site(const Value& x, const std::vector<MatmulPart>& parts);

  const ProgramConfig config_;
  const Kernels& kernels_;
  const std::shared_ptr<ThreadPool> pool_;
  std::mutex stepping_;

  HugeBuffer weights_;
  std::size_t weights_used_ = 0;
  std::deque<HugeBuffer> buffers_;
  std::deque<Matrix> matrices_;
  std::deque<std::vector<float>> vectors_;
  std::vector<RopeTable> ropes_;
  struct RopeSource {
    std::vector<double> inverse_frequencies;
    double scale;
    float* table;
  };
  std::vector<RopeSource> rope_sources_;  // of each rope
  int num_rope_positions_ = 0;            // filled, in every rope
  std::vector<Value> values_;
  KVPool kv_pool_;
  std::deque<AttentionPlan> plans_;
  std::vector<HugeBuffer> scratch_;  // of each thread
  std::size_t scratch_floats_ = 0;
  std::vector<OpPtr> ops_;
  std::vector<std::size_t> attention_ops_;  // where they are among ops_
  std::vector<LoraSite> sites_;
  AdapterSlots adapters_;
  HugeBuffer ranks_memory_;
  LoraRanks ranks_;
  Value logits_;
  Step step_;
  std::int64_t skipped_bytes_ = 0;

  bool profiling_ = false;
  std::vector<double> op_microseconds_;
};

}  // namespace realm
