// Functions built from the exact operations of simd.h: the same chain of operations, hence the same bits, everywhere.
#pragma once

namespace realm::REALM_ISA_NAMESPACE {

REALM_INLINE u8x64 lo_nibbles(u8x64 a) { return bits_at_right<0, 15>(a); }
REALM_INLINE u8x64 hi_nibbles(u8x64 a) { return bits_at_right<4, 15>(a); }

// e^-y for y >= 0 with a relative error below 2e-7: 0 above 87.3.
// Cody-Waite reduction by ln 2 in two parts, then the degree-6 polynomial of Cephes' expf, in -r. Adding 1.5 * 2^23 rounds to the
// nearest integer, in the low bits; e^-87.3 is a normal number, so the power of two is a subtraction from the exponent.
REALM_INLINE f32x16 exp_minus(f32x16 y) {
  const f32x16 largest = set1(87.3f), magic = set1(12582912.0f), one = set1(1.0f);
  const mask16 underflow = gt(y, largest);
  y = min(y, largest);
  const f32x16 rounded = y * set1(1.44269504f) + magic, n = rounded - magic;
  f32x16 r = fnma(n, set1(0.693359375f), y);
  r = fnma(n, set1(-2.12194440e-4f), r);
  f32x16 p = set1(1.9875691500e-4f);
  p = fnma(p, r, set1(1.3981999507e-3f));
  p = fnma(p, r, set1(8.3334519073e-3f));
  p = fnma(p, r, set1(4.1665795894e-2f));
  p = fnma(p, r, set1(1.6666665459e-1f));
  p = fnma(p, r, set1(5.0000001201e-1f));
  p = fma(p, r * r, one - r);
  return select(underflow, zero(), as_f32(as_i32(p) - shl<23>(as_i32(rounded))));
}

// 1 / (1 + e^-x), from e^-|x| so that nothing overflows.
REALM_INLINE f32x16 sigmoid(f32x16 x) {
  const f32x16 e = exp_minus(abs(x));
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
