// The head of a step whose rows want their likeliest token only: screened, then computed where that may be (screen.h).
#include <algorithm>
#include <limits>
#include <utility>
#include <vector>

#include "ops.h"
#include "thread_pool.h"

namespace realm {
namespace {

constexpr float kLowest = -std::numeric_limits<float>::infinity();

// Screening saves less than half of the reading: it does not pay if so large a part of the tiles is computed afterwards, one in
constexpr int kWorthwhilePart = 3;
// and if that goes on, up to so many steps compute all tiles at once before it is tried again.
constexpr int kMaxPauseSteps = 63;

struct ScreenedHead {
  const Kernels& k;
  Value x;
  const Matrix* matrix;
  Value out;
  int site;

  int num_tiles() const { return tiles_of(matrix->num_rows); }
  bool screens(const Step& step) const {
    return step.input().likeliest_only && step.num_judged() <= kMaxScreenedRows && step.lora_runs(site).empty();
  }
  static constexpr QuantType type = QuantType::Q8_0_PLANES;
  std::size_t upper_bytes() const { return tile_bytes<type>(matrix->num_inputs); }
  std::size_t lower_bytes() const { return low_tile_bytes<type>(matrix->num_inputs); }
  // What is not read if, after all upper planes, both planes of so many tiles are.
  std::int64_t skipped_bytes(std::size_t computed) const {
    return static_cast<std::int64_t>(num_tiles() * lower_bytes()) - static_cast<std::int64_t>(computed * (upper_bytes() + lower_bytes()));
  }
  float* logits(int tile, int row) const { return out.rows + row * out.row_stride + tile * kTileRows; }
  int tile_width(int tile) const { return std::min(kTileRows, matrix->num_rows - tile * kTileRows); }
  // All rows of one tile, fetching another meanwhile.
  void multiply(int num_rows, int tile, int next) const {
    MatmulArgs args{matrix->packed, matrix->num_rows, matrix->num_inputs, num_rows,       x.panels,
                    x.rows,         x.row_stride,     out.rows,           out.row_stride, false};
    args.prefetch_bytes = (next - tile) * static_cast<std::ptrdiff_t>(upper_bytes() + lower_bytes());
    k.matmul->matmul[matrix->type_id](args, tile, tile + 1);
  }
};

// What the threads have found out, each in memory of its own.
struct Findings {
  struct alignas(64) OfThread {
    float reached[kMaxScreenedRows];  // by the outputs of its likeliest tiles
    int pause = 0, next_pause = 0;    // steps; the same in all threads
    std::vector<float> bounds;
    std::vector<int> tiles;  // that may hold a row's largest output, of all threads
  };
  std::vector<OfThread> of_thread;
  std::vector<float> likely, most;  // [row][tile]
  std::int64_t* skipped_bytes;      // of the matrix, by all steps so far; the first thread counts
};

class Screen final : public Op {
 public:
  Screen(ScreenedHead head, std::shared_ptr<Findings> findings) : Op("screen", true), head_(head), findings_(std::move(findings)) {}
  bool idle(const Step& step) const override { return num_rows(step) == 0 || !head_.screens(step); }
  void run(const Step& step, const Lane& lane) const override {
    Findings::OfThread& found = findings_->of_thread[lane.thread];
    if (found.pause > 0) return;
    const Matrix& w = *head_.matrix;
    const int num_blocks = w.num_inputs / kBlockInputs, num_tiles = head_.num_tiles();
    for (int row = 0; row < num_rows(step); ++row)
      screen_bounds(head_.x.panels, w.num_inputs, row, w.low_norm, found.bounds.data() + row * num_blocks);
    const Share tiles = share_of(num_tiles, lane.thread, lane.num_threads);
    head_.k.matmul->screen({w.packed, w.num_rows, w.num_inputs, num_rows(step), head_.x.panels, found.bounds.data(),
                            findings_->likely.data(), findings_->most.data()}, tiles.begin, tiles.end);
    for (int row = 0; row < num_rows(step); ++row) {
      found.reached[row] = kLowest;
      if (tiles.begin == tiles.end) continue;
      const float* likely = findings_->likely.data() + row * num_tiles;
      const int best = static_cast<int>(std::max_element(likely + tiles.begin, likely + tiles.end) - likely);
      head_.multiply(num_rows(step), best, best);
      const float* logits = head_.logits(best, row);
      for (int i = 0; i < head_.tile_width(best); ++i) found.reached[row] = std::max(found.reached[row], logits[i]);
    }
  }

