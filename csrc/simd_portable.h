// f32x16 and friends in plain C++ with the vector extension of GCC and Clang (SSE2, NEON, anything). See simd.h.
#pragma once

namespace realm::REALM_ISA_NAMESPACE {

using Float16Lanes = float __attribute__((vector_size(64)));
using Int16Lanes = int32_t __attribute__((vector_size(64)));
using Bytes64 = uint8_t __attribute__((vector_size(64)));
using Signed8x16 = int8_t __attribute__((vector_size(16)));
using Unsigned8x16 = uint8_t __attribute__((vector_size(16)));
using Unsigned16x16 = uint16_t __attribute__((vector_size(32)));

constexpr int kKernelRows = 2;

struct f32x16 {
  Float16Lanes v;
};
struct i32x16 {
  Int16Lanes v;
};
struct u8x64 {
  Bytes64 v;
};
struct mask16 {
  Int16Lanes v;
};

template <class T>
REALM_INLINE T load_as(const void* p) {
  T v;
  memcpy(&v, p, sizeof v);
  return v;
}

REALM_INLINE f32x16 set1(float x) { return {Float16Lanes{} + x}; }
REALM_INLINE f32x16 zero() { return {Float16Lanes{}}; }
REALM_INLINE f32x16 load(const float* p) { return load_as<f32x16>(p); }
REALM_INLINE void store(float* p, f32x16 a) { memcpy(p, &a, sizeof a); }
REALM_INLINE void store_first(float* p, f32x16 a, int n) {
  float lanes[16];
  store(lanes, a);
  for (int i = 0; i < n; i++) p[i] = lanes[i];
}
REALM_INLINE f32x16 operator+(f32x16 a, f32x16 b) { return {a.v + b.v}; }
REALM_INLINE f32x16 operator-(f32x16 a, f32x16 b) { return {a.v - b.v}; }
REALM_INLINE f32x16 operator*(f32x16 a, f32x16 b) { return {a.v * b.v}; }
REALM_INLINE f32x16 operator/(f32x16 a, f32x16 b) { return {a.v / b.v}; }
REALM_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  f32x16 r;
  for (int i = 0; i < 16; i++) r.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
  return r;
}
REALM_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) { return fma({-a.v}, b, c); }
REALM_INLINE f32x16 max(f32x16 a, f32x16 b) { return {a.v > b.v ? a.v : b.v}; }
REALM_INLINE f32x16 min(f32x16 a, f32x16 b) { return {a.v < b.v ? a.v : b.v}; }
REALM_INLINE f32x16 neg(f32x16 a) { return {-a.v}; }
REALM_INLINE f32x16 sqrt(f32x16 a) {
  f32x16 r;
  for (int i = 0; i < 16; i++) r.v[i] = __builtin_sqrtf(a.v[i]);
  return r;
}

REALM_INLINE mask16 lt(f32x16 a, f32x16 b) { return {a.v < b.v}; }
REALM_INLINE mask16 le(f32x16 a, f32x16 b) { return {a.v <= b.v}; }
REALM_INLINE mask16 gt(f32x16 a, f32x16 b) { return {a.v > b.v}; }
REALM_INLINE mask16 ge(f32x16 a, f32x16 b) { return {a.v >= b.v}; }
REALM_INLINE mask16 eq(f32x16 a, f32x16 b) { return {a.v == b.v}; }
REALM_INLINE f32x16 select(mask16 m, f32x16 t, f32x16 f) { return {m.v ? t.v : f.v}; }

REALM_INLINE i32x16 izero() { return {Int16Lanes{}}; }
REALM_INLINE i32x16 iset1(int32_t x) { return {Int16Lanes{} + x}; }
REALM_INLINE i32x16 iload(const int32_t* p) { return load_as<i32x16>(p); }
REALM_INLINE void istore(int32_t* p, i32x16 a) { memcpy(p, &a, sizeof a); }
REALM_INLINE i32x16 operator+(i32x16 a, i32x16 b) { return {a.v + b.v}; }
REALM_INLINE i32x16 operator-(i32x16 a, i32x16 b) { return {a.v - b.v}; }
REALM_INLINE i32x16 operator*(i32x16 a, i32x16 b) { return {a.v * b.v}; }
REALM_INLINE i32x16 operator&(i32x16 a, i32x16 b) { return {a.v & b.v}; }
template <int n>
REALM_INLINE i32x16 shl(i32x16 a) {
  return {a.v << n};
}
template <int n>
REALM_INLINE i32x16 shr(i32x16 a) {
  return {a.v >> n};
}
REALM_INLINE i32x16 lane_index() { return {Int16Lanes{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}}; }
REALM_INLINE mask16 first_lanes(int n) { return {lane_index().v < n}; }
REALM_INLINE f32x16 as_f32(i32x16 a) { return {reinterpret_cast<Float16Lanes>(a.v)}; }
REALM_INLINE i32x16 as_i32(f32x16 a) { return {reinterpret_cast<Int16Lanes>(a.v)}; }
REALM_INLINE f32x16 abs(f32x16 a) { return as_f32({as_i32(a).v & 0x7fffffff}); }

