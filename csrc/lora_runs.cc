#include "lora_runs.h"

#include <algorithm>

#include "layout.h"
#include "thread_pool.h"

namespace realm {
namespace {

// Work is shared out in pieces of one panel of rows times one tile of A.
int num_panels(const LoraRun& run) {
  return (run.row_end + kPanelRows - 1) / kPanelRows - run.row_begin / kPanelRows;
}
int num_pieces(const LoraRun& run) {
  return num_panels(run) * lora_num_tiles(run.module->store, run.module->num_ranks);
}

// Adapters lie far apart and their matrices are short, so the hardware would start on each too late: while one is used, the
// next one's is fetched.
ptrdiff_t distance(const uint8_t* from, const uint8_t* to) {
  return static_cast<ptrdiff_t>(reinterpret_cast<uintptr_t>(to) - reinterpret_cast<uintptr_t>(from));
}

}  // namespace

void lora_shrink(const LoraTable& table, const std::vector<LoraRun>& runs, const LoraInput& input, float* t,
                 size_t t_stride, int thread, int num_threads) {
  int total = 0;
  for (const LoraRun& run : runs) total += num_pieces(run);
  const Share share = share_of(total, thread, num_threads);
  int before = 0;
  for (size_t i = 0; i < runs.size(); i++) {
    const LoraRun& run = runs[i];
    const LoraModule& m = *run.module;
    const uint8_t* next_a = i + 1 < runs.size() ? runs[i + 1].module->a : m.a;
    const int num_tiles = lora_num_tiles(m.store, m.num_ranks), first_panel = run.row_begin / kPanelRows;
    const int begin = std::max(share.begin - before, 0), end = std::min(share.end - before, num_pieces(run));
    for (int piece = begin; piece < end;) {
      const int panel = piece / num_tiles, next = std::min(end, (panel + 1) * num_tiles), row = (first_panel + panel) * kPanelRows;
      const LoraShrinkArgs args{m.store, m.a, m.num_ranks, m.num_inputs, input.panels, input.x, input.x_stride,
                                std::max(run.row_begin, row), std::min(run.row_end, row + kPanelRows), distance(m.a, next_a), t, t_stride};
      table.shrink(args, piece - panel * num_tiles, next - panel * num_tiles);
      piece = next;
    }
    before += num_pieces(run);
  }
}

void lora_expand(const LoraTable& table, const std::vector<LoraRun>& runs, int part, int num_outputs, const float* t,
                 size_t t_stride, float* out, size_t out_stride, int tile_begin, int tile_end) {
  for (size_t i = 0; i < runs.size(); i++) {
    const LoraRun& run = runs[i];
    const LoraPart& p = run.module->parts[part];
    if (p.b == nullptr) continue;
    const uint8_t* next_b = i + 1 < runs.size() ? runs[i + 1].module->parts[part].b : nullptr;
    const LoraExpandArgs args{run.module->store, p.b, p.rank, num_outputs, p.scale, run.row_begin, run.row_end, next_b ? distance(p.b, next_b) : 0,
                              t + p.first_rank, t_stride, out, out_stride};
    table.expand(args, tile_begin, tile_end);
  }
}

}  // namespace realm
