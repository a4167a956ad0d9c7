// The cuts of all row groups; see besa_cut.h.
#include "../besa_cut.h"

#include "../ops.h"
#include "parallel.h"

namespace compressor {

void besa_cut_cpu(const float* beta, int64_t groups, int candidates, const int32_t* columns,
                  bool sampled, uint64_t seed, uint64_t offset, int32_t* cut, int threads) {
  constexpr int kRows = 8;
  parallel_for(groups, (1 << 16) / candidates, threads, [&](int64_t begin, int64_t end) {
    int64_t g = begin;
    if (sampled) {
      for (; g < end; ++g) {
        const uint32_t random = philox(seed, offset, g);
        cut[g] = sampled_cut(beta + g * candidates, candidates, columns[g], random);
      }
    }
    for (; g + kRows <= end; g += kRows) {
      expected_cuts<kRows>(beta + g * candidates, candidates, columns + g, cut + g);
    }
    for (; g < end; ++g) expected_cuts<1>(beta + g * candidates, candidates, columns + g, cut + g);
  });
}

}  // namespace compressor
