// The kernels over one variant's vectors: include a simd_*.h first, then this. Nothing here may call the standard
// library's templates: their code would be shared between variants.
#include <math.h>
#include <string.h>

namespace {

typedef int8_t B __attribute__((vector_size(W)));

inline F load(const float *p) {
  F v;
  memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float *p, F v) { memcpy(p, &v, sizeof v); }
inline F spread(float x) { return x - F{}; }
inline I spread_int(int32_t x) { return x - I{}; }
inline F to_float(I v) { return __builtin_convertvector(v, F); }
inline F larger(F a, F b) { return a > b ? a : b; }
inline F smaller(F a, F b) { return a < b ? a : b; }
inline float sum_of(F v) {
  float sum = 0;
  for (int i = 0; i < W; i++) sum += v[i];
  return sum;
}
template <class X>
inline X least(X a, X b) {
  return a < b ? a : b;
}

// Adding and taking away 1.5 * 2^23 leaves the nearest integer.
inline F nearest(F x) { return (x + spread(12582912.f)) - spread(12582912.f); }

// e^x within 2e-7 of the value. Source: Cephes `expf.c`.
inline F exponential(F x) {
  x = smaller(larger(x, spread(-87.f)), spread(88.f));
  const F n = nearest(x * spread(1.44269504088896341f));
  const F f = fma(n, spread(2.12194440e-4f), fma(n, spread(-0.693359375f), x));
  F p = spread(1.9875691500e-4f);
  p = fma(p, f, spread(1.3981999507e-3f));
  p = fma(p, f, spread(8.3334519073e-3f));
  p = fma(p, f, spread(4.1665795894e-2f));
  p = fma(p, f, spread(1.6666665459e-1f));
  p = fma(p, f, spread(5.0000001201e-1f));
  p = fma(p, f * f, f) + spread(1.f);
  const I power = (__builtin_convertvector(n, I) + spread_int(127)) << 23;
  return p * (F)power;
}

inline F gelu_tanh(F x) {
  const F cube = x * x * x;
  const F u = spread(1.5957691216057308f) * fma(spread(0.044715f), cube, x);  // 2 sqrt(2 / pi) (x + ...)
  return x / (spread(1.f) + exponential(-u));
}

// 0.5 x (1 + erf(x / sqrt 2)), erf within 1.5e-7. Source: Abramowitz and Stegun 7.1.26.
inline F gelu_erf(F x) {
  const F z = x * spread(0.70710678118654752f), size = z < spread(0.f) ? -z : z;
  const F t = spread(1.f) / fma(spread(0.3275911f), size, spread(1.f));
  F p = spread(1.061405429f);
  p = fma(p, t, spread(-1.453152027f));
  p = fma(p, t, spread(1.421413741f));
  p = fma(p, t, spread(-0.284496736f));
  p = fma(p, t, spread(0.254829592f));
  const F tail = p * t * exponential(-size * size);  // 1 - erf(size)
  const F twice = z < spread(0.f) ? tail : spread(2.f) - tail;
  return spread(0.5f) * x * twice;
}

inline F silu(F x) { return x / (spread(1.f) + exponential(-x)); }

INNER F activated(F x, int32_t activation) {
  if (activation == SC_GELU_TANH) return gelu_tanh(x);
  if (activation == SC_GELU) return gelu_erf(x);
  return activation == SC_SILU ? silu(x) : x;
}

// ROUNDED numbers at x that share a scale.
inline void quantize_part(const float *x, int8_t flip, int8_t *to, float *stored_scale, int32_t *starts) {
  F top = F{};
  for (int i = 0; i < ROUNDED; i += W) {
    const F v = load(x + i);
    top = larger(top, larger(v, -v));
  }
  const float scale = top_of(top) * (1.f / 127.f);
  const F inverse = spread(scale > 0 ? 1.f / scale : 0.f);
  for (int chunk = 0; chunk < ROUNDED; chunk += CHUNK) {
    I total = I{};
    for (int i = chunk; i < chunk + CHUNK; i += W) {
      // A scale too small to invert overflows: keep within the range that integers promise.
      const F v = smaller(larger(nearest(load(x + i) * inverse), spread(-127.f)), spread(127.f));
      const I q = __builtin_convertvector(v, I);
      total += q;
      store_bytes(to + i, q, flip);
    }
    starts[chunk / CHUNK] = start_of(total);
  }
  *stored_scale = scale;
}

void quantize(const float *x, int32_t kind, int32_t inputs, const Activations *out, int32_t row) {
  const int8_t flip = kind == SC_INT8 && kBiased ? -128 : 0;  // adds 128
  for (int32_t k = 0; k < inputs; k += ROUNDED) {
    const int64_t at = ((int64_t)(k / K_BLOCK) * out->rows + row) * K_BLOCK + k % K_BLOCK;
    const float *from = x + k;
    float part[ROUNDED];
    if (k + ROUNDED > inputs) {
      memset(part, 0, sizeof part);
      memcpy(part, from, (inputs - k) * sizeof(float));
      from = part;
    }
    quantize_part(from, flip, out->integers + at, out->scales + at / ROUNDED, out->starts + at / CHUNK);
  }
}

inline void finish(const ScLinear *w, const Epilogue *to, int32_t block, int32_t row, const F *unit, const float *c) {
  const int32_t column = block * COLUMNS, count = least(COLUMNS, w->columns - column);
  alignas(64) float out[COLUMNS], bias[COLUMNS] = {0};
  float *y = to->y + row * to->stride + column;
  if (w->bias) memcpy(bias, w->bias + column, count * sizeof(float));
  for (int v = 0; v < COLUMNS; v += W) {
    F t = fma(load(c + v), unit[v / W], load(bias + v));
    store(out + v, to->activation == SC_LINEAR ? t : activated(t, to->activation));
  }
  if (to->add)
    for (int i = 0; i < count; i++) y[i] += out[i];
  else
    memcpy(y, out, count * sizeof(float));
}

// c[R][16] += sums of one part, in the one order that all row counts share.
template <int R>
INNER void add_part(float *c, const I (&d)[R][NV], const float *scales) {
  for (int r = 0; r < R; r++) {
    const F scale = spread(scales[r * (K_BLOCK / ROUNDED)]);
    for (int v = 0; v < NV; v++) {
      float *to = c + r * COLUMNS + v * W;
      store(to, fma(to_float(d[r][v]), scale, load(to)));
    }
  }
}

// A chunk of packed weights: int4 has half a byte for each.
inline int64_t chunk_bytes(const ScLinear *w) { return CHUNK * COLUMNS / (w->kind == SC_INT4 ? 2 : 1); }
inline const uint8_t *data_of(const ScLinear *w, int32_t block, int32_t chunk) {
  return (const uint8_t *)w->data + (block * groups_of(*w) * (w->group / CHUNK) + chunk) * chunk_bytes(w);
}

struct Scales {  // of a block
  const uint8_t *multiples;
  const int32_t chunks;  // that share a multiple
  F unit[NV];
  INNER Scales(const ScLinear *w, int32_t block)
      : multiples(scales_of(*w, block) + 2 * COLUMNS), chunks(w->group / CHUNK) {
    for (int v = 0; v < NV; v++) unit[v] = load_bfloat16(multiples + (v * W - COLUMNS) * 2);
  }
  INNER void of_chunk(int32_t chunk, M *m) const {
    for (int v = 0; v < NV; v++) m[v] = load_multiples(multiples + chunk / chunks * COLUMNS + v * W);
  }
};

constexpr int64_t AHEAD = 2048;  // bytes: half a page, for the processor's own prefetching ends with the page

// A few rows: weights stream once through registers.
template <int R>
void direct(const ScLinear *w, const Activations *x, int32_t block, int32_t row, const Epilogue *to) {
  alignas(64) float c[R * COLUMNS] = {0};
  const Scales scales(w, block);
  const int32_t chunks = groups_of(*w) * scales.chunks;
  const uint8_t *data = data_of(w, block, 0);
  const int64_t step = chunk_bytes(w);
  for (int32_t first = 0; first < chunks; first += ROUNDED / CHUNK) {
    const int32_t k = first * CHUNK, end = least(chunks, first + ROUNDED / CHUNK);
    const int64_t at = ((int64_t)(k / K_BLOCK) * x->rows + row) * K_BLOCK + k % K_BLOCK;
    const int8_t *a = x->integers + at;
    const int32_t *starts = x->starts + at / CHUNK;
    I d[R][NV] = {}, s[NV] = {};
    for (int32_t chunk = first; chunk < end; chunk++, a += CHUNK, starts++, data += step) {
      for (int64_t ahead = AHEAD; ahead < AHEAD + step; ahead += 64) __builtin_prefetch(data + ahead);
      M m[NV];
      scales.of_chunk(chunk, m);
      if (w->kind == SC_INT4) {
        add_int4<R>(data, a, starts, K_BLOCK / CHUNK, m, d);
      } else {
        sum_int8(data, m, s);
        add_int8<R>(data, a, m, d);
      }
    }
    for (int r = 0; r < R; r++)
      for (int v = 0; v < NV; v++) d[r][v] += s[v];
    add_part<R>(c, d, x->scales + at / ROUNDED);
  }
  for (int r = 0; r < R; r++) finish(w, to, block, row + r, scales.unit, c + r * COLUMNS);
}

struct Panel {  // the weights of one block and k-block, ready for many rows
  alignas(64) uint8_t bytes[K_BLOCK * COLUMNS];
  M multiples[K_BLOCK / CHUNK][NV];
  I sums[K_BLOCK / ROUNDED][NV];
};

template <int R>
void many(const ScLinear *w, const Activations *x, const Panel *panel, const uint8_t *data, int32_t k_block,
          int32_t chunks, int32_t row, float *c) {
  const int64_t at = ((int64_t)k_block * x->rows + row) * K_BLOCK;
  for (int32_t first = 0; first < chunks; first += ROUNDED / CHUNK) {
    const int32_t end = least(chunks, first + ROUNDED / CHUNK);
    I d[R][NV];
    for (int r = 0; r < R; r++)
      for (int v = 0; v < NV; v++) d[r][v] = panel->sums[first * CHUNK / ROUNDED][v];
    for (int32_t chunk = first; chunk < end; chunk++) {
      const int8_t *a = x->integers + at + chunk * CHUNK;
      const uint8_t *from = data + chunk * CHUNK * COLUMNS;
      if (w->kind == SC_INT4)
        add_nibbles<R>(from, a, x->starts + at / CHUNK + chunk, K_BLOCK / CHUNK, panel->multiples[chunk], d);
      else
        add_int8<R>(from, a, panel->multiples[chunk], d);
    }
    add_part<R>(c, d, x->scales + at / ROUNDED + first * CHUNK / ROUNDED);
  }
}

void panelled(const ScLinear *w, const Activations *x, int32_t block, const Epilogue *to, float *c) {
  const Scales scales(w, block);
  const int32_t per_block = K_BLOCK / CHUNK, chunks = groups_of(*w) * scales.chunks;
  memset(c, 0, (size_t)x->rows * COLUMNS * sizeof(float));
  Panel panel;
  for (int32_t first = 0, k_block = 0; first < chunks; first += per_block, k_block++) {
    const int32_t here = least(per_block, chunks - first);
    const uint8_t *data = data_of(w, block, first);
    memset(panel.sums, 0, sizeof panel.sums);
    for (int32_t chunk = 0; chunk < here; chunk++) {
      scales.of_chunk(first + chunk, panel.multiples[chunk]);
      if (w->kind == SC_INT8)
        sum_int8(data_of(w, block, first + chunk), panel.multiples[chunk], panel.sums[chunk * CHUNK / ROUNDED]);
    }
    if (w->kind == SC_INT4) {
      for (int32_t k = 0; k < here * CHUNK; k += 8) unpack(data + k * 8, panel.bytes + k * COLUMNS);
      data = panel.bytes;
    }
    int32_t row = 0;
    for (; row + 4 <= x->rows; row += 4) many<4>(w, x, &panel, data, k_block, here, row, c + row * COLUMNS);
    for (; row + 2 <= x->rows; row += 2) many<2>(w, x, &panel, data, k_block, here, row, c + row * COLUMNS);
    for (; row < x->rows; row++) many<1>(w, x, &panel, data, k_block, here, row, c + row * COLUMNS);
  }
  for (int32_t row = 0; row < x->rows; row++) finish(w, to, block, row, scales.unit, c + row * COLUMNS);
}

// c[R][16] (+)= a[R][depth] b[depth][16]
template <int R>
inline void tile(const float *a, int64_t a_stride, const float *b, int64_t b_stride, int32_t depth, float *c,
                 int64_t c_stride, bool add) {
  F sum[R][NV];
  for (int r = 0; r < R; r++)
    for (int v = 0; v < NV; v++) sum[r][v] = add ? load(c + r * c_stride + v * W) : F{};
  for (int32_t k = 0; k < depth; k++) {
    F right[NV];
    for (int v = 0; v < NV; v++) right[v] = load(b + k * b_stride + v * W);
    for (int r = 0; r < R; r++) {
      const F left = spread(a[r * a_stride + k]);
      for (int v = 0; v < NV; v++) sum[r][v] = fma(left, right[v], sum[r][v]);
    }
  }
  for (int r = 0; r < R; r++)
    for (int v = 0; v < NV; v++) store(c + r * c_stride + v * W, sum[r][v]);
}

void tiles(const float *a, int64_t a_stride, const float *b, int64_t b_stride, int32_t depth, float *c,
           int64_t c_stride, int32_t rows, bool add) {
  int32_t r = 0;
  const auto run = [&](auto tile, int32_t count) {
    tile(a + r * a_stride, a_stride, b, b_stride, depth, c + r * c_stride, c_stride, add);
    r += count;
  };
  while (rows - r == 6 || rows - r > 8) run(tile<6>, 6);
  while (rows - r >= 4) run(tile<4>, 4);  // 8 as 4 and 4: a single row waits for its own sums
  if (rows - r == 3) run(tile<3>, 3);
  if (rows - r == 2) run(tile<2>, 2);
  if (rows - r == 1) run(tile<1>, 1);
}

// out[k][i] = rows[i][k] for 16 rows; missing rows are zero.
void transposed(const float *const *rows, int32_t count, int32_t depth, float *out, int64_t stride) {
  static const float zeros[T] = {0};
  for (int32_t i = 0; i < COLUMNS; i += T) {
    int32_t k = 0;
    for (; k + T <= depth; k += T) {
      const float *part[T];
      for (int j = 0; j < T; j++) part[j] = i + j < count ? rows[i + j] + k : zeros;
      transpose(part, out + k * stride + i, stride);
    }
    for (; k < depth; k++)
      for (int j = 0; j < T; j++) out[k * stride + i + j] = i + j < count ? rows[i + j][k] : 0.f;
  }
}

constexpr int64_t PREFETCH_FLOATS = 128;  // half a kilobyte ahead in each of 16 rows
constexpr int32_t FEW_ROWS = 16, FEW_STEP = 32;  // short steps overlap: transposing the next hides waiting for sums

// One row: dot products along the weights as they lie in memory; nothing is transposed.
void lone(const ScLinear *w, const float *x, int32_t column, int32_t count, float *c) {
  const int64_t inputs = w->inputs;
  for (int32_t i = 0; i < count; i += 4) {
    const float *rows[4];
    for (int j = 0; j < 4; j++) rows[j] = (const float *)w->data + (column + least(i + j, count - 1)) * inputs;
    F sum[4][2];
    for (int j = 0; j < 4; j++) sum[j][0] = sum[j][1] = F{};
    int64_t k = 0;
    for (; k + 2 * W <= inputs; k += 2 * W) {
      const F left = load(x + k), right = load(x + k + W);
      for (int j = 0; j < 4; j++) {
        __builtin_prefetch(rows[j] + k + 4 * inputs);
        sum[j][0] = fma(left, load(rows[j] + k), sum[j][0]);
        sum[j][1] = fma(right, load(rows[j] + k + W), sum[j][1]);
      }
    }
    for (int j = 0; j < 4 && i + j < count; j++) {
      c[i + j] = sum_of(sum[j][0] + sum[j][1]);
      for (int64_t rest = k; rest < inputs; rest++) c[i + j] += x[rest] * rows[j][rest];
    }
  }
}

void plain(const ScLinear *w, const Activations *x, int32_t block, const Epilogue *to, float *scratch) {
  float *c = scratch, *panel = scratch + (int64_t)x->rows * COLUMNS;
  const int32_t column = block * COLUMNS, count = least(COLUMNS, w->columns - column);
  F ones[NV];
  for (int v = 0; v < NV; v++) ones[v] = spread(1.f);
  if (x->rows == 1) {
    lone(w, x->x, column, count, c);
    finish(w, to, block, 0, ones, c);
    return;
  }
  const int32_t step = x->rows <= FEW_ROWS ? FEW_STEP : K_BLOCK;
  for (int32_t k = 0; k < w->inputs; k += step) {
    const int32_t depth = least(step, w->inputs - k);
    const int64_t next = k + PREFETCH_FLOATS < w->inputs ? 0 : (int64_t)(COLUMNS - 1) * w->inputs;
    const float *rows[COLUMNS] = {nullptr};
    for (int i = 0; i < count; i++) {
      rows[i] = (const float *)w->data + (int64_t)(column + i) * w->inputs + k;
      for (int32_t j = 0; j < depth; j += 16) __builtin_prefetch(rows[i] + j + PREFETCH_FLOATS + next);
    }
    transposed(rows, count, depth, panel, COLUMNS);
    tiles(x->x + k, x->stride, panel, COLUMNS, depth, c, COLUMNS, x->rows, k > 0);
  }
  for (int32_t row = 0; row < x->rows; row++) finish(w, to, block, row, ones, c + row * COLUMNS);
}

void linear(const ScLinear *w, const Activations *x, int32_t block, int32_t end, const Epilogue *to, float *scratch) {
  for (; block < end; block++) {
    if (w->kind == SC_FLOAT32) {
      plain(w, x, block, to, scratch);
    } else if (x->rows > DIRECT_ROWS) {
      panelled(w, x, block, to, scratch);
    } else {
      int32_t row = 0;
      for (; row + 4 <= x->rows; row += 4) direct<4>(w, x, block, row, to);
      if (x->rows - row == 3) direct<3>(w, x, block, row, to);
      if (x->rows - row == 2) direct<2>(w, x, block, row, to);
      if (x->rows - row == 1) direct<1>(w, x, block, row, to);
    }
  }
}

void rms_norm(const float *x, const float *weight, float eps, int32_t size, float *y) {
  const int32_t whole = size / W * W;
  F squares = F{};
  for (int32_t i = 0; i < whole; i += W) squares = fma(load(x + i), load(x + i), squares);
  float square = sum_of(squares);
  for (int32_t i = whole; i < size; i++) square += x[i] * x[i];
  const float scale = 1.f / sqrtf(square / size + eps);
  for (int32_t i = 0; i < whole; i += W) store(y + i, load(x + i) * spread(scale) * load(weight + i));
  for (int32_t i = whole; i < size; i++) y[i] = x[i] * scale * weight[i];
}

void gate(const float *gate, const float *up, int32_t activation, int32_t size, float *y) {
  const int32_t whole = size / W * W;
  for (int32_t i = 0; i < whole; i += W) store(y + i, activated(load(gate + i), activation) * load(up + i));
  for (int32_t i = whole; i < size; i++) y[i] = activated(spread(gate[i]), activation)[0] * up[i];
}

void norm(const float *x, const float *weight, const float *bias, float eps, int32_t size, float *y) {
  if (!bias) return rms_norm(x, weight, eps, size, y);
  const int32_t whole = size / W * W;
  F sums = F{};
  for (int32_t i = 0; i < whole; i += W) sums += load(x + i);
  float sum = sum_of(sums);
  for (int32_t i = whole; i < size; i++) sum += x[i];
  const float mean = sum / size;
  F squares = F{};
  for (int32_t i = 0; i < whole; i += W) {
    const F d = load(x + i) - spread(mean);
    squares = fma(d, d, squares);
  }
  float square = sum_of(squares);
  for (int32_t i = whole; i < size; i++) square += (x[i] - mean) * (x[i] - mean);
  const float scale = 1.f / sqrtf(square / size + eps);
  for (int32_t i = 0; i < whole; i += W)
    store(y + i, fma((load(x + i) - spread(mean)) * spread(scale), load(weight + i), load(bias + i)));
  for (int32_t i = whole; i < size; i++) y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

// Softmax weights of one row of scores over keys [low, high), zero elsewhere up to `end`.
inline void weigh(float *scores, int32_t low, int32_t high, int32_t end, float *top, float *total) {
  for (int32_t j = 0; j < low; j++) scores[j] = -INFINITY;
  for (int32_t j = high; j < end; j++) scores[j] = -INFINITY;
  F most = spread(-INFINITY);
  for (int32_t j = 0; j < end; j += W) most = larger(most, load(scores + j));
  *top = top_of(most);
  F sum = F{};
  for (int32_t j = 0; j < end; j += W) {
    const F s = load(scores + j);
    const F e = s > spread(-INFINITY) ? exponential(s - spread(*top)) : F{};
    store(scores + j, e);
    sum += e;
  }
  *total = sum_of(sum);
}

// One split of the keys for a tile of queries. Rows that see none of it get top -infinity, total 0 and out 0.
void attend(const Queries *t, int32_t split, const Partial *to, float *scratch) {
  const int32_t H = t->head_size, padded = (H + COLUMNS - 1) / COLUMNS * COLUMNS;
  float *scores = scratch, *keys = scores + (int64_t)t->rows * SPLIT, *values = keys + (int64_t)padded * SPLIT;
  float *out = values + (int64_t)padded * SPLIT;
  const int32_t start = split * SPLIT, last = t->first + (t->rows - 1) / t->heads;
  const int32_t high = least(SPLIT, last + 1 - start);
  int32_t low = t->window > 0 ? t->first - t->window + 1 - start : 0;
  low = low < 0 ? 0 : low / COLUMNS * COLUMNS;
  const int32_t end = (high + COLUMNS - 1) / COLUMNS * COLUMNS;
  for (int32_t j = low; j < end; j += COLUMNS) {
    const float *rows[COLUMNS] = {nullptr};
    const int32_t count = least(COLUMNS, high - j);
    for (int i = 0; i < count; i++) {
      const int32_t at = start + j + i;
      const int64_t slot = ((int64_t)t->table[at / t->block_size] * t->block_size + at % t->block_size);
      rows[i] = t->keys + slot * t->key_stride;
      float *value = values + (int64_t)(j + i) * padded;
      memcpy(value, t->values + slot * t->key_stride, H * sizeof(float));
      memset(value + H, 0, (padded - H) * sizeof(float));
    }
    transposed(rows, count, H, keys + j, SPLIT);
    tiles(t->q, H, keys + j, SPLIT, H, scores + j, SPLIT, t->rows, false);
  }
  for (int32_t r = 0; r < t->rows; r++) {
    const int32_t position = t->first + r / t->heads - start;
    const int32_t from = t->window > 0 && position - t->window + 1 > low ? position - t->window + 1 : low;
    if (position < from || from >= high) {
      memset(scores + r * SPLIT, 0, end * sizeof(float));
      to->top[r] = -INFINITY, to->total[r] = 0;
    } else {
      weigh(scores + r * SPLIT, from, least(high, position + 1), end, to->top + r, to->total + r);
    }
  }
  for (int32_t h = 0; h < padded; h += COLUMNS)
    tiles(scores + low, SPLIT, values + (int64_t)low * padded + h, padded, high - low, out + h, padded, t->rows, false);
  for (int32_t r = 0; r < t->rows; r++) memcpy(to->out + (int64_t)r * H, out + (int64_t)r * padded, H * sizeof(float));
}

// `into` becomes the softmax over the keys of both.
void merge(int32_t rows, int32_t head_size, const Partial *into, const Partial *from) {
  for (int32_t r = 0; r < rows; r++) {
    if (from->total[r] == 0) continue;
    float *out = into->out + (int64_t)r * head_size;
    const float *other = from->out + (int64_t)r * head_size;
    const float top = into->top[r] > from->top[r] ? into->top[r] : from->top[r];
    const float keep = into->total[r] == 0 ? 0.f : exponential(spread(into->top[r] - top))[0];
    const float gain = exponential(spread(from->top[r] - top))[0];
    into->top[r] = top;
    into->total[r] = into->total[r] * keep + from->total[r] * gain;
    for (int32_t h = 0; h < head_size; h++) out[h] = out[h] * keep + other[h] * gain;
  }
}

INNER F integers_of(F x, float inverse, float low, float high) {
  return smaller(larger(nearest(x * spread(inverse)), spread(low)), spread(high));
}

// int4 lets the largest weight be -8; int8 keeps neighbours of one sign within 128 together, each rounded up by a half.
float fit(const Rounding *how, const float *x) {
  float largest = 0, together = 0;
  for (int i = 0; i < how->group; i++)
    if (fabsf(x[i]) > fabsf(largest)) largest = x[i];
  if (how->kind == SC_INT4) return largest / -8.f;
  for (int i = 0; i < how->group; i += 2)
    if (x[i] * x[i + 1] > 0 && fabsf(x[i] + x[i + 1]) > together) together = fabsf(x[i] + x[i + 1]);
  return (fabsf(largest) > together ? fabsf(largest) : together) / 127.f;
}

float round_group(const Rounding *how, const float *x, float fitting, float unit, int8_t *integers, int8_t *multiple) {
  const float low = how->kind == SC_INT4 ? -8.f : -127.f, high = how->kind == SC_INT4 ? 7.f : 127.f;
  float least = INFINITY, best = 0;
  for (int f = 0; f < how->num_factors; f++) {
    const float wanted = unit == 0 ? 0 : fitting * how->factors[f] / unit;
    const float times = how->kind == SC_INT4 ? nearest(spread(wanted))[0] : wanted > 126.f ? 127.f : ceilf(wanted);
    const float scale = times * unit, inverse = scale == 0 ? 0 : 1 / scale;
    F errors = F{};
    for (int i = 0; i < how->group; i += W) {
      const F v = load(x + i), error = fma(integers_of(v, inverse, low, high), spread(scale), -v);
      errors = fma(error, error, errors);
    }
    const float error = sum_of(errors);
    if (error < least) least = error, best = scale, *multiple = (int8_t)times;
  }
  const float inverse = best == 0 ? 0 : 1 / best;
  for (int i = 0; i < how->group; i += W) {
    const B bytes = __builtin_convertvector(__builtin_convertvector(integers_of(load(x + i), inverse, low, high), I), B);
    memcpy(integers + i, &bytes, W);
  }
  return least;
}

const Kernels kKernels = {kName, quantize, linear, norm, gate, attend, fit, round_group, merge};
}  // namespace
