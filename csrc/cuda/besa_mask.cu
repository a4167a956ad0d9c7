// BESA's mask: keep the weights whose rank reaches their row group's cut.
#include "elements.cuh"

namespace compressor {
namespace {

constexpr int kThreads = 256;
constexpr int kEights = 2;                          // a thread, with their loads in flight together
constexpr int64_t kChunk = kThreads * kEights * 8;  // columns a block

// On bits, so that what is kept is a copy even of a NaN.
template <class Bits, bool kWide>
__global__ void __launch_bounds__(kThreads)
    mask_kernel(const Bits* weight, int64_t columns, int64_t stride, const uint16_t* rank,
                const int32_t* cut, unsigned group_rows, unsigned chunks, Bits* out) {
  const unsigned row = blockIdx.x / chunks;
  const int64_t first = blockIdx.x % chunks * kChunk;
  const int32_t threshold = cut[row / group_rows];
  weight += row * stride;
  rank += row * columns;
  out += row * columns;
  if constexpr (kWide) {
    Eight<Bits> values[kEights];
    Eight<uint16_t> ranks[kEights];
#pragma unroll
    for (int i = 0; i < kEights; ++i) {
      const int64_t c = first + (i * kThreads + threadIdx.x) * 8;
      if (c < columns) {
        values[i] = load_eight(weight + c);
        ranks[i] = load_eight(rank + c);
      }
    }
#pragma unroll
    for (int i = 0; i < kEights; ++i) {
      const int64_t c = first + (i * kThreads + threadIdx.x) * 8;
#pragma unroll
      for (int e = 0; e < 8; ++e) {
        if (ranks[i].at[e] < threshold) values[i].at[e] = 0;
      }
      if (c < columns) write_eight(out + c, values[i]);
    }
  } else {
    const int64_t last = min(first + kChunk, columns);
    for (int64_t c = first + threadIdx.x; c < last; c += kThreads) {
      out[c] = rank[c] < threshold ? Bits{0} : weight[c];
    }
  }
}

template <class Bits>
cudaError_t mask(const BesaMaskJob& job, cudaStream_t stream) {
  const bool wide = in_eights(job.weight, job.columns, job.stride) &&
                    in_eights(job.rank, job.columns, job.columns) &&
                    in_eights(job.out, job.columns, job.columns);
  const auto kernel = wide ? mask_kernel<Bits, true> : mask_kernel<Bits, false>;
  const int64_t chunks = (job.columns + kChunk - 1) / kChunk;
  if (job.rows * chunks > INT32_MAX) return cudaErrorInvalidValue;
  kernel<<<static_cast<unsigned>(job.rows * chunks), kThreads, 0, stream>>>(
      static_cast<const Bits*>(job.weight), job.columns, job.stride, job.rank, job.cut,
      static_cast<unsigned>(job.group_rows), static_cast<unsigned>(chunks),
      static_cast<Bits*>(job.out));
  return cudaGetLastError();
}

}  // namespace

int besa_mask_cuda(const BesaMaskJob* jobs, int64_t count, void* stream) {
  for (const BesaMaskJob* job = jobs; job != jobs + count; ++job) {
    const auto run = job->dtype == kFloat32 ? mask<uint32_t> : mask<uint16_t>;
    const cudaError_t status = run(*job, static_cast<cudaStream_t>(stream));
    if (status != cudaSuccess) return status;
  }
  return cudaSuccess;
}

}  // namespace compressor
