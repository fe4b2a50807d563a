#include "adapter.h"

#include <algorithm>
#include <stdexcept>
#include <string>

#include "layout.h"

namespace realm {
namespace {

void require(bool ok, const char* what) {
  if (!ok) throw std::invalid_argument(std::string("adapter: ") + what);
}

std::size_t aligned(std::size_t num_bytes) { return (num_bytes + 63) / 64 * 64; }

// Everything about the modules but where their weights lie.
std::vector<LoraModule> lay_out(const std::vector<LoraSite>& sites, const std::vector<LoraChange>& changes) {
  std::vector<LoraModule> modules;
  for (const LoraSite& site : sites)
    modules.push_back({site.store, nullptr, 0, site.num_inputs, std::vector<LoraPart>(site.num_outputs.size())});
  for (const LoraChange& change : changes) {
    require(change.site >= 0 && change.site < static_cast<int>(sites.size()), "no such site");
    std::vector<LoraPart>& parts = modules[change.site].parts;
    require(change.part >= 0 && change.part < static_cast<int>(parts.size()), "no such part of a site");
    require(parts[change.part].rank == 0, "a matrix is changed twice");
    require(change.rank >= 1, "a rank below 1");
    parts[change.part].rank = change.rank;
  }
  for (LoraModule& module : modules) {
    for (LoraPart& part : module.parts) {
      part.first_rank = module.num_ranks;
      module.num_ranks += part.rank;
    }
  }
  return modules;
}

std::size_t a_bytes(const LoraSite& site, const LoraModule& m) {
  if (m.num_ranks == 0) return 0;
  if (site.of_tokens) return aligned(sizeof(float) * m.num_ranks * m.num_inputs);
  return aligned(lora_a_bytes(m.store, m.num_ranks, m.num_inputs));
}

std::size_t b_bytes(const LoraSite& site, int num_outputs, int rank) {
  if (rank == 0) return 0;
  if (site.of_tokens) return aligned(sizeof(float) * rank * num_outputs);
  return aligned(lora_b_bytes(site.store, num_outputs, rank));
}

void transpose(const float* from, int num_rows, int num_columns, std::uint8_t* dst) {
  float* to = reinterpret_cast<float*>(dst);
  for (int i = 0; i < num_rows; ++i)
    for (int j = 0; j < num_columns; ++j) to[static_cast<std::size_t>(j) * num_rows + i] = from[static_cast<std::size_t>(i) * num_columns + j];
}

// Writes A where `dst` is and gives the factor that it has been divided by.
float pack_a(const LoraSite& site, const float* a, int num_ranks, std::uint8_t* dst) {
  if (!site.of_tokens) return lora_pack_a(site.store, a, num_ranks, site.num_inputs, dst);
  transpose(a, num_ranks, site.num_inputs, dst);
  return 1.0f;
}

void pack_b(const LoraSite& site, const float* b, int num_outputs, int rank, std::uint8_t* dst) {
  if (!site.of_tokens) return lora_pack_b(site.store, b, num_outputs, rank, dst);
  transpose(b, num_outputs, rank, dst);
}

std::size_t bytes_of(const std::vector<LoraSite>& sites, const std::vector<LoraModule>& modules) {
  std::size_t total = 0;
  for (std::size_t i = 0; i < sites.size(); ++i) {
    total += a_bytes(sites[i], modules[i]);
    for (std::size_t p = 0; p < modules[i].parts.size(); ++p)
      total += b_bytes(sites[i], sites[i].num_outputs[p], modules[i].parts[p].rank);
  }
  return total;
}

}  // namespace

std::size_t PackedAdapter::num_bytes(const std::vector<LoraSite>& sites, const std::vector<LoraChange>& changes) {
  return bytes_of(sites, lay_out(sites, changes));
}

PackedAdapter::PackedAdapter(const std::vector<LoraSite>& sites, std::vector<LoraChange> changes)
    : modules_(lay_out(sites, changes)) {
  memory_ = HugeBuffer(bytes_of(sites, modules_));
  std::sort(changes.begin(), changes.end(), [](const LoraChange& x, const LoraChange& y) {
    return x.site != y.site ? x.site < y.site : x.part < y.part;
  });
  std::uint8_t* next = memory_.data();
  std::vector<float> a;
  for (std::size_t i = 0; i < changes.size();) {
    const LoraSite& site = sites[changes[i].site];
    LoraModule& module = modules_[changes[i].site];
    const std::size_t first = i;
    a.clear();
    for (; i < changes.size() && changes[i].site == changes[first].site; ++i)
      a.insert(a.end(), changes[i].a, changes[i].a + static_cast<std::size_t>(changes[i].rank) * site.num_inputs);
    const float factor = pack_a(site, a.data(), module.num_ranks, next);
    module.a = next;
    next += a_bytes(site, module);
    for (std::size_t j = first; j < i; ++j) {
      const LoraChange& change = changes[j];
      LoraPart& part = module.parts[change.part];
      pack_b(site, change.b, site.num_outputs[change.part], change.rank, next);
      part.b = next;
      part.scale = change.scale * factor;
      next += b_bytes(site, site.num_outputs[change.part], change.rank);
    }
    if (!site.of_tokens) padded_ranks_ = std::max(padded_ranks_, lora_padded_ranks(site.store, module.num_ranks));
  }
}

}  // namespace realm
