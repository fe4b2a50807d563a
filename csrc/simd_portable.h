// f32x16 and friends in plain C++ with the vector extension of GCC and Clang, as four vectors of 16 bytes: what SSE2,
// NEON and most others have. See simd.h.
#pragma once

namespace realm::REALM_ISA_NAMESPACE {

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "the weight layout is little endian"
#endif

constexpr int kKernelRows = 2;
constexpr int kPairedRows = 0;

using Float4 = float __attribute__((vector_size(16)));
using Int4 = int32_t __attribute__((vector_size(16)));
using Short8 = int16_t __attribute__((vector_size(16)));
using Byte16 = uint8_t __attribute__((vector_size(16)));

struct f32x16 {
  Float4 q[4];
};
struct i32x16 {
  Int4 q[4];
};
struct u8x64 {
  Byte16 q[4];
};
struct mask16 {
  Int4 q[4];
};

// Each quarter of the result from the quarters numbered `i` of the arguments.
#define REALM_QUARTERS(Type, expression) \
  Type result;                           \
  REALM_UNROLL                           \
  for (int i = 0; i < 4; i++) {          \
    result.q[i] = expression;            \
  }                                      \
  return result

template <class T>
REALM_INLINE T load_as(const void* p) {
  T v;
  memcpy(&v, p, sizeof v);
  return v;
}

REALM_INLINE f32x16 set1(float x) { REALM_QUARTERS(f32x16, Float4{} + x); }
REALM_INLINE void settle(f32x16&) {}
REALM_INLINE void settle(i32x16&) {}
REALM_INLINE void settle(u8x64&) {}

REALM_INLINE f32x16 zero() { REALM_QUARTERS(f32x16, Float4{}); }
REALM_INLINE f32x16 load(const float* p) { REALM_QUARTERS(f32x16, load_as<Float4>(p + 4 * i)); }
REALM_INLINE void store(float* p, f32x16 a) { memcpy(p, &a, sizeof a); }
REALM_INLINE void store_first(float* p, f32x16 a, int n) {
  float lanes[16];
  store(lanes, a);
  for (int i = 0; i < n; i++) p[i] = lanes[i];
}
REALM_INLINE f32x16 operator+(f32x16 a, f32x16 b) { REALM_QUARTERS(f32x16, a.q[i] + b.q[i]); }
REALM_INLINE f32x16 operator-(f32x16 a, f32x16 b) { REALM_QUARTERS(f32x16, a.q[i] - b.q[i]); }
REALM_INLINE f32x16 operator*(f32x16 a, f32x16 b) { REALM_QUARTERS(f32x16, a.q[i] * b.q[i]); }
REALM_INLINE f32x16 operator/(f32x16 a, f32x16 b) { REALM_QUARTERS(f32x16, a.q[i] / b.q[i]); }
REALM_INLINE Float4 fma4(Float4 a, Float4 b, Float4 c) {
  return Float4{__builtin_fmaf(a[0], b[0], c[0]), __builtin_fmaf(a[1], b[1], c[1]), __builtin_fmaf(a[2], b[2], c[2]),
                __builtin_fmaf(a[3], b[3], c[3])};
}
REALM_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { REALM_QUARTERS(f32x16, fma4(a.q[i], b.q[i], c.q[i])); }
REALM_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) { REALM_QUARTERS(f32x16, fma4(-a.q[i], b.q[i], c.q[i])); }
REALM_INLINE f32x16 max(f32x16 a, f32x16 b) { REALM_QUARTERS(f32x16, a.q[i] > b.q[i] ? a.q[i] : b.q[i]); }
REALM_INLINE f32x16 min(f32x16 a, f32x16 b) { REALM_QUARTERS(f32x16, a.q[i] < b.q[i] ? a.q[i] : b.q[i]); }
REALM_INLINE f32x16 neg(f32x16 a) { REALM_QUARTERS(f32x16, -a.q[i]); }
REALM_INLINE Float4 sqrt4(Float4 a) {
  return Float4{__builtin_sqrtf(a[0]), __builtin_sqrtf(a[1]), __builtin_sqrtf(a[2]), __builtin_sqrtf(a[3])};
}
REALM_INLINE f32x16 sqrt(f32x16 a) { REALM_QUARTERS(f32x16, sqrt4(a.q[i])); }

