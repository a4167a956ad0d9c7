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

// `count` pieces of work of the same size, of one of several jobs.
struct Pieces {
  int64_t count, size;
};

// body(job, begin, end) over the pieces of all jobs, in parts of about the same size of at least
// `grain`: threads are started once for all jobs.
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
