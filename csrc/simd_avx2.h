// f32x16 and friends over AVX2 + FMA + F16C, with AVX-VNNI where REALM_ISA_AVX2VNNI says so. See simd.h.
#pragma once

#include <immintrin.h>

namespace realm::REALM_ISA_NAMESPACE {

constexpr int kKernelRows = 4;
constexpr int kPairedRows = 0;

struct f32x16 {
  __m256 lo, hi;
};
struct i32x16 {
  __m256i lo, hi;
};
struct u8x64 {
  __m256i lo, hi;
};
struct mask16 {
  __m256 lo, hi;
};

REALM_INLINE void settle(f32x16&) {}
REALM_INLINE void settle(i32x16&) {}
REALM_INLINE void settle(u8x64&) {}

REALM_INLINE f32x16 zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
REALM_INLINE f32x16 set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
REALM_INLINE f32x16 load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
REALM_INLINE void store(float* p, f32x16 a) {
  _mm256_storeu_ps(p, a.lo);
  _mm256_storeu_ps(p + 8, a.hi);
}
REALM_INLINE void store_first(float* p, f32x16 a, int n) {
  float lanes[16];
  store(lanes, a);
  for (int i = 0; i < n; i++) p[i] = lanes[i];
}
REALM_INLINE f32x16 operator+(f32x16 a, f32x16 b) { return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)}; }
REALM_INLINE f32x16 operator-(f32x16 a, f32x16 b) { return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)}; }
REALM_INLINE f32x16 operator*(f32x16 a, f32x16 b) { return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)}; }
REALM_INLINE f32x16 operator/(f32x16 a, f32x16 b) { return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)}; }
REALM_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
REALM_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) {
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
REALM_INLINE f32x16 max(f32x16 a, f32x16 b) { return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)}; }
REALM_INLINE f32x16 min(f32x16 a, f32x16 b) { return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)}; }
REALM_INLINE f32x16 abs(f32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
REALM_INLINE f32x16 neg(f32x16 a) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_xor_ps(sign, a.lo), _mm256_xor_ps(sign, a.hi)};
}
REALM_INLINE f32x16 sqrt(f32x16 a) { return {_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)}; }

template <int predicate>
REALM_INLINE mask16 compare(f32x16 a, f32x16 b) {
  return {_mm256_cmp_ps(a.lo, b.lo, predicate), _mm256_cmp_ps(a.hi, b.hi, predicate)};
}
REALM_INLINE mask16 lt(f32x16 a, f32x16 b) { return compare<_CMP_LT_OQ>(a, b); }
REALM_INLINE mask16 le(f32x16 a, f32x16 b) { return compare<_CMP_LE_OQ>(a, b); }
REALM_INLINE mask16 gt(f32x16 a, f32x16 b) { return compare<_CMP_GT_OQ>(a, b); }
REALM_INLINE mask16 ge(f32x16 a, f32x16 b) { return compare<_CMP_GE_OQ>(a, b); }
REALM_INLINE mask16 eq(f32x16 a, f32x16 b) { return compare<_CMP_EQ_OQ>(a, b); }
REALM_INLINE mask16 first_lanes(int n) {
  const __m256i count = _mm256_set1_epi32(n);
  return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))),
          _mm256_castsi256_ps(_mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)))};
}
REALM_INLINE f32x16 select(mask16 m, f32x16 t, f32x16 f) {
  return {_mm256_blendv_ps(f.lo, t.lo, m.lo), _mm256_blendv_ps(f.hi, t.hi, m.hi)};
}

REALM_INLINE i32x16 izero() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
REALM_INLINE i32x16 iset1(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
REALM_INLINE i32x16 iload(const int32_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
REALM_INLINE void istore(int32_t* p, i32x16 a) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), a.hi);
}
REALM_INLINE i32x16 operator+(i32x16 a, i32x16 b) { return {_mm256_add_epi32(a.lo, b.lo), _mm256_add_epi32(a.hi, b.hi)}; }
REALM_INLINE i32x16 operator-(i32x16 a, i32x16 b) { return {_mm256_sub_epi32(a.lo, b.lo), _mm256_sub_epi32(a.hi, b.hi)}; }
REALM_INLINE i32x16 operator*(i32x16 a, i32x16 b) {
  return {_mm256_mullo_epi32(a.lo, b.lo), _mm256_mullo_epi32(a.hi, b.hi)};
}
REALM_INLINE i32x16 operator&(i32x16 a, i32x16 b) { return {_mm256_and_si256(a.lo, b.lo), _mm256_and_si256(a.hi, b.hi)}; }
template <int n>
REALM_INLINE i32x16 shl(i32x16 a) {
  return {_mm256_slli_epi32(a.lo, n), _mm256_slli_epi32(a.hi, n)};
}
template <int n>
REALM_INLINE i32x16 shr(i32x16 a) {
  return {_mm256_srai_epi32(a.lo, n), _mm256_srai_epi32(a.hi, n)};
}
REALM_INLINE i32x16 lane_index() {
  return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}
