// Functions built from the exact operations of simd.h: the same chain of operations, hence the same bits, everywhere.
#pragma once

namespace realm::REALM_ISA_NAMESPACE {

REALM_INLINE u8x64 lo_nibbles(u8x64 a) { return bits_at_right<0, 15>(a); }
REALM_INLINE u8x64 hi_nibbles(u8x64 a) { return bits_at_right<4, 15>(a); }

// e^x with a relative error below 2e-7, for every finite x: 0 below -87.3, e^88 above 88.
// Cody-Waite reduction by ln 2 in two parts, then the degree-6 polynomial of Cephes' expf.
REALM_INLINE f32x16 exp(f32x16 x) {
  const f32x16 lowest = set1(-87.3f);
  const mask16 underflow = lt(x, lowest);
  x = min(max(x, lowest), set1(88.0f));
  const i32x16 n = to_i32(x * set1(1.44269504f));
  const f32x16 nf = to_f32(n);
  f32x16 r = fnma(nf, set1(0.693359375f), x);
  r = fnma(nf, set1(-2.12194440e-4f), r);
  f32x16 p = set1(1.9875691500e-4f);
  p = fma(p, r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, r + set1(1.0f));
  const f32x16 power = as_f32(shl<23>(n + iset1(127)));
  return select(underflow, zero(), p * power);
}

// 1 / (1 + e^-x), from e^-|x| so that nothing overflows.
REALM_INLINE f32x16 sigmoid(f32x16 x) {
  const f32x16 e = exp(neg(abs(x)));
  return select(lt(x, zero()), e, set1(1.0f)) / (set1(1.0f) + e);
}

REALM_INLINE f32x16 silu(f32x16 x) { return x * sigmoid(x); }

// tanh(x) = 2 sigmoid(2x) - 1: absolute error below 1e-6, which is what GELU needs (not relative near 0).
REALM_INLINE f32x16 tanh(f32x16 x) { return fma(set1(2.0f), sigmoid(x + x), set1(-1.0f)); }

// GELU in the tanh form: x * sigmoid(2 * sqrt(2/pi) * (x + 0.044715 x^3)). https://arxiv.org/abs/1606.08415
REALM_INLINE f32x16 gelu_tanh(f32x16 x) {
  const f32x16 inner = x * fma(x * x, set1(0.044715f * 1.5957691216057308f), set1(1.5957691216057308f));
  return x * sigmoid(inner);
}

}  // namespace realm::REALM_ISA_NAMESPACE
