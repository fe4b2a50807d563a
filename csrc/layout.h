// How weights and activations lie in memory for the matrix kernels. Everything is little endian.
//
// WEIGHTS. Output features are taken 16 at a time: a tile. N is padded up to a multiple of 16 with zero weights. Tiles
// follow each other, and within a tile the blocks of 32 inputs follow each other, so that a thread's range of tiles is one
// sequential stream. A block of an integer format holds, for its 16 rows x 32 inputs, bit planes of unsigned quants in
// vectors of 64 bytes: byte 4*row + i of a vector belongs to input 4*g + i, where g = 0..7 is a group of four inputs.
//
//   low plane, 8 bits:  8 vectors, vector g
//   low plane, 4 bits:  4 vectors; vector j has group 2j in its low nibbles and 2j+1 in its high nibbles
//   low plane, 2 bits:  2 vectors; vector h has group 4h+i in bits 2i, 2i+1
//   high plane, 2 bits: 2 vectors, like the 2-bit low plane
//   high plane, 1 bit:  1 vector; bit g is group g
//
// A value is (low | high << low bits) - offset. A group of blocks (one block, or the eight of a K-quant super-block) is
// followed by a tail with the scales of its 16 rows:
//
//   plain:    f16 d[16]                                                        w = d * q
//   affine:   f16 d[16], f16 m[16]                                             w = d * q + m
//   affine32: u8 scale[8][16], u8 min[8][16], f16 d[16], f16 dmin[16]          w = d * scale * q - dmin * min
//   scaled16: s8 scale[16][16], f16 d[16]                                      w = d * scale * q
//   affine16: u8 (scale | min << 4)[16][16], f16 d[16], f16 dmin[16]           w = d * scale * q - dmin * min
//
// Where the index before the row runs over the blocks of 32 or of 16 inputs. Nothing is lost: the 6-bit scales of K-quants
// are only widened to bytes. Float formats hold [K][16] values.
//
// Q8_0_PLANES is Q8_0 (its quants are 0..255, offset 128) in two planes, so that a reader may do with one: first the tiles with the
// upper four bits of each quant and the scales, as if it were Q4_0; behind all of them the tiles with the lower four bits.
//
// ACTIVATIONS are quantised per row and half a block, 16 inputs: d = max|x| / 127, q = x / d rounded to the nearest even
// integer (a half whose values are all below 1e-30 is zero). Rows are taken 8 at a time: a panel, blocks of 32 inputs
// following each other, each an ActivationBlock. Rows past the last one may hold anything.
//
// A block that holds an outlier spoils the other values of its half, and its errors are large beside the row's other values.
// So what a norm makes, which is where outliers are, has a second ActivationBlock elsewhere for such a block: x - d * q,
// quantised again. It takes part like a further block times the same weights; rows that have no need of it are zero in it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace realm {

// GGUF type ids.
enum class QuantType : int {
  F32 = 0,
  F16 = 1,
  Q4_0 = 2,
  Q4_1 = 3,
  Q5_0 = 6,
  Q5_1 = 7,
  Q8_0 = 8,
  Q2_K = 10,
  Q3_K = 11,
  Q4_K = 12,
  Q5_K = 13,
  Q6_K = 14,
  BF16 = 30,
  Q8_0_PLANES = 31,  // no file has it
};
constexpr int kNumTypeIds = 32;

constexpr int kTileRows = 16;     // output features of a weight tile
constexpr int tiles_of(int num_rows) { return (num_rows + kTileRows - 1) / kTileRows; }
constexpr int kBlockInputs = 32;  // inputs of a block
constexpr int kHalfInputs = 16;   // inputs that share an activation scale
constexpr int kPanelRows = 8;     // activation rows of a panel

struct ActivationBlock {
  int8_t q[2][kPanelRows][4][4];   // [half of the block][row][group of four inputs][input]
  float d[2][kPanelRows];          // scale of each half
  int32_t neg_sum[2][kPanelRows];  // -(sum of q): an integer sum that starts at offset * neg_sum is over (quant - offset)
  float x_sum[kPanelRows];         // of what both halves stand for: d[1] * (sum of q[1]) + d[0] * (sum of q[0]), by fma
  uint8_t has_residual[kPanelRows];  // 1: the row has a second block
  int64_t residual_offset;           // bytes from this block to the rows' second blocks, if any has one
};
static_assert(sizeof(ActivationBlock) == 432);

constexpr size_t panel_bytes(int num_inputs) { return num_inputs / kBlockInputs * sizeof(ActivationBlock); }
// Bytes of the panels of `num_rows` rows.
constexpr size_t panels_bytes(int num_rows, int num_inputs) {
  return static_cast<size_t>((num_rows + kPanelRows - 1) / kPanelRows) * panel_bytes(num_inputs);
}

