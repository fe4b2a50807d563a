// f32x16 and friends over AVX-512 (F, BW, DQ, VL, VNNI). See simd.h for what each function does.
#pragma once

#include <immintrin.h>

namespace realm::REALM_ISA_NAMESPACE {

constexpr int kKernelRows = 8;
constexpr int kPairedRows = 4;

struct f32x16 {
  __m512 v;
};
struct i32x16 {
  __m512i v;
};
struct u8x64 {
  __m512i v;
};
struct mask16 {
  __mmask16 v;
};

REALM_INLINE void settle(f32x16& a) { asm volatile("" : "+v"(a.v)); }
REALM_INLINE void settle(i32x16& a) { asm volatile("" : "+v"(a.v)); }
REALM_INLINE void settle(u8x64& a) { asm volatile("" : "+v"(a.v)); }

REALM_INLINE f32x16 zero() { return {_mm512_setzero_ps()}; }
REALM_INLINE f32x16 set1(float x) { return {_mm512_set1_ps(x)}; }
REALM_INLINE f32x16 load(const float* p) { return {_mm512_loadu_ps(p)}; }
REALM_INLINE void store(float* p, f32x16 a) { _mm512_storeu_ps(p, a.v); }
REALM_INLINE void store_first(float* p, f32x16 a, int n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>(n >= 16 ? 0xffff : (1 << n) - 1), a.v);
}
REALM_INLINE f32x16 operator+(f32x16 a, f32x16 b) { return {_mm512_add_ps(a.v, b.v)}; }
REALM_INLINE f32x16 operator-(f32x16 a, f32x16 b) { return {_mm512_sub_ps(a.v, b.v)}; }
REALM_INLINE f32x16 operator*(f32x16 a, f32x16 b) { return {_mm512_mul_ps(a.v, b.v)}; }
REALM_INLINE f32x16 operator/(f32x16 a, f32x16 b) { return {_mm512_div_ps(a.v, b.v)}; }
REALM_INLINE f32x16 fma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
REALM_INLINE f32x16 fnma(f32x16 a, f32x16 b, f32x16 c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }
REALM_INLINE f32x16 max(f32x16 a, f32x16 b) { return {_mm512_max_ps(a.v, b.v)}; }
REALM_INLINE f32x16 min(f32x16 a, f32x16 b) { return {_mm512_min_ps(a.v, b.v)}; }
REALM_INLINE f32x16 abs(f32x16 a) { return {_mm512_abs_ps(a.v)}; }
REALM_INLINE f32x16 neg(f32x16 a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
REALM_INLINE f32x16 sqrt(f32x16 a) { return {_mm512_sqrt_ps(a.v)}; }

REALM_INLINE mask16 lt(f32x16 a, f32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)}; }
REALM_INLINE mask16 le(f32x16 a, f32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)}; }
REALM_INLINE mask16 gt(f32x16 a, f32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
REALM_INLINE mask16 ge(f32x16 a, f32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
REALM_INLINE mask16 eq(f32x16 a, f32x16 b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
REALM_INLINE mask16 first_lanes(int n) { return {static_cast<__mmask16>(n >= 16 ? 0xffff : n <= 0 ? 0 : (1 << n) - 1)}; }
REALM_INLINE f32x16 select(mask16 m, f32x16 t, f32x16 f) { return {_mm512_mask_blend_ps(m.v, f.v, t.v)}; }

REALM_INLINE i32x16 izero() { return {_mm512_setzero_si512()}; }
REALM_INLINE i32x16 iset1(int32_t x) { return {_mm512_set1_epi32(x)}; }
REALM_INLINE i32x16 iload(const int32_t* p) { return {_mm512_loadu_si512(p)}; }
REALM_INLINE void istore(int32_t* p, i32x16 a) { _mm512_storeu_si512(p, a.v); }
REALM_INLINE i32x16 operator+(i32x16 a, i32x16 b) { return {_mm512_add_epi32(a.v, b.v)}; }
REALM_INLINE i32x16 operator-(i32x16 a, i32x16 b) { return {_mm512_sub_epi32(a.v, b.v)}; }
REALM_INLINE i32x16 operator*(i32x16 a, i32x16 b) { return {_mm512_mullo_epi32(a.v, b.v)}; }
REALM_INLINE i32x16 operator&(i32x16 a, i32x16 b) { return {_mm512_and_si512(a.v, b.v)}; }
template <int n>
REALM_INLINE i32x16 shl(i32x16 a) {
  return {_mm512_slli_epi32(a.v, n)};
}
template <int n>
REALM_INLINE i32x16 shr(i32x16 a) {
  return {_mm512_srai_epi32(a.v, n)};
}
REALM_INLINE i32x16 lane_index() {
  return {_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)};
}
REALM_INLINE f32x16 as_f32(i32x16 a) { return {_mm512_castsi512_ps(a.v)}; }
REALM_INLINE i32x16 as_i32(f32x16 a) { return {_mm512_castps_si512(a.v)}; }

REALM_INLINE f32x16 to_f32(i32x16 a) { return {_mm512_cvtepi32_ps(a.v)}; }
REALM_INLINE i32x16 to_i32(f32x16 a) {
  return {_mm512_cvt_roundps_epi32(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
REALM_INLINE f32x16 load_f16(const void* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))};
}
REALM_INLINE void store_f16(void* p, f32x16 a) {
  _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
REALM_INLINE f32x16 load_bf16(const void* p) {
  const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
REALM_INLINE i32x16 load_i8(const void* p) {
  return {_mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
}
REALM_INLINE i32x16 load_u8(const void* p) {
  return {_mm512_cvtepu8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(p)))};
}
REALM_INLINE void store_i8(void* p, i32x16 a) {
  _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(a.v));
}

REALM_INLINE float reduce_add(f32x16 a) {
  const __m256 s8 = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 s4 = _mm_add_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_add_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_add_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
REALM_INLINE float reduce_max(f32x16 a) {
  const __m256 s8 = _mm256_max_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  const __m128 s4 = _mm_max_ps(_mm256_castps256_ps128(s8), _mm256_extractf128_ps(s8, 1));
  const __m128 s2 = _mm_max_ps(s4, _mm_movehl_ps(s4, s4));
  return _mm_cvtss_f32(_mm_max_ss(s2, _mm_shuffle_ps(s2, s2, 1)));
}
REALM_INLINE int32_t reduce_add(i32x16 a) { return _mm512_reduce_add_epi32(a.v); }

REALM_INLINE u8x64 load_u8x64(const void* p) { return {_mm512_loadu_si512(p)}; }
REALM_INLINE void store_u8x64(void* p, u8x64 a) { _mm512_storeu_si512(p, a.v); }
REALM_INLINE u8x64 operator|(u8x64 a, u8x64 b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int n>
REALM_INLINE u8x64 shl16(u8x64 a) {
  return {_mm512_slli_epi16(a.v, n)};
}
template <int n>
REALM_INLINE u8x64 shr16(u8x64 a) {
  return {_mm512_srli_epi16(a.v, n)};
}
template <int mask>
REALM_INLINE u8x64 select_bits(u8x64 a, u8x64 b) {
  return {_mm512_ternarylogic_epi32(_mm512_set1_epi8(static_cast<char>(mask)), a.v, b.v, 0xca)};
}
template <int shift, int mask>
REALM_INLINE u8x64 bits_at_left(u8x64 a) {
  return {_mm512_and_si512(_mm512_slli_epi16(a.v, shift), _mm512_set1_epi8(mask))};
}
template <int shift, int mask>
REALM_INLINE u8x64 bits_at_right(u8x64 a) {
  return {_mm512_and_si512(_mm512_srli_epi16(a.v, shift), _mm512_set1_epi8(mask))};
}

REALM_INLINE u8x64 broadcast4(const int8_t* p) {
  int32_t bits;
  memcpy(&bits, p, 4);
  return {_mm512_set1_epi32(bits)};
}
REALM_INLINE u8x64 broadcast16(const int8_t* p) {
  return {_mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
REALM_INLINE i32x16 dot4(i32x16 acc, u8x64 w, u8x64 x) { return {_mm512_dpbusd_epi32(acc.v, w.v, x.v)}; }
REALM_INLINE i32x16 dot4_small(i32x16 acc, u8x64 w, u8x64 x) { return dot4(acc, w, x); }
constexpr bool kBiasedDotStart = true;
REALM_INLINE i32x16 dot4_biased(i32x16 acc, u8x64 w, u8x64 x) { return dot4(acc, w, x); }

REALM_INLINE i32x16 sum_of_four_lanes(i32x16 a) {
  const __m512i pairs = _mm512_add_epi32(a.v, _mm512_shuffle_epi32(a.v, _MM_PERM_CDAB));
  return {_mm512_add_epi32(pairs, _mm512_shuffle_epi32(pairs, _MM_PERM_BADC))};
}
REALM_INLINE f32x16 load_f16_to_four_lanes(const void* p) {
  const __m512 four = _mm512_castps128_ps512(_mm_cvtph_ps(_mm_loadl_epi64(static_cast<const __m128i*>(p))));
  return {_mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), four)};
}

}  // namespace realm::REALM_ISA_NAMESPACE
