// BESA's mask: keep the weights whose rank reaches their row group's cut.
#include "dtype.h"
#include "parallel.h"

namespace compressor {
namespace {

// On bits, so that what is kept is a copy even of a NaN, and without branches, to be vectorised.
template <class Bits>
COMPRESSOR_CLONES void mask_row(const Bits* row, const uint16_t* rank, uint16_t cut, int64_t count,
                                Bits* out) {
  for (int64_t c = 0; c < count; ++c) {
    out[c] = static_cast<Bits>(row[c] & -static_cast<Bits>(rank[c] >= cut));
  }
}

template <class Bits>
void mask(const void* weight, int64_t rows, int64_t columns, int64_t stride, const uint16_t* rank,
          const int32_t* cut, int64_t group_rows, void* out, int threads) {
  const int64_t grain = std::max<int64_t>(1, (1 << 16) / std::max<int64_t>(columns, 1));
  parallel_for(rows, grain, threads, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int32_t k = std::clamp<int32_t>(cut[r / group_rows], 0, UINT16_MAX);
      mask_row(static_cast<const Bits*>(weight) + r * stride, rank + r * columns,
               static_cast<uint16_t>(k), columns, static_cast<Bits*>(out) + r * columns);
    }
  });
}

}  // namespace

void besa_mask_cpu(const void* weight, int dtype, int64_t rows, int64_t columns, int64_t stride,
                   const uint16_t* rank, const int32_t* cut, int64_t group_rows, void* out,
                   int threads) {
  const auto run = dtype == kFloat32 ? mask<uint32_t> : mask<uint16_t>;
  run(weight, rows, columns, stride, rank, cut, group_rows, out, threads);
}

}  // namespace compressor
