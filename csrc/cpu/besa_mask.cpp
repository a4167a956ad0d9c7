// BESA's mask: keep the weights whose rank reaches their row group's cut.
#include "dtype.h"
#include "pages.h"
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
void mask(const BesaMaskJob& job, int64_t begin, int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    const int32_t cut = std::clamp<int32_t>(job.cut[r / job.group_rows], 0, UINT16_MAX);
    mask_row(static_cast<const Bits*>(job.weight) + r * job.stride, job.rank + r * job.columns,
             static_cast<uint16_t>(cut), job.columns,
             static_cast<Bits*>(job.out) + r * job.columns);
  }
}

}  // namespace

void besa_mask_cpu(const BesaMaskJob* jobs, int64_t count, int threads) {
  std::vector<Pieces> rows;
  for (int64_t i = 0; i < count; ++i) {
    const BesaMaskJob& job = jobs[i];
    rows.push_back({job.rows, job.columns});
    use_large_pages(job.out, job.rows * job.columns * (job.dtype == kFloat32 ? 4 : 2));
  }
  parallel_for_each(rows, 1 << 16, threads, [&](int64_t i, int64_t begin, int64_t end) {
    const auto run = jobs[i].dtype == kFloat32 ? mask<uint32_t> : mask<uint16_t>;
    run(jobs[i], begin, end);
  });
}

}  // namespace compressor
