#include <cmath>
#include <vector>

#include "lora.h"
#include "lora_quantize.h"
#include "pack.h"

namespace realm {
namespace {

constexpr int kQ8 = static_cast<int>(QuantType::Q8_0), kF32 = static_cast<int>(QuantType::F32);
constexpr int kSmallBlockBytes = 2 * 64 + 2 * kLoraSmallTile;

int round_up(int n, int multiple) { return (n + multiple - 1) / multiple * multiple; }

// Ranks in tiles of 16; the others are in tiles of 4.
int whole_ranks(int num_ranks) { return num_ranks / kTileRows * kTileRows; }

void pack_small_tile(const std::vector<GgufBlock<QuantType::Q8_0>>* rows, int num_rows, int num_blocks, uint8_t* dst) {
  for (int b = 0; b < num_blocks; b++, dst += kSmallBlockBytes) {
    memset(dst, 0, kSmallBlockBytes);
    for (int row = 0; row < num_rows; row++) {
      const GgufBlock<QuantType::Q8_0>& s = rows[row][b];
      for (int k = 0; k < kBlockInputs; k++)
        dst[k / 16 * 64 + row * 16 + k % 16] = static_cast<uint8_t>(s.qs[k]) ^ 0x80;
      memcpy(dst + 128 + 2 * row, &s.d, 2);
    }
  }
}

}  // namespace

int lora_num_tiles(LoraStore store, int num_ranks) {
  if (store == LoraStore::f32) return round_up(num_ranks, kTileRows) / kTileRows;
  const int left = num_ranks - whole_ranks(num_ranks);
  return num_ranks / kTileRows + round_up(left, kLoraSmallTile) / kLoraSmallTile;
}

int lora_padded_ranks(LoraStore store, int num_ranks) {
  return round_up(num_ranks, store == LoraStore::f32 ? kTileRows : kLoraSmallTile);
}

size_t lora_a_bytes(LoraStore store, int num_ranks, int num_inputs) {
  if (store == LoraStore::f32) return packed_bytes(kF32, num_ranks, num_inputs);
  const int whole = whole_ranks(num_ranks), small = round_up(num_ranks - whole, kLoraSmallTile) / kLoraSmallTile;
  return packed_bytes(kQ8, whole, num_inputs) +
         static_cast<size_t>(small) * (num_inputs / kBlockInputs) * kSmallBlockBytes;
}

size_t lora_b_bytes(LoraStore store, int num_outputs, int rank) {
  const size_t tile = store == LoraStore::f32 ? kTileRows * rank * sizeof(float) : kTileRows * (rank + 2);
  return tile * (round_up(num_outputs, kTileRows) / kTileRows);
}

float lora_pack_a(LoraStore store, const float* a, int num_ranks, int num_inputs, uint8_t* dst) {
  const int num_tiles = round_up(num_ranks, kTileRows) / kTileRows;
  if (store == LoraStore::f32) {
    pack(kF32, reinterpret_cast<const uint8_t*>(a), num_ranks, num_inputs, dst, 0, num_tiles);
    return 1.0f;
  }
  const int exponent = lora_a_exponent(a, static_cast<size_t>(num_ranks) * num_inputs);
  std::vector<std::vector<GgufBlock<QuantType::Q8_0>>> rows(num_ranks);
  for (int r = 0; r < num_ranks; r++)
    rows[r] = lora_quantize_a_row(a + static_cast<size_t>(r) * num_inputs, num_inputs, exponent);
  const int whole = whole_ranks(num_ranks), num_blocks = num_inputs / kBlockInputs;
  std::vector<GgufBlock<QuantType::Q8_0>> together;
  for (int r = 0; r < whole; r++) together.insert(together.end(), rows[r].begin(), rows[r].end());
  pack(kQ8, reinterpret_cast<const uint8_t*>(together.data()), whole, num_inputs, dst, 0, whole / kTileRows);
  dst += packed_bytes(kQ8, whole, num_inputs);
  for (int r = whole; r < num_ranks; r += kLoraSmallTile, dst += static_cast<size_t>(num_blocks) * kSmallBlockBytes)
    pack_small_tile(&rows[r], num_ranks - r < kLoraSmallTile ? num_ranks - r : kLoraSmallTile, num_blocks, dst);
  return std::ldexp(1.0f, -exponent);
}

void lora_pack_b(LoraStore store, const float* b, int num_outputs, int rank, uint8_t* dst) {
  const size_t tile_bytes = lora_b_bytes(store, kTileRows, rank);
  memset(dst, 0, lora_b_bytes(store, num_outputs, rank));
  for (int n = 0; n < num_outputs; n++) {
    uint8_t* tile = dst + n / kTileRows * tile_bytes;
    const int lane = n % kTileRows;
    const float* row = b + static_cast<size_t>(n) * rank;
    if (store == LoraStore::f32) {
      for (int r = 0; r < rank; r++) memcpy(tile + (r * kTileRows + lane) * sizeof(float), row + r, sizeof(float));
      continue;
    }
    const uint16_t scale = lora_b_scale(row, rank);
    for (int r = 0; r < rank; r++) tile[r * kTileRows + lane] = static_cast<uint8_t>(lora_b_quant(row[r], scale));
    memcpy(tile + rank * kTileRows + 2 * lane, &scale, 2);
  }
}

}  // namespace realm
