#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace realm {
namespace {

constexpr Isa kAll[] = {Isa::portable, Isa::avx2, Isa::avx2vnni, Isa::avx512vnni};

#if defined(__x86_64__)
bool cpu_runs(Isa isa) {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
  switch (isa) {
    case Isa::portable: return true;
    case Isa::avx2: return avx2;
    case Isa::avx2vnni: return avx2 && __builtin_cpu_supports("avxvnni");
    case Isa::avx512vnni:
      return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512vnni");
  }
  return false;
}
#else
bool cpu_runs(Isa isa) { return isa == Isa::portable; }
#endif

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::portable: return "portable";
    case Isa::avx2: return "avx2";
    case Isa::avx2vnni: return "avx2vnni";
    case Isa::avx512vnni: return "avx512vnni";
  }
  return "?";
}

std::vector<Isa> available_isas() {
  std::vector<Isa> out;
  for (Isa isa : kAll)
    if (cpu_runs(isa)) out.push_back(isa);
  return out;
}

Isa parse_isa(const std::string& name) {
  std::string have;
  for (Isa isa : available_isas()) {
    if (name == isa_name(isa)) return isa;
    have += std::string(have.empty() ? "" : ", ") + isa_name(isa);
  }
  throw std::invalid_argument("instruction set '" + name + "' is not one that this CPU runs (" + have + ")");
}

Isa default_isa() {
  const char* forced = std::getenv("REALM_CPU_ISA");
  return forced && *forced ? parse_isa(forced) : available_isas().back();
}

}  // namespace realm
