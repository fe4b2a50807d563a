#include "pack.h"

#include <cassert>

#include "quant_blocks.h"

namespace realm {
namespace {

// Quants of 32 inputs as eight words, word g holding the groups' four inputs in its bytes. Planes are moved word-wise.
struct Quants {
  uint32_t group[8];
};

uint32_t word_at(const void* p) {
  uint32_t w;
  memcpy(&w, p, 4);
  return w;
}
void put_word(uint8_t* p, uint32_t w) { memcpy(p, &w, 4); }

constexpr uint32_t every_byte(uint32_t b) { return b * 0x01010101u; }

// Bits 0..3 of `bits` to the lowest bit of the four bytes.
uint32_t spread_bits(uint32_t bits) { return ((bits & 15) * 0x00204081u) & every_byte(1); }

// Block `b` (of 32 inputs) of a GGUF block.
template <QuantType type>
Quants read_quants(const GgufBlock<type>& s, [[maybe_unused]] int b) {
  Quants q{};
  for (int g = 0; g < 8; g++) {
    uint32_t& w = q.group[g];
    if constexpr (is_q8_0(type)) {
      w = word_at(s.qs + 4 * g) ^ every_byte(0x80);
    } else if constexpr (type == QuantType::Q2_K || type == QuantType::Q3_K) {
      w = (word_at(s.qs + b / 4 * 32 + 4 * g) >> 2 * (b % 4)) & every_byte(3);
      if constexpr (type == QuantType::Q3_K) w |= ((word_at(s.hmask + 4 * g) >> b) & every_byte(1)) << 2;
    } else if constexpr (type == QuantType::Q6_K) {
      const int half = b / 4, quarter = b % 4;
      w = (word_at(s.ql + 64 * half + 32 * (quarter % 2) + 4 * g) >> 4 * (quarter / 2)) & every_byte(15);
      w |= ((word_at(s.qh + 32 * half + 4 * g) >> 2 * quarter) & every_byte(3)) << 4;
    } else if constexpr (type == QuantType::Q4_K || type == QuantType::Q5_K) {
      w = (word_at(s.qs + 32 * (b / 2) + 4 * g) >> 4 * (b % 2)) & every_byte(15);
      if constexpr (type == QuantType::Q5_K) w |= ((word_at(s.qh + 4 * g) >> b) & every_byte(1)) << 4;
    } else {
      w = (word_at(s.qs + 4 * (g % 4)) >> 4 * (g / 4)) & every_byte(15);
      if constexpr (type == QuantType::Q5_0 || type == QuantType::Q5_1) w |= spread_bits(word_at(s.qh) >> 4 * g) << 4;
    }
  }
  return q;
}

// A row's words of a packed block: `block` already points at 4 * row.
template <QuantType type>
void write_planes(const Quants& q, uint8_t* block) {
  constexpr IntegerLayout layout = integer_layout<type>();
  uint8_t* high = block + 64 * layout.low_bits;
  if constexpr (layout.low_bits == 8) {
    for (int g = 0; g < 8; g++) put_word(block + 64 * g, q.group[g]);
  } else if constexpr (layout.low_bits == 4) {
    for (int j = 0; j < 4; j++) {
      const uint32_t lo = q.group[2 * j] & every_byte(15), hi = q.group[2 * j + 1] & every_byte(15);
      put_word(block + 64 * j, lo | hi << 4);
    }
  }
  for (int half = 0; half < 2; half++) {
    uint32_t low2 = 0, high2 = 0;
    for (int i = 0; i < 4; i++) {
      low2 |= (q.group[4 * half + i] & every_byte(3)) << 2 * i;
      high2 |= ((q.group[4 * half + i] >> layout.low_bits) & every_byte(3)) << 2 * i;
    }
    if constexpr (layout.low_bits == 2) put_word(block + 64 * half, low2);
    if constexpr (layout.high_bits == 2) put_word(high + 64 * half, high2);
  }
  if constexpr (layout.high_bits == 1) {
    uint32_t bits = 0;
    for (int g = 0; g < 8; g++) bits |= ((q.group[g] >> layout.low_bits) & every_byte(1)) << g;
    put_word(high, bits);
  }
}

template <QuantType type>
Quants read_planes(const uint8_t* block) {
  constexpr IntegerLayout layout = integer_layout<type>();
  const uint8_t* high = block + 64 * layout.low_bits;
  Quants q{};
  for (int g = 0; g < 8; g++) {
    uint32_t& w = q.group[g];
    if constexpr (layout.low_bits == 8) w = word_at(block + 64 * g);
    if constexpr (layout.low_bits == 4) w = (word_at(block + 64 * (g / 2)) >> 4 * (g % 2)) & every_byte(15);
    if constexpr (layout.low_bits == 2) w = (word_at(block + 64 * (g / 4)) >> 2 * (g % 4)) & every_byte(3);
    if constexpr (layout.high_bits == 2)
      w |= ((word_at(high + 64 * (g / 4)) >> 2 * (g % 4)) & every_byte(3)) << layout.low_bits;
    if constexpr (layout.high_bits == 1) w |= ((word_at(high) >> g) & every_byte(1)) << layout.low_bits;
  }
  return q;
}

// Q8_0_PLANES: a row's words of a block's upper and lower bits.
void write_both_planes(const Quants& q, uint8_t* block, uint8_t* low_block) {
  Quants upper;
  for (int g = 0; g < 8; g++) upper.group[g] = q.group[g] >> 4;
  write_planes<QuantType::Q8_0_PLANES>(upper, block);
  write_planes<QuantType::Q8_0_PLANES>(q, low_block);
}
Quants read_both_planes(const uint8_t* block, const uint8_t* low_block) {
  const Quants upper = read_planes<QuantType::Q8_0_PLANES>(block);
  Quants q = read_planes<QuantType::Q8_0_PLANES>(low_block);
  for (int g = 0; g < 8; g++) q.group[g] |= upper.group[g] << 4;
  return q;
}

template <QuantType type>
void write_tail(const GgufBlock<type>& s, uint8_t* tail, int row) {
  constexpr IntegerLayout layout = integer_layout<type>();
  if constexpr (layout.scales == Scales::affine32)
    for (int b = 0; b < 8; b++) scale_min_k4(s.scales, b, tail + 16 * b + row, tail + 128 + 16 * b + row);
  if constexpr (layout.scale_per_16()) {
    for (int j = 0; j < 16; j++) {
      if constexpr (type == QuantType::Q3_K) {
        tail[16 * j + row] = static_cast<uint8_t>(scale_q3(s.scales, j));
      } else {
        tail[16 * j + row] = static_cast<uint8_t>(s.scales[j]);
      }
    }
  }
  memcpy(tail + layout.f16_offset() + 2 * row, &s.d, 2);
  if constexpr (layout.scales == Scales::affine) {
    memcpy(tail + layout.f16_offset() + 32 + 2 * row, &s.m, 2);
  } else if constexpr (layout.has_min()) {
    memcpy(tail + layout.f16_offset() + 32 + 2 * row, &s.dmin, 2);
  }
}

float f16_at(const uint8_t* p) {
  uint16_t h;
  memcpy(&h, p, 2);
  return f16_to_f32(h);
}

struct ScaleMin {
  float scale, min;  // value = scale * q + min; min is 0 for formats without
};

// Scale and min of the sixteen inputs `half` of block `b`.
template <QuantType type>
ScaleMin read_tail(const uint8_t* tail, int row, [[maybe_unused]] int b, [[maybe_unused]] int half) {
  constexpr IntegerLayout layout = integer_layout<type>();
  const float d = f16_at(tail + layout.f16_offset() + 2 * row);
  const float m = layout.has_min() ? f16_at(tail + layout.f16_offset() + 32 + 2 * row) : 0.0f;
  const uint8_t byte32 = tail[16 * b + row], byte16 = tail[16 * (2 * b + half) + row];
  switch (layout.scales) {
    case Scales::plain: return {d, 0.0f};
    case Scales::affine: return {d, m};
    case Scales::affine32: return {d * byte32, -(m * tail[128 + 16 * b + row])};
    case Scales::scaled16: return {d * static_cast<int8_t>(byte16), 0.0f};
    case Scales::affine16: return {d * (byte16 & 15), -(m * (byte16 >> 4))};
  }
  return {};
}

template <QuantType type>
void pack_tile(const uint8_t* src, int num_rows, int num_inputs, uint8_t* tile, [[maybe_unused]] uint8_t* low_tile) {
  const size_t src_row_bytes = gguf_row_bytes<type>(num_inputs);
  if (num_rows < kTileRows) {
    memset(tile, 0, tile_bytes<type>(num_inputs));
    memset(low_tile, 0, low_tile_bytes<type>(num_inputs));
  }
  if constexpr (is_float(type)) {
    constexpr int size = float_bytes<type>();
    for (int k = 0; k < num_inputs; k++)
      for (int row = 0; row < num_rows; row++)
        memcpy(tile + (k * kTileRows + row) * size, src + row * src_row_bytes + k * size, size);
  } else {
    constexpr IntegerLayout layout = integer_layout<type>();
    const int num_groups = num_inputs / (kBlockInputs * layout.group_blocks());
    for (int group = 0; group < num_groups; group++, tile += layout.group_bytes()) {
      for (int row = 0; row < num_rows; row++) {
        GgufBlock<type> s;
        memcpy(&s, src + row * src_row_bytes + group * sizeof s, sizeof s);
        for (int b = 0; b < layout.group_blocks(); b++) {
          const Quants q = read_quants<type>(s, b);
          uint8_t* block = tile + b * layout.block_bytes() + 4 * row;
          if constexpr (type == QuantType::Q8_0_PLANES) {
            write_both_planes(q, block, low_tile + group * low_block_bytes<type>() + 4 * row);
          } else {
            write_planes<type>(q, block);
          }
        }
        write_tail<type>(s, tile + layout.planes_bytes(), row);
      }
    }
  }
}

template <QuantType type>
void unpack_float_row(const uint8_t* tile, int row, int num_inputs, float* dst) {
  constexpr int size = float_bytes<type>();
  for (int k = 0; k < num_inputs; k++) {
    const uint8_t* p = tile + (k * kTileRows + row) * size;
    uint16_t bits = 0;
    memcpy(&bits, p, 2);
    if constexpr (type == QuantType::F32) memcpy(dst + k, p, 4);
    if constexpr (type == QuantType::F16) dst[k] = f16_to_f32(bits);
    if constexpr (type == QuantType::BF16) dst[k] = bf16_to_f32(bits);
  }
}

template <QuantType type>
void unpack_integer_row(const uint8_t* tile, [[maybe_unused]] const uint8_t* low_tile, int row, int num_inputs, float* dst) {
  constexpr IntegerLayout layout = integer_layout<type>();
  constexpr int offset = layout.offset_shift < 0 ? 0 : 1 << layout.offset_shift;
  const int num_groups = num_inputs / (kBlockInputs * layout.group_blocks());
  for (int group = 0; group < num_groups; group++, tile += layout.group_bytes()) {
    for (int b = 0; b < layout.group_blocks(); b++) {
      const uint8_t* block = tile + b * layout.block_bytes() + 4 * row;
      Quants q;
      if constexpr (type == QuantType::Q8_0_PLANES) {
        q = read_both_planes(block, low_tile + group * low_block_bytes<type>() + 4 * row);
      } else {
        q = read_planes<type>(block);
      }
      for (int k = 0; k < kBlockInputs; k += 4) {
        const ScaleMin s = read_tail<type>(tile + layout.planes_bytes(), row, b, k / 16);
        for (int i = 0; i < 4; i++) {
          const int value = static_cast<int>(q.group[k / 4] >> 8 * i & 255) - offset;
          const float scaled = s.scale * static_cast<float>(value);
          *dst++ = layout.has_min() ? scaled + s.min : scaled;
        }
      }
    }
  }
}

}  // namespace

bool can_pack(int type_id, int num_inputs) {
  bool fits = false;
  with_type(type_id, [&](auto tag) {
    constexpr int block = gguf_block_inputs<tag.value>() == 1 ? kBlockInputs : gguf_block_inputs<tag.value>();
    fits = num_inputs > 0 && num_inputs % block == 0;
  });
  return fits;
}

size_t gguf_row_bytes(int type_id, int num_inputs) {
  size_t bytes = 0;
  with_type(type_id, [&](auto tag) { bytes = gguf_row_bytes<tag.value>(num_inputs); });
  return bytes;
}

size_t packed_bytes(int type_id, int num_rows, int num_inputs) {
  size_t bytes = 0;
  with_type(type_id, [&](auto tag) {
    bytes = (tile_bytes<tag.value>(num_inputs) + low_tile_bytes<tag.value>(num_inputs)) *
            static_cast<size_t>(tiles_of(num_rows));
  });
  return bytes;
}

void pack(int type_id, const uint8_t* src, int num_rows, int num_inputs, uint8_t* dst, int tile_begin, int tile_end) {
  assert(can_pack(type_id, num_inputs));
  with_type(type_id, [&](auto tag) {
    const size_t row_bytes = gguf_row_bytes<tag.value>(num_inputs), tile_size = tile_bytes<tag.value>(num_inputs);
    const size_t low_size = low_tile_bytes<tag.value>(num_inputs);
    uint8_t* low = dst + low_plane_offset<tag.value>(num_rows, num_inputs);
    for (int tile = tile_begin; tile < tile_end; tile++) {
      const int first = tile * kTileRows, left = num_rows - first;
      pack_tile<tag.value>(src + first * row_bytes, left < kTileRows ? left : kTileRows, num_inputs,
                           dst + tile * tile_size, low + tile * low_size);
    }
  });
}

void unpack_row(int type_id, const uint8_t* packed, int num_rows, int row, int num_inputs, float* dst) {
  assert(can_pack(type_id, num_inputs));
  with_type(type_id, [&](auto tag) {
    const uint8_t* tile = packed + row / kTileRows * tile_bytes<tag.value>(num_inputs);
    [[maybe_unused]] const uint8_t* low_tile =
        packed + low_plane_offset<tag.value>(num_rows, num_inputs) + row / kTileRows * low_tile_bytes<tag.value>(num_inputs);
    if constexpr (is_float(tag.value)) {
      unpack_float_row<tag.value>(tile, row % kTileRows, num_inputs, dst);
    } else {
      unpack_integer_row<tag.value>(tile, low_tile, row % kTileRows, num_inputs, dst);
    }
  });
}

}  // namespace realm
