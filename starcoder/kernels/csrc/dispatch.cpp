// Which variants this processor runs, and the bandwidth that they could reach.
#include <atomic>
#include <chrono>
#include <cstring>

#include "kernels.h"
#include "pool.h"

#if defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace {

const Kernels *variant(int32_t index) {
  const Kernels *found[4];
  int32_t count = 0;
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
    found[count++] = avx512_kernels();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found[count++] = avx2_kernels();
#elif defined(__aarch64__)
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  if (getauxval(AT_HWCAP) & kDotProduct) found[count++] = neon_kernels();
#else
  found[count++] = neon_kernels();  // every 64-bit Mac has it
#endif
#endif
  found[count++] = portable_kernels();
  return index >= 0 && index < count ? found[index] : nullptr;
}

struct Read {
  const char *data;
  int64_t size;
  std::atomic<uint64_t> sum;
};

constexpr int64_t PIECE = 1 << 20;

uint64_t sum_of(const char *from, int64_t size) {
  typedef uint64_t V __attribute__((vector_size(32)));
  V sums[8] = {};
  for (int64_t i = 0; i + 256 <= size; i += 256) {
    for (int j = 0; j < 4; j++) __builtin_prefetch(from + i + 2048 + 64 * j);
    for (int j = 0; j < 8; j++) {
      V v;
      memcpy(&v, from + i + j * 32, 32);
      sums[j] += v;
    }
  }
  for (int j = 1; j < 8; j++) sums[0] += sums[j];
  return sums[0][0] + sums[0][1] + sums[0][2] + sums[0][3];
}

}  // namespace

// The named variant, or the best where none is named or it does not run here.
const Kernels *kernels_named(const char *isa) {
  for (int32_t i = 0; isa && variant(i); i++)
    if (!strcmp(variant(i)->name, isa)) return variant(i);
  return variant(0);
}

extern "C" {

const char *sc_isa(int32_t index) {
  const Kernels *found = variant(index);
  return found ? found->name : nullptr;
}

#ifndef SC_ABI
#define SC_ABI 0  // built without setup.py, as some tests do
#endif
int32_t sc_abi(void) { return SC_ABI; }

int32_t sc_threads(int32_t threads) { return clamp_threads(threads); }

double sc_bandwidth(int32_t threads, const void *data, int64_t size_bytes) try {
  Read read{(const char *)data, size_bytes, {0}};
  const auto start = std::chrono::steady_clock::now();
  run_on_pool(nullptr, threads, [](void *context, Team &team) {
    Read &read = *(Read *)context;
    team.share((read.size + PIECE - 1) / PIECE, 1, [&](int64_t piece, int64_t) {
      const int64_t left = read.size - piece * PIECE;
      read.sum += sum_of(read.data + piece * PIECE, left < PIECE ? left : PIECE);
    });
  }, &read);
  return size_bytes / std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
} catch (...) {
  return 0;
}

}  // extern "C"