enum class Scales { plain, affine, affine32, scaled16, affine16 };

struct IntegerLayout {
  int low_bits, high_bits;
  int offset_shift;  // offset = 1 << offset_shift; -1: no offset
  Scales scales;

  constexpr int group_blocks() const { return scales == Scales::plain || scales == Scales::affine ? 1 : 8; }
  constexpr int block_bytes() const { return 64 * (low_bits + high_bits); }
  constexpr int planes_bytes() const { return group_blocks() * block_bytes(); }
  // Where in the tail the f16 scales start.
  constexpr int f16_offset() const { return group_blocks() == 1 ? 0 : 256; }
  constexpr bool has_min() const {
    return scales == Scales::affine || scales == Scales::affine32 || scales == Scales::affine16;
  }
  constexpr bool scale_per_16() const { return scales == Scales::scaled16 || scales == Scales::affine16; }
  constexpr int group_bytes() const { return planes_bytes() + f16_offset() + (has_min() ? 64 : 32); }
};

template <QuantType type>
constexpr IntegerLayout integer_layout() {
  switch (type) {
    case QuantType::Q4_0: return {4, 0, 3, Scales::plain};
    case QuantType::Q4_1: return {4, 0, -1, Scales::affine};
    case QuantType::Q5_0: return {4, 1, 4, Scales::plain};
    case QuantType::Q5_1: return {4, 1, -1, Scales::affine};
    case QuantType::Q8_0: return {8, 0, 7, Scales::plain};
    case QuantType::Q8_0_PLANES: return {4, 0, 7, Scales::plain};
    case QuantType::Q2_K: return {2, 0, -1, Scales::affine16};
    case QuantType::Q3_K: return {2, 1, 2, Scales::scaled16};
    case QuantType::Q4_K: return {4, 0, -1, Scales::affine32};
    case QuantType::Q5_K: return {4, 1, -1, Scales::affine32};
    case QuantType::Q6_K: return {4, 2, 5, Scales::scaled16};
    default: return {0, 0, -1, Scales::plain};
  }
}

constexpr bool is_q8_0(QuantType type) { return type == QuantType::Q8_0 || type == QuantType::Q8_0_PLANES; }
constexpr bool is_float(QuantType type) {
  return type == QuantType::F32 || type == QuantType::F16 || type == QuantType::BF16;
}
template <QuantType type>
constexpr int float_bytes() {
  return type == QuantType::F32 ? 4 : 2;
}

template <QuantType type>
constexpr size_t tile_bytes(int num_inputs) {
  if constexpr (is_float(type)) return static_cast<size_t>(num_inputs) * kTileRows * float_bytes<type>();
  constexpr IntegerLayout layout = integer_layout<type>();
  return static_cast<size_t>(num_inputs) / (kBlockInputs * layout.group_blocks()) * layout.group_bytes();
}

// Of the lower bits of a block, of a tile, and where those of the first tile lie: of a matrix whose tiles are in two planes.
template <QuantType type>
constexpr int low_block_bytes() {
  return type == QuantType::Q8_0_PLANES ? 64 * 4 : 0;
}
template <QuantType type>
constexpr size_t low_tile_bytes(int num_inputs) {
  return static_cast<size_t>(num_inputs) / kBlockInputs * low_block_bytes<type>();
}
template <QuantType type>
constexpr size_t low_plane_offset(int num_rows, int num_inputs) {
  return static_cast<size_t>(tiles_of(num_rows)) * tile_bytes<type>(num_inputs);
}

// Calls `f` with a std::integral_constant-like tag for the type; false if the id is not one of ours.
template <QuantType type>
struct TypeTag {
  static constexpr QuantType value = type;
};
template <class F>
bool with_type(int type_id, F&& f) {
  switch (static_cast<QuantType>(type_id)) {
#define REALM_CASE(name) \
  case QuantType::name: f(TypeTag<QuantType::name>{}); return true;
    REALM_CASE(F32)
    REALM_CASE(F16)
    REALM_CASE(BF16)
    REALM_CASE(Q4_0)
    REALM_CASE(Q4_1)
    REALM_CASE(Q5_0)
    REALM_CASE(Q5_1)
    REALM_CASE(Q8_0)
    REALM_CASE(Q2_K)
    REALM_CASE(Q3_K)
    REALM_CASE(Q4_K)
    REALM_CASE(Q5_K)
    REALM_CASE(Q6_K)
    REALM_CASE(Q8_0_PLANES)
#undef REALM_CASE
  }
  return false;
}

}  // namespace realm
