// AVX2 and FMA: products of bytes through vpmaddubsw, summed in 16 bits as far as they fit.
#include <immintrin.h>

#include "kernels.h"

namespace {
constexpr int W = 8;
constexpr bool kBiased = true;
constexpr const char *kName = "avx2";
typedef float F __attribute__((vector_size(32)));
typedef int32_t I __attribute__((vector_size(32)));
constexpr int NV = COLUMNS / W;

inline F fma(F a, F b, F c) { return (F)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }

inline float top_of(F v) {
  __m128 top = _mm_max_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  top = _mm_max_ps(top, _mm_movehl_ps(top, top));
  return _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
}

// Minus 8 times the sum of a chunk of activations, as the sums of its products start: in two halves of 16 bits, of
// inputs 0 and 1 of every four and of inputs 2 and 3.
inline int32_t start_of(I v) {
  const int32_t low = v[0] + v[1] + v[4] + v[5], high = v[2] + v[3] + v[6] + v[7];
  return (int32_t)(((uint32_t)(-8 * low) & 0xFFFF) | (uint32_t)(-8 * high) << 16);
}

// Integers within a signed byte, to bytes.
inline void store_bytes(int8_t *to, I v, int8_t flip) {
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128((__m256i)v), _mm256_extracti128_si256((__m256i)v, 1));
  _mm_storel_epi64((__m128i *)to, _mm_xor_si128(_mm_packs_epi16(words, words), _mm_set1_epi8(flip)));
}

inline F load_bfloat16(const uint8_t *p) {
  return (F)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p)), 16);
}
inline __m256i load_bytes(const void *p) { return _mm256_loadu_si256((const __m256i *)p); }

inline __m256i four(const int8_t *a) {
  int32_t bits;
  __builtin_memcpy(&bits, a, 4);
  return _mm256_set1_epi32(bits);
}

// The compiler would reorder a chain of sums into a tree and run out of registers.
inline void keep_order(__m256i &sum) { asm("" : "+x"(sum)); }

// Signed multiples of eight columns, each twice: what 16-bit sums are multiplied with while pairs of them are added.
typedef __m256i M;
inline M load_multiples(const uint8_t *p) {
  const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p));
  return _mm256_blend_epi16(wide, _mm256_slli_epi32(wide, 16), 0xAA);
}

// Sums of one chunk in 16 bits, for R rows and 16 columns. They start at minus what the 8 of every nibble adds too much,
// so each stays a sum of 16 products within 8 * 127.
template <int R>
struct Short {
  __m256i s[R][2];
  INNER explicit Short(const int32_t *starts, int64_t stride) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) s[r][0] = s[r][1] = _mm256_set1_epi32(starts[r * stride]);
  }
  INNER void add(__m256i w0, __m256i w1, const int8_t *a) {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const __m256i x = four(a + r * K_BLOCK);
      s[r][0] = _mm256_add_epi16(s[r][0], _mm256_maddubs_epi16(w0, x));
      s[r][1] = _mm256_add_epi16(s[r][1], _mm256_maddubs_epi16(w1, x));
      keep_order(s[r][0]);
      keep_order(s[r][1]);
    }
  }
  INNER void widen(const M *m, I (&d)[R][NV]) const {
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      d[r][0] += (I)_mm256_madd_epi16(s[r][0], m[0]);
      d[r][1] += (I)_mm256_madd_epi16(s[r][1], m[1]);
    }
  }
};

