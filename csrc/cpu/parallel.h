// Ranges over threads. Plain std::thread: a second OpenMP runtime beside torch's own would keep its
// threads spinning on the cores that torch uses next.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace compressor {

// body(begin, end) over [0, count) in at most `threads` parts of at least `grain`. Where a part
// begins and ends must not change the result, so that it does not depend on the machine.
template <class Body>
void parallel_for(int64_t count, int64_t grain, int threads, const Body& body) {
  const int64_t parts = std::clamp<int64_t>(count / std::max<int64_t>(grain, 1), 1, threads);
  std::vector<std::thread> others;
  for (int64_t i = 1; i < parts; ++i) {
    others.emplace_back(
        [&body, begin = count * i / parts, end = count * (i + 1) / parts] { body(begin, end); });
  }
  body(int64_t{0}, count / parts);
  for (auto& thread : others) thread.join();
}

}  // namespace compressor
