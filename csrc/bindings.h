// Parts of the Python module; each lives in a bindings_*.cc.
#pragma once

#include <nanobind/nanobind.h>

namespace realm {

void bind_kernels(nanobind::module_& m);
void bind_lora(nanobind::module_& m);
void bind_program(nanobind::module_& m);
void bind_sampling(nanobind::module_& m);

}  // namespace realm
