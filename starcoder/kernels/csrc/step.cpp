// One step of a whole network over a block cache: some new tokens of some sequences in, hidden states or logits out.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <mutex>
#include <new>
#include <vector>

#include "kernels.h"
#include "pool.h"

const Kernels *kernels_named(const char *isa);

namespace {

constexpr int QUERY_ROWS = 96;  // of a tile of attention: enough to make packing the keys cheap

int64_t rounded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

struct Buffers {  // integers, scales and starts of some rows of activations
  std::vector<int8_t> integers;
  std::vector<float> scales, normed;
  std::vector<int32_t> starts;
  void reserve(int64_t rows, int64_t inputs) {
    const size_t size = rows * rounded(inputs, K_BLOCK);
    if (integers.size() < size) integers.resize(size), scales.resize(size / ROUNDED), starts.resize(size / CHUNK);
    if (normed.size() < (size_t)(rows * inputs)) normed.resize(rows * inputs);
  }
};

struct Best {  // of the logits that one thread computed
  float logit;
  int32_t token;
  void meet(float other, int32_t its_token) {
    if (other > logit || (other == logit && its_token < token)) logit = other, token = its_token;
  }
};

struct Private {  // of one thread
  Buffers buffers;
  std::vector<float> scratch;
  std::vector<Best> best;
};

struct Item {  // a tile of queries: tokens of one segment, one key/value head
  int32_t segment, token, count, place, head, split, end;
  int64_t partial;  // where its partial results start, in floats
};

template <class T>
void at_least(std::vector<T> &v, size_t size) {
  if (v.size() < size) v.resize(size);
}

}  // namespace

struct Workspace {
  std::mutex mutex;  // one call at a time
  Pool *pool = new_pool();  // of its own: engines in one process do not wait for each other
  Buffers buffers;
  std::vector<float> x, qkv, attended, inner, rotary, partials, rows;
  std::vector<int32_t> segment_of, slot_of;
  std::vector<Item> items;
  std::vector<Private> threads;
};

// A bfloat16, low byte first.
float unit_of(const uint8_t *scales, int64_t column) {
  const uint32_t bits = (uint32_t)(scales[2 * column] | scales[2 * column + 1] << 8) << 16;
  float unit;
  memcpy(&unit, &bits, 4);
  return unit;
}

void lookup(const ScLinear &w, int64_t row, float *y) {
  if (w.kind == SC_FLOAT32) {
    memcpy(y, (const float *)w.data + row * w.inputs, w.inputs * sizeof(float));
    return;
  }
  const int64_t groups = groups_of(w), block = row / COLUMNS, column = row % COLUMNS;
  const bool nibbles = w.kind == SC_INT4;
  const uint8_t *data = (const uint8_t *)w.data + block * groups * w.group * COLUMNS / (nibbles ? 2 : 1) + 4 * column;
  const uint8_t *scales = scales_of(w, block);
  const float unit = unit_of(scales, column);
  for (int64_t k = 0; k < w.inputs; k++) {
    const float scale = (int8_t)scales[(2 + k / w.group) * COLUMNS + column] * unit;
    const uint8_t byte = nibbles ? data[k / 8 * 64 + k % 4] : data[k / 4 * 64 + k % 4];
    y[k] = scale * (nibbles ? (k & 4 ? byte >> 4 : byte & 15) - 8 : (int8_t)byte);
  }
}

namespace {

// Rows as a linear layer gets them: as they are, normed, or the activated gate times what it gates (2 x inputs wide).
struct Input {
  const float *x;
  int64_t stride;
  const float *weight = nullptr, *bias = nullptr;  // of a norm
  float eps = 0;
  int32_t gating = SC_LINEAR;  // the activation of a gate

  bool is_plain() const { return !weight && gating == SC_LINEAR; }
};

// What one thread does in a job; every thread runs the same phases in the same order. One that comes late may read
// what later phases are writing, but only for a phase that is over, whose items it does not get.
class Runner {
 public:
  Runner(const Kernels &kernels, Workspace &space, Team &team)
      : kernels_(kernels), space_(space), team_(team), own_(space.threads[team.thread]) {}