REALM_INLINE f32x16 as_f32(i32x16 a) { return {_mm256_castsi256_ps(a.lo), _mm256_castsi256_ps(a.hi)}; }
REALM_INLINE i32x16 as_i32(f32x16 a) { return {_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)}; }

REALM_INLINE f32x16 to_f32(i32x16 a) { return {_mm256_cvtepi32_ps(a.lo), _mm256_cvtepi32_ps(a.hi)}; }
REALM_INLINE i32x16 to_i32(f32x16 a) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_cvttps_epi32(_mm256_round_ps(a.lo, kNearest)), _mm256_cvttps_epi32(_mm256_round_ps(a.hi, kNearest))};
}
REALM_INLINE f32x16 load_f16(const void* p) {
  const __m128i* q = static_cast<const __m128i*>(p);
  return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
REALM_INLINE void store_f16(void* p, f32x16 a) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  __m128i* q = static_cast<__m128i*>(p);
  _mm_storeu_si128(q, _mm256_cvtps_ph(a.lo, kNearest));
  _mm_storeu_si128(q + 1, _mm256_cvtps_ph(a.hi, kNearest));
}
REALM_INLINE f32x16 load_bf16(const void* p) {
  const __m128i* q = static_cast<const __m128i*>(p);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q)), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(q + 1)), 16))};
}
REALM_INLINE i32x16 load_i8(const void* p) {
  const __m128i v = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))};
}
REALM_INLINE i32x16 load_u8(const void* p) {
  const __m128i v = _mm_loadu_si128(static_cast<const __m128i*>(p));
  return {_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
}
REALM_INLINE void store_i8(void* p, i32x16 a) {
  // Keep the low byte of every lane: bytes to the front of each 128-bit half, then the four dwords together.
  const __m256i pick = _mm256_setr_epi8(0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1,
                                        -1, -1, -1, -1, -1, -1, -1, -1, -1, -1);
  const __m256i lo = _mm256_shuffle_epi8(a.lo, pick), hi = _mm256_shuffle_epi8(a.hi, pick);
  const __m128i lo8 = _mm_unpacklo_epi32(_mm256_castsi256_si128(lo), _mm256_extracti128_si256(lo, 1));
  const __m128i hi8 = _mm_unpacklo_epi32(_mm256_castsi256_si128(hi), _mm256_extracti128_si256(hi, 1));
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm_unpacklo_epi64(lo8, hi8));
}

