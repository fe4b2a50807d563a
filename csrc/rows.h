// Kernels that treat each row alone: norm, quantise, gate, rotate, store to the KV cache.
//
// Widths are in blocks of 32 columns; buffers are padded to that with zeros. Row and block ranges are how a step is
// split over threads: no result depends on the split.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kv_layout.h"

namespace realm {

// Where a row kernel leaves its result: f32 rows, int8 panels (see layout.h), or both.
struct Sink {
  float* rows = nullptr;
  std::size_t row_stride = 0;  // floats
  std::uint8_t* panels = nullptr;
  int num_blocks = 0;  // K / 32 of the panels
  std::uint8_t* residuals = nullptr;  // panels for what a norm's outlier blocks leave
};

struct NormArgs {
  const float* x;
  std::size_t row_stride;    // floats
  const float* weight;       // padded with zeros to whole blocks
  float eps;
  int num_columns;           // C, what the mean is over
  const float* residual;     // added to the result; null: nothing
  std::size_t residual_stride;
  Sink out;
};

struct CastArgs {
  const float* x;
  std::size_t row_stride;
  Sink out;
};

enum class Activation { silu, gelu_tanh };

struct GatedArgs {
  const float* gate;
  const float* up;
  std::size_t row_stride;
  Activation activation;
  Sink out;
};

struct AddArgs {
  const float* x;
  const float* y;
  float* out;
  std::size_t row_stride;
};

struct RopeTable {
  const float* cos_sin = nullptr;  // [positions][cos x num_pairs, sin x num_pairs]
  int num_pairs = 0;
  bool interleaved = false;
};

// What becomes of the heads of one row of q, k, v: [H*D | G*D | G*D].
struct HeadArgs {
  float* qkv;
  std::size_t row_stride;
  int num_heads;
  const float* q_norm;  // [D] or null
  const float* k_norm;
  float eps;
  float scale;  // on q
  RopeTable rope;
  KVLayout kv;
  KVLayer layer;
};

struct RowKernels {
  void (*rms_norm)(const NormArgs&, int row_begin, int row_end, int block_begin, int block_end);
  void (*cast)(const CastArgs&, int row_begin, int row_end, int block_begin, int block_end);
  void (*gated)(const GatedArgs&, int row_begin, int row_end, int block_begin, int block_end);
  void (*add)(const AddArgs&, int row_begin, int row_end, int block_begin, int block_end);
  // Heads [head_begin, head_end) of q, k, v in that order: q is rotated and scaled in place, k rotated and stored, v stored.
  void (*heads)(const HeadArgs&, int row, int position, std::int32_t block, int head_begin, int head_end);
};

}  // namespace realm
