// AVX-512 with VNNI: four products of bytes summed into 32 bits by one instruction.
#include <immintrin.h>

#include "kernels.h"

namespace {
constexpr int W = 16;
constexpr bool kBiased = true;
constexpr const char *kName = "avx512_vnni";
typedef float F __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
constexpr int NV = COLUMNS / W;

inline F fma(F a, F b, F c) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }

inline float top_of(F v) { return _mm512_reduce_max_ps((__m512)v); }
// Minus 8 times the sum of a chunk of activations, as the sums of its products start.
inline int32_t start_of(I v) { return -8 * _mm512_reduce_add_epi32((__m512i)v); }

// Integers within a signed byte, to bytes.
inline void store_bytes(int8_t *to, I v, int8_t flip) {
  _mm_storeu_si128((__m128i *)to, _mm_xor_si128(_mm512_cvtepi32_epi8((__m512i)v), _mm_set1_epi8(flip)));
}

inline F load_bfloat16(const uint8_t *p) {
  return (F)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16);
}
typedef I M;  // multiples of columns
inline M load_multiples(const uint8_t *p) { return (M)_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)); }

inline __m512i four(const int8_t *a) {
  int32_t bits;
  __builtin_memcpy(&bits, a, 4);
  return _mm512_set1_epi32(bits);
}

// Sums of one chunk, times multiples, for R rows and 16 columns. They start at minus what the 8 of every nibble adds too
// much.
template <int R>
INNER void add_int4(const uint8_t *w, const int8_t *a, const int32_t *starts, int64_t stride, const M *m, I (&d)[R][NV]) {
  const __m512i mask = _mm512_set1_epi8(15);
  __m512i sum[R];
  for (int r = 0; r < R; r++) sum[r] = _mm512_set1_epi32(starts[r * stride]);
  for (int k = 0; k < CHUNK; k += 8, w += 64) {
    _mm_prefetch((const char *)w + 2048, _MM_HINT_T0);
    const __m512i line = _mm512_loadu_si512(w), low = _mm512_and_si512(line, mask);
    const __m512i high = _mm512_and_si512(_mm512_srli_epi16(line, 4), mask);
    for (int r = 0; r < R; r++) {
      sum[r] = _mm512_dpbusd_epi32(sum[r], low, four(a + r * K_BLOCK + k));
      sum[r] = _mm512_dpbusd_epi32(sum[r], high, four(a + r * K_BLOCK + k + 4));
    }
  }
  for (int r = 0; r < R; r++) d[r][0] += (I)sum[r] * m[0];
}

// The same with the nibbles already apart.
template <int R>
INNER void add_nibbles(const uint8_t *w, const int8_t *a, const int32_t *starts, int64_t stride, const M *m,
                       I (&d)[R][NV]) {
  __m512i sum[R];
  for (int r = 0; r < R; r++) sum[r] = _mm512_set1_epi32(starts[r * stride]);
  for (int k = 0; k < CHUNK; k += 4, w += 64) {
    const __m512i line = _mm512_loadu_si512(w);
    for (int r = 0; r < R; r++) sum[r] = _mm512_dpbusd_epi32(sum[r], line, four(a + r * K_BLOCK + k));
  }
  for (int r = 0; r < R; r++) d[r][0] += (I)sum[r] * m[0];
}

// Activations plus 128 times signed weights.
template <int R>
INNER void add_int8(const uint8_t *w, const int8_t *a, const M *m, I (&d)[R][NV]) {
  __m512i sum[R];
  for (int r = 0; r < R; r++) sum[r] = _mm512_setzero_si512();
  for (int k = 0; k < CHUNK; k += 4, w += 64) {
    _mm_prefetch((const char *)w + 2048, _MM_HINT_T0);
    const __m512i line = _mm512_loadu_si512(w);
    for (int r = 0; r < R; r++) sum[r] = _mm512_dpbusd_epi32(sum[r], four(a + r * K_BLOCK + k), line);
  }
  for (int r = 0; r < R; r++) d[r][0] += (I)sum[r] * m[0];
}

// Minus 128 times the sums of weights: what the bias of activations adds too much.
INNER void sum_int8(const uint8_t *w, const M *m, I *s) {
  __m512i sum = _mm512_setzero_si512();
  for (int k = 0; k < CHUNK; k += 4, w += 64)
    sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(1), _mm512_loadu_si512(w));
  s[0] -= (I)sum * m[0] * 128;
}

inline void unpack(const uint8_t *line, uint8_t *out) {
  const __m512i mask = _mm512_set1_epi8(15), w = _mm512_loadu_si512(line);
  _mm512_storeu_si512(out, _mm512_and_si512(w, mask));
  _mm512_storeu_si512(out + 64, _mm512_and_si512(_mm512_srli_epi16(w, 4), mask));
}

constexpr int T = 4;
inline void transpose(const float *const *rows, float *out, int64_t stride) {
  __m128 r[4];
  for (int i = 0; i < 4; i++) r[i] = _mm_loadu_ps(rows[i]);
  _MM_TRANSPOSE4_PS(r[0], r[1], r[2], r[3]);
  for (int i = 0; i < 4; i++) _mm_storeu_ps(out + i * stride, r[i]);
}
}  // namespace
