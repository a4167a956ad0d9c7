// Greedy elimination, one launch a channel; see kernels/eliminate.py for the formulas.
//
// A block owns kRows channels. In the launch of step s it finds the channel that goes by the
// cheapest that every block wrote in the launch before, computes its own part of the new columns of
// V and U, brings its diagonals up to date, and writes the cheapest of what it has left. So nothing
// waits for the host, and no block for another: what one launch reads and writes lies in two places
// in turn.
#include <cuda_runtime.h>

#include <cmath>

#include "../ops.h"

namespace compressor {
namespace {

constexpr int kRows = 64;  // channels of a block: 172 blocks at 11,008
constexpr int kSplit = 4;  // threads that share a channel's sum over the columns before
constexpr int kThreads = kRows * kSplit;
constexpr int kColumns = 128;  // of V and U at most

template <class T>
struct Steps {
  const T *inverse, *products, *prior;
  int64_t channels;
  int64_t* order;
  T *costs, *v, *u;
  T* diagonals;     // [2, 2, channels]: of H and of K, in turn
  T* cheapest;      // [2, blocks], in turn
  int32_t* places;  // [2, blocks], in turn: whose it is; `channels` where none is left
  uint8_t* taken;   // [channels]: read and written by the one thread that owns it
  int blocks;
};

// Whether (cost, place) goes before another: the smaller cost, then the first. What is gone has the
// place `channels` and an infinite cost.
template <class T>
__device__ bool before(T cost, int place, T other, int other_place) {
  return cost < other || (cost == other && place < other_place);
}

// The smallest of all threads' pairs, known to all of them. Before it is called again with the same
// memory there has to be a barrier.
template <class T>
__device__ void least(T& cost, int& place, T* costs, int* places) {
  const int t = threadIdx.x;
  costs[t] = cost;
  places[t] = place;
  for (int half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t < half && before(costs[t + half], places[t + half], costs[t], places[t])) {
      costs[t] = costs[t + half];
      places[t] = places[t + half];
    }
  }
  __syncthreads();
  cost = costs[0];
  place = places[0];
}

template <class T>
__device__ T raw_cost(T prior, T h, T k) {
  return prior * (k > 0 || k != k ? k : T{0}) / h;
}

// The same, infinite where it is no number.
template <class T>
__device__ T cost_of(T prior, T h, T k) {
  const T cost = raw_cost(prior, h, k);
  return cost != cost ? static_cast<T>(INFINITY) : cost;
}

// The diagonals, and the cheapest channel of every block.
template <class T>
__global__ void __launch_bounds__(kThreads) begin_kernel(const Steps<T> s) {
  __shared__ T costs[kThreads];
  __shared__ int places[kThreads];
  const int64_t i = int64_t{blockIdx.x} * kRows + threadIdx.x;
  T cost = static_cast<T>(INFINITY);
  int place = static_cast<int>(s.channels);
  if (threadIdx.x < kRows && i < s.channels) {
    const T h = s.inverse[i * s.channels + i], k = s.products[i * s.channels + i];
    s.taken[i] = 0;
    s.diagonals[i] = h;
    s.diagonals[s.channels + i] = k;
    cost = cost_of(s.prior[i], h, k);
    place = static_cast<int>(i);
  }
  least(cost, place, costs, places);
  if (threadIdx.x == 0) {
    s.cheapest[blockIdx.x] = cost;
    s.places[blockIdx.x] = place;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) step_kernel(const Steps<T> s, int at) {
  __shared__ T costs[kThreads];
  __shared__ int places[kThreads];
  __shared__ T v_gone[kColumns];
  __shared__ T u_gone[kColumns];
  __shared__ T v_sums[kThreads];
  __shared__ T u_sums[kThreads];
  const int64_t n = s.channels;
  const T* former = s.diagonals + (at % 2) * 2 * n;
  T* now = s.diagonals + ((at + 1) % 2) * 2 * n;
  T cost = static_cast<T>(INFINITY);
  int gone = static_cast<int>(n);
  for (int b = threadIdx.x; b < s.blocks; b += kThreads) {
    const T theirs = s.cheapest[(at % 2) * s.blocks + b];
    const int place = s.places[(at % 2) * s.blocks + b];
    if (before(theirs, place, cost, gone)) {
      cost = theirs;
      gone = place;
    }
  }
  least(cost, gone, costs, places);
  const T h_gone = former[gone], k_gone = former[n + gone];
  if (blockIdx.x == 0 && threadIdx.x == 0) {
    s.order[at] = gone;
    s.costs[at] = raw_cost(s.prior[gone], h_gone, k_gone);
  }
  for (int t = threadIdx.x; t < at; t += kThreads) {
    v_gone[t] = s.v[t * n + gone];
    u_gone[t] = s.u[t * n + gone];
  }
  __syncthreads();
  const int row = threadIdx.x % kRows, part = threadIdx.x / kRows;
  const int64_t i = int64_t{blockIdx.x} * kRows + row;
  T v_sum = 0, u_sum = 0;
  if (i < n) {
#pragma unroll 8
    for (int t = part; t < at; t += kSplit) {
      const T v = s.v[t * n + i], u = s.u[t * n + i];
      v_sum += v * v_gone[t];
      u_sum += u * v_gone[t] + v * u_gone[t];
    }
  }
  v_sums[threadIdx.x] = v_sum;
  u_sums[threadIdx.x] = u_sum;
  __syncthreads();
  cost = static_cast<T>(INFINITY);
  int place = static_cast<int>(n);
  if (part == 0 && i < n) {
    for (int p = 1; p < kSplit; ++p) {
      v_sum += v_sums[p * kRows + row];
      u_sum += u_sums[p * kRows + row];
    }
    const T root = sqrt(h_gone);
    const T v = (s.inverse[gone * n + i] - v_sum) / root;
    const T u = (s.products[gone * n + i] - u_sum) / root - k_gone / (2 * h_gone) * v;
    s.v[at * n + i] = v;
    s.u[at * n + i] = u;
    const T h = former[i] - v * v, k = former[n + i] - 2 * u * v;
    now[i] = h;
    now[n + i] = k;
    if (i == gone) {
      s.taken[i] = 1;
    } else if (!s.taken[i]) {
      cost = cost_of(s.prior[i], h, k);
      place = static_cast<int>(i);
    }
  }
  least(cost, place, costs, places);
  if (threadIdx.x == 0) {
    s.cheapest[((at + 1) % 2) * s.blocks + blockIdx.x] = cost;
    s.places[((at + 1) % 2) * s.blocks + blockIdx.x] = place;
  }
}

template <class T>
int run(Steps<T> steps, int64_t count, cudaStream_t stream) {
  steps.blocks = static_cast<int>((steps.channels + kRows - 1) / kRows);
  begin_kernel<T><<<steps.blocks, kThreads, 0, stream>>>(steps);
  for (int at = 0; at < count; ++at)
    step_kernel<T><<<steps.blocks, kThreads, 0, stream>>>(steps, at);
  return cudaGetLastError();
}

}  // namespace

int eliminate_cuda(const void* inverse, const void* products, const void* prior, bool wide,
                   int64_t channels, int64_t count, int64_t* order, void* costs, void* v, void* u,
                   void* diagonals, void* cheapest, int32_t* places, uint8_t* taken, void* stream) {
  if (count > kColumns) return cudaErrorInvalidValue;
  const auto in = [&](auto zero) {
    using T = decltype(zero);
    const Steps<T> steps{static_cast<const T*>(inverse),
                         static_cast<const T*>(products),
                         static_cast<const T*>(prior),
                         channels,
                         order,
                         static_cast<T*>(costs),
                         static_cast<T*>(v),
                         static_cast<T*>(u),
                         static_cast<T*>(diagonals),
                         static_cast<T*>(cheapest),
                         places,
                         taken,
                         0};
    return run(steps, count, static_cast<cudaStream_t>(stream));
  };
  return wide ? in(double{}) : in(float{});
}

}  // namespace compressor