REALM_INLINE float reduce_add(f32x16 a) {
  const __m256 s8 = _mm256_add_ps(a.lo, a.hi);
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
REALM_INLINE float reduce_max(f32x16 a) {
  const __m256 s8 = _mm256_max_ps(a.lo, a.hi);
  const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_max_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
REALM_INLINE int32_t reduce_add(i32x16 a) {
  const __m256i s8 = _mm256_add_epi32(a.lo, a.hi);
  const __m128i s4 = _mm_add_epi32(_mm256_castsi256_si128(s8), _mm256_extracti128_si256(s8, 1));
  const __m128i s2 = _mm_add_epi32(s4, _mm_shuffle_epi32(s4, 0x4e));
  return _mm_cvtsi128_si32(_mm_add_epi32(s2, _mm_shuffle_epi32(s2, 0xb1)));
}

REALM_INLINE u8x64 load_u8x64(const void* p) {
  const __m256i* q = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
REALM_INLINE void store_u8x64(void* p, u8x64 a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), a.lo);
  _mm256_storeu_si256(static_cast<__m256i*>(p) + 1, a.hi);
}
REALM_INLINE u8x64 operator|(u8x64 a, u8x64 b) { return {_mm256_or_si256(a.lo, b.lo), _mm256_or_si256(a.hi, b.hi)}; }
template <int n>
REALM_INLINE u8x64 shl16(u8x64 a) {
  return {_mm256_slli_epi16(a.lo, n), _mm256_slli_epi16(a.hi, n)};
}
template <int n>
REALM_INLINE u8x64 shr16(u8x64 a) {
  return {_mm256_srli_epi16(a.lo, n), _mm256_srli_epi16(a.hi, n)};
}
template <int mask>
REALM_INLINE u8x64 select_bits(u8x64 a, u8x64 b) {
  const __m256i m = _mm256_set1_epi8(static_cast<char>(mask));
  return {_mm256_or_si256(_mm256_and_si256(m, a.lo), _mm256_andnot_si256(m, b.lo)),
          _mm256_or_si256(_mm256_and_si256(m, a.hi), _mm256_andnot_si256(m, b.hi))};
}
template <int shift, int mask>
REALM_INLINE u8x64 bits_at_left(u8x64 a) {
  const __m256i m = _mm256_set1_epi8(mask);
  return {_mm256_and_si256(_mm256_slli_epi16(a.lo, shift), m), _mm256_and_si256(_mm256_slli_epi16(a.hi, shift), m)};
}
template <int shift, int mask>
REALM_INLINE u8x64 bits_at_right(u8x64 a) {
  const __m256i m = _mm256_set1_epi8(mask);
  return {_mm256_and_si256(_mm256_srli_epi16(a.lo, shift), m), _mm256_and_si256(_mm256_srli_epi16(a.hi, shift), m)};
}

REALM_INLINE u8x64 broadcast4(const int8_t* p) {
  int32_t bits;
  memcpy(&bits, p, 4);
  return {_mm256_set1_epi32(bits), _mm256_set1_epi32(bits)};
}
REALM_INLINE u8x64 broadcast16(const int8_t* p) {
  const __m256i x = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return {x, x};
}

#if defined(REALM_ISA_AVX2VNNI)

REALM_INLINE i32x16 dot4(i32x16 acc, u8x64 w, u8x64 x) {
  return {_mm256_dpbusd_avx_epi32(acc.lo, w.lo, x.lo), _mm256_dpbusd_avx_epi32(acc.hi, w.hi, x.hi)};
}
REALM_INLINE i32x16 dot4_small(i32x16 acc, u8x64 w, u8x64 x) { return dot4(acc, w, x); }
constexpr bool kBiasedDotStart = true;
REALM_INLINE i32x16 dot4_biased(i32x16 acc, u8x64 w, u8x64 x) { return dot4(acc, w, x); }

#else

// vpmaddubsw saturates pair sums at 16 bits. Activations are within +-127, so a factor up to 128 is safe: 2*128*127 < 2^15.
REALM_INLINE __m256i add_pairs(__m256i acc, __m256i w, __m256i x) {
  return _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1)));
}
REALM_INLINE i32x16 dot4_small(i32x16 acc, u8x64 w, u8x64 x) {
  return {add_pairs(acc.lo, w.lo, x.lo), add_pairs(acc.hi, w.hi, x.hi)};
}
REALM_INLINE i32x16 dot4(i32x16 acc, u8x64 w, u8x64 x) {
  const __m256i low = _mm256_set1_epi8(0x7f), top = _mm256_set1_epi8(-128);
  return {add_pairs(add_pairs(acc.lo, _mm256_and_si256(w.lo, low), x.lo), _mm256_and_si256(w.lo, top), x.lo),
          add_pairs(add_pairs(acc.hi, _mm256_and_si256(w.hi, low), x.hi), _mm256_and_si256(w.hi, top), x.hi)};
}
constexpr bool kBiasedDotStart = false;
REALM_INLINE i32x16 dot4_biased(i32x16 acc, u8x64 w, u8x64 x) {
  // Back to signed weights; then |w| times x with the sign of w: no start value is needed.
  const __m256i top = _mm256_set1_epi8(-128);
  const __m256i lo = _mm256_xor_si256(w.lo, top), hi = _mm256_xor_si256(w.hi, top);
  return {add_pairs(acc.lo, _mm256_abs_epi8(lo), _mm256_sign_epi8(x.lo, lo)),
          add_pairs(acc.hi, _mm256_abs_epi8(hi), _mm256_sign_epi8(x.hi, hi))};
}

#endif

REALM_INLINE __m256i sum_of_four(__m256i a) {
  const __m256i pairs = _mm256_add_epi32(a, _mm256_shuffle_epi32(a, 0xb1));
  return _mm256_add_epi32(pairs, _mm256_shuffle_epi32(pairs, 0x4e));
}
REALM_INLINE i32x16 sum_of_four_lanes(i32x16 a) { return {sum_of_four(a.lo), sum_of_four(a.hi)}; }
REALM_INLINE f32x16 load_f16_to_four_lanes(const void* p) {
  const __m256 four = _mm256_castps128_ps256(_mm_cvtph_ps(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
  return {_mm256_permutevar8x32_ps(four, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1)),
          _mm256_permutevar8x32_ps(four, _mm256_setr_epi32(2, 2, 2, 2, 3, 3, 3, 3))};
}

}  // namespace realm::REALM_ISA_NAMESPACE
