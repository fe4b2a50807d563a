// Adapter kernels, compiled once per instruction set. See lora.h for layouts and order.
#include "lora.h"
#include "matmul_integer.h"
#include "matmul_table.h"
#include "simd.h"

namespace realm::REALM_ISA_NAMESPACE {
namespace {

constexpr int smaller(int a, int b) { return a < b ? a : b; }

// Four ranks times one row: lane 4 * rank + i has the inputs 4i..4i+3 of each half block, so the integer dot of a half is
// the sum over four lanes, and all four then follow the Q8_0 kernel's arithmetic.
template <int half>
REALM_INLINE f32x16 small_dots(const uint8_t* w, PanelRows x) {
  const i32x16 sum = sum_of_four_lanes(dot4_biased(izero(), load_u8x64(w + 64 * half), broadcast16(x.group(4 * half, 0))));
  return to_f32(kBiasedDotStart ? sum + shl<7>(x.neg_sum(0, half)) : sum);
}
REALM_INLINE f32x16 small_block(const uint8_t* w, PanelRows x) {
  return fma(small_dots<1>(w, x), x.d(0, 1), small_dots<0>(w, x) * x.d(0, 0));
}

void small_tile(const uint8_t* w, PanelRows x, int num_blocks, float* t, ptrdiff_t prefetch_bytes) {
  constexpr int block_bytes = 2 * 64 + 2 * kLoraSmallTile;
  f32x16 acc = zero();
  for (int b = 0; b < num_blocks; b++, w += block_bytes, x.next()) {
    prefetch(w + prefetch_bytes);
    prefetch(w + prefetch_bytes + 64);
    const f32x16 d = load_f16_to_four_lanes(w + 128);
    acc = fma(d, small_block(w, x), acc);
    if (x.any_has_residual<1>()) acc = fma(d, small_block(w, x.residual()), acc);
  }
  float lanes[16];
  store(lanes, acc);
  for (int rank = 0; rank < kLoraSmallTile; rank++) t[rank] = lanes[4 * rank];
}

void shrink(const LoraShrinkArgs& args, int tile_begin, int tile_end) {
  const bool is_int8 = args.store == LoraStore::int8;
  const int num_whole = is_int8 ? args.num_ranks / kTileRows : lora_num_tiles(args.store, args.num_ranks);
  const int whole_end = smaller(tile_end, num_whole);
  if (tile_begin < whole_end) {
    MatmulArgs matmul{args.a, num_whole * kTileRows, args.num_inputs, args.row_end, args.panels,
                      args.x, args.x_stride,         args.t,          args.t_stride, false};
    matmul.first_row = args.row_begin;
    matmul.prefetch_bytes = args.prefetch_bytes;
    matmul_table.matmul[static_cast<int>(is_int8 ? QuantType::Q8_0 : QuantType::F32)](matmul, tile_begin, whole_end);
  }
  const int num_blocks = args.num_inputs / kBlockInputs;
  const size_t tile_size = static_cast<size_t>(num_blocks) * (2 * 64 + 2 * kLoraSmallTile);
  const uint8_t* small = args.a + num_whole * tile_bytes<QuantType::Q8_0>(args.num_inputs);
  for (int tile = tile_begin < num_whole ? num_whole : tile_begin; tile < tile_end; tile++) {
    const int index = tile - num_whole;
    for (int row = args.row_begin; row < args.row_end; row++) {
      const auto* panel = reinterpret_cast<const ActivationBlock*>(args.panels) + row / kPanelRows * num_blocks;
      small_tile(small + index * tile_size, PanelRows(panel, row % kPanelRows), num_blocks,
                 args.t + row * args.t_stride + num_whole * kTileRows + index * kLoraSmallTile, args.prefetch_bytes);
    }
  }
}

template <LoraStore kStore>
REALM_INLINE f32x16 load_b(const uint8_t* p) {
  if constexpr (kStore == LoraStore::int8) return to_f32(load_i8(p));
  f32x16 v;
  memcpy(&v, p, sizeof v);
  return v;
}

template <LoraStore kStore, int R>
REALM_INLINE void expand_tile(const uint8_t* b, const LoraExpandArgs& args, const float* t, float* out, int num_lanes) {
  constexpr int vector_bytes = kTileRows * (kStore == LoraStore::int8 ? 1 : 4);
  f32x16 even[R], odd[R];
  REALM_UNROLL
  for (int i = 0; i < R; i++) even[i] = odd[i] = zero();
  int r = 0;
  for (; r + 1 < args.rank; r += 2) {
    const f32x16 b0 = load_b<kStore>(b + r * vector_bytes), b1 = load_b<kStore>(b + (r + 1) * vector_bytes);
    REALM_UNROLL
    for (int i = 0; i < R; i++) {
      even[i] = fma(set1(t[i * args.t_stride + r]), b0, even[i]);
      odd[i] = fma(set1(t[i * args.t_stride + r + 1]), b1, odd[i]);
    }
  }
  if (r < args.rank) {
    const f32x16 last = load_b<kStore>(b + r * vector_bytes);
    REALM_UNROLL
    for (int i = 0; i < R; i++) even[i] = fma(set1(t[i * args.t_stride + r]), last, even[i]);
  }
  f32x16 scale = set1(args.scale);
  if constexpr (kStore == LoraStore::int8) scale = load_bf16(b + args.rank * vector_bytes) * scale;
  REALM_UNROLL
  for (int i = 0; i < R; i++) {
    float* y = out + i * args.out_stride;
    if (num_lanes == kTileRows) {
      store(y, fma(even[i] + odd[i], scale, load(y)));
    } else {
      float before[kTileRows] = {};
      memcpy(before, y, num_lanes * sizeof(float));
      store_first(y, fma(even[i] + odd[i], scale, load(before)), num_lanes);
    }
  }
}

template <LoraStore kStore>
void expand_tiles(const LoraExpandArgs& args, int tile_begin, int tile_end) {
  constexpr int kRows = smaller(kKernelRows, 4);
  const size_t tile_size = kTileRows * (kStore == LoraStore::int8 ? args.rank + 2 : args.rank * sizeof(float));
  for (int tile = tile_begin; tile < tile_end; tile++) {
    const uint8_t* b = args.b + tile * tile_size;
    const int num_lanes = smaller(kTileRows, args.num_outputs - tile * kTileRows);
    for (size_t i = 0; i < tile_size; i += 64) prefetch(b + args.prefetch_bytes + i);
    const float* t = args.t + args.row_begin * args.t_stride;
    float* out = args.out + args.row_begin * args.out_stride + tile * kTileRows;
    int row = args.row_begin;
    for (; row + kRows <= args.row_end; row += kRows, t += kRows * args.t_stride, out += kRows * args.out_stride)
      expand_tile<kStore, kRows>(b, args, t, out, num_lanes);
    for (; row < args.row_end; row++, t += args.t_stride, out += args.out_stride)
      expand_tile<kStore, 1>(b, args, t, out, num_lanes);
  }
}

void expand(const LoraExpandArgs& args, int tile_begin, int tile_end) {
  if (args.store == LoraStore::int8) {
    expand_tiles<LoraStore::int8>(args, tile_begin, tile_end);
  } else {
    expand_tiles<LoraStore::f32>(args, tile_begin, tile_end);
  }
}

}  // namespace

extern const LoraTable lora_table = {shrink, expand};

}  // namespace realm::REALM_ISA_NAMESPACE
