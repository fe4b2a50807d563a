#include "sample_kernels.h"

#include "simd.h"

namespace realm::REALM_ISA_NAMESPACE {
namespace {

// Past the end of a row: smaller than every logit that counts.
constexpr float kNothing = -3.4e38f;

// Lanes i .. i+15 of a row, `fill` past its end.
REALM_INLINE f32x16 load_part(const float* row, int i, int n, float fill) {
  if (i + 16 <= n) return load(row + i);
  float part[16];
  for (int k = 0; k < 16; ++k) part[k] = i + k < n ? row[i + k] : fill;
  return load(part);
}

REALM_INLINE float reduce_min(f32x16 a) { return -reduce_max(neg(a)); }

RowRange range(const float* logits, int n) {
  const f32x16 ruled_out = set1(-1e30f), none = set1(3.4e38f);
  f32x16 largest[4], smallest[4], nan = zero();
  for (int k = 0; k < 4; ++k) {
    largest[k] = set1(logits[0]);
    smallest[k] = none;
  }
  for (int i = 0; i < n; i += 64) {
    REALM_UNROLL
    for (int k = 0; k < 4; ++k) {
      const f32x16 x = i + 16 * k < n ? load_part(logits, i + 16 * k, n, logits[0]) : set1(logits[0]);
      nan = select(eq(x, x), nan, set1(1.0f));
      largest[k] = max(x, largest[k]);
      smallest[k] = min(select(gt(x, ruled_out), x, none), smallest[k]);
    }
  }
  return {reduce_min(min(min(smallest[0], smallest[1]), min(smallest[2], smallest[3]))),
          reduce_max(max(max(largest[0], largest[1]), max(largest[2], largest[3]))), reduce_max(nan) > 0.0f};
}

int find(const float* logits, int n, float value) {
  int i = 0;
  const f32x16 wanted = set1(value);
  for (; i + 64 <= n; i += 64) {
    f32x16 hit = zero();
    REALM_UNROLL
    for (int k = 0; k < 4; ++k) hit = select(eq(load(logits + i + 16 * k), wanted), set1(1.0f), hit);
    if (reduce_max(hit) > 0.0f) break;
  }
  while (i < n && logits[i] != value) ++i;
  return i;
}

double weigh(const float* logits, int n, float largest, float temperature, float* weights) {
  const f32x16 shift = set1(largest), divisor = set1(temperature);
  double total = 0.0;
  for (int chunk = 0; chunk < n; chunk += kSumChunk) {
    const int end = chunk + kSumChunk < n ? chunk + kSumChunk : n;
    f32x16 sum = zero();
    for (int i = chunk; i < end; i += 16) {
      f32x16 w = exp_minus((shift - load_part(logits, i, n, kNothing)) / divisor);
      if (i + 16 > n) w = select(first_lanes(n - i), w, zero());
      if (weights != nullptr) {
        if (i + 16 <= n) {
          store(weights + i, w);
        } else {
          float part[16];
          store(part, w);
          for (int k = 0; i + k < n; ++k) weights[i + k] = part[k];
        }
      }
      sum = sum + w;
    }
    total += static_cast<double>(reduce_add(sum));
  }
  return total;
}

RowMass at_least(const float* logits, const float* weights, int n, float threshold) {
  const f32x16 limit = set1(threshold);
  f32x16 count = zero();  // exact: far below 2^24 in a lane
  double mass = 0.0;
  for (int chunk = 0; chunk < n; chunk += kSumChunk) {
    const int end = chunk + kSumChunk < n ? chunk + kSumChunk : n;
    f32x16 sum = zero();
    for (int i = chunk; i < end; i += 16) {
      const mask16 in = ge(load_part(logits, i, n, kNothing), limit);
      count = count + select(in, set1(1.0f), zero());
      if (weights != nullptr) sum = sum + select(in, load_part(weights, i, n, 0.0f), zero());
    }
    if (weights != nullptr) mass += static_cast<double>(reduce_add(sum));
  }
  return {mass, static_cast<int>(reduce_add(count))};
}

int collect(const float* logits, int n, float low, float high, int32_t* ids) {
  const f32x16 lowest = set1(low), limit = set1(high);
  int found = 0;
  for (int i = 0; i < n; i += 64) {
    f32x16 hit = zero();
    REALM_UNROLL
    for (int k = 0; k < 4; ++k) {
      if (i + 16 * k >= n) continue;
      const f32x16 x = load_part(logits, i + 16 * k, n, kNothing);
      hit = select(ge(x, lowest), select(lt(x, limit), set1(1.0f), hit), hit);
    }
    if (!(reduce_max(hit) > 0.0f)) continue;
    for (int j = i; j < n && j < i + 64; ++j)
      if (logits[j] >= low && logits[j] < high) ids[found++] = j;
  }
  return found;
}

void keep(const float* logits, float* weights, int n, const RowCut& cut, double* chunk_sums) {
  const f32x16 limit = set1(cut.logit), least = set1(cut.weight);
  for (int chunk = 0; chunk < n; chunk += kSumChunk) {
    const int end = chunk + kSumChunk < n ? chunk + kSumChunk : n;
    f32x16 sum = zero();
    for (int i = chunk; i < end; i += 16) {
      const f32x16 x = load_part(logits, i, n, kNothing);
      f32x16 w = load_part(weights, i, n, 0.0f);
      const f32x16 tied = select(first_lanes(cut.last_tie - i + 1), select(eq(x, limit), w, zero()), zero());
      w = select(gt(x, limit), w, tied);
      w = select(ge(w, least), w, zero());
      if (i + 16 <= n) {
        store(weights + i, w);
      } else {
        float part[16];
        store(part, w);
        for (int k = 0; i + k < n; ++k) weights[i + k] = part[k];
      }
      sum = sum + w;
    }
    *chunk_sums++ = static_cast<double>(reduce_add(sum));
  }
}

}  // namespace

SampleKernels sample_kernels() { return {range, find, weigh, at_least, collect, keep}; }

}  // namespace realm::REALM_ISA_NAMESPACE
