// Arrays between Python and the kernels.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstring>
#include <initializer_list>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>

#include "layout.h"
#include "matmul_table.h"

namespace realm {

namespace nb = nanobind;

using Bytes = nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
template <class T>
using NewArray = nb::ndarray<nb::numpy, T>;

struct FreeAligned {
  void operator()(void* p) const { ::operator delete(p, std::align_val_t{64}); }
};
template <class T>
NewArray<T> new_array(std::initializer_list<size_t> shape) {
  size_t count = 1;
  for (size_t n : shape) count *= n;
  std::unique_ptr<void, FreeAligned> memory(::operator new(count * sizeof(T) + 64, std::align_val_t{64}));
  void* data = memory.get();
  memset(data, 0, count * sizeof(T));
  nb::capsule owner(memory.release(), [](void* p) noexcept { FreeAligned()(p); });
  return NewArray<T>(data, shape, owner);
}

inline void require(bool condition, const char* what) {
  if (!condition) throw std::invalid_argument(what);
}

constexpr float kNoOutliers = std::numeric_limits<float>::infinity();

// Panels, and behind them as many for the residuals of blocks with values above `outlier`.
inline NewArray<uint8_t> quantize_rows(Floats x, const MatmulTable& table, float outlier) {
  const int num_rows = static_cast<int>(x.shape(0)), num_inputs = static_cast<int>(x.shape(1));
  require(num_inputs % kBlockInputs == 0, "inputs must be a multiple of 32");
  const size_t num_bytes = panels_bytes(num_rows, num_inputs);
  NewArray<uint8_t> panels = new_array<uint8_t>({2 * num_bytes});
  for (int row = 0; row < num_rows; row++)
    table.quantize_row(x.data() + static_cast<size_t>(row) * num_inputs, num_inputs, panels.data(), row, 0,
                       num_inputs / kBlockInputs, panels.data() + num_bytes, outlier);
  return panels;
}

}  // namespace realm
