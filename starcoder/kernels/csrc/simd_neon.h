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
inline int32_t total_of(I v) { return vaddvq_s32((int32x4_t)v); }

// Integers within a signed byte, to bytes.
inline void store_bytes(int8_t *to, I v, int8_t flip) {
  for (int i = 0; i < W; i++) to[i] = (int8_t)(v[i] ^ flip);
}

inline F load_bfloat16(const uint8_t *p) { return (F)vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16); }
inline F load_signed(const uint8_t *p) {
  return F{(float)(int8_t)p[0], (float)(int8_t)p[1], (float)(int8_t)p[2], (float)(int8_t)p[3]};
}

inline int8x16_t four(const int8_t *a) {
  int32_t bits;
  __builtin_memcpy(&bits, a, 4);
  return vreinterpretq_s8_s32(vdupq_n_s32(bits));
}

inline I dot(I sum, int8x16_t w, int8x16_t a) { return (I)vdotq_s32((int32x4_t)sum, w, a); }

template <int R>
INNER void dot_int4(const uint8_t *w, const int8_t *a, int64_t stride, int inputs, I (&d)[R][NV]) {
  const uint8x16_t mask = vdupq_n_u8(15);
  for (int k = 0; k < inputs; k += 8, w += 64)
    for (int v = 0; v < NV; v++) {
      const uint8x16_t bytes = vld1q_u8(w + 16 * v);
      const int8x16_t low = vreinterpretq_s8_u8(vandq_u8(bytes, mask));
      const int8x16_t high = vreinterpretq_s8_u8(vshrq_n_u8(bytes, 4));
      for (int r = 0; r < R; r++)
        d[r][v] = dot(dot(d[r][v], low, four(a + r * stride + k)), high, four(a + r * stride + k + 4));
    }
}

template <int R>
INNER void dot_bytes(const uint8_t *w, const int8_t *a, int64_t stride, int inputs, I (&d)[R][NV]) {
  for (int k = 0; k < inputs; k += 4, w += 64)
    for (int v = 0; v < NV; v++) {
      const int8x16_t bytes = vreinterpretq_s8_u8(vld1q_u8(w + 16 * v));
      for (int r = 0; r < R; r++) d[r][v] = dot(d[r][v], bytes, four(a + r * stride + k));
    }
}

template <int R>
INNER void dot_int8(const uint8_t *w, const int8_t *a, int64_t stride, int inputs, I (&d)[R][NV]) {
  dot_bytes<R>(w, a, stride, inputs, d);
}

INNER void sum_int8(const uint8_t *, int, I (&s)[NV]) {  // activations carry no bias here
  for (int v = 0; v < NV; v++) s[v] = I{};
}

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