REALM_INLINE mask16 lt(f32x16 a, f32x16 b) { REALM_QUARTERS(mask16, a.q[i] < b.q[i]); }
REALM_INLINE mask16 le(f32x16 a, f32x16 b) { REALM_QUARTERS(mask16, a.q[i] <= b.q[i]); }
REALM_INLINE mask16 gt(f32x16 a, f32x16 b) { REALM_QUARTERS(mask16, a.q[i] > b.q[i]); }
REALM_INLINE mask16 ge(f32x16 a, f32x16 b) { REALM_QUARTERS(mask16, a.q[i] >= b.q[i]); }
REALM_INLINE mask16 eq(f32x16 a, f32x16 b) { REALM_QUARTERS(mask16, a.q[i] == b.q[i]); }
REALM_INLINE f32x16 select(mask16 m, f32x16 t, f32x16 f) { REALM_QUARTERS(f32x16, m.q[i] ? t.q[i] : f.q[i]); }

REALM_INLINE i32x16 izero() { REALM_QUARTERS(i32x16, Int4{}); }
REALM_INLINE i32x16 iset1(int32_t x) { REALM_QUARTERS(i32x16, Int4{} + x); }
REALM_INLINE i32x16 iload(const int32_t* p) { REALM_QUARTERS(i32x16, load_as<Int4>(p + 4 * i)); }
REALM_INLINE void istore(int32_t* p, i32x16 a) { memcpy(p, &a, sizeof a); }
REALM_INLINE i32x16 operator+(i32x16 a, i32x16 b) { REALM_QUARTERS(i32x16, a.q[i] + b.q[i]); }
REALM_INLINE i32x16 operator-(i32x16 a, i32x16 b) { REALM_QUARTERS(i32x16, a.q[i] - b.q[i]); }
REALM_INLINE i32x16 operator*(i32x16 a, i32x16 b) { REALM_QUARTERS(i32x16, a.q[i] * b.q[i]); }
REALM_INLINE i32x16 operator&(i32x16 a, i32x16 b) { REALM_QUARTERS(i32x16, a.q[i] & b.q[i]); }
template <int n>
REALM_INLINE i32x16 shl(i32x16 a) {
  REALM_QUARTERS(i32x16, a.q[i] << n);
}
template <int n>
REALM_INLINE i32x16 shr(i32x16 a) {
  REALM_QUARTERS(i32x16, a.q[i] >> n);
}
REALM_INLINE Int4 lane_index4(int i) { return Int4{0, 1, 2, 3} + 4 * i; }
REALM_INLINE i32x16 lane_index() { REALM_QUARTERS(i32x16, lane_index4(i)); }
REALM_INLINE mask16 first_lanes(int n) { REALM_QUARTERS(mask16, lane_index4(i) < n); }
REALM_INLINE f32x16 as_f32(i32x16 a) { return load_as<f32x16>(&a); }
REALM_INLINE i32x16 as_i32(f32x16 a) { return load_as<i32x16>(&a); }
REALM_INLINE f32x16 abs(f32x16 a) {
  REALM_QUARTERS(f32x16, reinterpret_cast<Float4>(reinterpret_cast<Int4>(a.q[i]) & 0x7fffffff));
}

REALM_INLINE f32x16 to_f32(i32x16 a) { REALM_QUARTERS(f32x16, __builtin_convertvector(a.q[i], Float4)); }
REALM_INLINE i32x16 to_i32(f32x16 a) {
  // Adding 1.5 * 2^23 leaves no fraction bits, so the addition itself rounds to the nearest even integer.
  constexpr float kMagic = 12582912.0f;
  REALM_QUARTERS(i32x16, __builtin_convertvector((a.q[i] + kMagic) - kMagic, Int4));
}