REALM_INLINE f32x16 to_f32(i32x16 a) { return {__builtin_convertvector(a.v, Float16Lanes)}; }
REALM_INLINE i32x16 to_i32(f32x16 a) {
  // Adding 1.5 * 2^23 leaves no fraction bits, so the addition itself rounds to the nearest even integer.
  constexpr float kMagic = 12582912.0f;
  const Float16Lanes shifted = a.v + kMagic;
  return {__builtin_convertvector(shifted - kMagic, Int16Lanes)};
}
REALM_INLINE f32x16 load_f16(const void* p) {
  const Int16Lanes h = __builtin_convertvector(load_as<Unsigned16x16>(p), Int16Lanes);
  const Int16Lanes sign = (h & 0x8000) << 16, magnitude = (h & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
  const Int16Lanes normal = magnitude + ((127 - 15) << 23);
  const Int16Lanes special = normal + ((128 - 16) << 23);  // infinity and NaN
  // Subnormal: the same bits one exponent up, less the leading one that they don't have.
  const Float16Lanes tiny = reinterpret_cast<Float16Lanes>(normal + (1 << 23)) - 6.103515625e-05f;
  Int16Lanes bits = exponent == 0 ? reinterpret_cast<Int16Lanes>(tiny) : normal;
  bits = exponent == 0x0f800000 ? special : bits;
  return as_f32({bits | sign});
}
REALM_INLINE void store_f16(void* p, f32x16 a) {
  const Int16Lanes bits = as_i32(a).v, sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  const Int16Lanes normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Below 2^-14: adding 0.5 aligns the result's last bit with the float's, so the addition rounds to nearest even.
  const Float16Lanes aligned = reinterpret_cast<Float16Lanes>(magnitude) + 0.5f;
  const Int16Lanes tiny = reinterpret_cast<Int16Lanes>(aligned) - (126 << 23);
  Int16Lanes half = magnitude < (113 << 23) ? tiny : normal;
  half = magnitude >= 0x477ff000 ? Int16Lanes{} + 0x7c00 : half;
  half = magnitude > 0x7f800000 ? (0x7e00 | (magnitude >> 13 & 0x3ff)) : half;
  const Unsigned16x16 narrow = __builtin_convertvector(half | sign, Unsigned16x16);
  memcpy(p, &narrow, sizeof narrow);
}
REALM_INLINE f32x16 load_bf16(const void* p) {
  return as_f32({__builtin_convertvector(load_as<Unsigned16x16>(p), Int16Lanes) << 16});
}
REALM_INLINE i32x16 load_i8(const void* p) { return {__builtin_convertvector(load_as<Signed8x16>(p), Int16Lanes)}; }
REALM_INLINE i32x16 load_u8(const void* p) { return {__builtin_convertvector(load_as<Unsigned8x16>(p), Int16Lanes)}; }
REALM_INLINE void store_i8(void* p, i32x16 a) {
  const Signed8x16 narrow = __builtin_convertvector(a.v, Signed8x16);
  memcpy(p, &narrow, sizeof narrow);
}

REALM_INLINE float reduce_add(f32x16 a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; i++) a.v[i] += a.v[i + half];
  return a.v[0];
}
REALM_INLINE float reduce_max(f32x16 a) {
  for (int half = 8; half > 0; half /= 2)
    for (int i = 0; i < half; i++) a.v[i] = a.v[i] > a.v[i + half] ? a.v[i] : a.v[i + half];
  return a.v[0];
}
REALM_INLINE int32_t reduce_add(i32x16 a) {
  int32_t sum = 0;
  for (int i = 0; i < 16; i++) sum += a.v[i];
  return sum;
}

REALM_INLINE u8x64 load_u8x64(const void* p) { return load_as<u8x64>(p); }
REALM_INLINE u8x64 operator|(u8x64 a, u8x64 b) { return {a.v | b.v}; }
template <int shift, int mask>
REALM_INLINE u8x64 bits_at_left(u8x64 a) {
  return {(a.v << shift) & static_cast<uint8_t>(mask)};
}
template <int shift, int mask>
REALM_INLINE u8x64 bits_at_right(u8x64 a) {
  return {(a.v >> shift) & static_cast<uint8_t>(mask)};
}

REALM_INLINE i32x16 dot4(i32x16 acc, u8x64 w, const int8_t* four) {
  // Bytes of a lane by shift and mask, so that it is four multiplications of whole vectors.
  const Int16Lanes lanes = reinterpret_cast<Int16Lanes>(w.v);
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "the weight layout is little endian"
#endif
  const Int16Lanes b0 = lanes & 0xff, b1 = (lanes >> 8) & 0xff, b2 = (lanes >> 16) & 0xff, b3 = (lanes >> 24) & 0xff;
  return {acc.v + b0 * four[0] + b1 * four[1] + b2 * four[2] + b3 * four[3]};
}
REALM_INLINE i32x16 dot4_small(i32x16 acc, u8x64 w, const int8_t* four) { return dot4(acc, w, four); }
constexpr bool kBiasedDotStart = true;
REALM_INLINE i32x16 dot4_biased(i32x16 acc, u8x64 w, const int8_t* four) { return dot4(acc, w, four); }

}  // namespace realm::REALM_ISA_NAMESPACE
