// Attention of queries over pages of keys and values on a CPU, as a custom call of XLA.
//
// In:    queries [B, Q, H, C], pools of keys and of values [L, K, P, W, C], which layer, pages [B, X] of each row, and how many
//        tokens [B, Q] each query may see; float32 and int32
// Out:   what each query gathered [B, Q, H, C]; zeros for one that sees nothing
// Holds: pages are read where they are; what a query gathers does not depend on the other rows, not even by rounding: its blocks
//        begin at multiples of BLOCK, are met in order with a running maximum and sum (Milakov and Gimelshein, arXiv 1805.02867)

#include "native.h"

namespace {

constexpr int AT_ONCE = 4;   // queries that meet a tile together, so that what is read of it is used as often
constexpr int STRETCH = 32;  // queries of one row in a task
constexpr int SIBLINGS = 8;  // rows in a task

struct Call {
  const float *q, *k, *v;
  const int32_t *tables, *visible;
  float* out;
  int64_t rows, queries, heads, kv_heads, pages, page_size, table, layer;
};

// The block of keys and values that was read last: siblings have the pages of their prompt in common.
template <int C>
struct Block {
  float keys[C * BLOCK];  // transposed: all tokens of a channel side by side
  const float* values[BLOCK];
  int tokens = 0;
  const int32_t* pages = nullptr;

  void read(const Call& call, int64_t row, int64_t kv_head, int64_t start, int n) {
    const int64_t first = start / call.page_size, last = (start + n - 1) / call.page_size;
    const int32_t* here = call.tables + row * call.table + first;
    if (pages != nullptr && n <= tokens && std::equal(here, here + last - first + 1, pages)) return;
    pages = here, tokens = n;
    const int64_t pool = (call.layer * call.kv_heads + kv_head) * call.pages;
    const float* from[BLOCK];
    int64_t place = start % call.page_size;
    for (int t = 0; t < BLOCK; ++t) {
      if (t < n) {
        const int64_t token = ((pool + *here) * call.page_size + place) * C;
        from[t] = call.k + token, values[t] = call.v + token;
        if (++place == call.page_size) place = 0, ++here;
      } else {
        from[t] = from[0];  // met, but not looked at
      }
    }
    for (int t = 0; t < n; t += LANES) {
      for (int c = 0; c < C; c += LANES) {
        Floats m[LANES];
        for (int i = 0; i < LANES; ++i) m[i] = load(from[t + i] + c);
        transpose(m);
        for (int i = 0; i < LANES; ++i) store(keys + (c + i) * BLOCK + t, m[i]);
      }
    }
  }
};

// Queries of one row that share a key head, R = Q G of them, rounded up to AT_ONCE; and how far they are.
template <int C>
struct Queries {
  int64_t row, first, count;
  float *q, *out, *best, *total;
  int32_t* seen;
  int32_t longest = 0;

  static int64_t padded(int64_t count) { return (count + AT_ONCE - 1) / AT_ONCE * AT_ONCE; }
  static int64_t floats(int64_t count) { return padded(count) * (2 * C + 3); }

  Queries(const Call& call, int64_t row, int64_t kv_head, int64_t first, int64_t count, float* room)
      : row(row), first(first), count(count) {
    const int64_t sharing = call.heads / call.kv_heads, all = padded(count * sharing);
    q = room, out = q + all * C, best = out + all * C, total = best + all;
    seen = reinterpret_cast<int32_t*>(total + all);
    std::memset(room, 0, floats(count * sharing) * sizeof(float));
    std::fill_n(best, all, HIDDEN);
    const float scale = 1.0f / __builtin_sqrtf(C);
    for (int64_t i = 0; i < count * sharing; ++i) {
      const int64_t query = row * call.queries + first + i / sharing;
      const float* from = call.q + (query * call.heads + kv_head * sharing + i % sharing) * C;
      for (int c = 0; c < C; ++c) q[i * C + c] = from[c] * scale;
      seen[i] = call.visible[query];
      longest = std::max(longest, seen[i]);
    }
  }

  void meet(const Block<C>& block, int64_t start, int64_t sharing) {
    const int n = std::min<int64_t>(BLOCK, longest - start), tiles = (n + LANES - 1) / LANES;
    for (int64_t r = 0; r < count * sharing; r += AT_ONCE) {
      if (*std::max_element(seen + r, seen + r + AT_ONCE) <= start) continue;
      alignas(64) float weights[AT_ONCE][BLOCK];
      float shrink[AT_ONCE];
      score(block, q + r * C, tiles, weights);
      for (int i = 0; i < AT_ONCE; ++i) {
        const int there = std::clamp<int64_t>(seen[r + i] - start, 0, n);
        std::fill(weights[i] + there, weights[i] + tiles * LANES, HIDDEN);
        shrink[i] = weigh(weights[i], tiles, best[r + i], total[r + i]);
      }
      gather(block, n, weights, shrink, out + r * C);
    }
  }