template <class T>
REALM_INLINE Int4 widen4(const void* p, int i) {
  const T* v = static_cast<const T*>(p) + 4 * i;
  return Int4{v[0], v[1], v[2], v[3]};
}
REALM_INLINE Float4 from_f16(Int4 h) {
  const Int4 sign = (h & 0x8000) << 16, magnitude = (h & 0x7fff) << 13, exponent = magnitude & 0x0f800000;
  const Int4 normal = magnitude + ((127 - 15) << 23);
  const Int4 special = normal + ((128 - 16) << 23);  // infinity and NaN
  // Subnormal: the same bits one exponent up, less the leading one that they don't have.
  const Float4 tiny = reinterpret_cast<Float4>(normal + (1 << 23)) - 6.103515625e-05f;
  Int4 bits = exponent == 0 ? reinterpret_cast<Int4>(tiny) : normal;
  bits = exponent == 0x0f800000 ? special : bits;
  return reinterpret_cast<Float4>(bits | sign);
}
REALM_INLINE Int4 to_f16(Float4 a) {
  const Int4 bits = reinterpret_cast<Int4>(a), sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  const Int4 normal = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Below 2^-14: adding 0.5 aligns the result's last bit with the float's, so the addition rounds to nearest even.
  const Float4 aligned = reinterpret_cast<Float4>(magnitude) + 0.5f;
  const Int4 tiny = reinterpret_cast<Int4>(aligned) - (126 << 23);
  Int4 half = magnitude < (113 << 23) ? tiny : normal;
  half = magnitude >= 0x477ff000 ? Int4{} + 0x7c00 : half;
  half = magnitude > 0x7f800000 ? (0x7e00 | (magnitude >> 13 & 0x3ff)) : half;
  return half | sign;
}
REALM_INLINE f32x16 load_f16(const void* p) { REALM_QUARTERS(f32x16, from_f16(widen4<uint16_t>(p, i))); }
REALM_INLINE void store_f16(void* p, f32x16 a) {
  for (int i = 0; i < 4; i++) {
    const Int4 half = to_f16(a.q[i]);
    for (int j = 0; j < 4; j++) static_cast<uint16_t*>(p)[4 * i + j] = static_cast<uint16_t>(half[j]);
  }
}
REALM_INLINE f32x16 load_bf16(const void* p) {
  REALM_QUARTERS(f32x16, reinterpret_cast<Float4>(widen4<uint16_t>(p, i) << 16));
}
REALM_INLINE i32x16 load_i8(const void* p) { REALM_QUARTERS(i32x16, widen4<int8_t>(p, i)); }
REALM_INLINE i32x16 load_u8(const void* p) { REALM_QUARTERS(i32x16, widen4<uint8_t>(p, i)); }
REALM_INLINE void store_i8(void* p, i32x16 a) {
  for (int i = 0; i < 16; i++) static_cast<int8_t*>(p)[i] = static_cast<int8_t>(a.q[i / 4][i % 4]);
}

REALM_INLINE float reduce_add(f32x16 a) {
  const Float4 s4 = (a.q[0] + a.q[2]) + (a.q[1] + a.q[3]);
  return (s4[0] + s4[2]) + (s4[1] + s4[3]);
}
REALM_INLINE float larger(float a, float b) { return a > b ? a : b; }
REALM_INLINE float reduce_max(f32x16 a) {
  const Float4 lo = a.q[0] > a.q[2] ? a.q[0] : a.q[2], hi = a.q[1] > a.q[3] ? a.q[1] : a.q[3];
  const Float4 m = lo > hi ? lo : hi;
  return larger(larger(m[0], m[2]), larger(m[1], m[3]));
}
REALM_INLINE int32_t reduce_add(i32x16 a) {
  const Int4 s = a.q[0] + a.q[1] + a.q[2] + a.q[3];
  return s[0] + s[1] + s[2] + s[3];
}

