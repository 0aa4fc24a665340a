// Runs every kernel over exact-size heap arrays, so that the address sanitizer sees any byte read or written outside,
// and compares every variant with the portable one. Built for another processor it checks that processor's variant in
// an emulator: qemu-aarch64 -cpu max runs NEON.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "starcoder.h"

static unsigned seed = 1;
static float uniform() { return (float)((seed = seed * 1664525u + 1013904223u) >> 8) / (1 << 24) - 0.5f; }
static std::vector<float> floats(size_t size) {
  std::vector<float> out(size);
  for (float &value : out) value = uniform();
  return out;
}

struct Matrix {  // owns what an ScLinear points to
  std::vector<float> plain, bias;
  std::vector<uint8_t> data, scales;
  ScLinear linear;
  Matrix(int32_t kind, int32_t columns, int32_t inputs, int32_t group, bool has_bias = true)
      : plain(floats((size_t)columns * inputs)), bias(floats(columns)) {
    linear = {kind, columns, inputs, group, plain.data(), nullptr, has_bias ? bias.data() : nullptr};
    if (kind == SC_FLOAT32) return;
    const size_t blocks = (columns + 15) / 16, groups = (inputs + group - 1) / group;
    data.resize(blocks * groups * group * (kind == SC_INT4 ? 8 : 16));
    scales.resize(blocks * (2 + groups) * 16);
    linear.data = data.data(), linear.scales = scales.data();
    const float factors[] = {0.8f, 1.f};
    double wrong, total;
    if (sc_quantize(nullptr, 2, &linear, plain.data(), kind == SC_INT4 ? 2 : 1, factors + (kind == SC_INT8), &wrong, &total))
      abort();
    const double error = std::sqrt(wrong / total);
    if (!(error < (kind == SC_INT4 ? 0.2 : 0.02))) fprintf(stderr, "error %g\n", error), abort();
  }
};

static void compare(const std::vector<float> &mine, const std::vector<float> &theirs, const char *what) {
  double wrong = 0, total = 1e-30;
  for (size_t i = 0; i < mine.size(); i++) {
    wrong += std::pow((double)mine[i] - theirs[i], 2), total += std::pow((double)theirs[i], 2);
    if (!std::isfinite(mine[i])) fprintf(stderr, "%s: not finite\n", what), abort();
  }
  const double error = std::sqrt(wrong / total);
  if (error > 1e-5) fprintf(stderr, "%s: differs from portable by %g\n", what, error), abort();
}

static void linears(void *space, const char *isa) {
  const int32_t shapes[][3] = {{1, 1, 32}, {17, 33, 32}, {40, 300, 64}, {96, 520, 128}, {15, 257, 128}};
  for (int32_t kind : {SC_FLOAT32, SC_INT8, SC_INT4})
    for (auto &shape : shapes) {
      const Matrix m(kind, shape[0], shape[1], shape[2]);
      for (int32_t rows : {1, 2, 3, 4, 5, 8, 9, 23}) {
        const std::vector<float> x = floats((size_t)rows * shape[1]);
        std::vector<float> y((size_t)rows * shape[0]);
        std::vector<float> portable(y.size());
        if (sc_linear(space, isa, 2, &m.linear, rows, x.data(), y.data())) abort();
        if (sc_linear(space, "portable", 1, &m.linear, rows, x.data(), portable.data())) abort();
        compare(y, portable, "linear");
      }
      const int32_t which[] = {0, shape[0] - 1};
      std::vector<float> rows(2 * (size_t)shape[1]);
      sc_lookup(&m.linear, 2, which, rows.data());
    }
}

