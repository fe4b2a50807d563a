// Integer weights times int8 activations.
//
// For each output, block by block in K order: the integer dot of a span (32 inputs, or 16 where scales are per 16) is
// exact, then in float
//     t = d_w * d_a;  acc = fma(float(dot), t, acc);  with a min: acc = fma(m_w, d_a * float(sum), acc)
// where d_w and m_w are products of the format's own scales (K-quants: d * scale and -(dmin * min)). Every kernel, for any
// number of rows, does exactly this: hence the same bits.
#pragma once

#include "layout.h"
#include "matmul_output.h"
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
REALM_INLINE i32x16 dot(i32x16 acc, u8x64 w, const int8_t* x) {
  if constexpr (type == QuantType::Q8_0) return dot4_biased(acc, w, x);
  return dot4_small(acc, w, x);
}

// The rows of a panel from one of them on. A kernel for R rows uses the first R.
struct PanelRows {
  const int8_t* q;     // of the first row; see ActivationBlock for what follows
  const float* scale;  // likewise

  REALM_INLINE PanelRows(const ActivationBlock* block, int row) : q(block->q[0][row][0]), scale(block->d + row) {}
  REALM_INLINE void next() {
    q += sizeof(ActivationBlock);
    scale += sizeof(ActivationBlock) / sizeof(float);
  }
  REALM_INLINE const int8_t* group(int g, int r) const { return q + (g / 4 * kPanelRows + r) * 16 + g % 4 * 4; }
  REALM_INLINE f32x16 d(int r) const { return set1(scale[r]); }
  REALM_INLINE f32x16 d_sum(int r) const { return set1(scale[kPanelRows + r]); }
  // field 0: of the block, 1 and 2: of its halves
  REALM_INLINE i32x16 neg_sum(int r, int field) const {
    int32_t sum;
    memcpy(&sum, scale + (2 + field) * kPanelRows + r, sizeof sum);
    return iset1(sum);
  }
};

template <QuantType type, int g, int R>
REALM_INLINE void dot_group(i32x16 (&sum)[R], const uint8_t* block, PanelRows x) {
  const u8x64 w = unpack_group<type, g>(block);
  REALM_UNROLL
  for (int r = 0; r < R; r++) sum[r] = dot<type>(sum[r], w, x.group(g, r));
}

// Scales of a group of blocks, kept in registers while its blocks are worked on.
template <QuantType type>
struct GroupScales {
  static constexpr IntegerLayout layout = integer_layout<type>();
  const uint8_t* tail;
  f32x16 d, m;

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

template <QuantType type, int field, int R>
REALM_INLINE void start_sums(i32x16 (&sum)[R], PanelRows x) {
  constexpr int shift = integer_layout<type>().offset_shift;
  constexpr bool starts = shift >= 0 && (type != QuantType::Q8_0 || kBiasedDotStart);
  REALM_UNROLL
  for (int r = 0; r < R; r++) {
    if constexpr (starts) sum[r] = shl<shift>(x.neg_sum(r, field));
    if constexpr (!starts) sum[r] = izero();
  }
}

// Sums of a span: the groups of four inputs [first, first + count).
template <QuantType type, int first, int count, int R>
REALM_INLINE void dot_groups(i32x16 (&sum)[R], const uint8_t* block, PanelRows x) {
  dot_group<type, first>(sum, block, x);
  if constexpr (count > 1) dot_groups<type, first + 1, count - 1>(sum, block, x);
}

template <QuantType type, int R>
REALM_INLINE void block_by_32(f32x16 (&acc)[R], const uint8_t* block, const GroupScales<type>& scales, int b,
                              PanelRows x) {
  i32x16 sum[R];
  start_sums<type, 0>(sum, x);
  dot_groups<type, 0, 8>(sum, block, x);
  const f32x16 d = scales.scale(b), m = scales.min(b);
  REALM_UNROLL
  for (int r = 0; r < R; r++) {
    acc[r] = fma(to_f32(sum[r]), d * x.d(r), acc[r]);
    if constexpr (integer_layout<type>().scales == Scales::affine) acc[r] = fma(m, x.d_sum(r), acc[r]);
    if constexpr (integer_layout<type>().scales == Scales::affine32) acc[r] = fnma(m, x.d_sum(r), acc[r]);
  }
}

template <QuantType type, int half, int R>
REALM_INLINE void half_by_16(f32x16 (&acc)[R], const uint8_t* block, const GroupScales<type>& scales, int b,
                             PanelRows x) {
  i32x16 sum[R];
  start_sums<type, 1 + half>(sum, x);
  dot_groups<type, 4 * half, 4>(sum, block, x);
  const f32x16 d = scales.scale(2 * b + half), m = scales.min(2 * b + half);
  REALM_UNROLL
  for (int r = 0; r < R; r++) {
    acc[r] = fma(to_f32(sum[r]), d * x.d(r), acc[r]);
    if constexpr (integer_layout<type>().has_min())
      acc[r] = fma(m, x.d(r) * to_f32(x.neg_sum(r, 1 + half)), acc[r]);
  }
}

// One weight tile times R rows.
template <QuantType type, int R>
__attribute__((noinline)) void integer_tile(const uint8_t* w, PanelRows x, int num_groups, float* out,
                                            size_t out_stride, int num_lanes, bool accumulate,
                                            ptrdiff_t prefetch_bytes) {
  constexpr IntegerLayout layout = integer_layout<type>();
  f32x16 acc[R];
  REALM_UNROLL
  for (int r = 0; r < R; r++) acc[r] = zero();
  for (int group = 0; group < num_groups; group++, w += layout.group_bytes()) {
    const GroupScales<type> scales(w);
    for (int b = 0; b < layout.group_blocks(); b++, x.next()) {
      const uint8_t* block = w + b * layout.block_bytes();
      constexpr int stream_bytes = layout.group_bytes() / layout.group_blocks();
      REALM_UNROLL
      for (int i = 0; i < stream_bytes; i += 64) prefetch(block + prefetch_bytes + i);
      if constexpr (layout.scale_per_16()) {
        half_by_16<type, 0>(acc, block, scales, b, x);
        half_by_16<type, 1>(acc, block, scales, b, x);
      } else {
        block_by_32<type>(acc, block, scales, b, x);
      }
    }
  }
  REALM_UNROLL
  for (int r = 0; r < R; r++, out += out_stride) store_tile_row(out, acc[r], num_lanes, accumulate);
}

}  // namespace realm::REALM_ISA_NAMESPACE
