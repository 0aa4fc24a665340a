// The plain C interface of the native library, as `starcoder/kernels/native.py` sees it through ctypes.
//
// Packed weights: 16 output columns side by side. One "line" holds the same few inputs of 16 columns:
//   int8  64 bytes = inputs k..k+3:  byte 4 c + j is input k + j of column c, signed
//   int4  64 bytes = inputs k..k+7:  low nibble of byte 4 c + j is input k + j of column c, high nibble k + 4 + j,
//                                    both plus 8
// A block of 16 columns is K / 4 (int8) or K / 8 (int4) lines, K rounded up to whole groups; blocks follow each other.
// Scales are bytes, too: a block has a bfloat16 unit for each of its 16 columns, then for each group a signed multiple of
// the unit for each column; a weight is integer x multiple x unit. Columns and inputs that pad are zero.
// int8 weights promise that two neighbours of one sign (inputs 2 i and 2 i + 1) add up to at most 128 in size: then
// 8-bit products sum in 16 bits without saturation on processors that have nothing better.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { SC_FLOAT32 = 1, SC_INT8 = 2, SC_INT4 = 3 };
enum { SC_LINEAR = 0, SC_GELU_TANH = 1, SC_GELU = 2, SC_SILU = 3 };
// What functions return: nothing is thrown across this interface. SC_BAD_INDEX: a token, position, row or block that the
// model or the cache does not have; nothing was written.
enum { SC_OK = 0, SC_NO_MEMORY = -1, SC_BAD_INDEX = -2, SC_FAILED = -3 };

typedef struct {
  int32_t kind, columns, inputs, group;  // columns: outputs; group: inputs per scale (32, 64 or 128)
  const void *data;                      // packed, or row-major floats [columns][inputs]
  const uint8_t *scales;                 // [block][2 + groups][16]
  const float *bias;  // or null
} ScLinear;

// A norm without bias is RMSNorm. `up` of a gated feed-forward has the gate's columns first, then those that it gates.
typedef struct {
  const float *norm1_weight, *norm1_bias, *norm2_weight, *norm2_bias;
  const float *q_norm, *k_norm;  // RMSNorm of each head before rotation, head_size weights; or null
  ScLinear qkv, out, up, down;
} ScBlock;

typedef struct {
  int32_t num_layers, hidden, inner, num_heads, num_kv_heads, head_size, window, activation, is_gated;
  float norm_eps, rotary_scale;  // of cosines and sines
  const float *frequencies;  // rotary, head_size / 2 of them; null: learned positions
  ScLinear embed, positions, head;
  const float *norm_weight, *norm_bias;
  const ScBlock *blocks;
} ScModel;

typedef struct {
  int32_t num_tokens, num_segments, num_rows, block_size, num_blocks, table_stride;
  const int32_t *tokens, *positions;  // positions: positions
  const int32_t *new_lens, *past_lens;     // per segment: new tokens and tokens before them
  const int32_t *tables;           // [segment][table_stride] block numbers
  float *keys, *values;            // [layer][block][block_size][kv heads][head_size]
  int64_t layer_stride;            // floats from one layer to the next
  const int32_t *rows;             // which tokens are wanted
  float *hidden;                   // [num_rows][hidden] after the last norm, or null
  float *logits;                   // [num_rows][vocabulary], or null
  int32_t *best;                   // [num_rows] where logits are largest, the first of equals; or null
} ScStep;

const char *sc_isa(int32_t index);     // names of the variants this processor runs, best first; null past the end
int32_t sc_abi(void);                  // from a hash of this header: whether a caller means the same fields
int32_t sc_threads(int32_t threads);   // what a request for that many threads gets
void *sc_workspace_new(void);
void sc_workspace_free(void *);
// y[rows][columns] = x[rows][inputs] W^T + bias.
int32_t sc_linear(void *workspace, const char *isa, int32_t threads, const ScLinear *, int32_t rows, const float *x,
                  float *y);
// Whole rows of a table back to floats.
int32_t sc_lookup(const ScLinear *, int32_t rows, const int32_t *which, float *y);
// Whether int8 weights keep their promise: 1 or 0.
int32_t sc_keeps_promise(int32_t threads, const ScLinear *);
int32_t sc_step(void *workspace, const char *isa, int32_t threads, const ScModel *, const ScStep *);
// Rounds x[columns][inputs] and packs it as `to` says. `factors`, ascending: of the scale that holds each group's
// largest weight, those to try; the one with the least squared error is kept. wrong, total: squared error, squared weights.
int32_t sc_quantize(const char *isa, int32_t threads, const ScLinear *to, const float *x, int32_t num_factors,
                    const float *factors, double *wrong, double *total);
// Bytes read over seconds by the same threads that run the kernels.
double sc_bandwidth(int32_t threads, const void *data, int64_t size_bytes);

#ifdef __cplusplus
}
#endif