  // What the queries make of each token.
  static void score(const Block<C>& block, const float* q, int tiles, float (&scores)[AT_ONCE][BLOCK]) {
    for (int tile = 0; tile < tiles; tile += 2) {  // two, for there to be enough to do while an addition is under way
      Floats sum[AT_ONCE][2] = {};
      const float* keys = block.keys + tile * LANES;
      for (int c = 0; c < C; ++c, keys += BLOCK) {
        const Floats left = load(keys), right = load(keys + LANES);
        for (int i = 0; i < AT_ONCE; ++i) {
          sum[i][0] += q[i * C + c] * left;
          sum[i][1] += q[i * C + c] * right;
        }
      }
      for (int i = 0; i < AT_ONCE; ++i) {
        store(scores[i] + tile * LANES, sum[i][0]);
        store(scores[i] + tile * LANES + LANES, sum[i][1]);
      }
    }
  }

  static void gather(const Block<C>& block, int n, const float (&weights)[AT_ONCE][BLOCK], const float* shrink, float* out) {
    constexpr int WIDE = C / LANES % 2 ? 1 : 2;
    for (int c = 0; c < C; c += WIDE * LANES) {
      Floats sum[AT_ONCE][WIDE];
      for (int i = 0; i < AT_ONCE; ++i)
        for (int x = 0; x < WIDE; ++x) sum[i][x] = load(out + i * C + c + x * LANES) * shrink[i];
      for (int t = 0; t < n; ++t) {
        Floats value[WIDE];
        for (int x = 0; x < WIDE; ++x) value[x] = load(block.values[t] + c + x * LANES);
        for (int i = 0; i < AT_ONCE; ++i)
          for (int x = 0; x < WIDE; ++x) sum[i][x] += weights[i][t] * value[x];
      }
      for (int i = 0; i < AT_ONCE; ++i)
        for (int x = 0; x < WIDE; ++x) store(out + i * C + c + x * LANES, sum[i][x]);
    }
  }

  void write(const Call& call, int64_t kv_head) const {
    const int64_t sharing = call.heads / call.kv_heads;
    for (int64_t i = 0; i < count * sharing; ++i) {
      const int64_t query = row * call.queries + first + i / sharing;
      float* to = call.out + (query * call.heads + kv_head * sharing + i % sharing) * C;
      const float share = seen[i] > 0 ? 1.0f / total[i] : 0.0f;
      for (int c = 0; c < C; ++c) to[c] = out[i * C + c] * share;
    }
  }
};

// How the work is cut: each task is one key head, and a stretch of one row or single queries of several rows.
struct Tasks {
  int64_t rows, stretches, kv_heads;
  int64_t rows_of_one, count;

  Tasks(const Call& call, int64_t threads) : rows(call.rows), stretches((call.queries + STRETCH - 1) / STRETCH) {
    kv_heads = call.kv_heads;
    // Several for each thread: rows differ in length.
    const int64_t few = rows * kv_heads / (4 * threads);
    rows_of_one = call.queries > 1 ? 1 : std::clamp<int64_t>(few, 1, SIBLINGS);
    count = (rows + rows_of_one - 1) / rows_of_one * stretches * kv_heads;
  }
};

template <int C>
void run(const Call& call, const Tasks& tasks, int64_t task) {
  static thread_local std::vector<float> room;
  const int64_t kv_head = task % tasks.kv_heads, stretch = task / tasks.kv_heads % tasks.stretches;
  const int64_t row = task / tasks.kv_heads / tasks.stretches * tasks.rows_of_one;
  const int64_t rows = std::min(tasks.rows_of_one, tasks.rows - row);
  const int64_t first = stretch * STRETCH, count = std::min<int64_t>(STRETCH, call.queries - first);
  const int64_t sharing = call.heads / call.kv_heads, each = Queries<C>::floats(count * sharing);
  room.resize(rows * each);
  std::vector<Queries<C>> those;
  int64_t longest = 0;
  for (int64_t i = 0; i < rows; ++i) {
    those.emplace_back(call, row + i, kv_head, first, count, room.data() + i * each);
    longest = std::max<int64_t>(longest, those.back().longest);
  }
  Block<C> block;
  for (int64_t start = 0; start < longest; start += BLOCK) {
    block.pages = nullptr;
    for (auto& one : those) {
      if (one.longest <= start) continue;
      block.read(call, one.row, kv_head, start, std::min<int64_t>(BLOCK, one.longest - start));
      one.meet(block, start, sharing);
    }
  }
  for (auto& one : those) one.write(call, kv_head);
}

template <int C>
void attend(ffi::ThreadPool& pool, const Call& call) {
  const Tasks tasks(call, std::max<int64_t>(pool.num_threads(), 1));
  everywhere(pool, tasks.count, [call, tasks](int64_t task) { run<C>(call, tasks, task); });
}

ffi::Error attention(ffi::ThreadPool pool, Reals q, Reals k, Reals v, Whole layer, Whole tables, Whole visible,
                     ffi::ResultBuffer<ffi::F32> out) {
  const auto queries = q.dimensions(), pools = k.dimensions();
  const Call call{q.typed_data(),       k.typed_data(),    v.typed_data(), tables.typed_data(),
                  visible.typed_data(), out->typed_data(), queries[0],     queries[1],
                  queries[2],           pools[1],          pools[2],       pools[3],
                  tables.dimensions()[1], *layer.typed_data()};
  return of_channels(queries[3], [&](auto c) { attend<decltype(c)::value>(pool, call); });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(dr_jax_paged_attention, attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Reals>()
                                  .Arg<Reals>()
                                  .Arg<Reals>()
                                  .Arg<Whole>()
                                  .Arg<Whole>()
                                  .Arg<Whole>()
                                  .Ret<Reals>());
