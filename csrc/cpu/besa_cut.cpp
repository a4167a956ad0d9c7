// The cuts of all row groups; see besa_cut.h.
#include "../besa_cut.h"

#include "../ops.h"
#include "parallel.h"

namespace compressor {

void besa_cut_cpu(const float* beta, int64_t groups, int candidates, int32_t columns, bool sampled,
                  uint64_t seed, uint64_t offset, int32_t* cut, int threads) {
  parallel_for(groups, (1 << 16) / candidates, threads, [&](int64_t begin, int64_t end) {
    for (int64_t g = begin; g < end; ++g) {
      const float* row = beta + g * candidates;
      cut[g] = sampled ? sampled_cut(row, candidates, columns, philox(seed, offset, g))
                       : expected_cut(row, candidates, columns);
    }
  });
}

}  // namespace compressor
