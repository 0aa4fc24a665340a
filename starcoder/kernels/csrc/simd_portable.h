// Plain C++ with the compiler's own vectors: runs anywhere, shows what the other variants must compute.
#include "kernels.h"

namespace {
constexpr int W = 4;  // floats in a vector
constexpr bool kBiased = false;
constexpr const char *kName = "portable";
typedef float F __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));
constexpr int NV = COLUMNS / W;

inline F fma(F a, F b, F c) { return a * b + c; }

inline float top_of(F v) {
  float top = v[0];
  for (int i = 1; i < W; i++) top = v[i] > top ? v[i] : top;
  return top;
}

// Minus 8 times the sum of a chunk of activations, as the sums of its products start.
inline int32_t start_of(I v) { return -8 * (v[0] + v[1] + v[2] + v[3]); }

// Integers within a signed byte, to bytes.
inline void store_bytes(int8_t *to, I v, int8_t flip) {
  for (int i = 0; i < W; i++) to[i] = (int8_t)(v[i] ^ flip);
}

inline F load_bfloat16(const uint8_t *p) {
  I bits;
  for (int i = 0; i < W; i++) bits[i] = (int32_t)((uint32_t)(p[2 * i] | p[2 * i + 1] << 8) << 16);
  return (F)bits;
}
typedef I M;  // multiples of columns
inline M load_multiples(const uint8_t *p) {
  M v;
  for (int i = 0; i < W; i++) v[i] = (int8_t)p[i];
  return v;
}

// Sums of one chunk, times multiples, for R rows and 16 columns. They start at minus what the 8 of every nibble adds too
// much.
template <int R>
INNER void add_int4(const uint8_t *w, const int8_t *a, const int32_t *starts, int64_t stride, const M *m, I (&d)[R][NV]) {
  for (int r = 0; r < R; r++)
    for (int c = 0; c < COLUMNS; c++) {
      int32_t sum = starts[r * stride];
      for (int k = 0; k < CHUNK; k++) {
        const int byte = w[k / 8 * 64 + 4 * c + k % 4];
        sum += (k & 4 ? byte >> 4 : byte & 15) * a[r * K_BLOCK + k];
      }
      d[r][c / W][c % W] += sum * m[c / W][c % W];
    }
}

// The same with the nibbles already apart.
template <int R>
INNER void add_nibbles(const uint8_t *w, const int8_t *a, const int32_t *starts, int64_t stride, const M *m,
                       I (&d)[R][NV]) {
  for (int r = 0; r < R; r++)
    for (int c = 0; c < COLUMNS; c++) {
      int32_t sum = starts[r * stride];
      for (int k = 0; k < CHUNK; k++) sum += w[k / 4 * 64 + 4 * c + k % 4] * a[r * K_BLOCK + k];
      d[r][c / W][c % W] += sum * m[c / W][c % W];
    }
}

template <int R>
INNER void add_int8(const uint8_t *w, const int8_t *a, const M *m, I (&d)[R][NV]) {
  for (int r = 0; r < R; r++)
    for (int c = 0; c < COLUMNS; c++) {
      int32_t sum = 0;
      for (int k = 0; k < CHUNK; k++) sum += (int8_t)w[k / 4 * 64 + 4 * c + k % 4] * a[r * K_BLOCK + k];
      d[r][c / W][c % W] += sum * m[c / W][c % W];
    }
}

INNER void sum_int8(const uint8_t *, const M *, I *) {}  // activations carry no bias here

inline void unpack(const uint8_t *line, uint8_t *out) {  // 8 inputs of 16 columns
  for (int i = 0; i < 64; i++) out[i] = line[i] & 15, out[64 + i] = line[i] >> 4;
}

constexpr int T = 4;
inline void transpose(const float *const *rows, float *out, int64_t stride) {
  for (int i = 0; i < T; i++)
    for (int j = 0; j < T; j++) out[j * stride + i] = rows[i][j];
}
}  // namespace
