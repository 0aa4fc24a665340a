// AVX-512 intrinsics in plain C++ through SIMDe, for processors without them; what SIMDe lacks is written out.
#pragma once
#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>
#include <string.h>

static inline __m512i _mm512_cvtepu16_epi32(__m256i from) {
  uint16_t in[16];
  int32_t out[16];
  memcpy(in, &from, sizeof in);
  for (int i = 0; i < 16; i++) out[i] = in[i];
  return _mm512_loadu_si512(out);
}
static inline __m512i _mm512_cvtepi8_epi32(__m128i from) {
  int8_t in[16];
  int32_t out[16];
  memcpy(in, &from, sizeof in);
  for (int i = 0; i < 16; i++) out[i] = in[i];
  return _mm512_loadu_si512(out);
}
static inline __m128i _mm512_cvtepi32_epi8(__m512i from) {
  int32_t in[16];
  int8_t out[16];
  memcpy(in, &from, sizeof in);
  for (int i = 0; i < 16; i++) out[i] = (int8_t)in[i];
  return _mm_loadu_si128((const __m128i *)out);
}
static inline float _mm512_reduce_max_ps(__m512 from) {
  float in[16], top;
  memcpy(in, &from, sizeof in);
  top = in[0];
  for (int i = 1; i < 16; i++) top = in[i] > top ? in[i] : top;
  return top;
}
static inline int _mm512_reduce_add_epi32(__m512i from) {
  int32_t in[16], sum = 0;
  memcpy(in, &from, sizeof in);
  for (int i = 0; i < 16; i++) sum += in[i];
  return sum;
}
