// Greedy elimination, `count` channels of it: see kernels/eliminate.py for the formulas.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "dtype.h"
#include "parallel.h"

namespace compressor {
namespace {

constexpr int64_t kTile = 512;    // channels whose sums stay in L1 while the columns pass by
constexpr int64_t kGrain = 2048;  // channels, below which a thread more is not worth calling

template <class T>
struct Elimination {
  const T *inverse, *products, *prior;
  int64_t channels;
  T *v, *u;             // [count, channels]
  std::vector<T> h, k;  // diagonals as they are now
  std::vector<T> cost;  // of the channels that are left; infinite where it is no number
  std::vector<char> left;

  void prepare() {
    for (int64_t i = 0; i < channels; ++i) {
      h[i] = inverse[i * channels + i];
      k[i] = products[i * channels + i];
      cost[i] = cost_of(i);
    }
  }

  T raw_cost(int64_t i) const { return prior[i] * std::max(k[i], T{0}) / h[i]; }
  T cost_of(int64_t i) const {
    const T raw = raw_cost(i);
    return std::isnan(raw) ? std::numeric_limits<T>::infinity() : raw;
  }

  // The first of the cheapest.
  int64_t cheapest() const {
    int64_t found = -1;
    for (int64_t i = 0; i < channels; ++i) {
      if (left[i] && (found < 0 || cost[i] < cost[found])) found = i;
    }
    return found;
  }

  // A column of V and of U for the channel `gone`, and the diagonals without it; of channels
  // [begin, end), none of which asks for another's.
  COMPRESSOR_INLINE void tile(int64_t at, int64_t gone, const T* v_gone, const T* u_gone, T root,
                              T half, int64_t begin, int64_t end) {
    T* v_new = v + at * channels;
    T* u_new = u + at * channels;
    sums(at, gone, v_gone, u_gone, begin, end, v_new, u_new);
    for (int64_t i = begin; i < end; ++i) {
      v_new[i] /= root;
      u_new[i] = u_new[i] / root - half * v_new[i];
      h[i] -= v_new[i] * v_new[i];
      k[i] -= 2 * u_new[i] * v_new[i];
      cost[i] = cost_of(i);
    }
  }

  COMPRESSOR_INLINE void sums(int64_t at, int64_t gone, const T* v_gone, const T* u_gone,
                              int64_t begin, int64_t end, T* v_new, T* u_new) const {
    const T* h_row = inverse + gone * channels;
    const T* k_row = products + gone * channels;
    std::copy(h_row + begin, h_row + end, v_new + begin);
    std::copy(k_row + begin, k_row + end, u_new + begin);
    for (int64_t t = 0; t < at; ++t) {
      const T *v_row = v + t * channels, *u_row = u + t * channels;
      const T v_t = v_gone[t], u_t = u_gone[t];
      for (int64_t i = begin; i < end; ++i) {
        v_new[i] -= v_row[i] * v_t;
        u_new[i] -= u_row[i] * v_t + v_row[i] * u_t;
      }
    }
  }
};

template <class T>
COMPRESSOR_CLONES void step_of(Elimination<T>& state, int64_t at, int64_t gone, const T* v_gone,
                               const T* u_gone, T root, T half, int64_t begin, int64_t end) {
  for (int64_t top = begin; top < end; top += kTile) {
    state.tile(at, gone, v_gone, u_gone, root, half, top, std::min(top + kTile, end));
  }
}

template <class T>
void eliminate(const void* inverse, const void* products, const void* prior, int64_t channels,
               int64_t count, int64_t* order, void* costs, void* v, void* u, int threads) {
  Elimination<T> state{static_cast<const T*>(inverse),
                       static_cast<const T*>(products),
                       static_cast<const T*>(prior),
                       channels,
                       static_cast<T*>(v),
                       static_cast<T*>(u),
                       std::vector<T>(channels),
                       std::vector<T>(channels),
                       std::vector<T>(channels),
                       std::vector<char>(channels, 1)};
  state.prepare();
  std::vector<T> v_gone(count), u_gone(count);
  for (int64_t at = 0; at < count; ++at) {
    const int64_t gone = state.cheapest();
    order[at] = gone;
    static_cast<T*>(costs)[at] = state.raw_cost(gone);
    state.left[gone] = 0;
    for (int64_t t = 0; t < at; ++t) {
      v_gone[t] = state.v[t * channels + gone];
      u_gone[t] = state.u[t * channels + gone];
    }
    const T root = std::sqrt(state.h[gone]), half = state.k[gone] / (2 * state.h[gone]);
    parallel_for(channels, kGrain, threads, [&](int64_t begin, int64_t end) {
      step_of<T>(state, at, gone, v_gone.data(), u_gone.data(), root, half, begin, end);
    });
  }
}

}  // namespace

void eliminate_cpu(const void* inverse, const void* products, const void* prior, bool wide,
                   int64_t channels, int64_t count, int64_t* order, void* costs, void* v, void* u,
                   int threads) {
  const auto run = wide ? eliminate<double> : eliminate<float>;
  run(inverse, products, prior, channels, count, order, costs, v, u, threads);
}

}  // namespace compressor
