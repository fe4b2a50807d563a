// The side path of LoRA adapters (https://arxiv.org/abs/2106.09685): y[n] += scale * sum over r of B[n, r] * (A x)[r].
//
// Rows of a step with the same adapter, one after the other, are a run; kernels take one run at a time. First `shrink` gives
// t = A x for the ranks of all matrices over the same x (q, k and v, say, one after the other), then `expand` adds to the
// outputs of one matrix. Neither depends on the other rows, on how rows are cut into runs, or on the split over threads.
//
// STORES. int8, for the int8 activations that quantised weights use: A as Q8_0 blocks, with t equal to the Q8_0 matrix
// kernel's bits; B as int8 with one bf16 scale for each output. f32, for float activations: A and B as they are.
//
// LAYOUT. A, int8: tiles of 16 ranks like Q8_0 weights (layout.h); what is left over in tiles of 4 ranks, so that a rank is
// padded to a multiple of 4 only: for each block of 32 inputs, two vectors of 64 bytes (q xor 0x80; 4 ranks x 16 inputs),
// then 4 f16 scales. A, f32: tiles of 16 like F32 weights. B: tiles of 16 outputs: [rank][16] values, then 16 bf16 scales
// if int8.
//
// ORDER. acc[r % 2] = fma(t[r], B[n, r], acc[r % 2]) for r in order; int8: y = fma(acc[0] + acc[1], s_n * scale, y), where
// B[n, r] = s_n * q[n, r] and the sum is over q; f32: y = fma(acc[0] + acc[1], scale, y).
#pragma once

#include <cstddef>
#include <cstdint>

namespace realm {

enum class LoraStore : int { int8 = 0, f32 = 1 };

constexpr int kLoraSmallTile = 4;  // ranks of a small tile of A

// Tiles of A, the unit in which threads share out `shrink`, and the floats of a row of t (a multiple of 4 or 16 ranks).
int lora_num_tiles(LoraStore store, int num_ranks);
int lora_padded_ranks(LoraStore store, int num_ranks);

size_t lora_a_bytes(LoraStore store, int num_ranks, int num_inputs);
size_t lora_b_bytes(LoraStore store, int num_outputs, int rank);

// Packs A [num_ranks, num_inputs] times a power of two that suits the scales' range. Returns the inverse of that power: a
// factor on `scale`.
float lora_pack_a(LoraStore store, const float* a, int num_ranks, int num_inputs, uint8_t* dst);
// Packs B [num_outputs, rank].
void lora_pack_b(LoraStore store, const float* b, int num_outputs, int rank, uint8_t* dst);

struct LoraShrinkArgs {
  LoraStore store;
  const uint8_t* a;
  int num_ranks;
  int num_inputs;         // K
  const uint8_t* panels;  // for int8
  const float* x;         // for f32
  size_t x_stride;        // floats
  int row_begin, row_end;  // the run, in rows of the step
  ptrdiff_t prefetch_bytes;  // from here to what is needed next: the next run's A
  float* t;               // row `row` of the step: t + row * t_stride; lora_padded_ranks floats of each are written
  size_t t_stride;
};

struct LoraExpandArgs {
  LoraStore store;
  const uint8_t* b;
  int rank;
  int num_outputs;  // N
  float scale;
  int row_begin, row_end;
  ptrdiff_t prefetch_bytes;  // to the next run's B
  const float* t;  // row `row` of the step: t + row * t_stride, from the first rank of this matrix on
  size_t t_stride;
  float* out;  // row `row` of the step: out + row * out_stride
  size_t out_stride;
};

struct LoraTable {
  void (*shrink)(const LoraShrinkArgs& args, int tile_begin, int tile_end);
  void (*expand)(const LoraExpandArgs& args, int tile_begin, int tile_end);
};

namespace portable {
extern const LoraTable lora_table;
}
namespace avx2 {
extern const LoraTable lora_table;
}
namespace avx2vnni {
extern const LoraTable lora_table;
}
namespace avx512vnni {
extern const LoraTable lora_table;
}

}  // namespace realm
