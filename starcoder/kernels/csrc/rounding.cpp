// Weights to integers: every group finds its scale, and blocks of 16 columns are packed as `starcoder.h` says.
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <vector>

#include "kernels.h"
#include "pool.h"

const Kernels *kernels_named(const char *isa);

namespace {

struct RoundingJob {
  const Kernels &kernels;
  const ScLinear &to;
  const Rounding how;
  const float *x;
  std::vector<double> wrong, total;         // of each block
  std::vector<std::vector<float>> fitting;  // of each thread: the groups of a column
};

// The weights of one group and column, zero beyond the matrix.
double load_group(const RoundingJob &job, int64_t column, int64_t first, float *part) {
  memset(part, 0, job.to.group * sizeof(float));
  if (column >= job.to.columns) return 0;
  const int64_t left = job.to.inputs - first, size = left < job.to.group ? left : job.to.group;
  memcpy(part, job.x + column * job.to.inputs + first, size * sizeof(float));
  double total = 0;
  for (int64_t i = 0; i < size; i++) total += (double)part[i] * part[i];
  return total;
}

void store_group(int32_t kind, int32_t group, int32_t column, const int8_t *integers, uint8_t *data) {
  for (int32_t k = 0; k < group; k += 4) {
    uint8_t *to = data + (kind == SC_INT4 ? k / 8 : k / 4) * 64 + 4 * column;
    for (int32_t j = 0; j < 4; j++) {
      if (kind == SC_INT8)
        to[j] = (uint8_t)integers[k + j];
      else if (k & 4)
        to[j] |= (uint8_t)((integers[k + j] + 8) << 4);
      else
        to[j] = (uint8_t)(integers[k + j] + 8);
    }
  }
}

// The least bfloat16 that is not below.
float as_bfloat16_above(float x, uint8_t *stored) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  bits = (bits + 0xFFFF) & 0xFFFF0000u;
  stored[0] = (uint8_t)(bits >> 16), stored[1] = (uint8_t)(bits >> 24);
  memcpy(&x, &bits, 4);
  return x;
}

// One column of a block: a unit of which all its scales are multiples, then its groups.
void round_column(RoundingJob &job, int64_t block, int32_t column, std::vector<float> &fitting) {
  const ScLinear &to = job.to;
  const int64_t bytes = (int64_t)to.group * COLUMNS / (to.kind == SC_INT4 ? 2 : 1);
  uint8_t *scales = (uint8_t *)scales_of(to, block), *data = (uint8_t *)to.data + block * groups_of(to) * bytes;
  float part[K_BLOCK], largest = 0;
  for (size_t g = 0; g < fitting.size(); g++) {
    job.total[block] += load_group(job, block * COLUMNS + column, g * to.group, part);
    fitting[g] = job.kernels.fit(&job.how, part);
    if (std::fabs(fitting[g]) > largest) largest = std::fabs(fitting[g]);
  }
  const float most = job.how.factors[job.how.num_factors - 1];
  const float unit = as_bfloat16_above(largest * most / 127.f, scales + 2 * column);
  for (size_t g = 0; g < fitting.size(); g++) {
    int8_t integers[K_BLOCK], *multiple = (int8_t *)scales + (2 + g) * COLUMNS + column;
    load_group(job, block * COLUMNS + column, g * to.group, part);
    job.wrong[block] += job.kernels.round(&job.how, part, fitting[g], unit, integers, multiple);
    store_group(to.kind, to.group, column, integers, data + g * bytes);
  }
}

}  // namespace

extern "C" int32_t sc_quantize(const char *isa, int32_t threads, const ScLinear *to, const float *x,
                               int32_t num_factors, const float *factors, double *wrong, double *total) try {
  const int64_t blocks = (to->columns + COLUMNS - 1) / COLUMNS;
  threads = clamp_threads(threads);
  const std::vector<double> zeros(blocks);
  RoundingJob job{*kernels_named(isa), *to, {to->kind, to->group, num_factors, factors}, x, zeros, zeros,
                  std::vector<std::vector<float>>(threads, std::vector<float>(groups_of(*to)))};
  run_on_pool(nullptr, threads, [](void *context, Team &team) {
    RoundingJob &job = *(RoundingJob *)context;
    team.share(job.wrong.size(), 1, [&](int64_t block, int64_t) {
      for (int32_t column = 0; column < COLUMNS; column++) round_column(job, block, column, job.fitting[team.thread]);
    });
  }, &job);
  *wrong = *total = 0;
  for (int64_t block = 0; block < blocks; block++) *wrong += job.wrong[block], *total += job.total[block];
  return SC_OK;
} catch (const std::bad_alloc &) {
  return SC_NO_MEMORY;
} catch (...) {
  return SC_FAILED;
}

namespace {

constexpr int64_t CHECKED_BYTES = 1 << 20;

struct Check {
  const uint8_t *data;
  int64_t size_bytes;
  std::atomic<bool> is_broken;
};

// Neighbours are the two bytes of a 16-bit word; their sum is beyond 128 in size only where both have one sign.
bool is_kept(const uint8_t *data, int64_t size_bytes) {
  int16_t most = 0, least = 0;
  for (int64_t i = 0; i < size_bytes; i += 2) {
    const int16_t sum = (int16_t)((int8_t)data[i] + (int8_t)data[i + 1]);
    most = sum > most ? sum : most, least = sum < least ? sum : least;
  }
  return most <= 128 && least >= -128;
}

}  // namespace

extern "C" int32_t sc_keeps_promise(int32_t threads, const ScLinear *w) try {
  const int64_t blocks = (w->columns + COLUMNS - 1) / COLUMNS;
  Check check{(const uint8_t *)w->data, blocks * groups_of(*w) * w->group * COLUMNS, {false}};
  run_on_pool(nullptr, threads, [](void *context, Team &team) {
    Check &check = *(Check *)context;
    team.share((check.size_bytes + CHECKED_BYTES - 1) / CHECKED_BYTES, 1, [&](int64_t piece, int64_t) {
      const int64_t start = piece * CHECKED_BYTES, left = check.size_bytes - start;
      if (!is_kept(check.data + start, left < CHECKED_BYTES ? left : CHECKED_BYTES)) check.is_broken = true;
    });
  }, &check);
  return !check.is_broken;
} catch (...) {
  return SC_FAILED;
}
