// Shingles of source text, their MinHash signature, and the size of two sets' intersection.
//
// shingles.py has the same in numpy, with the same results to the bit; it says what a token is.

#include <algorithm>
#include <cstdint>
#include <vector>

namespace {

constexpr uint64_t kByte = 0x9E3779B97F4A7C15;   // odd, so that numpy can divide by its powers
constexpr uint64_t kToken = 0xD6E8FEB86659FD93;  // odd
constexpr uint64_t kMix = 0xFF51AFD7ED558CCD;

inline uint64_t mixed(uint64_t x) {
  x = (x ^ (x >> 32)) * kMix;
  x = (x ^ (x >> 29)) * kMix;
  return x ^ (x >> 32);
}

inline bool is_word(uint8_t c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' || c >= 0x80;
}

// Each permutation is x -> multiplier x + offset modulo 2^32, with an odd multiplier.
inline __attribute__((always_inline)) void sign(const uint32_t* shingles, int64_t count,
                                                const uint32_t* multipliers, const uint32_t* offsets,
                                                int32_t permutations, uint32_t* signature) {
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t x = shingles[i];
    for (int32_t p = 0; p < permutations; ++p)
      signature[p] = std::min(signature[p], x * multipliers[p] + offsets[p]);
  }
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) void sign_avx2(const uint32_t* s, int64_t n, const uint32_t* m,
                                               const uint32_t* o, int32_t p, uint32_t* out) {
  sign(s, n, m, o, p, out);
}
#endif

}  // namespace

extern "C" {

// Writes the sorted set of shingle hashes to `out`, room for (size + 1) / 2, and returns how many there are.
int64_t sc_shingles(const uint8_t* text, int64_t size, int32_t length, uint32_t* out) {
  std::vector<uint64_t> tokens;
  for (int64_t i = 0; i < size;) {
    if (!is_word(text[i])) {
      ++i;
      continue;
    }
    uint64_t sum = 0, power = 1;
    for (; i < size && is_word(text[i]); ++i, power *= kByte) sum += (uint64_t(text[i]) + 1) * power;
    tokens.push_back(mixed(sum));
  }
  const int64_t count = int64_t(tokens.size()) - length + 1;
  if (count <= 0) return 0;
  for (int64_t i = 0; i < count; ++i) {
    uint64_t sum = 0, power = 1;
    for (int32_t k = 0; k < length; ++k, power *= kToken) sum += tokens[i + k] * power;
    out[i] = uint32_t(mixed(sum) >> 32);
  }
  std::sort(out, out + count);
  return std::unique(out, out + count) - out;
}

// `signature` holds the largest uint32 everywhere when this begins.
void sc_signature(const uint32_t* shingles, int64_t count, const uint32_t* multipliers,
                  const uint32_t* offsets, int32_t permutations, uint32_t* signature) {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx2"))
    return sign_avx2(shingles, count, multipliers, offsets, permutations, signature);
#endif
  sign(shingles, count, multipliers, offsets, permutations, signature);
}

// How many values each of `others` has in common with set `one`; set i is pool[bounds[i]..bounds[i + 1]).
void sc_common(const uint32_t* pool, const int64_t* bounds, int64_t one, const int64_t* others, int64_t num,
               int64_t* out) {
  for (int64_t k = 0; k < num; ++k) {
    const uint32_t *a = pool + bounds[one], *a_end = pool + bounds[one + 1];
    const uint32_t *b = pool + bounds[others[k]], *b_end = pool + bounds[others[k] + 1];
    int64_t common = 0;
    while (a != a_end && b != b_end) {
      const uint32_t x = *a, y = *b;
      common += x == y;
      a += x <= y;
      b += y <= x;
    }
    out[k] = common;
  }
}

}  // extern "C"