  // Rows as `w` wants them. One row is done by every thread for itself.
  Activations prepare(const ScLinear &w, int32_t rows, const Input &in) {
    const bool alone = rows == 1;
    Buffers &to = alone ? own_.buffers : space_.buffers;
    Activations out{rows, w.inputs, in.is_plain() ? in.x : to.normed.data(), to.integers.data(), to.scales.data(),
                    to.starts.data()};
    if (in.is_plain() && w.kind == SC_FLOAT32) return out;
    const auto one = [&](int64_t row) {
      const float *from = in.x + row * in.stride;
      float *made = to.normed.data() + row * w.inputs;
      if (in.weight) kernels_.norm(from, in.weight, in.bias, in.eps, w.inputs, made);
      if (in.gating != SC_LINEAR) kernels_.gate(from, from + w.inputs, in.gating, w.inputs, made);
      if (!in.is_plain()) from = made;
      if (w.kind != SC_FLOAT32) kernels_.quantize(from, w.kind, w.inputs, &out, row);
    };
    if (alone)
      one(0);
    else
      team_.share(rows, 4, [&](int64_t first, int64_t end) {
        for (; first < end; first++) one(first);
      });
    return out;
  }

  void apply(const ScLinear &w, const Activations &x, const Epilogue &to, bool is_head = false) {
    const int64_t blocks = (w.columns + COLUMNS - 1) / COLUMNS;
    // Small enough that threads end together, large enough that each reads long runs of memory.
    int64_t chunk = blocks / (team_.threads * 6);
    chunk = team_.threads == 1 ? blocks : chunk < 1 ? 1 : chunk;
    team_.share(blocks, chunk, [&](int64_t first, int64_t end) {
      kernels_.linear(&w, &x, first, end, &to, own_.scratch.data());
      if (is_head) meet_best(w, to, x.rows, first * COLUMNS, end * COLUMNS);
    });
  }

  // While logits are in this core's cache.
  void meet_best(const ScLinear &w, const Epilogue &to, int32_t rows, int64_t first, int64_t end) {
    if (end > w.columns) end = w.columns;
    for (int32_t r = 0; r < rows; r++)
      for (int64_t c = first; c < end; c++) own_.best[r].meet(to.y[r * to.stride + c], c);
  }

 protected:
  const Kernels &kernels_;
  Workspace &space_;
  Team &team_;
  Private &own_;
};

class StepRunner : Runner {
 public:
  StepRunner(const Kernels &kernels, Workspace &space, Team &team, const ScModel &model, const ScStep &step)
      : Runner(kernels, space, team), m_(model), s_(step), half_(model.head_size / 2) {}

  void run() {
    embed();
    for (int32_t layer = 0; layer < m_.num_layers; layer++) block(layer);
    finish();
  }

 private:
  void embed() {
    team_.share(s_.num_tokens, 4, [&](int64_t first, int64_t end) {
      for (; first < end; first++) embed_one(first);
    });
  }

  void embed_one(int64_t t) {
    float *x = space_.x.data() + t * m_.hidden;
    lookup(m_.embed, s_.tokens[t], x);
    if (!m_.frequencies) {
      float *position = own_.scratch.data();
      lookup(m_.positions, s_.positions[t], position);
      for (int32_t i = 0; i < m_.hidden; i++) x[i] += position[i];
      return;
    }
    float *rotary = space_.rotary.data() + t * 2 * half_;
    for (int32_t i = 0; i < half_; i++) {
      const float angle = (float)s_.positions[t] * m_.frequencies[i];
      rotary[i] = std::cos(angle) * m_.rotary_scale, rotary[half_ + i] = std::sin(angle) * m_.rotary_scale;
    }
  }

  void block(int32_t layer) {
    const ScBlock &b = m_.blocks[layer];
    const int32_t T = s_.num_tokens;
    const int64_t width = (int64_t)(m_.num_heads + 2 * m_.num_kv_heads) * m_.head_size;
    float *x = space_.x.data(), *qkv = space_.qkv.data(), *inner = space_.inner.data();
    const int64_t D = m_.hidden, up = b.up.columns;
    apply(b.qkv, prepare(b.qkv, T, {x, D, b.norm1_weight, b.norm1_bias, m_.norm_eps}), {qkv, width, SC_LINEAR, false});
    store_keys(b, layer, width);
    attend(layer, width);
    apply(b.out, prepare(b.out, T, {space_.attended.data(), b.out.inputs}), {x, D, SC_LINEAR, true});
    apply(b.up, prepare(b.up, T, {x, D, b.norm2_weight, b.norm2_bias, m_.norm_eps}),
          {inner, up, m_.is_gated ? SC_LINEAR : m_.activation, false});
    Input activated{inner, up};
    if (m_.is_gated) activated.gating = m_.activation;
    apply(b.down, prepare(b.down, T, activated), {x, D, SC_LINEAR, true});
  }

