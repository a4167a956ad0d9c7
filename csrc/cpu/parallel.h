// Ranges over threads. Plain std::thread: a second OpenMP runtime beside torch's own would keep its
// threads spinning on the cores that torch uses next.
#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <system_error>
#include <thread>
#include <vector>

namespace compressor {

// body(begin, end) over [0, count) in at most `threads` parts of at least `grain`. Where a part
// begins and ends must not change the result, so that it does not depend on the machine. Parts for
// which the system has no thread left run in this one; an exception is passed on when all are done.
template <class Body>
void parallel_for(int64_t count, int64_t grain, int threads, const Body& body) {
  const int64_t parts = std::clamp<int64_t>(count / std::max<int64_t>(grain, 1), 1, threads);
  std::vector<std::exception_ptr> failures(parts);
  const auto run = [&](int64_t part) {
    try {
      body(count * part / parts, count * (part + 1) / parts);
    } catch (...) {
      failures[part] = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  others.reserve(parts - 1);
  int64_t started = 1;
  try {
    for (; started < parts; ++started) others.emplace_back(run, started);
  } catch (const std::system_error&) {
  }
  run(0);
  for (int64_t part = started; part < parts; ++part) run(part);
  for (auto& thread : others) thread.join();
  for (const auto& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

}  // namespace compressor
