// Runs small models, one of each tensor type and KV type, on every instruction set of this CPU, and prints a digest of
// the logits' bits: "<tensor type> <KV type> <instruction set> <digest>". Machines agree if they print the same digests.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <vector>

#include "dispatch.h"
#include "pack.h"
#include "program.h"

namespace {

using realm::KVType;
using realm::Program;

constexpr int kHidden = 256, kHeads = 4, kKVHeads = 2, kHeadDim = 64, kFeedForward = 512, kVocab = 300, kLayers = 2;
constexpr int kWidthQKV = (kHeads + 2 * kKVHeads) * kHeadDim;
constexpr int kBlockTokens = 32, kMaxBlocks = 8, kNone = -1;
const realm::StepLimits kLimits{64, 64, kBlockTokens * kMaxBlocks, kVocab, 2 * kMaxBlocks, kBlockTokens};

struct Type {
  const char* name;
  int id, block_bytes;
  std::vector<int> f16_offsets;  // of the scales in a block
};

// Random quants under small scales; for float types, random values.
std::vector<std::uint8_t> random_matrix(const Type& type, int num_rows, int num_inputs, std::mt19937& rng) {
  std::vector<std::uint8_t> bytes(realm::gguf_row_bytes(type.id, num_inputs) * num_rows);
  for (std::uint8_t& b : bytes) b = static_cast<std::uint8_t>(rng());
  for (std::size_t at = 0; at < bytes.size(); at += type.block_bytes) {
    for (int offset : type.f16_offsets) {
      const std::uint16_t scale = static_cast<std::uint16_t>(0x1000 | (rng() & 0x83ff));  // +-2^-11 .. 2^-10
      std::memcpy(bytes.data() + at + offset, &scale, 2);
    }
    if (type.block_bytes == 4) {
      const float value = static_cast<float>(static_cast<int>(rng() & 0xffff) - 0x8000) * 0x1p-19f;
      std::memcpy(bytes.data() + at, &value, 4);
    }
  }
  return bytes;
}

void build(Program& program, const Type& type) {
  std::mt19937 rng(1);
  const auto matrix = [&](int rows, int inputs) {
    const std::vector<std::uint8_t> bytes = random_matrix(type, rows, inputs, rng);
    return program.add_matrix(type.id, bytes.data(), bytes.size(), rows, inputs);
  };
  program.reserve_weights(std::size_t(16) << 20);
  const std::vector<float> ones(kFeedForward, 1.0f);
  std::vector<double> frequencies;
  for (int i = 0; i < kHeadDim / 2; ++i) frequencies.push_back(std::ldexp(1.0, -i / 3));
  const int norm = program.add_vector(ones.data(), kHidden);
  const int rope = program.add_rope(frequencies.data(), frequencies.size(), false, 1.0);
  const int table = matrix(kVocab, kHidden);
  int x = program.add_value(kHidden, true, false, false);
  program.embed(table, 1.0f, x);
  const int qkv = program.add_value(kWidthQKV, true, false, false);
  for (int layer = 0; layer < kLayers; ++layer) {
    const bool judged = layer == kLayers - 1;  // from its attention on, only rows that are judged
    const int normed = program.add_value(kHidden, true, true, false);
    program.rms_norm(x, norm, 1e-5f, kNone, normed);
    program.matmul(normed, {matrix(kWidthQKV, kHidden)}, {kNone}, qkv, false);
    const realm::HeadSpec heads{kHeads, kKVHeads, kHeadDim, layer == 0 ? 0 : 50, 0.125f, 1e-5f, kNone, kNone, rope};
    const int mixed = program.add_value(kHeads * kHeadDim, true, true, judged);
    program.attention(qkv, heads, mixed);
    if (judged) x = program.keep_judged(x);
    program.matmul(mixed, {matrix(kHidden, kHidden)}, {kNone}, x, true);
    const int attended = program.add_value(kHidden, true, true, judged);
    program.rms_norm(x, norm, 1e-5f, kNone, attended);
    const int gate = matrix(kFeedForward, kHidden), up = matrix(kFeedForward, kHidden);
    const int wide = program.add_value(kFeedForward, true, true, judged);
    program.gated_matmul(attended, gate, up, kNone, kNone, layer == 0 ? realm::Activation::silu : realm::Activation::gelu_tanh, wide);
    program.matmul(wide, {matrix(kHidden, kFeedForward)}, {kNone}, x, true);
  }
  const int normed = program.add_value(kHidden, true, true, true);
  program.rms_norm(x, norm, 1e-5f, kNone, normed);
  program.logits(normed, {table}, {kNone});
}

// Prefills two requests in chunks that mix, then decodes both, and hashes all logits (FNV-1a), in the end the likeliest tokens.
std::uint64_t digest(Program& program) {
  const int chunks[][2] = {{40, 9}, {40, 20}, {40, 24}, {1, 1}, {1, 1}};
  std::int32_t context[2] = {0, 0};
  std::vector<std::int32_t> tables;
  for (int i = 0; i < 2 * kMaxBlocks; ++i) tables.push_back((7 * i + 3) % (2 * kMaxBlocks));
  const std::int32_t slots[2] = {kNone, kNone};
  std::uint64_t hash = 14695981039346656037ull;
  const auto add = [&hash](std::uint32_t bits) { hash = (hash ^ bits) * 1099511628211ull; };
  for (const auto& chunk : chunks) {
    const int num_tokens = chunk[0] + chunk[1];
    const std::int32_t starts[3] = {0, chunk[0], num_tokens};
    std::vector<std::int32_t> ids, rows;
    for (int i = 0; i < num_tokens; ++i) {
      ids.push_back((context[0] + 31 * i) % kVocab);
      rows.push_back(i);
    }
    program.step({num_tokens, 2, num_tokens, kMaxBlocks, ids.data(), starts, context, tables.data(), rows.data(), slots});
    for (int row = 0; row < num_tokens; ++row) {
      for (int i = 0; i < kVocab; ++i) {
        const float logit = program.logits_data()[row * program.logits_stride() + i];
        if (!std::isfinite(logit)) return 0;
        std::uint32_t bits;
        std::memcpy(&bits, &logit, 4);
        add(bits);
      }
    }
    for (int r = 0; r < 2; ++r) context[r] += chunk[r];
  }
  const std::int32_t starts[3] = {0, 1, 2}, ids[2] = {5, 7}, rows[2] = {0, 1};
  program.step({2, 2, 2, kMaxBlocks, ids, starts, context, tables.data(), rows, slots, true});
  for (int row : rows) {
    const float* logits = program.logits_data() + row * program.logits_stride();
    add(static_cast<std::uint32_t>(std::max_element(logits, logits + kVocab) - logits));
  }
  return hash;
}

}  // namespace

