// The matrix kernels one at a time, for tests and benchmarks. A model runs them inside a Program.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <chrono>

#include "bindings.h"
#include "bindings_arrays.h"
#include "kernels.h"
#include "pack.h"
#include "reference.h"
#include "thread_pool.h"

namespace nb = nanobind;

namespace realm {
namespace {

struct Shape {
  int type_id, num_outputs, num_inputs;

  int num_tiles() const { return tiles_of(num_outputs); }
  size_t bytes() const { return packed_bytes(type_id, num_outputs, num_inputs); }
};
Shape checked(int type_id, int num_outputs, int num_inputs) {
  require(num_outputs > 0 && num_inputs > 0 && can_pack(type_id, num_inputs), "type or size that cannot be packed");
  return {type_id, num_outputs, num_inputs};
}

NewArray<uint8_t> pack_matrix(int type_id, Bytes src, int num_outputs, int num_inputs) {
  const Shape shape = checked(type_id, num_outputs, num_inputs);
  require(src.size() == num_outputs * gguf_row_bytes(type_id, num_inputs), "source bytes do not match the shape");
  NewArray<uint8_t> packed = new_array<uint8_t>({shape.bytes()});
  pack(type_id, src.data(), num_outputs, num_inputs, packed.data(), 0, shape.num_tiles());
  return packed;
}

NewArray<float> unpack_matrix(int type_id, Bytes packed, int num_outputs, int num_inputs) {
  const Shape shape = checked(type_id, num_outputs, num_inputs);
  require(packed.size() == shape.bytes(), "packed bytes do not match the shape");
  NewArray<float> out = new_array<float>({static_cast<size_t>(num_outputs), static_cast<size_t>(num_inputs)});
  for (int row = 0; row < num_outputs; row++)
    unpack_row(type_id, packed.data(), num_outputs, row, num_inputs, out.data() + static_cast<size_t>(row) * num_inputs);
  return out;
}

MatmulArgs make_args(const Shape& shape, const uint8_t* weights, Floats x, const uint8_t* panels, float* out,
                     bool accumulate) {
  MatmulArgs args{};
  args.weights = weights;
  args.num_outputs = shape.num_outputs;
  args.num_inputs = shape.num_inputs;
  args.num_rows = static_cast<int>(x.shape(0));
  args.panels = panels;
  args.x = x.data();
  args.x_stride = args.num_inputs;
  args.out = out;
  args.out_stride = args.num_outputs;
  args.accumulate = accumulate;
  return args;
}

NewArray<float> matmul(int type_id, Bytes packed, Floats x, int num_outputs, const std::string& isa, int num_threads,
                       float initial, float outlier) {
  const Shape shape = checked(type_id, num_outputs, static_cast<int>(x.shape(1)));
  require(packed.size() == shape.bytes(), "packed bytes do not match the shape");
  const MatmulTable& table = *kernels(parse_isa(isa)).matmul;
  const ScopedFlushDenormals flush;
  const NewArray<uint8_t> panels = quantize_rows(x, table, outlier);
  NewArray<float> out = new_array<float>({x.shape(0), static_cast<size_t>(num_outputs)});
  for (size_t i = 0; i < out.size(); i++) out.data()[i] = initial;
  const MatmulArgs args = make_args(shape, packed.data(), x, panels.data(), out.data(), initial != 0.0f);
  ThreadPool pool(num_threads);
  pool.run([&](int thread) {
    const Share share = share_of(shape.num_tiles(), thread, num_threads);
    table.matmul[type_id](args, share.begin, share.end);
  });
  return out;
}

NewArray<float> reference_matmul(int type_id, Bytes src, Floats x, int num_outputs, float outlier) {
  const Shape shape = checked(type_id, num_outputs, static_cast<int>(x.shape(1)));
  const size_t row_bytes = gguf_row_bytes(type_id, shape.num_inputs);
  require(src.size() == num_outputs * row_bytes, "source bytes do not match the shape");
  NewArray<float> out = new_array<float>({x.shape(0), static_cast<size_t>(num_outputs)});
  const ScopedFlushDenormals flush;
  float* y = out.data();
  for (size_t m = 0; m < x.shape(0); m++)
    for (int n = 0; n < num_outputs; n++)
      *y++ = reference_dot(type_id, src.data() + n * row_bytes, x.data() + m * shape.num_inputs, shape.num_inputs, outlier);
  return out;
}

// Seconds of each of `repeats` calls. `weights` holds several packed copies, taken in turn, so that they come from memory.
std::vector<double> time_matmul(int type_id, const std::vector<Bytes>& weights, Floats x, int num_outputs,
                                const std::string& isa, int num_threads, int repeats) {
  const Shape shape = checked(type_id, num_outputs, static_cast<int>(x.shape(1)));
  for (const Bytes& packed : weights) require(packed.size() == shape.bytes(), "packed bytes do not match the shape");
  const MatmulTable& table = *kernels(parse_isa(isa)).matmul;
  const ScopedFlushDenormals flush;
  const NewArray<uint8_t> panels = quantize_rows(x, table, kNoOutliers);
  const NewArray<float> out = new_array<float>({x.shape(0), static_cast<size_t>(num_outputs)});
  std::vector<double> seconds;
  ThreadPool pool(num_threads, true);
  pool.run([&](int thread) {
    const Share share = share_of(shape.num_tiles(), thread, num_threads);
    for (int i = 0; i < repeats; i++) {
      const MatmulArgs args = make_args(shape, weights[i % weights.size()].data(), x, panels.data(), out.data(), false);
      pool.barrier();
      const auto start = std::chrono::steady_clock::now();
      table.matmul[type_id](args, share.begin, share.end);
      pool.barrier();
      const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
      if (thread == 0) seconds.push_back(elapsed.count());
    }
  });
  return seconds;
}

}  // namespace

void bind_kernels(nb::module_& m) {
  using namespace nb::literals;
  m.def("packed_bytes", [](int type_id, int num_outputs, int num_inputs) {
    return checked(type_id, num_outputs, num_inputs).bytes();
  }, "type_id"_a, "num_outputs"_a, "num_inputs"_a, "Bytes of a packed matrix.");
  m.def("pack", &pack_matrix, "type_id"_a, "src"_a, "num_outputs"_a, "num_inputs"_a,
        "Pack a GGUF matrix into weight tiles: uint8 [packed_bytes].");
  m.def("unpack", &unpack_matrix, "type_id"_a, "packed"_a, "num_outputs"_a, "num_inputs"_a,
        "Dequantise a packed matrix: float32 [N, K].");
  m.def("quantize_rows", [](Floats x, const std::string& isa, float outlier) {
    return quantize_rows(x, *kernels(parse_isa(isa)).matmul, outlier);
  }, "x"_a, "isa"_a, "outlier"_a = kNoOutliers, "Activations [M, K] as int8 panels: uint8 [bytes].");
  m.def("matmul", &matmul, "type_id"_a, "packed"_a, "x"_a, "num_outputs"_a, "isa"_a, "num_threads"_a = 1,
        "initial"_a = 0.0f, "outlier"_a = kNoOutliers, "x W^T, added to `initial` where that is not 0: float32 [M, N].");
  m.def("reference_matmul", &reference_matmul, "type_id"_a, "src"_a, "x"_a, "num_outputs"_a,
        "outlier"_a = kNoOutliers, "x W^T by the scalar reference, straight from GGUF bytes: float32 [M, N].");
  m.def("time_matmul", &time_matmul, "type_id"_a, "weights"_a, "x"_a, "num_outputs"_a, "isa"_a, "num_threads"_a,
        "repeats"_a, "Seconds of each call, over packed copies taken in turn.");
  m.attr("Q8_0_PLANES") = static_cast<int>(QuantType::Q8_0_PLANES);
  bind_lora(m);
}

}  // namespace realm
