// The matrix kernels of one instruction set, by GGUF type.
#pragma once

#include <cstddef>
#include <cstdint>

#include "layout.h"
#include "screen.h"

namespace realm {

// Memory that a later op will read, as pieces of something at `base`. Kernels for many rows leave memory idle most of the time:
// they fetch this to the second-level cache meanwhile.
struct Span {
  size_t offset, num_bytes;
};
struct FetchAhead {
  const uint8_t* base = nullptr;
  const Span *next = nullptr, *end = nullptr;
  size_t done = 0;  // bytes of *next

  // Where the next `num_bytes` begin, or null when nothing is left. The end of a span may be overrun: a fetch never fails.
  __attribute__((always_inline)) inline const uint8_t* take(size_t num_bytes) {
    if (next != end && done >= next->num_bytes) next++, done = 0;
    if (next == end) return nullptr;
    done += num_bytes;
    return base + next->offset + done - num_bytes;
  }
};

// out[M, N] (+)= x[M, K] W[N, K]^T
struct MatmulArgs {
  const uint8_t* weights;  // packed (pack.h)
  int num_outputs;         // N; the last tile writes only what is inside
  int num_inputs;          // K
  int num_rows;            // M: rows [first_row, num_rows) are computed
  const uint8_t* panels;   // quantised activations (quantize.h), for integer formats
  const float* x;          // float activations, for float formats
  size_t x_stride;         // floats from one row of x to the next
  float* out;
  size_t out_stride;  // floats from one row of out to the next
  bool accumulate;    // add to what is in `out`
  int first_row = 0;
  // How far ahead of use weights are fetched. They are one sequential stream, and this was the best distance measured.
  ptrdiff_t prefetch_bytes = 5120;
  FetchAhead* ahead = nullptr;
};

// Computes the output features of the weight tiles [tile_begin, tile_end) for all rows. A row's result depends neither on
// the other rows nor on how tiles are shared out over threads.
using MatmulFn = void (*)(const MatmulArgs& args, int tile_begin, int tile_end);

using QuantizeRowFn = void (*)(const float* x, int num_inputs, uint8_t* panels, int row, int block_begin, int block_end,
                               uint8_t* residuals, float outlier);

struct MatmulTable {
  MatmulFn matmul[kNumTypeIds];  // by GGUF type id; null for unknown ids
  ScreenFn screen;              // of Q8_0_PLANES
  QuantizeRowFn quantize_row;
};

namespace portable {
extern const MatmulTable matmul_table;
}
namespace avx2 {
extern const MatmulTable matmul_table;
}
namespace avx2vnni {
extern const MatmulTable matmul_table;
}
namespace avx512vnni {
extern const MatmulTable matmul_table;
}

}  // namespace realm
