// out[i, j] = weight[rows[i], columns[j]] * scale[j]: kept rows and columns of many matrices.
#include "dtype.h"
#include "pages.h"
#include "parallel.h"

namespace compressor {
namespace {

constexpr int64_t kGrain = 1 << 15;  // elements a thread, below which starting one does not pay
constexpr int64_t kRunLength = 8;    // on average; shorter runs are quicker element by element

// The kept columns of a matrix, as runs of neighbours or, where those are short, one by one.
struct Columns {
  struct Run {
    int64_t from, to, count;
  };
  std::vector<Run> runs;
  std::vector<uint32_t> single;  // half the memory of int64, which the inner loop reads

  explicit Columns(const CompactJob& job) {
    if (job.columns == nullptr) {
      runs.push_back({0, 0, job.kept_columns});
      return;
    }
    for (int64_t to = 0; to < job.kept_columns; ++to) {
      const int64_t from = job.columns[to];
      if (to > 0 && from == job.columns[to - 1] + 1) {
        ++runs.back().count;
      } else {
        runs.push_back({from, to, 1});
      }
    }
    if (job.kept_columns < kRunLength * static_cast<int64_t>(runs.size())) {
      single.assign(job.columns, job.columns + job.kept_columns);
    }
  }

  template <class T>
  void gather(const T* row, T* out) const {
    if (single.empty()) {
      for (const Run& run : runs) std::memcpy(out + run.to, row + run.from, run.count * sizeof(T));
    } else {
      for (size_t j = 0; j < single.size(); ++j) out[j] = row[single[j]];
    }
  }
};

int64_t source_row(const CompactJob& job, int64_t i) { return job.rows ? job.rows[i] : i; }

template <class T>
void move(const CompactJob& job, int threads) {
  const T* weight = static_cast<const T*>(job.weight);
  T* out = static_cast<T*>(job.out);
  const int64_t width = job.kept_columns;
  use_large_pages(out, job.kept_rows * width * sizeof(T));
  const Columns columns(job);
  parallel_for(job.kept_rows, kGrain / width, threads, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      columns.gather(weight + source_row(job, i) * job.stride, out + i * width);
    }
  });
}

template <class From, class To>
COMPRESSOR_CLONES void round_row(const From* row, const float* scale, int64_t count, To* out) {
  if (scale) {
    for (int64_t j = 0; j < count; ++j) out[j] = narrow<To>(widen(row[j]) * scale[j]);
  } else {
    for (int64_t j = 0; j < count; ++j) out[j] = narrow<To>(widen(row[j]));
  }
}

template <class From, class To>
void multiply(const CompactJob& job, int threads) {
  const From* weight = static_cast<const From*>(job.weight);
  To* out = static_cast<To*>(job.out);
  const int64_t width = job.kept_columns;
  use_large_pages(out, job.kept_rows * width * sizeof(To));
  const Columns columns(job);
  parallel_for(job.kept_rows, kGrain / width, threads, [&](int64_t begin, int64_t end) {
    std::vector<From> kept(job.columns ? width : 0);
    for (int64_t i = begin; i < end; ++i) {
      const From* row = weight + source_row(job, i) * job.stride;
      if (job.columns) columns.gather(row, kept.data());
      round_row(job.columns ? kept.data() : row, job.scale, width, out + i * width);
    }
  });
}

}  // namespace

void compact_cpu(const CompactJob* jobs, int64_t count, int threads) {
  for (const CompactJob* job = jobs; job != jobs + count; ++job) {
    switch (job->moved) {
      case 1: move<uint8_t>(*job, threads); continue;
      case 2: move<uint16_t>(*job, threads); continue;
      case 4: move<uint32_t>(*job, threads); continue;
      case 8: move<uint64_t>(*job, threads); continue;
    }
    with_dtype(static_cast<int>(job->from), [&](auto from) {
      with_dtype(static_cast<int>(job->to),
                 [&](auto to) { multiply<decltype(from), decltype(to)>(*job, threads); });
    });
  }
}

}  // namespace compressor
