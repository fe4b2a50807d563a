// The steps of a program. Each runs on every thread at once, over the share that thread owns; a barrier follows it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "step.h"

namespace realm {

// Where a value of the program lies: f32 rows [T, stride], and the same as int8 panels if some matmul wants those. Or [S,
// stride]: of those judged only.
struct Value {
  float* rows = nullptr;
  std::size_t row_stride = 0;  // floats; a multiple of 32, padded with zeros
  std::uint8_t* panels = nullptr;
  std::uint8_t* residuals = nullptr;  // see Sink
  int width = 0;  // columns in use
  bool judged = false;

  int num_blocks() const { return static_cast<int>(row_stride / 32); }
  Sink sink() const { return {rows, row_stride, panels, num_blocks(), residuals}; }
};

// A packed weight matrix, in memory that the program owns.
struct Matrix {
  int type_id, num_rows, num_inputs;
  const std::uint8_t* packed;
  float low_norm;  // of Q8_0_PLANES: see screen.h
};

// t = A x of one site after the other, for the rows of a step.
struct LoraRanks {
  float* t = nullptr;
  std::size_t stride = 0;  // floats
};

struct Lane {
  int thread, num_threads;
  float* scratch;  // of this thread
  FetchAhead* ahead;
};

// Keys and values of all layers.
struct KVPool {
  HugeBuffer memory;
  std::size_t block_bytes = 0;

  KVLayer layer(std::size_t offset) const { return {memory.data() + offset, block_bytes}; }
};

class Op {
 public:
  // `judged`: works on the rows judged, not on all.
  Op(std::string name, bool judged) : name_(std::move(name)), judged_(judged) {}
  virtual ~Op() = default;
  virtual void run(const Step& step, const Lane& lane) const = 0;
  // True for all threads alike: this step has nothing to do here, not even a barrier.
  virtual bool idle(const Step& step) const { return num_rows(step) == 0; }
  // Has the ops before it fetch what this one will read.
  virtual void announce(const Lane&) const {}
  const std::string& name() const { return name_; }

 protected:
  int num_rows(const Step& step) const { return judged_ ? step.num_judged() : step.num_tokens(); }

 private:
  std::string name_;
  bool judged_;
};

using OpPtr = std::unique_ptr<Op>;

struct MatmulPart {
  const Matrix* matrix;
  const float* bias;  // padded like the matrix's rows, or null
};

// Where a matmul finds its adapters: its site, and t = A x of its input, which make_lora_shrink's op in front of it leaves.
struct LoraInlet {
  int site;
  const LoraRanks* ranks;
};

// `site`: where adapters change the table.
OpPtr make_embed(const Matrix* table, float scale, Value out, int site);
OpPtr make_rms_norm(const Kernels& k, Value x, const float* weight, float eps, const float* residual, Value out);
// Moves the rows in `logit_rows` to the front, in place.
OpPtr make_keep_judged(Value x);
OpPtr make_cast(const Kernels& k, Value x, Value out);
OpPtr make_lora_shrink(const Kernels& k, Value x, LoraInlet lora);
OpPtr make_matmul(const Kernels& k, std::string name, Value x, std::vector<MatmulPart> parts, Value out, bool accumulate, LoraInlet lora);
// The logits. Two ops where the largest can be found without the others; they add to `skipped_bytes` what of the matrix they did not read.
std::vector<OpPtr> make_head(const Kernels& k, Value x, std::vector<MatmulPart> parts, Value out, LoraInlet lora, int num_threads,
                             std::int64_t* skipped_bytes);
// activation(x W_gate) * (x W_up), without a barrier between: a thread's columns of both are its own.
OpPtr make_gated_matmul(const Kernels& k, Value x, MatmulPart gate, MatmulPart up, Activation activation, Value out, LoraInlet lora);
OpPtr make_gated(const Kernels& k, Value gate_up, Activation activation, Value out);
OpPtr make_add(const Kernels& k, Value x, Value y, Value out);
// `offset`: of the layer's part of a block. The pool gets its memory when all layers are known.
OpPtr make_heads(const Kernels& k, HeadArgs args, const KVPool& pool, std::size_t offset);
OpPtr make_attend(const Kernels& k, AttentionArgs args, const KVPool& pool, std::size_t offset, const AttentionPlan* plan);

// Floats of scratch that make_gated_matmul's op needs for steps of up to `max_tokens` rows.
std::size_t gated_scratch(int max_tokens);

}  // namespace realm