  void store_keys(const ScBlock &b, int32_t layer, int64_t width) {
    const int64_t N = m_.num_heads, K = m_.num_kv_heads, H = m_.head_size;
    team_.share(s_.num_tokens, 4, [&](int64_t t, int64_t end) {
      for (; t < end; t++) {
        float *q = space_.qkv.data() + t * width;
        if (b.q_norm)
          for (int64_t head = 0; head < N + K; head++)
            kernels_.norm(q + head * H, head < N ? b.q_norm : b.k_norm, nullptr, m_.norm_eps, H, q + head * H);
        if (m_.frequencies)
          for (int64_t head = 0; head < N + K; head++) rotate(q + head * H, space_.rotary.data() + t * 2 * half_);
        const int64_t at = layer * s_.layer_stride + space_.slot_of[t] * K * H;
        memcpy(s_.keys + at, q + N * H, K * H * sizeof(float));
        memcpy(s_.values + at, q + (N + K) * H, K * H * sizeof(float));
      }
    });
  }

  void rotate(float *x, const float *rotary) const {
    for (int32_t i = 0; i < half_; i++) {
      const float left = x[i], right = x[half_ + i], cosine = rotary[i], sine = rotary[half_ + i];
      x[i] = left * cosine - right * sine;
      x[half_ + i] = right * cosine + left * sine;
    }
  }

  void attend(int32_t layer, int64_t width) {
    const std::vector<Item> &items = space_.items;
    if (space_.partials.empty() || items.back().partial < 0) {
      team_.share(items.size(), 1, [&](int64_t first, int64_t) {
        const Item &item = items[items.size() - 1 - first];  // long ones come last in a sequence: start with them
        sum_splits(item, [&](int32_t split, const Partial &to) { attend_split(layer, width, item, split, to); });
      });
      return;
    }
    // Few queries, many keys: share out the splits, then sum them in order.
    const int64_t last = items.back().partial / per_split(items.back()) + items.back().end - items.back().split;
    team_.share(last, 1, [&](int64_t index, int64_t) {
      for (const Item &item : items) {
        const int64_t split = index - item.partial / per_split(item);
        if (split < 0 || split >= item.end - item.split) continue;
        attend_split(layer, width, item, item.split + split, partial_at(item, space_.partials.data() + index * per_split(item)));
      }
    });
    team_.share(items.size(), 1, [&](int64_t first, int64_t) {
      const Item &item = items[first];
      sum_splits(item, [&](int32_t split, Partial &to) {
        to = partial_at(item, space_.partials.data() + item.partial + (split - item.split) * per_split(item));
      });
    });
  }

  int32_t group() const { return m_.num_heads / m_.num_kv_heads; }
  int64_t per_split(const Item &) const {
    const int64_t tokens = QUERY_ROWS / group();
    return (tokens < 1 ? 1 : tokens) * group() * (m_.head_size + 2);
  }
  Partial partial_at(const Item &item, float *data) const {
    const int64_t rows = item.count * group();
    return {data, data + rows, data + 2 * rows};
  }

  void attend_split(int32_t layer, int64_t width, const Item &item, int32_t split, const Partial &to) {
    const int32_t rows = item.count * group(), H = m_.head_size;
    float *q = own_.scratch.data(), *scratch = q + (int64_t)rows * H;
    const float scale = 1.f / std::sqrt((float)H);
    for (int32_t r = 0; r < rows; r++) {
      const float *from = space_.qkv.data() + (item.token + r / group()) * width + (item.head * group() + r % group()) * H;
      for (int32_t h = 0; h < H; h++) q[r * H + h] = from[h] * scale;
    }
    const int64_t start = layer * s_.layer_stride + item.head * H;
    const Queries queries{rows, group(), item.place, m_.window, H, (int64_t)m_.num_kv_heads * H, q, s_.keys + start,
                          s_.values + start, s_.tables + (int64_t)item.segment * s_.table_stride, s_.block_size};
    kernels_.attend(&queries, split, &to, scratch);
  }

  template <class F>
  void sum_splits(const Item &item, F &&one) {
    const int32_t rows = item.count * group(), H = m_.head_size;
    float *end = own_.scratch.data() + own_.scratch.size() - 2 * per_split(item);
    Partial sum = partial_at(item, end), part = partial_at(item, end + per_split(item));
    for (int32_t r = 0; r < rows; r++) sum.top[r] = -INFINITY, sum.total[r] = 0;
    memset(sum.out, 0, (size_t)rows * H * sizeof(float));
    for (int32_t split = item.split; split < item.end; split++) {
      one(split, part);
      kernels_.merge(rows, H, &sum, &part);
    }
    for (int32_t r = 0; r < rows; r++) {
      float *to = space_.attended.data() + (int64_t)(item.token + r / group()) * m_.num_heads * H +
                  (item.head * group() + r % group()) * H;
      for (int32_t h = 0; h < H; h++) to[h] = sum.out[(int64_t)r * H + h] / sum.total[r];
    }
  }

