// Program for Python. Arrays come in as NumPy views; nothing is copied.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <limits>
#include <optional>
#include <stdexcept>

#include "bindings.h"
#include "drafting.h"
#include "pack.h"
#include "program.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace realm {
namespace {

template <class T, class Shape>
using Array = nb::ndarray<const T, Shape, nb::c_contig, nb::device::cpu>;
using Ints = Array<std::int32_t, nb::ndim<1>>;
using Ints2 = Array<std::int32_t, nb::ndim<2>>;
using Floats = Array<float, nb::ndim<1>>;

KVType kv_type_of(const std::string& name) {
  if (name == "f16") return KVType::f16;
  if (name == "f32") return KVType::f32;
  if (name == "int8") return KVType::int8;
  throw std::invalid_argument("unknown KV type '" + name + "'");
}

Activation activation_of(const std::string& name) {
  if (name == "silu") return Activation::silu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  throw std::invalid_argument("unknown activation '" + name + "'");
}

int int_size(std::size_t n) {
  if (n > static_cast<std::size_t>(std::numeric_limits<int>::max())) throw std::invalid_argument("an array is too long");
  return static_cast<int>(n);
}

StepInput step_input(const Ints& token_ids, const Ints& query_starts, const Ints& context_lens, const Ints2& block_tables,
                     const Ints& logit_rows, const Ints& adapter_slots, bool likeliest_only) {
  const std::size_t num_requests = context_lens.shape(0);
  if (query_starts.shape(0) != num_requests + 1 || block_tables.shape(0) != num_requests || adapter_slots.shape(0) != num_requests)
    throw std::invalid_argument("query_starts, context_lens, block_tables and adapter_slots disagree about the number of requests");
  return {int_size(token_ids.shape(0)), int_size(num_requests), int_size(logit_rows.shape(0)), int_size(block_tables.shape(1)),
          token_ids.data(), query_starts.data(), context_lens.data(), block_tables.data(), logit_rows.data(), adapter_slots.data(),
          likeliest_only};
}

void step(Program& program, const Ints& token_ids, const Ints& query_starts, const Ints& context_lens,
          const Ints2& block_tables, const Ints& logit_rows, const Ints& adapter_slots, bool likeliest_only) {
  const StepInput input = step_input(token_ids, query_starts, context_lens, block_tables, logit_rows, adapter_slots, likeliest_only);
  nb::gil_scoped_release release;
  program.step(input);
}

template <class T, int N>
using Out = nb::ndarray<T, nb::ndim<N>, nb::c_contig, nb::device::cpu>;

int run_draft(Program& program, const Ints& token_ids, const Ints& query_starts, const Ints& context_lens,
              const Ints2& block_tables, const Ints& logit_rows, const Ints& adapter_slots, const Ints& limits,
              const Array<float, nb::ndim<2>>& rates, const Floats& means, const Floats& bounds, float worth_verifying,
              float worth_drafting, const std::optional<Ints>& names, Out<std::int32_t, 2> tokens, Out<std::int32_t, 2> classes,
              Out<std::int32_t, 1> num_guesses, Out<std::int32_t, 1> num_drafts, Out<std::int32_t, 1> step_rows,
              Out<double, 1> step_seconds) {
  const std::size_t count = logit_rows.shape(0), max_steps = step_rows.shape(0);
  for (std::size_t size : {limits.shape(0), rates.shape(0), means.shape(0), tokens.shape(0), classes.shape(0),
                           num_guesses.shape(0), num_drafts.shape(0)})
    if (size != count) throw std::invalid_argument("one limit, rate and result for each request that drafts");
  if (max_steps < 1 || tokens.shape(1) != max_steps || classes.shape(1) != max_steps || step_seconds.shape(0) != max_steps)
    throw std::invalid_argument("results of max_steps steps, at least one");
  if (rates.shape(1) != bounds.shape(0) + 1) throw std::invalid_argument("one class more than bounds");
  if (names && names->shape(0) != static_cast<std::size_t>(program.num_outputs()))
    throw std::invalid_argument("one token id for each output");
  const DraftPlan plan{step_input(token_ids, query_starts, context_lens, block_tables, logit_rows, adapter_slots, false),
                       int_size(max_steps), int_size(rates.shape(1)), limits.data(), rates.data(), means.data(), bounds.data(),
                       names ? names->data() : nullptr, worth_verifying, worth_drafting};
  const DraftResult result{tokens.data(), classes.data(), num_guesses.data(), num_drafts.data(), step_rows.data(), step_seconds.data()};
  nb::gil_scoped_release release;
  return draft(program, plan, result);
}

// (site, part, A [rank, K], B [N, rank], scale)
using Change = std::tuple<int, int, Array<float, nb::ndim<2>>, Array<float, nb::ndim<2>>, float>;

std::vector<LoraChange> changes_of(const Program& program, const std::vector<Change>& given) {
  std::vector<LoraChange> changes;
  for (const auto& [site, part, a, b, scale] : given) {
    const std::vector<LoraSite>& sites = program.lora_sites();
    if (site < 0 || site >= static_cast<int>(sites.size()) || part < 0 || part >= static_cast<int>(sites[site].num_outputs.size()))
      throw std::invalid_argument("adapter: no such site");
    if (int_size(a.shape(1)) != sites[site].num_inputs || int_size(b.shape(0)) != sites[site].num_outputs[part] || a.shape(0) != b.shape(1))
      throw std::invalid_argument("adapter: A and B do not fit the matrix");
    changes.push_back({site, part, a.data(), b.data(), int_size(a.shape(0)), scale});
  }
  return changes;
}

}  // namespace

