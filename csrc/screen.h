// Which outputs of a head can be the largest, from the upper four bits of its weights.
//
// A greedy request needs the likeliest token only, and a step of a row or two takes as long as reading the head. So its weights
// lie in two planes (Q8_0_PLANES in layout.h): w = d * (16 * (upper - 8) + lower). With the upper plane, and 7.5 in place of each
// `lower`, an output is known up to e = sum over blocks b of d_b * (lower - 7.5) . h_b, where h are the activations, and
//     |(lower - 7.5) . h_b|  <=  7.5 * (sum of the j largest |h| of the block) + c * |the rest of h_b|     (Cauchy and Schwarz),
// with c the largest |lower - 7.5| of the matrix's blocks, and j, a few outliers, such that this is least. Whatever cannot reach
// an output that was computed as always is not the largest. The others are computed as always, too: so the largest has its usual
// bits, and so has whatever could be mistaken for it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace realm {

// Steps of more rows than these compute all outputs: they do not wait for memory so long.
constexpr int kMaxScreenedRows = 4;

// The largest c of the rows [row_begin, row_end) of a Q8_0 matrix (GGUF bytes).
float screen_low_norm(const uint8_t* gguf, int num_inputs, int row_begin, int row_end);

// What |e| is at most in each block of row `row` of int8 panels, for d_b = 1: bounds [num_inputs / 32]. The rounding of all sums,
// here and in the matrix kernel, is included. Infinite if the activations were not finite.
void screen_bounds(const uint8_t* panels, int num_inputs, int row, float low_norm, float* bounds);

struct ScreenArgs {
  const uint8_t* weights;  // packed, Q8_0_PLANES
  int num_outputs, num_inputs, num_rows;
  const uint8_t* panels;
  const float* bounds;  // [row][num_inputs / 32]
  float *likely, *most;  // [row][tile]: the largest output, roughly, and what none is above (infinite if one may not be a number)
};

// Rows [0, num_rows <= kMaxScreenedRows) of the weight tiles [tile_begin, tile_end).
using ScreenFn = void (*)(const ScreenArgs& args, int tile_begin, int tile_end);

}  // namespace realm
