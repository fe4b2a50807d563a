// Adapter kernels, for tests and benchmarks. A model runs them inside a Program.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <optional>
#include <tuple>

#include "bindings.h"
#include "bindings_arrays.h"
#include "kernels.h"
#include "lora_quantize.h"
#include "lora_runs.h"
#include "memory.h"
#include "reference.h"
#include "thread_pool.h"

namespace nb = nanobind;

namespace realm {
namespace {

// Parts of an adapter's change of a layer: (A [r, K], B [N, r], scale), or None for a matrix that it leaves alone.
using LoraSource = std::vector<std::optional<std::tuple<Floats, Floats, float>>>;

// Memory for the modules of one adapter, as a server holds it: in one piece.
class LoraArena {
 public:
  explicit LoraArena(size_t num_bytes) : buffer_(num_bytes) {}
  uint8_t* take(size_t num_bytes) {
    require(num_bytes <= buffer_.size() - used_, "the arena is full");
    used_ += num_bytes;
    return buffer_.data() + used_ - num_bytes;
  }

 private:
  HugeBuffer buffer_;
  size_t used_ = 0;
};

// A module in an arena, which must outlive it.
class LoraMemory {
 public:
  LoraMemory(int store, const LoraSource& source, const std::vector<int>& num_outputs, LoraArena& arena) : source_(source) {
    module_ = {static_cast<LoraStore>(store), nullptr, 0, 0, {}};
    require(source.size() == num_outputs.size(), "one part for each matrix");
    size_t b_bytes = 0;
    for (size_t i = 0; i < source.size(); i++) {
      LoraPart part;
      if (source[i]) {
        const auto& [a, b, scale] = *source[i];
        require(b.shape(0) == static_cast<size_t>(num_outputs[i]) && b.shape(1) == a.shape(0), "A and B do not fit");
        require(a_.empty() || a.shape(1) == static_cast<size_t>(module_.num_inputs), "A of another width");
        module_.num_inputs = static_cast<int>(a.shape(1));
        part = {nullptr, static_cast<int>(a.shape(0)), module_.num_ranks, scale};
        module_.num_ranks += part.rank;
        a_.insert(a_.end(), a.data(), a.data() + a.size());
        b_bytes += lora_b_bytes(module_.store, num_outputs[i], part.rank);
      }
      module_.parts.push_back(part);
    }
    require(!a_.empty() && module_.num_inputs % kBlockInputs == 0, "nothing to add, or inputs not a multiple of 32");
    const size_t a_bytes = lora_a_bytes(module_.store, module_.num_ranks, module_.num_inputs);
    num_bytes_ = a_bytes + b_bytes;
    uint8_t* packed = arena.take(num_bytes_);
    const float factor = lora_pack_a(module_.store, a_.data(), module_.num_ranks, module_.num_inputs, packed);
    module_.a = packed;
    uint8_t* next = packed + a_bytes;
    for (size_t i = 0; i < source.size(); i++) {
      if (!source[i]) continue;
      LoraPart& part = module_.parts[i];
      lora_pack_b(module_.store, std::get<1>(*source[i]).data(), num_outputs[i], part.rank, next);
      part.b = next;
      part.scale *= factor;
      next += lora_b_bytes(module_.store, num_outputs[i], part.rank);
    }
  }

  const LoraModule& module() const { return module_; }
  size_t num_bytes() const { return num_bytes_; }

  // Adds to one row `y` of all outputs.
  void reference(const float* x, float* y, const std::vector<int>& num_outputs, float outlier) const {
    const int exponent = lora_a_exponent(a_.data(), a_.size());
    for (size_t i = 0; i < source_.size(); y += num_outputs[i++]) {
      if (!source_[i]) continue;
      const auto& [a, b, scale] = *source_[i];
      reference_lora(module_.store, a.data(), exponent, b.data(), static_cast<int>(a.shape(0)), scale, x,
                     module_.num_inputs, y, num_outputs[i], outlier);
    }
  }