REALM_INLINE u8x64 load_u8x64(const void* p) { return load_as<u8x64>(p); }
REALM_INLINE void store_u8x64(void* p, u8x64 a) { memcpy(p, &a, sizeof a); }
REALM_INLINE u8x64 operator|(u8x64 a, u8x64 b) { REALM_QUARTERS(u8x64, a.q[i] | b.q[i]); }
// Shifts of 16 bits, as there may be none of bytes; the mask takes off what comes from the neighbour.
template <int n>
REALM_INLINE u8x64 shl16(u8x64 a) {
  REALM_QUARTERS(u8x64, reinterpret_cast<Byte16>(reinterpret_cast<Short8>(a.q[i]) << n));
}
template <int n>
REALM_INLINE u8x64 shr16(u8x64 a) {
  REALM_QUARTERS(u8x64, reinterpret_cast<Byte16>(reinterpret_cast<Short8>(a.q[i]) >> n));
}
template <int mask>
REALM_INLINE u8x64 select_bits(u8x64 a, u8x64 b) {
  REALM_QUARTERS(u8x64, (a.q[i] & static_cast<uint8_t>(mask)) | (b.q[i] & static_cast<uint8_t>(~mask)));
}
template <int shift, int mask>
REALM_INLINE u8x64 bits_at_left(u8x64 a) {
  REALM_QUARTERS(u8x64, reinterpret_cast<Byte16>(reinterpret_cast<Short8>(a.q[i]) << shift) & uint8_t{mask});
}
template <int shift, int mask>
REALM_INLINE u8x64 bits_at_right(u8x64 a) {
  REALM_QUARTERS(u8x64, reinterpret_cast<Byte16>(reinterpret_cast<Short8>(a.q[i]) >> shift) & uint8_t{mask});
}

REALM_INLINE u8x64 broadcast4(const int8_t* p) {
  int32_t bits;
  memcpy(&bits, p, 4);
  const Byte16 all = reinterpret_cast<Byte16>(Int4{} + bits);
  return {{all, all, all, all}};
}
REALM_INLINE u8x64 broadcast16(const int8_t* p) {
  const Byte16 all = load_as<Byte16>(p);
  return {{all, all, all, all}};
}

// Multiplication of 16 bits is what every CPU has: the even and the odd bytes of all lanes.
struct EvenOdd {
  Short8 even, odd;
};
REALM_INLINE EvenOdd products(Byte16 weights, Byte16 inputs) {
  const Short8 w = reinterpret_cast<Short8>(weights), x = reinterpret_cast<Short8>(inputs);
  return {(w & 0xff) * ((x << 8) >> 8), ((w >> 8) & 0xff) * (x >> 8)};
}
REALM_INLINE Int4 add_halves(Short8 pairs) {
  const Int4 lanes = reinterpret_cast<Int4>(pairs);
  return ((lanes << 16) >> 16) + (lanes >> 16);
}
REALM_INLINE Int4 quarter_dot(Byte16 w, Byte16 x) {
  const EvenOdd p = products(w, x);  // up to 255 * 127 each
  return add_halves(p.even) + add_halves(p.odd);
}
REALM_INLINE Int4 quarter_dot_small(Byte16 w, Byte16 x) {
  const EvenOdd p = products(w, x);  // 2 * 127 * 127 still fits
  return add_halves(p.even + p.odd);
}
REALM_INLINE i32x16 dot4(i32x16 acc, u8x64 w, u8x64 x) {
  REALM_QUARTERS(i32x16, acc.q[i] + quarter_dot(w.q[i], x.q[i]));
}
REALM_INLINE i32x16 dot4_small(i32x16 acc, u8x64 w, u8x64 x) {
  REALM_QUARTERS(i32x16, acc.q[i] + quarter_dot_small(w.q[i], x.q[i]));
}
constexpr bool kBiasedDotStart = true;
REALM_INLINE i32x16 dot4_biased(i32x16 acc, u8x64 w, u8x64 x) { return dot4(acc, w, x); }

REALM_INLINE Int4 sum_of_four(Int4 a) { return Int4{} + (a[0] + a[1] + a[2] + a[3]); }
REALM_INLINE i32x16 sum_of_four_lanes(i32x16 a) { REALM_QUARTERS(i32x16, sum_of_four(a.q[i])); }
REALM_INLINE f32x16 load_f16_to_four_lanes(const void* p) {
  const Float4 four = from_f16(widen4<uint16_t>(p, 0));
  REALM_QUARTERS(f32x16, Float4{} + four[i]);
}

#undef REALM_QUARTERS

}  // namespace realm::REALM_ISA_NAMESPACE
