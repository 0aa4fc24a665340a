// 64-bit ARM with the dot product extension: four signed products of bytes summed into 32 bits.
#include <arm_neon.h>

#include "kernels.h"

namespace {
constexpr int W = 4;
constexpr bool kBiased = false;
constexpr const char *kName = "neon_dotprod";
typedef float F __attribute__((vector_size(16)));
typedef int32_t I __attribute__((vector_size(16)));
constexpr int NV = COLUMNS / W;

inline F fma(F a, F b, F c) { return (F)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }

inline float top_of(F v) { return vmaxvq_f32((float32x4_t)v); }
// Minus 8 times the sum of a chunk of activations, as the sums of its products start.
inline int32_t start_of(I v) { return -8 * vaddvq_s32((int32x4_t)v); }

// Integers within a signed byte, to bytes.
inline void store_bytes(int8_t *to, I v, int8_t flip) {
  for (int i = 0; i < W; i++) to[i] = (int8_t)(v[i] ^ flip);
}

inline F load_bfloat16(const uint8_t *p) { return (F)vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16); }
typedef I M;  // multiples of columns
inline M load_multiples(const uint8_t *p) { return M{(int8_t)p[0], (int8_t)p[1], (int8_t)p[2], (int8_t)p[3]}; }

inline int8x16_t four(const int8_t *a) {
  int32_t bits;
  __builtin_memcpy(&bits, a, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(bits));
}

inline I dot(I sum, int8x16_t w, int8x16_t a) { return (I)vdotq_s32((int32x4_t)sum, w, a); }

// Sums of one chunk, times multiples, for R rows and 16 columns. They start at minus what the 8 of every nibble adds too
// much.
template <int R>
INNER void add_int4(const uint8_t *w, const int8_t *a, const int32_t *starts, int64_t stride, const M *m, I (&d)[R][NV]) {
  const uint8x16_t mask = vdupq_n_u8(15);
  for (int v = 0; v < NV; v++) {
    I sum[R];
    for (int r = 0; r < R; r++) sum[r] = (I)vdupq_n_s32(starts[r * stride]);
    for (int k = 0; k < CHUNK; k += 8) {
      const uint8x16_t bytes = vld1q_u8(w + k * 8 + 16 * v);
      const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(bytes, mask));
      const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
      for (int r = 0; r < R; r++)
        sum[r] = dot(dot(sum[r], low, four(a + r * K_BLOCK + k)), high, four(a + r * K_BLOCK + k + 4));
    }
    for (int r = 0; r < R; r++) d[r][v] += sum[r] * m[v];
  }
}

// Bytes of weights, from what each row starts with.
template <int R>
INNER void add_bytes(const uint8_t *w, const int8_t *a, const int32_t *starts, int64_t stride, const M *m,
                     I (&d)[R][NV]) {
  for (int v = 0; v < NV; v++) {
    I sum[R];
    for (int r = 0; r < R; r++) sum[r] = (I)vdupq_n_s32(starts[r * stride]);
    for (int k = 0; k < CHUNK; k += 4) {
      const int8x16_t bytes = vreinterpretq_s8_u8(vld1q_u8(w + k * 16 + 16 * v));
      for (int r = 0; r < R; r++) sum[r] = dot(sum[r], bytes, four(a + r * K_BLOCK + k));
    }
    for (int r = 0; r < R; r++) d[r][v] += sum[r] * m[v];
  }
}

// As add_int4 with the nibbles already apart.
template <int R>
INNER void add_nibbles(const uint8_t *w, const int8_t *a, const int32_t *starts, int64_t stride, const M *m,
                       I (&d)[R][NV]) {
  add_bytes<R>(w, a, starts, stride, m, d);
}

template <int R>
INNER void add_int8(const uint8_t *w, const int8_t *a, const M *m, I (&d)[R][NV]) {
  const int32_t zeros[R] = {0};
  add_bytes<R>(w, a, zeros, 1, m, d);
}

INNER void sum_int8(const uint8_t *, const M *, I *) {}  // activations carry no bias here

inline void unpack(const uint8_t *line, uint8_t *out) {
  for (int v = 0; v < 64; v += 16) {
    const uint8x16_t bytes = vld1q_u8(line + v);
    vst1q_u8(out + v, vandq_u8(bytes, vdupq_n_u8(15)));
    vst1q_u8(out + 64 + v, vshrq_n_u8(bytes, 4));
  }
}

constexpr int T = 4;
inline void transpose(const float *const *rows, float *out, int64_t stride) {
  for (int i = 0; i < T; i++)
    for (int j = 0; j < T; j++) out[j * stride + i] = rows[i][j];
}
}  // namespace
