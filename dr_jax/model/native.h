// What the kernels for CPUs have in common: vectors of floats, and work on XLA's threads.
//
// No -ffast-math: it would take the rounding in `exponential` away.

#pragma once

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace {

namespace ffi = xla::ffi;

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif
typedef float Floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES), aligned(4)));

constexpr int BLOCK = 64;         // tokens that are met at a time
constexpr float HIDDEN = -1e30f;  // finite, so that the difference of two is not NaN

inline Floats all(float x) { return x - Floats{}; }
inline Floats load(const float* from) { return *reinterpret_cast<const Floats*>(from); }
inline void store(float* to, Floats x) { *reinterpret_cast<Floats*>(to) = x; }

// exp(x) for x <= 0: x = n ln 2 + r, and a polynomial for r in [-ln 2 / 2, ln 2 / 2] (coefficients: Moshier, Cephes, expf).
inline Floats exponential(Floats x) {
  constexpr float ROUND = 12582912.0f;  // 1.5 * 2^23: what is added to it is rounded to a whole number, in its lowest bits
  x = x < all(-87.0f) ? all(-87.0f) : x;
  const Floats shifted = x * all(1.44269504f) + all(ROUND), n = shifted - all(ROUND);
  const Floats r = x - n * all(0.693359375f) - n * all(-2.12194440e-4f);  // ln 2 in two parts
  Floats p = all(1.9875691500e-4f);
  p = p * r + all(1.3981999507e-3f);
  p = p * r + all(8.3334519073e-3f);
  p = p * r + all(4.1665795894e-2f);
  p = p * r + all(1.6666665459e-1f);
  p = p * r + all(5.0000001201e-1f);
  p = p * r * r + r + all(1.0f);
  return (Floats)(((Ints)shifted << 23) + (Ints)p);
}

template <int... lane>
inline Floats picked(Floats a, Floats b) {
#ifdef __clang__
  return __builtin_shufflevector(a, b, lane...);
#else  // GCC has the other one only from 12 on
  return __builtin_shuffle(a, b, Ints{lane...});
#endif
}

// Swap what is beside the diagonal in every square of 2 S by 2 S; for S = 1, 2, 4, ... one after the other this transposes.
template <int S, int... lane>
inline void swapped(Floats (&m)[LANES], std::integer_sequence<int, lane...>) {
  for (int i = 0; i < LANES; ++i) {
    if (i & S) continue;
    const Floats a = m[i], b = m[i | S];
    m[i] = picked<((lane & S) ? LANES + lane - S : lane)...>(a, b);
    m[i | S] = picked<((lane & S) ? LANES + lane : lane + S)...>(a, b);
  }
}

inline void transpose(Floats (&m)[LANES]) {
  constexpr auto lanes = std::make_integer_sequence<int, LANES>{};
  swapped<1>(m, lanes);
  swapped<2>(m, lanes);
  swapped<4>(m, lanes);
  if constexpr (LANES == 16) swapped<8>(m, lanes);
}

// Make weights of a query's scores, HIDDEN where it sees nothing, in so many vectors; return what is left of what it gathered
// before.
inline float weigh(float* scores, int vectors, float& best, float& total) {
  Floats tops = load(scores), sums = {};
  for (int n = LANES; n < vectors * LANES; n += LANES) {
    const Floats here = load(scores + n);
    tops = here > tops ? here : tops;
  }
  float top = best;
  for (int lane = 0; lane < LANES; ++lane) top = std::max(top, tops[lane]);
  for (int n = 0; n < vectors * LANES; n += LANES) {
    const Floats here = load(scores + n);
    const Floats weight = here < all(0.5f * HIDDEN) ? Floats{} : exponential(here - all(top));  // of NaN it is NaN
    store(scores + n, weight);
    sums += weight;
  }
  const float shrink = best > 0.5f * HIDDEN ? exponential(all(best - top))[0] : 0.0f;
  float sum = 0.0f;
  for (int lane = 0; lane < LANES; ++lane) sum += sums[lane];
  best = top, total = total * shrink + sum;
  return shrink;
}

struct Progress {
  std::atomic<int64_t> next{0}, done{0};
  std::mutex mutex;
  std::condition_variable all_done;
};

// Run all tasks on XLA's threads and this one. This one takes what the others have not begun, so it waits for nobody who does
// not get a thread; who gets one after the end finds nothing to do.
template <typename Run>
void everywhere(ffi::ThreadPool& pool, int64_t count, Run run) {
  auto progress = std::make_shared<Progress>();
  auto work = std::make_shared<std::function<void()>>([progress, count, run = std::move(run)] {
    for (int64_t task; (task = progress->next.fetch_add(1)) < count;) {
      run(task);
      if (progress->done.fetch_add(1) + 1 == count) {
        std::lock_guard<std::mutex> lock(progress->mutex);
        progress->all_done.notify_all();
      }
    }
  });
  for (int64_t i = 1; i < std::min<int64_t>(pool.num_threads(), count); ++i) pool.Schedule([work] { (*work)(); });
  (*work)();
  std::unique_lock<std::mutex> lock(progress->mutex);
  progress->all_done.wait(lock, [&] { return progress->done.load() == count; });
}

// Call `run` with the number of channels as a constant.
template <typename Run>
ffi::Error of_channels(int64_t channels, Run run) {
  switch (channels) {
    case 16: run(std::integral_constant<int, 16>{}); break;
    case 32: run(std::integral_constant<int, 32>{}); break;
    case 64: run(std::integral_constant<int, 64>{}); break;
    case 128: run(std::integral_constant<int, 128>{}); break;
    default: return ffi::Error::InvalidArgument("Heads of 16, 32, 64 or 128 channels are needed");
  }
  return ffi::Error::Success();
}

using Reals = ffi::Buffer<ffi::F32>;
using Whole = ffi::Buffer<ffi::S32>;

}  // namespace