void bind_program(nb::module_& m) {
  m.def("can_pack", &can_pack, "type_id"_a, "num_inputs"_a);

  nb::class_<PackedAdapter>(m, "PackedAdapter")
      .def_prop_ro("num_bytes", [](const PackedAdapter& a) { return a.num_bytes(); });

  nb::class_<Program>(m, "Program")
      .def("__init__",
           [](Program* self, int num_threads, int max_tokens, int max_logit_rows, int max_positions, int vocab_size,
              int num_blocks, int block_tokens, const std::string& kv_type, std::optional<std::string> isa, bool pin_threads,
              const Program* beside) {
             new (self) Program({num_threads, pin_threads, isa ? parse_isa(*isa) : default_isa(),
                                 {max_tokens, max_logit_rows, max_positions, vocab_size, num_blocks, block_tokens},
                                 kv_type_of(kv_type)},
                                beside);
           },
           nb::kw_only(), "num_threads"_a, "max_tokens"_a, "max_logit_rows"_a, "max_positions"_a, "vocab_size"_a,
           "num_blocks"_a, "block_tokens"_a, "kv_type"_a, "isa"_a = nb::none(), "pin_threads"_a = false,
           "beside"_a.none() = nb::none())
      .def("reserve_weights", &Program::reserve_weights, "num_bytes"_a)
      .def("add_matrix",
           [](Program& p, int type_id, const Array<std::uint8_t, nb::ndim<1>>& data, int num_rows, int num_inputs) {
             nb::gil_scoped_release release;
             return p.add_matrix(type_id, data.data(), data.shape(0), num_rows, num_inputs);
           },
           "type_id"_a, "data"_a, "num_rows"_a, "num_inputs"_a)
      .def("share_matrix", &Program::share_matrix, "owner"_a, "id"_a, nb::keep_alive<1, 2>())
      .def("add_vector", [](Program& p, const Floats& v) { return p.add_vector(v.data(), v.shape(0)); }, "values"_a)
      .def("add_rope",
           [](Program& p, const std::vector<double>& f, bool interleaved, double scale) {
             return p.add_rope(f.data(), f.size(), interleaved, scale);
           },
           "inverse_frequencies"_a, "interleaved"_a, "scale"_a)
      .def("add_value", &Program::add_value, "width"_a, "rows"_a, "panels"_a, "judged"_a)
      .def("embed", &Program::embed, "table"_a, "scale"_a, "out"_a)
      .def("rms_norm", &Program::rms_norm, "x"_a, "weight"_a, "eps"_a, "residual"_a, "out"_a)
      .def("keep_judged", &Program::keep_judged, "x"_a)
      .def("cast", &Program::cast, "x"_a, "out"_a)
      .def("matmul", &Program::matmul, "x"_a, "matrices"_a, "biases"_a, "out"_a, "accumulate"_a)
      .def("gated_matmul",
           [](Program& p, int x, int gate, int up, int gate_bias, int up_bias, const std::string& activation, int out) {
             return p.gated_matmul(x, gate, up, gate_bias, up_bias, activation_of(activation), out);
           },
           "x"_a, "gate"_a, "up"_a, "gate_bias"_a, "up_bias"_a, "activation"_a, "out"_a)
      .def("gated",
           [](Program& p, int gate_up, const std::string& activation, int out) { p.gated(gate_up, activation_of(activation), out); },
           "gate_up"_a, "activation"_a, "out"_a)
      .def("add", &Program::add, "x"_a, "y"_a, "out"_a)
      .def("attention",
           [](Program& p, int qkv, int num_heads, int num_kv_heads, int head_dim, int window, float scale, float norm_eps,
              int q_norm, int k_norm, int rope, int out) {
             p.attention(qkv, {num_heads, num_kv_heads, head_dim, window, scale, norm_eps, q_norm, k_norm, rope}, out);
           },
           "qkv"_a, nb::kw_only(), "num_heads"_a, "num_kv_heads"_a, "head_dim"_a, "window"_a, "scale"_a, "norm_eps"_a,
           "q_norm"_a, "k_norm"_a, "rope"_a, "out"_a)
      .def("logits", &Program::logits, "x"_a, "matrices"_a, "biases"_a)
      .def("step", &step, "token_ids"_a, "query_starts"_a, "context_lens"_a, "block_tables"_a, "logit_rows"_a,
           "adapter_slots"_a, "likeliest_only"_a = false)
      .def("draft", &run_draft)
      .def("pack_adapter",
           [](const Program& p, const std::vector<Change>& given) {
             std::vector<LoraChange> changes = changes_of(p, given);
             nb::gil_scoped_release release;
             return p.pack_adapter(std::move(changes));
           },
           "changes"_a)
      .def("adapter_bytes",
           [](const Program& p, const std::vector<Change>& given) { return PackedAdapter::num_bytes(p.lora_sites(), changes_of(p, given)); },
           "changes"_a)
      .def("set_adapter", &Program::set_adapter, "slot"_a, "adapter"_a.none())
      .def("logits_buffer",
           [](nb::handle_t<Program> self) {
             const Program& p = nb::cast<const Program&>(self);
             const std::size_t shape[2] = {static_cast<std::size_t>(p.config().limits.max_logit_rows),
                                           static_cast<std::size_t>(p.num_outputs())};
             const std::int64_t strides[2] = {static_cast<std::int64_t>(p.logits_stride()), 1};
             return nb::ndarray<nb::numpy, const float>(p.logits_data(), 2, shape, self, strides);
           })
      .def("set_profiling", &Program::set_profiling, "on"_a)
      .def("profile",
           [](const Program& p) {
             std::vector<std::pair<std::string, double>> out;
             for (const OpTime& t : p.profile()) out.emplace_back(t.name, t.microseconds);
             return out;
           })
      .def_prop_ro("isa", [](const Program& p) { return std::string(isa_name(p.config().isa)); })
      .def_prop_ro("weights_bytes", &Program::weights_bytes)
      .def_prop_ro("skipped_bytes", &Program::skipped_bytes)
      .def_prop_ro("kv_bytes", &Program::kv_bytes);
}

}  // namespace realm
