// Causal attention within the segments of packed rows on a CPU, and its gradient, as custom calls of XLA.
//
// In:    queries [B, T, H, C], keys and values [B, T, K, C], segment ids [B, T] that lie in runs, 0 for padding; float32 and int32
// Out:   what each query gathered [B, T, H, C] and the logarithm of its weights' sum [B, H, T]; gradients, those of keys and
//        values for each head of queries: [B, T, H, C] all three. Zeros where there is padding
// Holds: a segment is met alone, by one head in one task, in blocks of BLOCK queries and keys, forward as in Milakov and
//        Gimelshein, arXiv 1805.02867, backward as in Dao, arXiv 2307.08691; so results depend neither on the other segments
//        nor on the threads. A thread keeps its room, which is 4 (7 C + 2) bytes for each token of the longest segment so far

#include <cmath>

#include "native.h"

namespace {

constexpr int AT_ONCE = LANES == 16 ? 8 : 4;  // rows of a product that use what is loaded of the other factor; by the registers
constexpr int SQUARE = BLOCK * BLOCK;

struct Call {
  const float *q, *k, *v;
  const int32_t* segments;
  int64_t rows, length, heads, kv_heads;

  int64_t at(int64_t row, int64_t token, int64_t head) const { return (row * length + token) * heads + head; }
  int64_t kv_at(int64_t row, int64_t token, int64_t head) const {
    return (row * length + token) * kv_heads + head * kv_heads / heads;
  }
};

struct Task {
  int64_t row, first, count, head;
};

// Each segment with each head; the longest ones first, so that nobody ends up with a long one when all others are done.
std::vector<Task> tasks(const Call& call) {
  std::vector<Task> found;
  for (int64_t row = 0; row < call.rows; ++row) {
    const int32_t* ids = call.segments + row * call.length;
    for (int64_t first = 0, next; first < call.length; first = next) {
      for (next = first + 1; next < call.length && ids[next] == ids[first];) ++next;
      if (ids[first] == 0) continue;
      for (int64_t head = 0; head < call.heads; ++head) found.push_back({row, first, next - first, head});
    }
  }
  std::stable_sort(found.begin(), found.end(), [](const Task& a, const Task& b) { return a.count > b.count; });
  return found;
}

// Zero what belongs to padding; `width` numbers belong to each token.
void blank(const Call& call, float* to, int64_t width) {
  for (int64_t token = 0; token < call.rows * call.length; ++token)
    if (call.segments[token] == 0) std::memset(to + token * width, 0, width * sizeof(float));
}

// Room of this thread; what comes of it begins where a vector may.
struct Room {
  float* next;

  explicit Room(int64_t floats) {
    static thread_local std::vector<float> kept;
    kept.resize(std::max<int64_t>(kept.size(), floats + LANES));
    next = kept.data() + (-(reinterpret_cast<uintptr_t>(kept.data()) / sizeof(float)) & (LANES - 1));
  }