 private:
  LoraSource source_;
  LoraModule module_;
  std::vector<float> a_;  // all parts one after the other
  size_t num_bytes_ = 0;
};

// One layer with adapters: which rows have which module (a null module: none).
using LoraRows = std::vector<std::tuple<int, int, const LoraMemory*>>;

std::vector<LoraRun> runs_of(const LoraRows& rows) {
  std::vector<LoraRun> runs;
  for (const auto& [begin, end, memory] : rows)
    if (memory != nullptr) runs.push_back({begin, end, &memory->module()});
  return runs;
}

size_t t_stride_of(const std::vector<LoraRun>& runs) {
  int stride = 0;
  for (const LoraRun& run : runs)
    stride = std::max(stride, lora_padded_ranks(run.module->store, run.module->num_ranks));
  return static_cast<size_t>(stride);
}

// Adds the side path to y [M, sum of num_outputs]; gives the seconds that it took.
double run_lora(const LoraTable& table, ThreadPool& pool, const std::vector<LoraRun>& runs, const LoraInput& input,
                const std::vector<int>& num_outputs, float* t, size_t t_stride, float* y, size_t y_stride) {
  const auto start = std::chrono::steady_clock::now();
  pool.run([&](int thread) {
    lora_shrink(table, runs, input, t, t_stride, thread, pool.num_threads());
    pool.barrier();
    float* out = y;
    for (size_t part = 0; part < num_outputs.size(); out += num_outputs[part++]) {
      const Share share = share_of(tiles_of(num_outputs[part]), thread, pool.num_threads());
      lora_expand(table, runs, static_cast<int>(part), num_outputs[part], t, t_stride, out, y_stride, share.begin, share.end);
    }
  });
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return elapsed.count();
}

NewArray<float> lora(const LoraRows& rows, Floats x, Floats y, const std::vector<int>& num_outputs, const std::string& isa,
                     int num_threads, float outlier) {
  const Kernels& k = kernels(parse_isa(isa));
  const ScopedFlushDenormals flush;
  const NewArray<uint8_t> panels = quantize_rows(x, *k.matmul, outlier);
  const std::vector<LoraRun> runs = runs_of(rows);
  const size_t t_stride = t_stride_of(runs);
  std::vector<float> t(x.shape(0) * t_stride);
  NewArray<float> out = new_array<float>({y.shape(0), y.shape(1)});
  memcpy(out.data(), y.data(), y.size() * sizeof(float));
  ThreadPool pool(num_threads);
  run_lora(*k.lora, pool, runs, {panels.data(), x.data(), x.shape(1)}, num_outputs, t.data(), t_stride, out.data(), y.shape(1));
  return out;
}

NewArray<float> reference_lora_rows(const LoraRows& rows, Floats x, Floats y, const std::vector<int>& num_outputs,
                                   float outlier) {
  const ScopedFlushDenormals flush;
  NewArray<float> out = new_array<float>({y.shape(0), y.shape(1)});
  memcpy(out.data(), y.data(), y.size() * sizeof(float));
  for (const auto& [begin, end, memory] : rows)
    for (int row = begin; memory != nullptr && row < end; row++)
      memory->reference(x.data() + row * x.shape(1), out.data() + row * y.shape(1), num_outputs, outlier);
  return out;
}

// Seconds of each of `repeats` passes over `layers`, each (rows, K, num_outputs): the side path of a step, layer by layer.
std::vector<double> time_lora(const std::vector<std::tuple<LoraRows, int, std::vector<int>>>& layers, int num_rows,
                              const std::string& isa, int num_threads, int repeats) {
  const Kernels& k = kernels(parse_isa(isa));
  const ScopedFlushDenormals flush;
  size_t width = 0, num_outputs_max = 0, t_stride = 0;
  std::vector<std::vector<LoraRun>> runs;
  for (const auto& [rows, num_inputs, num_outputs] : layers) {
    runs.push_back(runs_of(rows));
    width = std::max(width, static_cast<size_t>(num_inputs));
    t_stride = std::max(t_stride, t_stride_of(runs.back()));
    size_t sum = 0;
    for (int n : num_outputs) sum += n;
    num_outputs_max = std::max(num_outputs_max, sum);
  }
  std::vector<float> x(num_rows * width, 1.0f), t(num_rows * t_stride), y(num_rows * num_outputs_max);
  std::vector<uint8_t> panels(panels_bytes(num_rows, static_cast<int>(width)));
  for (int row = 0; row < num_rows; row++)
    k.matmul->quantize_row(x.data(), static_cast<int>(width), panels.data(), row, 0, static_cast<int>(width) / kBlockInputs,
                           nullptr, 0.0f);
  ThreadPool pool(num_threads, true);
  std::vector<double> seconds;
  for (int i = 0; i < repeats; i++) {
    double sum = 0.0;
    for (size_t layer = 0; layer < layers.size(); layer++)
      sum += run_lora(*k.lora, pool, runs[layer], {panels.data(), x.data(), width}, std::get<2>(layers[layer]), t.data(),
                      t_stride, y.data(), num_outputs_max);
    seconds.push_back(sum);
  }
  return seconds;
}

}  // namespace

void bind_lora(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<LoraArena>(m, "LoraArena", "Memory for packed modules.").def(nb::init<size_t>(), "num_bytes"_a);
  nb::class_<LoraMemory>(m, "LoraModule", "An adapter's change of one linear layer, packed.")
      .def(nb::init<int, const LoraSource&, const std::vector<int>&, LoraArena&>(), nb::keep_alive<1, 5>(), "store"_a,
           "parts"_a, "num_outputs"_a, "arena"_a)
      .def_prop_ro("num_bytes", &LoraMemory::num_bytes);
  m.def("lora", &lora, "rows"_a, "x"_a, "y"_a, "num_outputs"_a, "isa"_a, "num_threads"_a = 1,
        "outlier"_a = kNoOutliers, "y + scale B (A x) by rows (begin, end, module or None): float32 [M, N].");
  m.def("reference_lora", &reference_lora_rows, "rows"_a, "x"_a, "y"_a, "num_outputs"_a, "outlier"_a = kNoOutliers,
        "The same by the scalar reference.");
  m.def("time_lora", &time_lora, "layers"_a, "num_rows"_a, "isa"_a, "num_threads"_a, "repeats"_a,
        "Seconds of each pass over layers (rows, K, num_outputs).");
}

}  // namespace realm