int main() {
  const std::vector<Type> types = {{"F32", 0, 4, {}},          {"F16", 1, 2, {0}},        {"BF16", 30, 2, {0}},
                                   {"Q4_0", 2, 18, {0}},       {"Q4_1", 3, 20, {0, 2}},   {"Q5_0", 6, 22, {0}},
                                   {"Q5_1", 7, 24, {0, 2}},    {"Q8_0", 8, 34, {0}},      {"Q2_K", 10, 84, {80, 82}},
                                   {"Q3_K", 11, 110, {108}},   {"Q4_K", 12, 144, {0, 2}}, {"Q5_K", 13, 176, {0, 2}},
                                   {"Q6_K", 14, 210, {208}},   {"Q8_0_PLANES", 31, 34, {0}}};
  const std::pair<const char*, KVType> kv_types[] = {{"f16", KVType::f16}, {"f32", KVType::f32}, {"int8", KVType::int8}};
  bool finite = true;
  for (const Type& type : types) {
    for (const auto& [kv_name, kv_type] : kv_types) {
      for (realm::Isa isa : realm::available_isas()) {
        Program program({2, false, isa, kLimits, kv_type});
        build(program, type);
        const std::uint64_t hash = digest(program);
        finite = finite && hash != 0;
        std::printf("%s %s %s %016llx\n", type.name, kv_name, realm::isa_name(isa), static_cast<unsigned long long>(hash));
      }
    }
  }
  return finite ? 0 : 1;
}
