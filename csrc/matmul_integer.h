// Integer weights times int8 activations.
//
// For each output, block by block in K order: the integer dots of both halves (16 inputs each) are exact, then in float
//     weights' scales per 32:  p = fma(dot1, d_a1, dot0 * d_a0);  acc = fma(d_w, p, acc);  with a min: fma(m_w, x_sum, acc)
//     weights' scales per 16:  for each half: acc = fma(dot, d_w * d_a, acc);  with a min: fma(m_w, d_a * sum, acc)
// and, if the row has a residual there, the same with the residual's block. d_w and m_w are products of the format's own scales
// (K-quants: d * scale and -(dmin * min)). Every kernel, for any number of rows, does exactly this: hence the same bits.
#pragma once

#include "layout.h"
#include "matmul_output.h"
#include "matmul_panels.h"
#include "matmul_planes.h"
#include "simd.h"

namespace realm::REALM_ISA_NAMESPACE {

// Unsigned quants of the group `g` (0..7) of four inputs.
template <QuantType type, int g>
REALM_INLINE u8x64 unpack_group(const uint8_t* block) {
  constexpr IntegerLayout layout = integer_layout<type>();
  constexpr int low = layout.low_bits;
  const uint8_t* high_plane = block + 64 * low;
  u8x64 q;
  if constexpr (low == 8) q = load_u8x64(block + 64 * g);
  if constexpr (low == 4) q = bits_at_right<4 * (g % 2), 15>(load_u8x64(block + 64 * (g / 2)));
  if constexpr (low == 2) q = bits_at_right<2 * (g % 4), 3>(load_u8x64(block + 64 * (g / 4)));
  if constexpr (layout.high_bits == 2) {
    constexpr int at = 2 * (g % 4);
    const u8x64 high = load_u8x64(high_plane + 64 * (g / 4));
    if constexpr (at <= low) q = q | bits_at_left<low - at, 3 << low>(high);
    if constexpr (at > low) q = q | bits_at_right<at - low, 3 << low>(high);
  }
  if constexpr (layout.high_bits == 1) {
    const u8x64 high = load_u8x64(high_plane);
    if constexpr (g <= low) q = q | bits_at_left<low - g, 1 << low>(high);
    if constexpr (g > low) q = q | bits_at_right<g - low, 1 << low>(high);
  }
  return q;
}

template <QuantType type>
REALM_INLINE i32x16 dot(i32x16 acc, u8x64 w, u8x64 x) {
  if constexpr (is_q8_0(type)) return dot4_biased(acc, w, x);
  return dot4_small(acc, w, x);
}

// A kernel works on C weight tiles and R rows at once: each weight vector in registers serves R rows, and each broadcast of
// activations C tiles. Where a group of blocks starts in each tile:
template <int C>
struct TileGroups {
  const uint8_t* first;
  size_t stride;
  const uint8_t* low = nullptr;  // the lower bits of the first: of Q8_0_PLANES, one tile at a time

  REALM_INLINE const uint8_t* operator[](int c) const { return first + c * stride; }
};

// Compilers would rather begin the next half of a block early and keep more values than there are registers.
template <class T, int C, int R>
REALM_INLINE void done_by_now(T (&values)[C][R]) {
  REALM_UNROLL
  for (int c = 0; c < C; c++) {
    REALM_UNROLL
    for (int r = 0; r < R; r++) settle(values[c][r]);
  }
}

template <QuantType type, int g, int C, int R>
REALM_INLINE void dot_group(i32x16 (&sum)[C][R], const u8x64 (&w)[C], PanelRows x) {
  REALM_UNROLL
  for (int r = 0; r < R; r++) {
    const u8x64 inputs = broadcast4(x.group(g, r));
    REALM_UNROLL
    for (int c = 0; c < C; c++) sum[c][r] = dot<type>(sum[c][r], w[c], inputs);
  }
}

// Of the groups 2j and 2j + 1.
template <QuantType type, int j, int C, int R>
REALM_INLINE void dot_two_groups(i32x16 (&sum)[C][R], TileGroups<C> blocks, PanelRows x) {
  u8x64 even[C], odd[C];
  REALM_UNROLL
  for (int c = 0; c < C; c++) {
    if constexpr (type == QuantType::Q8_0_PLANES) {
      static_assert(C == 1);
      join_groups<j>(blocks.first, blocks.low, even[c], odd[c]);
    } else {
      even[c] = unpack_group<type, 2 * j>(blocks[c]);
      odd[c] = unpack_group<type, 2 * j + 1>(blocks[c]);
    }
  }
  dot_group<type, 2 * j>(sum, even, x);
  dot_group<type, 2 * j + 1>(sum, odd, x);
}

// Scales of a group of blocks, kept in registers while its blocks are worked on.
template <QuantType type>
struct GroupScales {
  static constexpr IntegerLayout layout = integer_layout<type>();
  const uint8_t* tail;
  f32x16 d, m;

