// Sampling for Python.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>

#include <stdexcept>

#include "bindings.h"
#include "program.h"
#include "sampling.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace realm {
namespace {

template <class T>
using Vector = nb::ndarray<const T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out = nb::ndarray<T, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
template <class T>
using Out2 = nb::ndarray<T, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
// Rows may be apart (a view of a padded buffer); within a row logits follow each other.
using Logits = nb::ndarray<const float, nb::ndim<2>, nb::device::cpu>;
using Ints = Vector<std::int32_t>;
using Longs = Vector<std::int64_t>;
using Floats = Vector<float>;

// Works on the threads of a program, or alone.
struct Sampler {
  Sampler(Program* program, Isa isa) : kernels(realm::kernels(isa)), pool(program ? &program->pool() : nullptr) {}
  const Kernels& kernels;
  ThreadPool* pool;
};

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(what);
}

struct Rows {
  std::size_t count, stride;
  int vocab_size;
};

Rows rows_of(const Logits& logits) {
  require(logits.shape(0) < (1u << 24) && logits.shape(1) >= 1 && logits.shape(1) < (1u << 28), "logits: shape");
  require(logits.stride(1) == 1 || logits.shape(1) == 1, "logits: a row's values must follow each other");
  require(logits.shape(0) < 2 || logits.stride(0) >= static_cast<std::int64_t>(logits.shape(1)), "logits: rows overlap");
  return {logits.shape(0), static_cast<std::size_t>(logits.stride(0)), static_cast<int>(logits.shape(1))};
}

void check_ragged(const Ints& starts, std::size_t num_rows, const Ints& ids, int vocab_size) {
  require(starts.shape(0) == num_rows + 1 && starts.data()[0] == 0, "starts: one more than rows, from 0");
  for (std::size_t s = 0; s < num_rows; ++s) require(starts.data()[s] <= starts.data()[s + 1], "starts must not fall");
  require(static_cast<std::size_t>(starts.data()[num_rows]) == ids.shape(0), "starts must end at the number of ids");
  for (std::size_t i = 0; i < ids.shape(0); ++i)
    require(ids.data()[i] >= 0 && ids.data()[i] < vocab_size, "a token id is outside the vocabulary");
}

void sample(const Sampler& sampler, const Logits& logits, const Floats& temperature, const Ints& top_k, const Floats& top_p,
            const Floats& min_p, const Floats& repetition_penalty, const Floats& presence_penalty,
            const Floats& frequency_penalty, const Longs& seeds, const Longs& positions, const Ints& num_logprobs,
            const Ints& bias_starts, const Ints& bias_ids, const Floats& bias_values, const Ints& history_starts,
            const Ints& history_ids, const Ints& history_counts, Out<std::int32_t> token_ids, Out<float> logprobs,
            Out2<std::int32_t> top_ids, Out2<float> top_logprobs) {
  const Rows rows = rows_of(logits);
  for (std::size_t size : {temperature.shape(0), top_k.shape(0), top_p.shape(0), min_p.shape(0), repetition_penalty.shape(0),
                           presence_penalty.shape(0), frequency_penalty.shape(0), seeds.shape(0), positions.shape(0),
                           num_logprobs.shape(0), token_ids.shape(0), logprobs.shape(0), top_ids.shape(0), top_logprobs.shape(0)})
    require(size == rows.count, "one parameter and one result for each row");
  require(top_ids.shape(1) == kMaxLogprobs && top_logprobs.shape(1) == kMaxLogprobs, "top_ids, top_logprobs: [S, 20]");
  require(bias_ids.shape(0) == bias_values.shape(0), "bias: one value for each id");
  require(history_ids.shape(0) == history_counts.shape(0), "history: one count for each id");
  check_ragged(bias_starts, rows.count, bias_ids, rows.vocab_size);
  check_ragged(history_starts, rows.count, history_ids, rows.vocab_size);
  const SampleInput in{logits.data(), rows.stride, static_cast<int>(rows.count), rows.vocab_size, temperature.data(),
                       top_p.data(), min_p.data(), repetition_penalty.data(), presence_penalty.data(),
                       frequency_penalty.data(), top_k.data(), num_logprobs.data(), seeds.data(), positions.data(),
                       bias_starts.data(), bias_ids.data(), bias_values.data(), history_starts.data(), history_ids.data(),
                       history_counts.data()};
  const SampleOutput out{token_ids.data(), logprobs.data(), top_ids.data(), top_logprobs.data()};
  nb::gil_scoped_release release;
  sample_rows(sampler.kernels, sampler.pool, in, out);
}

void argmax(const Sampler& sampler, const Logits& logits, Out<std::int32_t> token_ids) {
  const Rows rows = rows_of(logits);
  require(token_ids.shape(0) == rows.count, "one token for each row");
  nb::gil_scoped_release release;
  argmax_rows(sampler.kernels, sampler.pool, logits.data(), rows.stride, static_cast<int>(rows.count), rows.vocab_size,
              token_ids.data());
}

}  // namespace

void bind_sampling(nb::module_& m) {
  nb::class_<Sampler>(m, "Sampler")
      .def("__init__", [](Sampler* self, Program& p) { new (self) Sampler(&p, p.config().isa); }, "program"_a, nb::keep_alive<1, 2>())
      .def("__init__", [](Sampler* self, const std::string& isa) { new (self) Sampler(nullptr, parse_isa(isa)); }, "isa"_a)
      .def("sample", &sample)
      .def("argmax", &argmax, "logits"_a, "token_ids"_a);
}

}  // namespace realm
