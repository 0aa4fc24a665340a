// Weights to integers: every group finds its scale, and blocks of 16 columns are packed as `starcoder.h` says.
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
  std::vector<double> wrong, total;  // of each block
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

void round_block(RoundingJob &job, int64_t block) {
  const ScLinear &to = job.to;
  const int64_t groups = (to.inputs + to.group - 1) / to.group;
  const int64_t bytes = (int64_t)to.group * COLUMNS / (to.kind == SC_INT4 ? 2 : 1);
  for (int64_t g = 0; g < groups; g++)
    for (int32_t column = 0; column < COLUMNS; column++) {
      float part[K_BLOCK];
      int8_t integers[K_BLOCK];
      const int64_t at = block * groups + g;
      job.total[block] += load_group(job, block * COLUMNS + column, g * to.group, part);
      uint16_t *scale = (uint16_t *)to.scales + at * COLUMNS + column;
      job.wrong[block] += job.kernels.round(&job.how, part, integers, scale);
      store_group(to.kind, to.group, column, integers, (uint8_t *)to.data + at * bytes);
    }
}

}  // namespace

extern "C" int32_t sc_quantize(const char *isa, int32_t threads, const ScLinear *to, const float *x,
                               int32_t num_factors, const float *factors, double *wrong, double *total) try {
  const int64_t blocks = (to->columns + COLUMNS - 1) / COLUMNS;
  const std::vector<double> zeros(blocks);
  RoundingJob job{*kernels_named(isa), *to, {to->kind, to->group, num_factors, factors}, x, zeros, zeros};
  run_on_pool(threads, [](void *context, Team &team) {
    RoundingJob &job = *(RoundingJob *)context;
    team.share(job.wrong.size(), 1, [&](int64_t block, int64_t) { round_block(job, block); });
  }, &job);
  *wrong = *total = 0;
  for (int64_t block = 0; block < blocks; block++) *wrong += job.wrong[block], *total += job.total[block];
  return 0;
} catch (const std::bad_alloc &) {
  return -1;
}