 private:
  ScreenedHead head_;
  std::shared_ptr<Findings> findings_;
};

class Head final : public Op {
 public:
  Head(ScreenedHead head, std::shared_ptr<Findings> findings, OpPtr all)
      : Op("head", true), head_(head), findings_(std::move(findings)), all_(std::move(all)) {}
  void run(const Step& step, const Lane& lane) const override {
    Findings::OfThread& found = findings_->of_thread[lane.thread];
    if (!head_.screens(step)) return all_->run(step, lane);
    if (found.pause > 0) {
      --found.pause;
      return all_->run(step, lane);
    }
    find_tiles(num_rows(step), found.tiles);
    const bool paid = static_cast<int>(found.tiles.size()) <= head_.num_tiles() / kWorthwhilePart;
    found.pause = paid ? 0 : found.next_pause;
    found.next_pause = paid ? 0 : std::min(2 * found.next_pause + 1, kMaxPauseSteps);
    if (lane.thread == 0) *findings_->skipped_bytes += head_.skipped_bytes(found.tiles.size());
    compute_tiles(num_rows(step), found.tiles, lane);
    clear_others(num_rows(step), found.tiles, lane);
  }

 private:
  void find_tiles(int num_rows, std::vector<int>& tiles) const {
    float reached[kMaxScreenedRows];
    for (int row = 0; row < num_rows; ++row) {
      reached[row] = kLowest;
      for (const auto& found : findings_->of_thread) reached[row] = std::max(reached[row], found.reached[row]);
    }
    tiles.clear();
    const int num_tiles = head_.num_tiles();
    for (int tile = 0; tile < num_tiles; ++tile) {
      bool may_hold_largest = false;
      for (int row = 0; row < num_rows; ++row) may_hold_largest |= findings_->most[row * num_tiles + tile] >= reached[row];
      if (may_hold_largest) tiles.push_back(tile);
    }
  }
  // They are shared evenly, as most are tokens with low ids.
  void compute_tiles(int num_rows, const std::vector<int>& tiles, const Lane& lane) const {
    const Share share = share_of(static_cast<int>(tiles.size()), lane.thread, lane.num_threads);
    for (int i = share.begin; i < share.end; ++i) head_.multiply(num_rows, tiles[i], tiles[std::min(i + 1, share.end - 1)]);
  }
  void clear_others(int num_rows, const std::vector<int>& tiles, const Lane& lane) const {
    const Share share = share_of(head_.num_tiles(), lane.thread, lane.num_threads);
    auto computed = std::lower_bound(tiles.begin(), tiles.end(), share.begin);
    for (int begin = share.begin; begin < share.end;) {
      const int end = computed == tiles.end() ? share.end : std::min(*computed++, share.end);
      const int end_output = std::min(end * kTileRows, head_.matrix->num_rows);
      for (int row = 0; row < num_rows; ++row) std::fill(head_.logits(begin, row), head_.logits(0, row) + end_output, kLowest);
      begin = end + 1;
    }
  }

  ScreenedHead head_;
  std::shared_ptr<Findings> findings_;
  OpPtr all_;
};

}  // namespace

std::vector<OpPtr> make_head(const Kernels& k, Value x, std::vector<MatmulPart> parts, Value out, LoraInlet lora, int num_threads,
                             std::int64_t* skipped_bytes) {
  const MatmulPart first = parts.front();
  const bool in_planes = parts.size() == 1 && first.bias == nullptr && first.matrix->type_id == static_cast<int>(QuantType::Q8_0_PLANES);
  std::vector<OpPtr> ops;
  ops.push_back(make_matmul(k, "head", x, std::move(parts), out, false, lora));
  if (!in_planes) return ops;
  const ScreenedHead head{k, x, first.matrix, out, lora.site};
  const auto findings = std::make_shared<Findings>();
  findings->skipped_bytes = skipped_bytes;
  findings->of_thread.resize(num_threads);
  for (auto& found : findings->of_thread) {
    found.bounds.resize(kMaxScreenedRows * head.matrix->num_inputs / kBlockInputs);
    found.tiles.reserve(head.num_tiles());
  }
  findings->likely.resize(kMaxScreenedRows * head.num_tiles());
  findings->most.resize(kMaxScreenedRows * head.num_tiles());
  ops.front() = std::make_unique<Head>(head, findings, std::move(ops.front()));
  ops.insert(ops.begin(), std::make_unique<Screen>(head, findings));
  return ops;
}

}  // namespace realm
