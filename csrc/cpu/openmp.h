// GNU's OpenMP runtime, where the process has it: the threads that torch's own operations run on.
#pragma once

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

namespace compressor {

// fork(body, data, threads, 0) calls body(data) on so many threads, the caller's among them.
using OpenMpFork = void (*)(void (*)(void*), void*, unsigned, unsigned);

inline const pid_t kLoadedBy = getpid();

// The runtime's entry for a parallel region; null where there is none, in a forked process, which
// has none of its parent's threads, and if COMPRESSOR_OPENMP is 0. Looked up, not linked: that
// would be a second runtime beside the one that comes with torch.
inline OpenMpFork openmp_fork() {
  static const OpenMpFork found = [] {
    const char* wanted = std::getenv("COMPRESSOR_OPENMP");
    const bool off = wanted != nullptr && std::strcmp(wanted, "0") == 0;
    return off ? nullptr : reinterpret_cast<OpenMpFork>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  }();
  return kLoadedBy == getpid() ? found : nullptr;
}

}  // namespace compressor
