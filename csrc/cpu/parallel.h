// Ranges over threads. Not the compiler's OpenMP: a second runtime beside torch's own would keep
// its threads spinning on the cores that torch uses next.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "team.h"

namespace compressor {

constexpr int64_t kPartsOfThread = 4;  // so that who comes late, or is slow, is not waited for

// body(begin, end) over [0, count) by at most `threads` threads, in parts of at least `grain`.
// Where a part begins and ends must not change the result, so that it does not depend on the
// machine.
template <class Body>
void parallel_for(int64_t count, int64_t grain, int threads, const Body& body) {
  const int64_t most = threads > 1 ? threads * kPartsOfThread : 1;
  const int64_t parts = std::clamp<int64_t>(count / std::max<int64_t>(grain, 1), 1, most);
  if (parts == 1) return body(0, count);
  const int64_t helpers = std::min<int64_t>(threads, parts) - 1;
  Team::own().run(parts, static_cast<int>(helpers),
                  [&](int64_t part) { body(count * part / parts, count * (part + 1) / parts); });
}

// `count` pieces of work of the same size, of one of several jobs.
struct Pieces {
  int64_t count, size;
};

// body(job, begin, end) over the pieces of all jobs, in parts of about the same size of at least
// `grain`: helpers are called once for all jobs.
template <class Body>
void parallel_for_each(const std::vector<Pieces>& jobs, int64_t grain, int threads,
                       const Body& body) {
  int64_t total = 0;
  for (const Pieces& job : jobs) total += job.count * job.size;
  parallel_for(total, grain, threads, [&](int64_t begin, int64_t end) {
    // A piece belongs to the part in which it begins.
    const auto pieces_before = [](const Pieces& job, int64_t place) {
      return std::clamp<int64_t>((place + job.size - 1) / job.size, 0, job.count);
    };
    for (size_t i = 0; i < jobs.size() && end > 0; ++i) {
      const int64_t first = begin > 0 ? pieces_before(jobs[i], begin) : 0;
      const int64_t last = pieces_before(jobs[i], end);
      if (first < last) body(i, first, last);
      begin -= jobs[i].count * jobs[i].size;
      end -= jobs[i].count * jobs[i].size;
    }
  });
}

}  // namespace compressor
