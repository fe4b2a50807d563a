// The Python module realm._cpu. Each part binds itself; no other file of csrc/ but bindings*.cc sees Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "dispatch.h"

namespace nb = nanobind;

NB_MODULE(_cpu, m) {
  m.doc() = "Native CPU kernels; use through realm.kernels.cpu.";
  nb::set_leak_warnings(false);  // what is alive when the interpreter ends is for the system to free
  m.def("default_isa", [] { return std::string(realm::isa_name(realm::default_isa())); });
  m.def("available_isas", [] {
    std::vector<std::string> names;
    for (realm::Isa isa : realm::available_isas()) names.emplace_back(realm::isa_name(isa));
    return names;
  });
  realm::bind_kernels(m);
  realm::bind_program(m);
  realm::bind_sampling(m);
}