  void finish() {
    const int64_t D = m_.hidden;
    float *hidden = s_.hidden ? s_.hidden : space_.rows.data();
    team_.share(s_.num_rows, 1, [&](int64_t r, int64_t) {
      kernels_.norm(space_.x.data() + s_.rows[r] * D, m_.norm_weight, m_.norm_bias, m_.norm_eps, D, hidden + r * D);
    });
    if (s_.logits && s_.num_rows)
      apply(m_.head, prepare(m_.head, s_.num_rows, {hidden, D}), {s_.logits, m_.head.columns, SC_LINEAR, false},
            s_.best != nullptr);
  }

  const ScModel &m_;
  const ScStep &s_;
  const int32_t half_;
};

// Tiles of queries of this step, and whether their splits are shared out between threads.
void plan_attention(Workspace &space, const ScModel &m, const ScStep &s, int threads) {
  const int32_t group = m.num_heads / m.num_kv_heads, tokens = group > QUERY_ROWS ? 1 : QUERY_ROWS / group;
  space.items.clear();
  at_least(space.slot_of, s.num_tokens);
  int64_t splits = 0;
  for (int32_t segment = 0, token = 0; segment < s.num_segments; token += s.new_lens[segment++]) {
    const int32_t past = s.past_lens[segment];
    for (int32_t i = 0; i < s.new_lens[segment]; i++) {
      const int32_t at = past + i, *table = s.tables + (int64_t)segment * s.table_stride;
      space.slot_of[token + i] = table[at / s.block_size] * s.block_size + at % s.block_size;
    }
    for (int32_t i = 0; i < s.new_lens[segment]; i += tokens)
      for (int32_t head = 0; head < m.num_kv_heads; head++) {
        const int32_t count = i + tokens < s.new_lens[segment] ? tokens : s.new_lens[segment] - i;
        const int32_t seen = m.window > 0 && past + i >= m.window ? past + i - m.window + 1 : 0;
        Item item{segment, token + i, count, past + i, head, seen / SPLIT, (past + i + count - 1) / SPLIT + 1, splits};
        splits += item.end - item.split;
        space.items.push_back(item);
      }
  }
  const bool share = threads > 1 && (int64_t)space.items.size() < 4 * threads && splits > (int64_t)space.items.size();
  const int64_t per_split = (int64_t)tokens * group * (m.head_size + 2);
  if (share) at_least(space.partials, splits * per_split);
  for (Item &item : space.items) item.partial = share ? item.partial * per_split : -1;
}

void reserve(Workspace &space, const ScModel &m, const ScStep &s, int threads) {
  const int64_t T = s.num_tokens, R = s.num_rows, width = (m.num_heads + 2 * m.num_kv_heads) * m.head_size;
  const int64_t attended = (int64_t)m.num_heads * m.head_size, most = T > R ? T : R;
  const int64_t widest = std::max<int64_t>({m.inner, m.hidden, attended});
  at_least(space.x, T * m.hidden);
  at_least(space.qkv, T * width);
  at_least(space.attended, T * attended);
  at_least(space.inner, T * m.inner * (m.is_gated ? 2 : 1));
  at_least(space.rotary, T * m.head_size);
  at_least(space.rows, R * m.hidden);
  space.buffers.reserve(most, widest);
  const int64_t group = m.num_heads / m.num_kv_heads, tokens = group > QUERY_ROWS ? 1 : QUERY_ROWS / group;
  const int64_t queries = tokens * group;
  const int64_t attention = queries * m.head_size + attend_scratch(queries, m.head_size) + 2 * queries * (m.head_size + 2);
  const int64_t linears = linear_scratch(most) > m.hidden ? linear_scratch(most) : m.hidden;
  if ((int)space.threads.size() < threads) space.threads.resize(threads);
  for (Private &own : space.threads) {
    own.buffers.reserve(1, widest);
    at_least(own.scratch, attention > linears ? attention : linears);
    if (s.best) own.best.assign(R, {-INFINITY, INT32_MAX});
  }
  plan_attention(space, m, s, threads);
}

void gather_best(const Workspace &space, const ScModel &m, const ScStep &s) {
  for (int32_t r = 0; r < s.num_rows; r++) {
    Best best{-INFINITY, INT32_MAX};
    for (const Private &own : space.threads) best.meet(own.best[r].logit, own.best[r].token);
    s.best[r] = best.token < m.head.columns ? best.token : 0;  // nothing but NaN
  }
}

bool is_below(int32_t index, int64_t end) { return index >= 0 && index < end; }

// Whether every token, position, row and block of the step exists.
bool is_sound(const ScModel &m, const ScStep &s) {
  int64_t tokens = 0;
  for (int32_t segment = 0; segment < s.num_segments; segment++) {
    const int32_t past = s.past_lens[segment], count = s.new_lens[segment];
    if (past < 0 || count < 0) return false;
    const int64_t blocks = ((int64_t)past + count + s.block_size - 1) / s.block_size;
    if (blocks > s.table_stride) return false;
    for (int64_t i = 0; i < blocks; i++)
      if (!is_below(s.tables[segment * (int64_t)s.table_stride + i], s.num_blocks)) return false;
    tokens += count;
  }
  if (tokens != s.num_tokens || s.block_size < 1) return false;
  for (int32_t t = 0; t < s.num_tokens; t++) {
    if (!is_below(s.tokens[t], m.embed.columns) || s.positions[t] < 0) return false;
    if (!m.frequencies && s.positions[t] >= m.positions.columns) return false;
  }
  for (int32_t r = 0; r < s.num_rows; r++)
    if (!is_below(s.rows[r], s.num_tokens)) return false;
  return true;
}

struct StepJob {
  const Kernels &kernels;
  Workspace &space;
  const ScModel &model;
  const ScStep &step;
};

struct LinearJob {
  const Kernels &kernels;
  Workspace &space;
  const ScLinear &w;
  int32_t rows;
  const float *x;
  float *y;
};

}  // namespace

