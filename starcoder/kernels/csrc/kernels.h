// What one instruction-set variant offers to the step: a table of functions over plain arrays.
#pragma once
#include "starcoder.h"

// Inner loops: their arrays live in registers only when nothing is called.
#define INNER inline __attribute__((always_inline))

// Inputs of a k-block are kept together, so that a panel of weights meets them in order.
constexpr int32_t K_BLOCK = 256;
constexpr int32_t COLUMNS = 16;       // of one packed block
constexpr int32_t CHUNK = 32;         // inputs that are multiplied at once
constexpr int32_t ROUNDED = 128;      // activations that share a scale
constexpr int32_t SPLIT = 128;        // keys summed at once; the order of sums depends on nothing else
constexpr int32_t DIRECT_ROWS = 8;    // up to here weights are unpacked in registers, beyond into a panel

// Rows of activations as a linear wants them. Float: x alone. Quantized: [k-block][row][K_BLOCK] integers and
// [k-block][row][K_BLOCK / ROUNDED] scales, and for int4 [k-block][row][K_BLOCK / CHUNK] where sums of products start.
struct Activations {
  int32_t rows;
  int64_t stride;  // floats from one row of x to the next
  const float *x;
  int8_t *integers;
  float *scales;
  int32_t *starts;
};

struct Epilogue {
  float *y;          // [row][stride]
  int64_t stride;
  int32_t activation;  // SC_LINEAR and so on
  bool add;          // y += instead of y =
};

// A tile of queries that share keys and values: `rows` queries of one segment and one key/value head.
struct Queries {
  int32_t rows, heads, first, window, head_size;  // query r is at position first + r / heads
  int64_t key_stride;                             // floats from one position to the next
  const float *q;                                 // [rows][head_size], scaled
  const float *keys, *values;                     // of this layer and head
  const int32_t *table;
  int32_t block_size;
};

struct Partial {  // softmax over some keys: weights exp(score - top), their total, and the weighted values
  float *top, *total, *out;  // [rows], [rows], [rows][head_size]
};

struct Rounding {  // how groups of weights become integers
  int32_t kind, group, num_factors;
  const float *factors;
};

// Static: shared between variants, one's instructions would run in another.
static inline int64_t groups_of(const ScLinear &w) { return (w.inputs + w.group - 1) / w.group; }

// Of a block: units of its columns, then multiples of them for each group.
static inline const uint8_t *scales_of(const ScLinear &w, int64_t block) {
  return w.scales + block * (2 + groups_of(w)) * COLUMNS;
}

struct Kernels {
  const char *name;
  // int8 rows are stored plus 128 where the processor multiplies unsigned by signed
  void (*quantize)(const float *x, int32_t kind, int32_t inputs, const Activations *, int32_t row);
  void (*linear)(const ScLinear *, const Activations *, int32_t block, int32_t end, const Epilogue *, float *scratch);
  void (*norm)(const float *x, const float *weight, const float *bias, float eps, int32_t size, float *y);
  // y = activation(gate) * up
  void (*gate)(const float *gate, const float *up, int32_t activation, int32_t size, float *y);
  void (*attend)(const Queries *, int32_t split, const Partial *, float *scratch);
  // The scale that holds one group of weights.
  float (*fit)(const Rounding *, const float *x);
  // One group of weights of that scale; returns its squared error.
  float (*round)(const Rounding *, const float *x, float fitting, float unit, int8_t *integers, int8_t *multiple);
  void (*merge)(int32_t rows, int32_t head_size, const Partial *into, const Partial *from);
};

inline int64_t linear_scratch(int32_t rows) { return (int64_t)(rows + 4) * COLUMNS + 2 * K_BLOCK * COLUMNS; }
inline int64_t attend_scratch(int32_t rows, int32_t head_size) {
  const int64_t padded = (head_size + COLUMNS - 1) / COLUMNS * COLUMNS;
  return (int64_t)(rows + 2) * SPLIT + 2 * padded * SPLIT + (rows + 2) * padded;
}
const Kernels *portable_kernels();
const Kernels *avx2_kernels();
const Kernels *avx512_kernels();
const Kernels *neon_kernels();
