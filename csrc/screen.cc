#include "screen.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>

#include "layout.h"
#include "quant_blocks.h"

namespace realm {
namespace {

constexpr double kCentre = 7.5;  // of four bits

struct BlockRow {
  double h[kBlockInputs] = {};  // what the row's quants, and those of its residual, stand for
  double magnitude = 0.0;       // of all terms
  bool sums_fit = true;

  void add(const ActivationBlock& block, int row) {
    for (int half = 0; half < 2; half++) {
      const double d = block.d[half][row];
      int sum = 0;
      for (int i = 0; i < kHalfInputs; i++) {
        const int q = block.q[half][row][i / 4][i % 4];
        h[kHalfInputs * half + i] += d * q;
        magnitude += std::fabs(d) * std::abs(q);
        sum += q;
      }
      sums_fit = sums_fit && sum == -block.neg_sum[half][row];
    }
  }

  // The least of kCentre * (sum of the j largest) + low_norm * |the rest|.
  double low_bound(double low_norm) {
    double outliers = 0.0, best = low_norm * norm();
    for (int j = 0; j < kBlockInputs; j++) {
      double* largest = std::max_element(h, h + kBlockInputs, [](double a, double b) { return std::fabs(a) < std::fabs(b); });
      outliers += kCentre * std::fabs(*largest);
      *largest = 0.0;
      const double bound = outliers + low_norm * norm();
      if (!(bound < best)) break;
      best = bound;
    }
    return best;
  }

 private:
  double norm() const {
    double sum = 0.0;
    for (const double x : h) sum += x * x;
    return std::sqrt(sum);
  }
};

}  // namespace

float screen_low_norm(const uint8_t* gguf, int num_inputs, int row_begin, int row_end) {
  using Block = GgufBlock<QuantType::Q8_0>;
  const size_t row_bytes = gguf_row_bytes<QuantType::Q8_0>(num_inputs);
  int largest = 0;  // sum of (2 lower - 15)^2
  for (const uint8_t* p = gguf + row_begin * row_bytes; p < gguf + row_end * row_bytes; p += sizeof(Block)) {
    Block block;
    memcpy(&block, p, sizeof block);
    if (f16_to_f32(block.d) == 0.0f) continue;
    int sum = 0;
    for (const int q : block.qs) sum += (2 * (q & 15) - 15) * (2 * (q & 15) - 15);
    largest = std::max(largest, sum);
  }
  return static_cast<float>(std::sqrt(largest / 4.0) * (1.0 + 1e-6));
}

void screen_bounds(const uint8_t* panels, int num_inputs, int row, float low_norm, float* bounds) {
  const auto* block = reinterpret_cast<const ActivationBlock*>(panels + row / kPanelRows * panel_bytes(num_inputs));
  const int num_blocks = num_inputs / kBlockInputs;
  row %= kPanelRows;
  // Let M be the sum of |d_b| * 128 * magnitude_b, and n the number of blocks. Each of up to 2 n fma of a sum (with residuals)
  // errs by 2^-24 of what there is so far, at most M; what is added, by less than 6 * 2^-24 of its share of M. The matrix kernel,
  // the approximate output (1.06 M) and the sum of these bounds (n of at most M / 3) thus err by less than (4.5 n + 16) * 2^-24 * M.
  const double rounding = (5.0 * num_blocks + 16.0) * 0x1p-24 * 128.0;
  for (int b = 0; b < num_blocks; b++, block++) {
    BlockRow values;
    values.add(*block, row);
    if (block->has_residual[row])
      values.add(*reinterpret_cast<const ActivationBlock*>(reinterpret_cast<const uint8_t*>(block) + block->residual_offset), row);
    const double bound = (values.low_bound(low_norm) + rounding * values.magnitude) * (1.0 + 1e-6);
    bounds[b] = values.sums_fit && std::isfinite(bound) ? static_cast<float>(bound) : std::numeric_limits<float>::infinity();
  }
}

}  // namespace realm