template <int R>
INNER void add_int4(const uint8_t *w, const int8_t *a, const int32_t *starts, int64_t stride, const M *m, I (&d)[R][NV]) {
  const __m256i mask = _mm256_set1_epi8(15);
  Short<R> part(starts, stride);
#pragma GCC unroll 4
  for (int k = 0; k < CHUNK; k += 8, w += 64, a += 8) {
    _mm_prefetch((const char *)w + 2048, _MM_HINT_T0);
    const __m256i w0 = load_bytes(w), w1 = load_bytes(w + 32);
    part.add(_mm256_and_si256(w0, mask), _mm256_and_si256(w1, mask), a);
    const __m256i high0 = _mm256_and_si256(_mm256_srli_epi16(w0, 4), mask);
    const __m256i high1 = _mm256_and_si256(_mm256_srli_epi16(w1, 4), mask);
    part.add(high0, high1, a + 4);
  }
  part.widen(m, d);
}

// The compiler would keep these in registers and spill what the inner loop needs: a quarter of the speed.
template <int R>
INNER void in_memory(I (&d)[R][NV]) {
  asm("" : "+m"(d));
}

// The same with the nibbles already apart.
template <int R>
INNER void add_nibbles(const uint8_t *w, const int8_t *a, const int32_t *starts, int64_t stride, const M *m,
                       I (&d)[R][NV]) {
  in_memory(d);
  Short<R> part(starts, stride);
#pragma GCC unroll 8
  for (int k = 0; k < CHUNK; k += 4, w += 64) part.add(load_bytes(w), load_bytes(w + 32), a + k);
  in_memory(d);
  part.widen(m, d);
}

// Activations plus 128 times signed weights; the promise on neighbours keeps each pair within 16 bits.
template <int R>
INNER void add_int8(const uint8_t *w, const int8_t *a, const M *m, I (&d)[R][NV]) {
#pragma GCC unroll 2
  for (int k = 0; k < CHUNK; k += 4, w += 64) {
    _mm_prefetch((const char *)w + 2048, _MM_HINT_T0);
    const __m256i w0 = load_bytes(w), w1 = load_bytes(w + 32);
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const __m256i x = four(a + r * K_BLOCK + k);
      d[r][0] += (I)_mm256_madd_epi16(_mm256_maddubs_epi16(x, w0), m[0]);
      d[r][1] += (I)_mm256_madd_epi16(_mm256_maddubs_epi16(x, w1), m[1]);
    }
  }
}

// Minus 128 times the sums of weights: what the bias of activations adds too much.
INNER void sum_int8(const uint8_t *w, const M *m, I *s) {
  const __m256i ones = _mm256_set1_epi8(1);
  __m256i sum[2] = {_mm256_setzero_si256(), _mm256_setzero_si256()};
  for (int k = 0; k < CHUNK; k += 4, w += 64)
    for (int v = 0; v < 2; v++)
      sum[v] = _mm256_add_epi16(sum[v], _mm256_maddubs_epi16(ones, load_bytes(w + 32 * v)));
  for (int v = 0; v < 2; v++) s[v] -= (I)_mm256_slli_epi32(_mm256_madd_epi16(sum[v], m[v]), 7);
}

inline void unpack(const uint8_t *line, uint8_t *out) {
  const __m256i mask = _mm256_set1_epi8(15);
  for (int v = 0; v < 64; v += 32) {
    const __m256i w = load_bytes(line + v);
    _mm256_storeu_si256((__m256i *)(out + v), _mm256_and_si256(w, mask));
    _mm256_storeu_si256((__m256i *)(out + 64 + v), _mm256_and_si256(_mm256_srli_epi16(w, 4), mask));
  }
}

constexpr int T = 8;
inline void transpose(const float *const *rows, float *out, int64_t stride) {
  __m256 r[8], t[8];
  for (int i = 0; i < 8; i++) r[i] = _mm256_loadu_ps(rows[i]);
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; j++) {
      r[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      r[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xEE);
    }
  for (int j = 0; j < 4; j++) {
    _mm256_storeu_ps(out + j * stride, _mm256_permute2f128_ps(r[j], r[j + 4], 0x20));
    _mm256_storeu_ps(out + (j + 4) * stride, _mm256_permute2f128_ps(r[j], r[j + 4], 0x31));
  }
}
}  // namespace