extern "C" {

void *sc_workspace_new(void) try {
  Workspace *space = new Workspace;
  watch_forks(&space->mutex, &space->pool);
  return space;
} catch (...) {
  return nullptr;
}

void sc_workspace_free(void *workspace) try {
  Workspace *space = (Workspace *)workspace;
  if (!space) return;
  forget_forks(&space->mutex);
  delete_pool(space->pool);
  delete space;
} catch (...) {
}

int32_t sc_step(void *workspace, const char *isa, int32_t threads, const ScModel *model, const ScStep *step) try {
  Workspace &space = *(Workspace *)workspace;
  std::lock_guard<std::mutex> one_call(space.mutex);
  if (!is_sound(*model, *step)) return SC_BAD_INDEX;
  threads = clamp_threads(threads);
  reserve(space, *model, *step, threads);
  StepJob job{*kernels_named(isa), space, *model, *step};
  run_on_pool(space.pool, threads, [](void *context, Team &team) {
    const StepJob &job = *(StepJob *)context;
    StepRunner(job.kernels, job.space, team, job.model, job.step).run();
  }, &job);
  if (step->logits && step->best) gather_best(space, *model, *step);
  return SC_OK;
} catch (const std::bad_alloc &) {
  return SC_NO_MEMORY;
} catch (...) {
  return SC_FAILED;
}

int32_t sc_linear(void *workspace, const char *isa, int32_t threads, const ScLinear *w, int32_t rows, const float *x,
                  float *y) try {
  Workspace &space = *(Workspace *)workspace;
  std::lock_guard<std::mutex> one_call(space.mutex);
  threads = clamp_threads(threads);
  space.buffers.reserve(rows, w->inputs);
  if ((int)space.threads.size() < threads) space.threads.resize(threads);
  for (Private &own : space.threads) {
    own.buffers.reserve(1, w->inputs);
    at_least(own.scratch, linear_scratch(rows));
  }
  LinearJob job{*kernels_named(isa), space, *w, rows, x, y};
  run_on_pool(space.pool, threads, [](void *context, Team &team) {
    const LinearJob &job = *(LinearJob *)context;
    Runner runner(job.kernels, job.space, team);
    const Activations x = runner.prepare(job.w, job.rows, {job.x, job.w.inputs});
    runner.apply(job.w, x, {job.y, job.w.columns, SC_LINEAR, false});
  }, &job);
  return SC_OK;
} catch (const std::bad_alloc &) {
  return SC_NO_MEMORY;
} catch (...) {
  return SC_FAILED;
}

int32_t sc_lookup(const ScLinear *w, int32_t rows, const int32_t *which, float *y) {
  for (int32_t r = 0; r < rows; r++)
    if (!is_below(which[r], w->columns)) return SC_BAD_INDEX;
  for (int32_t r = 0; r < rows; r++) lookup(*w, which[r], y + (int64_t)r * w->inputs);
  return SC_OK;
}

}  // extern "C"