  float* take(int64_t floats) {
    float* taken = next;
    next += floats;
    return taken;
  }
};

// to [BLOCK, N] = a b, or to + a b, where a is [BLOCK, K] with these steps between its rows and columns, and b [K, N].
template <int N, int K, int A_ROW, int A_COLUMN, bool ADDED>
inline void product(const float* a, const float* b, float* to) {
  constexpr int WIDE = N / LANES % 2 ? 1 : 2;
  for (int n = 0; n < N; n += WIDE * LANES) {
    for (int m = 0; m < BLOCK; m += AT_ONCE) {
      Floats sum[AT_ONCE][WIDE] = {};
      const float *left = a + m * A_ROW, *right = b + n;
      for (int k = 0; k < K; ++k, left += A_COLUMN, right += N) {
        Floats here[WIDE];
        for (int x = 0; x < WIDE; ++x) here[x] = load(right + x * LANES);
        for (int i = 0; i < AT_ONCE; ++i)
          for (int x = 0; x < WIDE; ++x) sum[i][x] += left[i * A_ROW] * here[x];
      }
      for (int i = 0; i < AT_ONCE; ++i)
        for (int x = 0; x < WIDE; ++x) {
          float* there = to + (m + i) * N + n + x * LANES;
          store(there, ADDED ? load(there) + sum[i][x] : sum[i][x]);
        }
    }
  }
}

// Copy a segment's tokens of one head to one place, times a number, and make whole blocks of them with zeros.
template <int C>
void gather(const float* from, int64_t step, int64_t count, int64_t padded, float times, float* to) {
  for (int64_t token = 0; token < count; ++token)
    for (int c = 0; c < C; c += LANES) store(to + token * C + c, load(from + token * step + c) * times);
  std::memset(to + count * C, 0, (padded - count) * C * sizeof(float));
}

template <int C>
void scatter(const float* from, int64_t step, int64_t count, float times, float* to) {
  for (int64_t token = 0; token < count; ++token)
    for (int c = 0; c < C; c += LANES) store(to + token * step + c, load(from + token * C + c) * times);
}

// A block [BLOCK, C] as [C, BLOCK].
template <int C>
void turned(const float* from, float* to) {
  for (int token = 0; token < BLOCK; token += LANES)
    for (int c = 0; c < C; c += LANES) {
      Floats m[LANES];
      for (int i = 0; i < LANES; ++i) m[i] = load(from + (token + i) * C + c);
      transpose(m);
      for (int i = 0; i < LANES; ++i) store(to + (c + i) * BLOCK + token, m[i]);
    }
}

template <int C>
float scale() {
  return 1.0f / __builtin_sqrtf(C);
}

template <int C>
void forward(const Call& call, const Task& task, float* out, float* sums) {
  const int64_t padded = (task.count + BLOCK - 1) / BLOCK * BLOCK, blocks = padded / BLOCK;
  Room room(padded * C * 3 + BLOCK * C * 2 + SQUARE);
  float *q = room.take(padded * C), *keys = room.take(padded * C), *v = room.take(padded * C);
  float *block = room.take(BLOCK * C), *found = room.take(BLOCK * C), *scores = room.take(SQUARE);
  const int64_t step = call.heads * C, kv_step = call.kv_heads * C, at = call.at(task.row, task.first, task.head);
  const int64_t kv_at = call.kv_at(task.row, task.first, task.head);
  gather<C>(call.q + at * C, step, task.count, padded, scale<C>(), q);
  gather<C>(call.v + kv_at * C, kv_step, task.count, padded, 1.0f, v);
  for (int64_t j = 0; j < blocks; ++j) {
    const int64_t first = j * BLOCK, count = std::min<int64_t>(BLOCK, task.count - first);
    gather<C>(call.k + kv_at * C + first * kv_step, kv_step, count, BLOCK, 1.0f, block);
    turned<C>(block, keys + first * C);
  }
  for (int64_t i = 0; i < blocks; ++i) {
    const int count = std::min<int64_t>(BLOCK, task.count - i * BLOCK);
    float best[BLOCK], total[BLOCK] = {};
    std::fill_n(best, BLOCK, HIDDEN);
    std::memset(found, 0, BLOCK * C * sizeof(float));
    for (int64_t j = 0; j <= i; ++j) {
      product<BLOCK, C, C, 1, false>(q + i * BLOCK * C, keys + j * BLOCK * C, scores);
      for (int r = 0; r < BLOCK; ++r) {
        if (i == j) std::fill(scores + r * BLOCK + r + 1, scores + (r + 1) * BLOCK, HIDDEN);
        const float shrink = weigh(scores + r * BLOCK, BLOCK / LANES, best[r], total[r]);
        for (int c = 0; c < C; c += LANES) store(found + r * C + c, load(found + r * C + c) * shrink);
      }
      product<C, BLOCK, BLOCK, 1, true>(scores, v + j * BLOCK * C, found);
    }
    for (int r = 0; r < count; ++r) {
      const int64_t token = task.first + i * BLOCK + r;
      float* to = out + call.at(task.row, token, task.head) * C;
      for (int c = 0; c < C; c += LANES) store(to + c, load(found + r * C + c) / total[r]);
      sums[(task.row * call.heads + task.head) * call.length + token] = best[r] + std::log(total[r]);
    }
  }
}

struct Above {
  const float *out, *sums, *above;
  float *dq, *dk, *dv;
};

// With weights P = exp(S - sums) of scores S: dV = P^T dO, dS = P (dO V^T - along), where `along` is the sum over channels of
// dO O, dQ = dS K, dK = dS^T Q. `shares` holds S, then P; `rise` holds dO V^T, then dS.
template <int C>
void backward(const Call& call, const Above& given, const Task& task) {
  const int64_t padded = (task.count + BLOCK - 1) / BLOCK * BLOCK, blocks = padded / BLOCK;
  Room room(padded * (C * 7 + 2) + BLOCK * C * 2 + SQUARE * 2);
  float *q = room.take(padded * C), *k = room.take(padded * C), *v = room.take(padded * C), *above = room.take(padded * C);
  float *dq = room.take(padded * C), *dk = room.take(padded * C), *dv = room.take(padded * C);
  float *sums = room.take(padded), *along = room.take(padded);
  float *keys = room.take(BLOCK * C), *values = room.take(BLOCK * C), *shares = room.take(SQUARE), *rise = room.take(SQUARE);
  const int64_t step = call.heads * C, kv_step = call.kv_heads * C, at = call.at(task.row, task.first, task.head) * C;
  const int64_t kv_at = call.kv_at(task.row, task.first, task.head) * C;
  gather<C>(call.q + at, step, task.count, padded, scale<C>(), q);
  gather<C>(call.k + kv_at, kv_step, task.count, padded, 1.0f, k);
  gather<C>(call.v + kv_at, kv_step, task.count, padded, 1.0f, v);
  gather<C>(given.above + at, step, task.count, padded, 1.0f, above);
  for (float* gradient : {dq, dk, dv}) std::memset(gradient, 0, padded * C * sizeof(float));
  for (float* number : {sums, along}) std::memset(number, 0, padded * sizeof(float));
  std::copy_n(given.sums + (task.row * call.heads + task.head) * call.length + task.first, task.count, sums);
  for (int64_t token = 0; token < task.count; ++token) {
    Floats both = {};
    for (int c = 0; c < C; c += LANES) both += load(above + token * C + c) * load(given.out + at + token * step + c);
    for (int lane = 0; lane < LANES; ++lane) along[token] += both[lane];
  }
  for (int64_t j = 0; j < blocks; ++j) {
    turned<C>(k + j * BLOCK * C, keys);
    turned<C>(v + j * BLOCK * C, values);
    for (int64_t i = j; i < blocks; ++i) {
      const int64_t here = i * BLOCK * C, there = j * BLOCK * C;
      product<BLOCK, C, C, 1, false>(q + here, keys, shares);
      product<BLOCK, C, C, 1, false>(above + here, values, rise);
      for (int r = 0; r < BLOCK; ++r) {
        float *share = shares + r * BLOCK, *slope = rise + r * BLOCK;
        if (i == j) std::fill(share + r + 1, share + BLOCK, HIDDEN);
        const Floats sum = all(sums[i * BLOCK + r]), middle = all(along[i * BLOCK + r]);
        for (int n = 0; n < BLOCK; n += LANES) {
          const Floats score = load(share + n);
          const Floats weight = score < all(0.5f * HIDDEN) ? Floats{} : exponential(score - sum);
          store(share + n, weight);
          store(slope + n, weight * (load(slope + n) - middle));
        }
      }
      product<C, BLOCK, 1, BLOCK, true>(shares, above + here, dv + there);
      product<C, BLOCK, 1, BLOCK, true>(rise, q + here, dk + there);
      product<C, BLOCK, BLOCK, 1, true>(rise, k + there, dq + here);
    }
  }
  scatter<C>(dq, step, task.count, scale<C>(), given.dq + at);
  scatter<C>(dk, step, task.count, 1.0f, given.dk + at);
  scatter<C>(dv, step, task.count, 1.0f, given.dv + at);
}

using Found = ffi::Result<Reals>;

Call call_of(const Reals& q, const Reals& k, const Reals& v, const Whole& segments) {
  const auto shape = q.dimensions();
  return {q.typed_data(), k.typed_data(), v.typed_data(), segments.typed_data(), shape[0], shape[1], shape[2], k.dimensions()[2]};
}

ffi::Error attention(ffi::ThreadPool pool, Reals q, Reals k, Reals v, Whole segments, Found out, Found sums) {
  const Call call = call_of(q, k, v, segments);
  const int64_t channels = q.dimensions()[3];
  float *to = out->typed_data(), *sums_to = sums->typed_data();
  blank(call, to, call.heads * channels);
  std::memset(sums_to, 0, sums->size_bytes());
  auto found = tasks(call);
  const int64_t count = found.size();
  return of_channels(channels, [&](auto c) {
    everywhere(pool, count, [call, found = std::move(found), to, sums_to](int64_t n) {
      forward<decltype(c)::value>(call, found[n], to, sums_to);
    });
  });
}

ffi::Error gradient(ffi::ThreadPool pool, Reals q, Reals k, Reals v, Whole segments, Reals out, Reals sums, Reals above, Found dq,
                    Found dk, Found dv) {
  const Call call = call_of(q, k, v, segments);
  const int64_t channels = q.dimensions()[3];
  const Above given{out.typed_data(), sums.typed_data(), above.typed_data(), dq->typed_data(), dk->typed_data(), dv->typed_data()};
  for (float* to : {given.dq, given.dk, given.dv}) blank(call, to, call.heads * channels);
  auto found = tasks(call);
  const int64_t count = found.size();
  return of_channels(channels, [&](auto c) {
    everywhere(pool, count, [call, given, found = std::move(found)](int64_t n) {
      backward<decltype(c)::value>(call, given, found[n]);
    });
  });
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(dr_jax_packed_attention, attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Reals>()
                                  .Arg<Reals>()
                                  .Arg<Reals>()
                                  .Arg<Whole>()
                                  .Ret<Reals>()
                                  .Ret<Reals>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(dr_jax_packed_attention_gradient, gradient,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Reals>()
                                  .Arg<Reals>()
                                  .Arg<Reals>()
                                  .Arg<Whole>()
                                  .Arg<Reals>()
                                  .Arg<Reals>()
                                  .Arg<Reals>()
                                  .Ret<Reals>()
                                  .Ret<Reals>()
                                  .Ret<Reals>());