  GroupScales() = default;
  REALM_INLINE explicit GroupScales(const uint8_t* group) : tail(group + layout.planes_bytes()) {
    d = load_f16(tail + layout.f16_offset());
    m = layout.has_min() ? load_f16(tail + layout.f16_offset() + 32) : zero();
  }
  // Of the span (16 or 32 inputs) number `span` of the group.
  REALM_INLINE f32x16 scale(int span) const {
    const uint8_t* bytes = tail + 16 * span;
    if constexpr (layout.scales == Scales::affine32) return d * to_f32(load_u8(bytes));
    if constexpr (layout.scales == Scales::scaled16) return d * to_f32(load_i8(bytes));
    if constexpr (layout.scales == Scales::affine16) return d * to_f32(load_u8(bytes) & iset1(15));
    return d;
  }
  // The min as a factor of +sum (affine) or of -sum (K-quants).
  REALM_INLINE f32x16 min(int span) const {
    const uint8_t* bytes = tail + 16 * span;
    if constexpr (layout.scales == Scales::affine32) return m * to_f32(load_u8(bytes + 128));
    if constexpr (layout.scales == Scales::affine16) return m * to_f32(shr<4>(load_u8(bytes)));
    return m;
  }
};

template <QuantType type, int half, int C, int R>
REALM_INLINE void start_sums(i32x16 (&sum)[C][R], PanelRows x) {
  constexpr int shift = integer_layout<type>().offset_shift;
  constexpr bool starts = shift >= 0 && (!is_q8_0(type) || kBiasedDotStart);
  REALM_UNROLL
  for (int r = 0; r < R; r++) {
    i32x16 start = izero();
    if constexpr (starts) start = shl<shift>(x.neg_sum(r, half));
    REALM_UNROLL
    for (int c = 0; c < C; c++) sum[c][r] = start;
  }
  done_by_now(sum);
}

// Integer dots of half a block.
template <QuantType type, int half, int C, int R>
REALM_INLINE void half_dots(i32x16 (&sum)[C][R], TileGroups<C> blocks, PanelRows x) {
  start_sums<type, half>(sum, x);
  dot_two_groups<type, 2 * half>(sum, blocks, x);
  dot_two_groups<type, 2 * half + 1>(sum, blocks, x);
}

template <QuantType type, int C, int R>
REALM_INLINE void block_by_32(f32x16 (&acc)[C][R], TileGroups<C> blocks, const GroupScales<type> (&scales)[C], int b,
                              PanelRows x) {
  f32x16 p[C][R];
  i32x16 sum[C][R];
  half_dots<type, 0>(sum, blocks, x);
  REALM_UNROLL
  for (int r = 0; r < R; r++) {
    const f32x16 d = x.d(r, 0);
    REALM_UNROLL
    for (int c = 0; c < C; c++) p[c][r] = to_f32(sum[c][r]) * d;
  }
  done_by_now(p);
  half_dots<type, 1>(sum, blocks, x);
  f32x16 d[C], m[C];
  REALM_UNROLL
  for (int c = 0; c < C; c++) d[c] = scales[c].scale(b), m[c] = scales[c].min(b);
  REALM_UNROLL
  for (int r = 0; r < R; r++) {
    const f32x16 d1 = x.d(r, 1);
    REALM_UNROLL
    for (int c = 0; c < C; c++) {
      acc[c][r] = fma(d[c], fma(to_f32(sum[c][r]), d1, p[c][r]), acc[c][r]);
      if constexpr (integer_layout<type>().scales == Scales::affine) acc[c][r] = fma(m[c], x.x_sum(r), acc[c][r]);
      if constexpr (integer_layout<type>().scales == Scales::affine32) acc[c][r] = fnma(m[c], x.x_sum(r), acc[c][r]);
    }
  }
}

template <QuantType type, int half, int C, int R>
REALM_INLINE void half_by_16(f32x16 (&acc)[C][R], TileGroups<C> blocks, const GroupScales<type> (&scales)[C], int b,
                             PanelRows x) {
  i32x16 sum[C][R];
  half_dots<type, half>(sum, blocks, x);
  f32x16 d[C], m[C];
  REALM_UNROLL
  for (int c = 0; c < C; c++) d[c] = scales[c].scale(2 * b + half), m[c] = scales[c].min(2 * b + half);
  REALM_UNROLL
  for (int r = 0; r < R; r++) {
    const f32x16 dx = x.d(r, half);
    REALM_UNROLL
    for (int c = 0; c < C; c++) {
      acc[c][r] = fma(to_f32(sum[c][r]), d[c] * dx, acc[c][r]);
      if constexpr (integer_layout<type>().has_min())
        acc[c][r] = fma(m[c], dx * to_f32(x.neg_sum(r, half)), acc[c][r]);
    }
  }
}

template <QuantType type, int C, int R>
REALM_INLINE void times_block(f32x16 (&acc)[C][R], TileGroups<C> blocks, const GroupScales<type> (&scales)[C], int b,
                              PanelRows x) {
  if constexpr (integer_layout<type>().scale_per_16()) {
    half_by_16<type, 0>(acc, blocks, scales, b, x);
    half_by_16<type, 1>(acc, blocks, scales, b, x);
  } else {
    block_by_32<type>(acc, blocks, scales, b, x);
  }
}

// Two tiles at a time are for at least so many passes of some rows over them.
constexpr int kFewestPairedPasses = 4;

// Cache lines of a block of weights, and how many of them a pass over C tiles fetches ahead of use.
template <QuantType type>
constexpr int lines_per_block() {
  return (integer_layout<type>().group_bytes() / integer_layout<type>().group_blocks() + 63) / 64;
}
template <QuantType type, int C>
constexpr int lines_ahead() {
  return C == 1 ? lines_per_block<type>() : (lines_per_block<type>() + kFewestPairedPasses - 1) / kFewestPairedPasses;
}
// How far ahead of use weights are fetched: of each tile, or of both planes of one.
struct PrefetchDistance {
  ptrdiff_t of[2];
};

// What a pass over C > 1 tiles fetches for a later op meanwhile, for each block. Of 128, 192 and 320 the last was the quickest.
constexpr int kAheadBytes = 320;

// C weight tiles times R rows. (Arguments are single words: a pair of them on the stack would be read in one go, which waits until what was
// written before has reached the cache.)
template <QuantType type, int C, int R>
__attribute__((noinline)) void integer_tiles(const uint8_t* w, size_t tile_stride, const uint8_t* low, PanelRows x, int num_groups,
                                             float* out, size_t out_stride, int num_lanes, bool accumulate,
                                             ptrdiff_t first_distance, ptrdiff_t last_distance, const uint8_t* ahead) {
  constexpr IntegerLayout layout = integer_layout<type>();
  const ptrdiff_t ahead_step = ahead != nullptr ? kAheadBytes : 0;
  if (ahead == nullptr) ahead = w;
  TileGroups<C> tiles{w, tile_stride, low};
  const PrefetchDistance distance{first_distance, last_distance};
  f32x16 acc[C][R];
  REALM_UNROLL
  for (int c = 0; c < C; c++) {
    REALM_UNROLL
    for (int r = 0; r < R; r++) {
      acc[c][r] = zero();
      prefetch_to_write(out + r * out_stride + c * kTileRows);
    }
  }
  for (int group = 0; group < num_groups; group++, tiles.first += layout.group_bytes()) {
    GroupScales<type> scales[C];
    REALM_UNROLL
    for (int c = 0; c < C; c++) scales[c] = GroupScales<type>(tiles[c]);
    TileGroups<C> blocks = tiles;
    for (int b = 0; b < layout.group_blocks(); b++, x.next(), blocks.first += layout.block_bytes()) {
      REALM_UNROLL
      for (int c = 0; c < C; c++) {
        for (int line = 0; line < lines_ahead<type, C>(); line++) prefetch(blocks[c] + distance.of[c] + 64 * line);
        for (int line = 0; line < low_block_bytes<type>() / 64; line++) prefetch(blocks.low + distance.of[1] + 64 * line);
      }
      if constexpr (C > 1) {
        for (int i = 0; i < kAheadBytes; i += 64) prefetch_l2(ahead + i);
        ahead += ahead_step;
      }
      times_block<type>(acc, blocks, scales, b, x);
      if (x.template any_has_residual<R>()) {
        blocks.first = anew(blocks.first), blocks.low = anew(blocks.low);
        times_block<type>(acc, blocks, scales, b, x.residual());
      }
    }
    tiles.low += low_block_bytes<type>();
  }
  REALM_UNROLL
  for (int c = 0; c < C; c++) {
    REALM_UNROLL
    for (int r = 0; r < R; r++) store_tile_row(out + r * out_stride + c * kTileRows, acc[c][r], num_lanes, accumulate);
  }
}

}  // namespace realm::REALM_ISA_NAMESPACE
