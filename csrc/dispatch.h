// Instruction sets: which ones this build has and this CPU runs, and the kernels of each.
#pragma once

#include <string>
#include <vector>

namespace realm {

// Ordered from slowest to fastest. All of them compute the same bits.
enum class Isa { portable, avx2, avx2vnni, avx512vnni };

const char* isa_name(Isa isa);

// Throws std::invalid_argument for an unknown name or one that this CPU or build cannot run.
Isa parse_isa(const std::string& name);

// Those that this build holds and this CPU runs, slowest first; never empty.
std::vector<Isa> available_isas();

// The fastest available one, or the one that the environment variable REALM_CPU_ISA names.
Isa default_isa();

}  // namespace realm
