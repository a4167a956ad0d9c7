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
cudaError_t mask(const void* weight, int64_t rows, int64_t columns, int64_t stride,
                 const uint16_t* rank, const int32_t* cut, int64_t group_rows, void* out,
                 cudaStream_t stream) {
  const bool wide = in_eights(weight, columns, stride) && in_eights(rank, columns, columns) &&
                    in_eights(out, columns, columns);
  const auto kernel = wide ? mask_kernel<Bits, true> : mask_kernel<Bits, false>;
  const int64_t chunks = (columns + kChunk - 1) / kChunk;
  if (rows * chunks > INT32_MAX) return cudaErrorInvalidValue;
  kernel<<<static_cast<unsigned>(rows * chunks), kThreads, 0, stream>>>(
      static_cast<const Bits*>(weight), columns, stride, rank, cut,
      static_cast<unsigned>(group_rows), static_cast<unsigned>(chunks), static_cast<Bits*>(out));
  return cudaGetLastError();
}

}  // namespace

int besa_mask_cuda(const void* weight, int dtype, int64_t rows, int64_t columns, int64_t stride,
                   const uint16_t* rank, const int32_t* cut, int64_t group_rows, void* out,
                   void* stream) {
  const auto run = dtype == kFloat32 ? mask<uint32_t> : mask<uint16_t>;
  return run(weight, rows, columns, stride, rank, cut, group_rows, out,
             static_cast<cudaStream_t>(stream));
}

}  // namespace compressor
