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

std::size_t a_bytes(const LoraModule& m) {
  return m.num_ranks == 0 ? 0 : aligned(lora_a_bytes(m.store, m.num_ranks, m.num_inputs));
}

std::size_t b_bytes(const LoraModule& m, int num_outputs, int rank) {
  return rank == 0 ? 0 : aligned(lora_b_bytes(m.store, num_outputs, rank));
}

std::size_t bytes_of(const std::vector<LoraSite>& sites, const std::vector<LoraModule>& modules) {
  std::size_t total = 0;
  for (std::size_t i = 0; i < sites.size(); ++i) {
    total += a_bytes(modules[i]);
    for (std::size_t p = 0; p < modules[i].parts.size(); ++p)
      total += b_bytes(modules[i], sites[i].num_outputs[p], modules[i].parts[p].rank);
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
    const float factor = lora_pack_a(site.store, a.data(), module.num_ranks, site.num_inputs, next);
    module.a = next;
    next += a_bytes(module);
    for (std::size_t j = first; j < i; ++j) {
      const LoraChange& change = changes[j];
      LoraPart& part = module.parts[change.part];
      lora_pack_b(site.store, change.b, site.num_outputs[change.part], change.rank, next);
      part.b = next;
      part.scale = change.scale * factor;
      next += b_bytes(module, site.num_outputs[change.part], change.rank);
    }
    padded_ranks_ = std::max(padded_ranks_, lora_padded_ranks(site.store, module.num_ranks));
  }
}

}  // namespace realm
