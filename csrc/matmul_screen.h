// The upper plane of Q8_0_PLANES times int8 activations: see screen.h.
#pragma once

#include "matmul_integer.h"
#include "screen.h"

namespace realm::REALM_ISA_NAMESPACE {

constexpr QuantType kUpperPlane = QuantType::Q4_0;  // what it looks like
constexpr float kUnderflow = 1e-24f;  // more than all that flushing tiny products to zero can lose
constexpr float kNoOverflow = 1e30f;  // no sum whose rounding is bounded by this overflows
constexpr int kUpperPrefetchBytes = 5120;

template <int R>
REALM_INLINE void add_upper_block(f32x16 (&acc)[R], const uint8_t* w, f32x16 d, PanelRows x) {
  const TileGroups<1> block{w, 0};
  i32x16 first[1][R], last[1][R];
  half_dots<kUpperPlane, 0>(first, block, x);
  half_dots<kUpperPlane, 1>(last, block, x);
  REALM_UNROLL
  for (int r = 0; r < R; r++) {
    const f32x16 upper = fma(to_f32(last[0][r]), x.d(r, 1), to_f32(first[0][r]) * x.d(r, 0));
    acc[r] = fma(d, fma(set1(7.5f / 16), x.x_sum(r), upper), acc[r]);
  }
}

template <int R>
__attribute__((noinline)) void screen_tiles(const ScreenArgs& args, int tile_begin, int tile_end) {
  constexpr IntegerLayout layout = integer_layout<kUpperPlane>();
  const int num_blocks = args.num_inputs / kBlockInputs, num_tiles = tiles_of(args.num_outputs);
  const uint8_t* w = args.weights + tile_begin * tile_bytes<kUpperPlane>(args.num_inputs);
  for (int tile = tile_begin; tile < tile_end; tile++) {
    f32x16 acc[R], bound[R];
    REALM_UNROLL
    for (int r = 0; r < R; r++) acc[r] = zero(), bound[r] = set1(kUnderflow);
    PanelRows x(reinterpret_cast<const ActivationBlock*>(args.panels), 0);
    for (int b = 0; b < num_blocks; b++, x.next(), w += layout.group_bytes()) {
      for (int i = 0; i < layout.group_bytes(); i += 64) prefetch(w + kUpperPrefetchBytes + i);
      const f32x16 d = load_f16(w + layout.planes_bytes());
      add_upper_block(acc, w, d, x);
      if (x.template any_has_residual<R>()) add_upper_block(acc, anew(w), d, x.residual());
      REALM_UNROLL
      for (int r = 0; r < R; r++) bound[r] = fma(abs(d), set1(args.bounds[r * num_blocks + b]), bound[r]);
    }
    const mask16 outputs = first_lanes(args.num_outputs - tile * kTileRows);
    const f32x16 lowest = set1(-__builtin_inff());
    REALM_UNROLL
    for (int r = 0; r < R; r++) {
      const f32x16 most = select(lt(bound[r], set1(kNoOverflow)), fma(acc[r], set1(16.0f), bound[r]), set1(__builtin_inff()));
      args.likely[r * num_tiles + tile] = reduce_max(select(outputs, acc[r], lowest));
      args.most[r * num_tiles + tile] = reduce_max(select(outputs, most, lowest));
    }
  }
}

template <int R = kMaxScreenedRows>
void screen(const ScreenArgs& args, int tile_begin, int tile_end) {
  if constexpr (R > 1) {
    if (args.num_rows < R) return screen<R - 1>(args, tile_begin, tile_end);
  }
  screen_tiles<R>(args, tile_begin, tile_end);
}

}  // namespace realm::REALM_ISA_NAMESPACE
