// Gradient of BESA's distribution: sums of W * G over the buckets of ranks, then prefix sums. A
// block puts a row in the order of its ranks in shared memory, where a bucket is a contiguous
// range: every sum has one order, and no atomics are needed. Rows wider than shared memory go in
// tiles of ranks.
#include "elements.cuh"

namespace compressor {
namespace {

constexpr int kLanes = 8;  // a bucket: of 40 ranks in a row of 4,096 with 100 buckets
constexpr int kFinishThreads = 1024;
// Blocks of 1,024 threads side by side: some multiprocessors hold 2,048 threads, others 1,536.
#if defined(__CUDA_ARCH__) && (__CUDA_ARCH__ / 10 % 10 != 0 || __CUDA_ARCH__ >= 1200)
constexpr int kResident = 1;
#else
constexpr int kResident = 2;
#endif
constexpr int kFinishBuckets = 128;  // side by side; the threads of one share its parts

template <class T>
struct Matrix {
  const T* data;
  int64_t stride;
};

// ordered[rank - low] = W * G, for the ranks in [low, low + count).
template <class T, bool kWide>
__device__ void place_row(const T* weight, const T* grad, const uint16_t* rank, int columns,
                          unsigned low, unsigned count, float* ordered) {
  const auto place = [&](T w, T g, uint16_t r) {
    if (r - low < count) ordered[r - low] = widen(w) * widen(g);
  };
  if constexpr (kWide) {
    constexpr int kEights = 4 / sizeof(T);  // a thread, with their loads in flight together
    for (int first = 0; first < columns; first += blockDim.x * 8 * kEights) {
      Eight<T> w[kEights], g[kEights];
      Eight<uint16_t> r[kEights];
#pragma unroll
      for (int i = 0; i < kEights; ++i) {
        const int c = first + (i * blockDim.x + threadIdx.x) * 8;
        if (c >= columns) break;
        w[i] = load_eight(weight + c);
        g[i] = load_eight(grad + c);
        r[i] = load_eight(rank + c);
      }
#pragma unroll
      for (int i = 0; i < kEights; ++i) {
        if (first + (i * blockDim.x + threadIdx.x) * 8 >= columns) break;
#pragma unroll
        for (int e = 0; e < 8; ++e) place(w[i].at[e], g[i].at[e], r[i].at[e]);
      }
    }
  } else {
    for (int c = threadIdx.x; c < columns; c += blockDim.x) place(weight[c], grad[c], rank[c]);
  }
}

// sums[k] += the products of bucket k, as far as they are in the tile [low, low + count).
__device__ void add_buckets(const float* ordered, int low, int count, const int* edges, int buckets,
                            float* sums) {
  const int lane = threadIdx.x % kLanes;
  // Whole warps go round together, for the shuffles.
  for (int first = threadIdx.x / 32 * (32 / kLanes); first < buckets;
       first += blockDim.x / kLanes) {
    const int k = first + threadIdx.x % 32 / kLanes;
    const int begin = k < buckets ? max(edges[k] - low, 0) : 0;
    const int end = k < buckets ? min(edges[k + 1] - low, count) : 0;
    float sum = 0;
#pragma unroll 4
    for (int i = begin + lane; i < end; i += kLanes) sum += ordered[i];
#pragma unroll
    for (int step = kLanes / 2; step > 0; step /= 2) {
      sum += __shfl_down_sync(~0u, sum, step, kLanes);
    }
    if (lane == 0 && k < buckets) sums[k] += sum;
  }
}

// out[d] = - (sums[0] + ... + sums[d - 1]), by the first warp.
__device__ void write_prefix(const float* sums, int buckets, float* out) {
  if (threadIdx.x >= 32) return;
  const int lane = threadIdx.x;
  float before = 0;
  if (lane == 0) out[0] = 0;
  for (int first = 0; first < buckets; first += 32) {
    float sum = first + lane < buckets ? sums[first + lane] : 0;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const float other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    if (first + lane < buckets) out[first + lane + 1] = -(before + sum);
    before += __shfl_sync(~0u, sum, 31);
  }
}

// One block a part: at most part_rows rows of a group.
template <class T, bool kWide>
__global__ void __launch_bounds__(1024, kResident)
    backward_kernel(Matrix<T> grad, Matrix<T> weight, int columns, const uint16_t* rank,
                    int64_t group_rows, int buckets, int64_t part_rows, unsigned parts, int tile,
                    float* partial, float* out) {
  extern __shared__ float memory[];
  float* ordered = memory;                              // [tile]
  float* sums = ordered + tile;                         // [buckets]
  int* edges = reinterpret_cast<int*>(sums + buckets);  // [buckets + 1]
  const int64_t group = blockIdx.x / parts;
  const int64_t first = blockIdx.x % parts * part_rows;
  const int64_t begin = group * group_rows + first;
  const int64_t end = begin + min(part_rows, group_rows - first);
  for (int k = threadIdx.x; k <= buckets; k += blockDim.x) {
    if (k < buckets) sums[k] = 0;
    edges[k] = static_cast<unsigned>(columns) * static_cast<unsigned>(k) / buckets;
  }
  for (int64_t row = begin; row < end; ++row) {
    for (int low = 0; low < columns; low += tile) {
      const int count = min(tile, columns - low);
      place_row<T, kWide>(weight.data + row * weight.stride, grad.data + row * grad.stride,
                          rank + row * columns, columns, low, count, ordered);
      __syncthreads();
      add_buckets(ordered, low, count, edges, buckets, sums);
      __syncthreads();
    }
  }
  if (parts == 1) {
    write_prefix(sums, buckets, out + group * (buckets + 1));
  } else {
    for (int k = threadIdx.x; k < buckets; k += blockDim.x) {
      partial[int64_t{blockIdx.x} * buckets + k] = sums[k];
    }
  }
}

// One block a group: adds its parts.
__global__ void __launch_bounds__(kFinishThreads)
    finish_kernel(const float* partial, unsigned parts, int buckets, float* out) {
  extern __shared__ float memory[];
  constexpr int kShares = kFinishThreads / kFinishBuckets;
  float* sums = memory;              // [buckets]
  float* shares = memory + buckets;  // [kShares, kFinishBuckets]
  const int x = threadIdx.x % kFinishBuckets, y = threadIdx.x / kFinishBuckets;
  partial += int64_t{blockIdx.x} * parts * buckets;
  for (int first = 0; first < buckets; first += kFinishBuckets) {
    const int k = first + x;
    float sum = 0;
    if (k < buckets) {
#pragma unroll 8
      for (unsigned p = y; p < parts; p += kShares) sum += partial[int64_t{p} * buckets + k];
    }
    shares[y * kFinishBuckets + x] = sum;
    __syncthreads();
    if (y == 0 && k < buckets) {
      for (int i = 1; i < kShares; ++i) sum += shares[i * kFinishBuckets + x];
      sums[k] = sum;
    }
    __syncthreads();
  }
  write_prefix(sums, buckets, out + int64_t{blockIdx.x} * (buckets + 1));
}

cudaError_t backward(const BesaMaskBackwardJob& job, int64_t buckets, int64_t part_rows, int most,
                     cudaStream_t stream) {
  const int64_t fixed = (2 * buckets + 1) * 4;
  const int64_t tile = min(job.columns, (most - fixed) / 4);
  const int64_t bytes = tile * 4 + fixed;
  const int64_t groups = job.rows / job.group_rows;
  const int64_t parts = (job.group_rows + part_rows - 1) / part_rows;
  if (groups * parts > INT32_MAX) return cudaErrorInvalidValue;
  const int threads = job.columns <= 8192 ? 256 : job.columns <= 16384 ? 512 : 1024;
  const cudaError_t status = with_device_dtype(static_cast<int>(job.dtype), [&](auto zero) {
    using T = decltype(zero);
    const bool wide = in_eights(job.weight, job.columns, job.stride) &&
                      in_eights(job.grad, job.columns, job.grad_stride) &&
                      in_eights(job.rank, job.columns, job.columns);
    const auto kernel = wide ? backward_kernel<T, true> : backward_kernel<T, false>;
    const cudaError_t allowed = allow_shared(kernel, bytes);
    if (allowed != cudaSuccess) return allowed;
    const Matrix<T> g{static_cast<const T*>(job.grad), job.grad_stride};
    const Matrix<T> w{static_cast<const T*>(job.weight), job.stride};
    kernel<<<static_cast<unsigned>(groups * parts), threads, bytes, stream>>>(
        g, w, static_cast<int>(job.columns), job.rank, job.group_rows, static_cast<int>(buckets),
        part_rows, static_cast<unsigned>(parts), static_cast<int>(tile), job.partial, job.out);
    return cudaGetLastError();
  });
  if (status != cudaSuccess || parts == 1) return status;
  const int64_t finish_bytes = (buckets + kFinishThreads) * 4;
  finish_kernel<<<static_cast<unsigned>(groups), kFinishThreads, finish_bytes, stream>>>(
      job.partial, static_cast<unsigned>(parts), static_cast<int>(buckets), job.out);
  return cudaGetLastError();
}

}  // namespace

int besa_mask_backward_cuda(const BesaMaskBackwardJob* jobs, int64_t count, int64_t buckets,
                            int64_t part_rows, void* stream) {
  int device = 0, most = 0;
  cudaError_t status = cudaGetDevice(&device);
  if (status != cudaSuccess) return status;
  status = cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  for (int64_t i = 0; i < count && status == cudaSuccess; ++i) {
    status = backward(jobs[i], buckets, part_rows, most, static_cast<cudaStream_t>(stream));
  }
  return status;
}

}  // namespace compressor
