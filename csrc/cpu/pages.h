// Large memory pages for outputs.
#pragma once

#ifdef __linux__
#include <sys/mman.h>
#endif

#include <cstdint>

namespace compressor {

// New memory, which the system has yet to hand out: in pages of 4 KB that takes three times as long
// as to copy a matrix there. Without effect where the system does not offer large pages.
inline void use_large_pages(void* begin, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 1 << 21;
  const uintptr_t from = (reinterpret_cast<uintptr_t>(begin) + kPage - 1) / kPage * kPage;
  const uintptr_t to = (reinterpret_cast<uintptr_t>(begin) + bytes) / kPage * kPage;
  if (from < to) madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#endif
}

}  // namespace compressor