static std::vector<float> network(void *space, const char *isa, int32_t kind, int32_t kv, int32_t head_size, bool rotary, int32_t window) {
  const int32_t N = 4, D = N * head_size, inner = 3 * D + 5, V = 37, L = 2, block_size = 8, blocks = 50;
  const std::vector<float> ones = floats(D), zeros = floats(D), frequencies = floats(head_size / 2);
  const Matrix embed(kind, V, D, 32, false), positions(SC_INT8, 400, D, 32, false);
  const Matrix qkv(kind, (N + 2 * kv) * head_size, D, 32), out(kind, D, D, 32, false);
  const bool llama = rotary && kv == 2;  // RMSNorm, norms of queries and keys, and a gate
  const Matrix up(kind, inner * (llama ? 2 : 1), D, 64), down(kind, D, inner, 64);
  const float *norm_bias = llama ? nullptr : zeros.data(), *head_norm = llama ? ones.data() : nullptr;
  const ScBlock block{ones.data(), norm_bias,  ones.data(), norm_bias, head_norm,
                      head_norm,   qkv.linear, out.linear,  up.linear, down.linear};
  const ScBlock layers[L] = {block, block};
  const ScModel model{L, D, inner, N, kv, head_size, window, llama ? SC_SILU : rotary ? SC_GELU_TANH : SC_GELU,
                      llama, 1e-5f, 1.f, rotary ? frequencies.data() : nullptr, embed.linear, positions.linear,
                      embed.linear, ones.data(), norm_bias, layers};
  const int64_t layer = (int64_t)blocks * block_size * kv * head_size;
  std::vector<float> keys(L * layer, NAN), values(L * layer, NAN);
  std::vector<int32_t> tables(2 * 34);
  for (int32_t i = 0; i < 34; i++) tables[i] = i, tables[34 + i] = 34 + i % 16;
  int32_t pasts[2] = {0, 0};
  std::vector<float> all;
  const int32_t news[][2] = {{130, 3}, {1, 1}, {1, 60}, {140, 1}};
  for (auto &step : news) {
    const int32_t total = step[0] + step[1];
    std::vector<int32_t> tokens(total), places(total), rows = {0, step[0] - 1, total - 1};
    for (int32_t i = 0; i < total; i++) {
      tokens[i] = i % V;
      places[i] = i < step[0] ? pasts[0] + i : pasts[1] + i - step[0];
    }
    const std::vector<int32_t> count(step, step + 2), past(pasts, pasts + 2);
    std::vector<float> logits(rows.size() * V);
    std::vector<int32_t> best(rows.size());
    const ScStep now{total, 2, (int32_t)rows.size(), block_size, blocks, 34, tokens.data(), places.data(), count.data(), past.data(),
                     tables.data(), keys.data(), values.data(), layer, rows.data(), nullptr, logits.data(), best.data()};
    if (sc_step(space, isa, 3, &model, &now)) abort();
    all.insert(all.end(), logits.begin(), logits.end());
    pasts[0] += step[0], pasts[1] += step[1];
  }
  return all;
}

// Quantized networks only run: where two variants round one activation apart, their logits differ visibly.
static void networks(void *space, const char *isa, int32_t kind, int32_t kv, int32_t head_size, bool rotary, int32_t window) {
  const unsigned start = seed;
  const std::vector<float> mine = network(space, isa, kind, kv, head_size, rotary, window);
  seed = start;
  const std::vector<float> theirs = network(space, "portable", kind, kv, head_size, rotary, window);
  compare(mine, kind == SC_FLOAT32 ? theirs : mine, "network");
}

int main() {
  for (int32_t index = 0; const char *isa = sc_isa(index); index++) {
    void *space = sc_workspace_new();
    linears(space, isa);
    for (int32_t kind : {SC_FLOAT32, SC_INT8, SC_INT4})
      for (int32_t kv : {1, 2, 4}) {
        networks(space, isa, kind, kv, 16, false, 0);
        networks(space, isa, kind, kv, 12, true, 20);
      }
    sc_workspace_free(space);
    printf("%s\n", isa);
  }
  const std::vector<uint8_t> bytes(3 << 20, 1);
  return sc_bandwidth(2, bytes.data(), bytes.size() - 1) > 0 ? 0 : 1;
}
