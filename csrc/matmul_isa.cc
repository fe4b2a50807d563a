// The matrix kernels, compiled once per instruction set: loops over tiles and rows around the register kernels.
#include "matmul_float.h"
#include "matmul_integer.h"
#include "matmul_screen.h"
#include "matmul_table.h"
#include "quantize.h"

namespace realm::REALM_ISA_NAMESPACE {
namespace {

// Activations that stay in the second-level cache while the weight tiles pass by.
constexpr size_t kActivationCacheBytes = 512 << 10;

// With one tile at a time a kernel loads about as often as it multiplies, and both units do two a cycle: two tiles share the
// broadcasts of activations. Fewer rows take one tile all the same, since two streams of weights from memory are slower than one.
constexpr int kFewestPairedRows = kPairedRows * kFewestPairedPasses;

constexpr int smaller(int a, int b) { return a < b ? a : b; }

// `count` (1..R) rows starting at `row`, times C tiles: the kernel for exactly that many.
template <QuantType type, int C, int R>
REALM_INLINE void rows_times_tiles(const MatmulArgs& args, TileGroups<C> tiles, int row, int count, float* out, int num_lanes,
                                   PrefetchDistance distance) {
  if constexpr (R > 1) {
    if (count < R) return rows_times_tiles<type, C, R - 1>(args, tiles, row, count, out, num_lanes, distance);
  }
  if constexpr (is_float(type)) {
    float_tile<type, R>(tiles.first, args.x + row * args.x_stride, args.x_stride, args.num_inputs, out, args.out_stride, num_lanes,
                        args.accumulate);
  } else {
    const auto* panel = reinterpret_cast<const ActivationBlock*>(args.panels) + row / kPanelRows * (args.num_inputs / kBlockInputs);
    const PanelRows x(panel, row % kPanelRows);
    const int num_groups = args.num_inputs / (kBlockInputs * integer_layout<type>().group_blocks());
    const uint8_t* ahead = C > 1 && args.ahead != nullptr ? args.ahead->take(args.num_inputs / kBlockInputs * kAheadBytes) : nullptr;
    integer_tiles<type, C, R>(tiles, x, num_groups, out, args.out_stride, num_lanes, args.accumulate, distance, ahead);
  }
}

// Two tiles at a time: weights come from memory once, however many passes the rows make over them, so the first passes share the
// fetching of the next tiles evenly. Left to one pass, it would wait for memory, and memory for the others.
template <int C>
REALM_INLINE ptrdiff_t paired_distance(size_t tile_bytes, int lines_per_block, int pass) {
  const int lines = lines_ahead<C>(lines_per_block), passes = (lines_per_block + lines - 1) / lines;
  return static_cast<ptrdiff_t>(C * tile_bytes) + pass % passes * lines * 64;
}
template <QuantType type, int C>
REALM_INLINE PrefetchDistance prefetch_distance(const MatmulArgs& args, int pass) {
  PrefetchDistance distance{args.prefetch_bytes, 0};
  constexpr int low_block = low_block_bytes<type>();
  if constexpr (C > 1) {
    distance.bytes = paired_distance<C>(tile_bytes<type>(args.num_inputs), lines_per_block<type>(), pass);
    if constexpr (low_block > 0) distance.low_bytes = paired_distance<C>(low_tile_bytes<type>(args.num_inputs), low_block / 64, pass);
  } else if constexpr (low_block > 0) {
    distance.low_bytes = args.prefetch_bytes / integer_layout<type>().group_bytes() * low_block;
  }
  return distance;
}

// Rows [row_begin, row_end) times C tiles, R rows at a time.
template <QuantType type, int C, int R>
REALM_INLINE void all_rows_times_tiles(const MatmulArgs& args, int tile, int row_begin, int row_end) {
  const int output = tile * kTileRows, num_lanes = C > 1 ? kTileRows : smaller(kTileRows, args.num_outputs - output);
  const size_t stride = tile_bytes<type>(args.num_inputs), low_stride = low_tile_bytes<type>(args.num_inputs);
  const uint8_t* low = args.weights + low_plane_offset<type>(args.num_outputs, args.num_inputs);
  const TileGroups<C> tiles{args.weights + tile * stride, stride, low + tile * low_stride, low_stride};
  for (int row = row_begin, pass = 0, count; row < row_end; row += count, pass++) {
    count = smaller(R - row % R, row_end - row);  // never beyond the panel
    rows_times_tiles<type, C, R>(args, tiles, row, count, args.out + row * args.out_stride + output, num_lanes,
                                 prefetch_distance<type, C>(args, pass));
  }
}

template <QuantType type>
void matmul(const MatmulArgs& args, int tile_begin, int tile_end) {
  const size_t row_bytes = is_float(type) ? args.num_inputs * sizeof(float) : panel_bytes(args.num_inputs) / kPanelRows;
  const int fitting = static_cast<int>(kActivationCacheBytes / row_bytes) / kPanelRows * kPanelRows;
  const int chunk = fitting < kPanelRows ? kPanelRows : fitting;
  for (int chunk_begin = args.first_row; chunk_begin < args.num_rows; chunk_begin += chunk) {
    const int chunk_end = smaller(args.num_rows, chunk_begin + chunk);
    int tile = tile_begin;
    if constexpr (kPairedRows > 0 && !is_float(type)) {
      const int whole_end = smaller(tile_end, args.num_outputs / kTileRows);
      if (chunk_end - chunk_begin >= kFewestPairedRows)
        for (; tile + 2 <= whole_end; tile += 2) all_rows_times_tiles<type, 2, kPairedRows>(args, tile, chunk_begin, chunk_end);
    }
    for (; tile < tile_end; tile++) all_rows_times_tiles<type, 1, kKernelRows>(args, tile, chunk_begin, chunk_end);
  }
}

constexpr MatmulTable make_table() {
  MatmulTable table{};
#define REALM_SET(name) table.matmul[static_cast<int>(QuantType::name)] = matmul<QuantType::name>;
  REALM_SET(F32)
  REALM_SET(F16)
  REALM_SET(BF16)
  REALM_SET(Q4_0)
  REALM_SET(Q4_1)
  REALM_SET(Q5_0)
  REALM_SET(Q5_1)
  REALM_SET(Q8_0)
  REALM_SET(Q2_K)
  REALM_SET(Q3_K)
  REALM_SET(Q4_K)
  REALM_SET(Q5_K)
  REALM_SET(Q6_K)
  REALM_SET(Q8_0_PLANES)
#undef REALM_SET
  table.screen = screen<>;
  table.quantize_row = quantize_row;
  return table;
}

}  // namespace

extern const MatmulTable matmul_table = make_table();

}  // namespace realm::REALM_ISA_NAMESPACE
