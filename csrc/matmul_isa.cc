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

constexpr int kMaxJoinedInputs = 4096;  // 139 KB of stack

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
    integer_tiles<type, C, R>(tiles.first, tiles.stride, tiles.low, x, num_groups, out, args.out_stride, num_lanes, args.accumulate,
                              distance.of[0], distance.of[1], ahead);
  }
}

// Two tiles at a time: weights come from memory once, however many passes the rows make over them, so the first passes share the
// fetching of the next tiles evenly. Left to one pass, it would wait for memory, and memory for the others.
template <QuantType type, int C>
REALM_INLINE PrefetchDistance paired_distance(ptrdiff_t first, ptrdiff_t last, int pass) {
  constexpr int lines = lines_ahead<type, C>(), passes = (lines_per_block<type>() + lines - 1) / lines;
  const ptrdiff_t share = pass % passes * lines * 64;
  return {first + share, last + share};
}

// Rows [row_begin, row_end) times C tiles, R rows at a time. `first`, `last`: where the tiles' successors lie, from the tiles on.
template <QuantType type, int C, int R>
REALM_INLINE void passes_over_tiles(const MatmulArgs& args, TileGroups<C> tiles, ptrdiff_t first, ptrdiff_t last, int output, int row_begin,
                                    int row_end) {
  const int num_lanes = C > 1 ? kTileRows : smaller(kTileRows, args.num_outputs - output);
  for (int row = row_begin, pass = 0, count; row < row_end; row += count, pass++) {
    count = smaller(R - row % R, row_end - row);  // never beyond the panel
    PrefetchDistance distance{first, last};
    if constexpr (C > 1) distance = paired_distance<type, C>(first, last, pass);
    rows_times_tiles<type, C, R>(args, tiles, row, count, args.out + row * args.out_stride + output, num_lanes, distance);
  }
}

// Two tiles whose bits lie in two planes are put together once for all passes.
template <int R>
REALM_INLINE void all_rows_times_joined_tiles(const MatmulArgs& args, const uint8_t* w, const uint8_t* low, int output, int row_begin,
                                              int row_end) {
  constexpr QuantType planes = QuantType::Q8_0_PLANES, joined = QuantType::Q8_0;
  alignas(64) uint8_t tiles[2 * tile_bytes<joined>(kMaxJoinedInputs)];
  const size_t size = tile_bytes<joined>(args.num_inputs);
  join_blocks(w, low, 2 * args.num_inputs / kBlockInputs, tiles);
  // While a pass reads the first tile, it fetches that many bytes of the upper plane; while it reads the second, of the lower.
  const uint8_t *next = w + 2 * tile_bytes<planes>(args.num_inputs), *next_low = low + 2 * low_tile_bytes<planes>(args.num_inputs);
  for (size_t i = size; i < 2 * tile_bytes<planes>(args.num_inputs); i += 64) prefetch(next + i);
  passes_over_tiles<joined, 2, R>(args, {tiles, size}, next - tiles, next_low - (tiles + size), output, row_begin, row_end);
}

template <QuantType type, int C, int R>
REALM_INLINE void all_rows_times_tiles(const MatmulArgs& args, int tile, int row_begin, int row_end) {
  const size_t size = tile_bytes<type>(args.num_inputs);
  const uint8_t* w = args.weights + tile * size;
  const uint8_t* low = args.weights + low_plane_offset<type>(args.num_outputs, args.num_inputs);
  low += tile * low_tile_bytes<type>(args.num_inputs);
  if constexpr (C > 1 && type == QuantType::Q8_0_PLANES) {
    all_rows_times_joined_tiles<R>(args, w, low, tile * kTileRows, row_begin, row_end);
  } else {
    ptrdiff_t first = args.prefetch_bytes, last = 0;
    if constexpr (C > 1) first = last = C * size;
    if constexpr (type == QuantType::Q8_0_PLANES) {
      constexpr int upper_bytes = integer_layout<type>().group_bytes(), low_bytes = low_block_bytes<type>();
      const ptrdiff_t num_blocks = args.prefetch_bytes / (upper_bytes + low_bytes);
      first = num_blocks * upper_bytes, last = num_blocks * low_bytes;
    }
    passes_over_tiles<type, C, R>(args, {w, size, low}, first, last, tile * kTileRows, row_begin, row_end);
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
      const bool fits = type != QuantType::Q8_0_PLANES || args.num_inputs <= kMaxJoinedInputs;
      if (chunk_end - chunk_begin >= kFewestPairedRows && fits)
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
