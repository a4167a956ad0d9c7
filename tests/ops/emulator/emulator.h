// Runs CUDA kernels on one thread of a CPU, a block at a time. A block's threads are coroutines
// that change places where they wait for each other: at barriers and in the operations of a warp.
// Between those a thread, and then its warp, runs as far as it gets, so that without a barrier it
// meets memory that nobody has written yet. What a kernel does wrong becomes a sentence.
#pragma once

#include <setjmp.h>
#include <signal.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <vector>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 : uint3 {
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
};
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulated {

constexpr unsigned kWarp = 32, kMostThreads = 1024;
constexpr size_t kStack = 64 << 10;    // of a thread
constexpr size_t kGap = 1 << 10;       // before, between and after arrays in shared memory
constexpr size_t kMargin = 512 << 10;  // around all of it: a wild 16-bit index stays inside

enum State { kReady, kWaiting, kEnded };
struct Thread {
  jmp_buf place;
  bool begun;
  uint3 index;
  State state;
  struct {  // what it waits for: an operation of the lanes of a mask, or its block's barrier
    const char* name;
    int line;
    unsigned mask;  // 0: a barrier
    uint64_t value;
  } wish;
  unsigned met;  // the lanes that took part
};

inline bool descending = false;       // threads and blocks run in that order, or ascending
inline int shared_limit = 227 << 10;  // bytes of a block
inline std::string failure;           // the first, as a sentence

inline std::vector<Thread> threads(kMostThreads);
inline Thread* current;
inline uint64_t seen[kWarp];  // the values of the lanes that met
inline uint64_t folded;       // all of those together, once the first lane of them has seen them
inline unsigned folded_of;    // the lanes, or 0
inline jmp_buf scheduler;
inline sigjmp_buf rescue;
inline const std::function<void()>* body;
inline std::map<const void*, int> allowed;  // dynamic shared memory, by kernel
inline std::vector<unsigned char> arena(2 * kMargin + (512 << 10));
inline size_t free_from;
inline std::vector<size_t> gaps;  // in the block's shared memory
inline long block_number = 0;

inline void fail(const std::string& sentence) {
  if (failure.empty()) failure = sentence;
}
inline unsigned char poison() { return descending ? 0xfe : 0x7f; }  // huge, whatever the type
inline unsigned in_order(unsigned i, unsigned count) { return descending ? count - 1 - i : i; }

inline size_t take_shared(size_t bytes) {
  const size_t offset = free_from;
  free_from += (bytes + 15) / 16 * 16 + kGap;
  std::fill(arena.begin() + offset, arena.begin() + free_from, poison());
  gaps.push_back(offset + bytes);
  return offset;
}
// An array of the kernel, wherever it is in this block.
template <class T, int kLine>
T& shared() {
  static long block = -1;
  static size_t offset;
  if (block != block_number) offset = take_shared(sizeof(T));
  block = block_number;
  return *reinterpret_cast<T*>(&arena[offset]);
}
inline void* dynamic_shared() { return &arena[kMargin + kGap]; }

// Without swapcontext, which asks the system for signal masks every time.
inline void give_way() {
  if (_setjmp(current->place) == 0) _longjmp(scheduler, 1);
}
inline void live() {
  for (;;) {
    (*body)();
    current->state = kEnded;
    give_way();
  }
}
inline void resume(Thread& thread) {
  static std::vector<unsigned char> stacks(kStack * kMostThreads);
  static ucontext_t context;
  current = &thread;
  threadIdx = thread.index;
  if (_setjmp(scheduler) == 0) {
    if (thread.begun) _longjmp(thread.place, 1);
    thread.begun = true;
    getcontext(&context);
    context.uc_stack.ss_sp = &stacks[(&thread - threads.data()) * kStack];
    context.uc_stack.ss_size = kStack;
    makecontext(&context, live, 0);
    setcontext(&context);
  }
}

inline unsigned lane() { return (current - threads.data()) % kWarp; }
// Until the others are there; then `seen` has their values, while this lane does not wait again.
inline unsigned wait(const char* name, int line, unsigned mask, uint64_t value = 0) {
  Thread& self = *current;
  self.wish = {name, line, mask, value};
  self.state = kWaiting;
  if (mask != 0 && ~mask >> lane() & 1) fail(std::string(name) + ": a lane is not in its mask");
  give_way();
  return self.met;
}

// Lets lanes go on whose operation all lanes of the mask have reached, but for those that ended.
inline bool finish_warp(Thread* lanes, unsigned count) {
  bool any = false;
  for (unsigned i = 0; i < count; ++i) {
    const auto first = lanes[i].wish;
    if (lanes[i].state != kWaiting || !first.mask) continue;
    unsigned met = 0, alive = 0;
    for (unsigned j = 0; j < count; ++j) {
      const bool same = lanes[j].wish.mask == first.mask && lanes[j].wish.line == first.line;
      met |= unsigned{lanes[j].state == kWaiting && same} << j;
      alive |= unsigned{lanes[j].state != kEnded} << j;
    }
    if (alive & first.mask & ~met) continue;
    for (unsigned j = 0; j < count; ++j) {
      if (~met >> j & 1) continue;
      seen[j] = lanes[j].wish.value;
      lanes[j].met = met;
      lanes[j].state = kReady;
    }
    folded_of = 0;
    any = true;
  }
  return any;
}

// When all threads wait or have ended: they go on if they are at one barrier.
inline bool finish_barrier(unsigned count) {
  const auto where = [](const Thread& t) {
    const std::string who = "thread " + std::to_string(&t - threads.data());
    if (t.state == kEnded) return who + " has ended";
    return who + " waits at " + t.wish.name + " of line " + std::to_string(t.wish.line);
  };
  for (unsigned i = 0; i < count; ++i) {
    const Thread &a = threads[0], &b = threads[i];
    if (a.state == b.state && a.wish.line == b.wish.line && !a.wish.mask && !b.wish.mask) continue;
    fail(where(a) + ", " + where(i ? b : threads[count - 1]) + ": they never meet");
    return false;
  }
  for (unsigned i = 0; i < count; ++i) threads[i].state = kReady;
  return true;
}

inline void run_block(unsigned count, size_t bytes) {
  ++block_number;
  gaps.clear();
  free_from = kMargin;
  take_shared(0);
  take_shared(bytes);
  for (unsigned i = 0; i < count; ++i) {
    const unsigned row = i / blockDim.x;
    threads[i].index = {i % blockDim.x, row % blockDim.y, row / blockDim.y};
    threads[i].state = kReady;
  }
  const unsigned warps = (count + kWarp - 1) / kWarp;
  const auto runs = [](const Thread& thread) { return thread.state != kEnded; };
  do {
    for (unsigned w = 0; w < warps; ++w) {
      const unsigned first = in_order(w, warps) * kWarp, width = std::min(kWarp, count - first);
      do {
        for (unsigned i = 0; i < width; ++i) {
          Thread& thread = threads[first + in_order(i, width)];
          if (thread.state == kReady) resume(thread);
        }
      } while (finish_warp(&threads[first], width));
    }
  } while (std::any_of(&threads[0], &threads[0] + count, runs) && finish_barrier(count));
  for (size_t gap : gaps) {
    for (size_t i = gap; i < (gap + 15) / 16 * 16 + kGap; ++i) {
      if (arena[i] != poison()) fail("shared memory is written beyond an array's end");
    }
  }
}

inline void on_signal(int number, siginfo_t*, void*) {
  fail("thread " + std::to_string(current - threads.data()) + " of block " +
       std::to_string(blockIdx.x) +
       (number == SIGILL ? " misaligns, overflows or leaves an array" : " leaves its memory"));
  siglongjmp(rescue, 1);
}

inline void run_grid(unsigned count, size_t bytes, const std::function<void()>& kernel) {
  const int signals[] = {SIGSEGV, SIGBUS, SIGILL};
  struct sigaction handler = {}, before[3];
  handler.sa_sigaction = on_signal;
  handler.sa_flags = SA_SIGINFO;
  for (int i = 0; i < 3; ++i) sigaction(signals[i], &handler, &before[i]);
  body = &kernel;
  if (sigsetjmp(rescue, 1) == 0) {
    const unsigned blocks = gridDim.x * gridDim.y * gridDim.z;
    for (unsigned i = 0; i < blocks && failure.empty(); ++i) {
      const unsigned b = in_order(i, blocks), row = b / gridDim.x;
      blockIdx = {b % gridDim.x, row % gridDim.y, row / gridDim.y};
      run_block(count, bytes);
    }
  }
  for (int i = 0; i < 3; ++i) sigaction(signals[i], &before[i], nullptr);
  // After a failure threads are left in the middle of their kernel: all begin anew.
  for (Thread& thread : threads) thread.begun &= failure.empty();
}

// KERNEL<<<GRID, BLOCK, BYTES, STREAM>>>(...) is rewritten as launch(KERNEL, GRID, ...)(...).
template <class... Parameters>
auto launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t bytes = 0,
            void* = nullptr) {
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "a launch takes 4 KB of arguments");
  return [=](auto&&... arguments) {
    const size_t most = std::max(48 << 10, allowed[reinterpret_cast<const void*>(kernel)]);
    const uint64_t count = uint64_t{block.x} * block.y * block.z;
    if (count == 0 || count > kMostThreads || bytes > most || !grid.x || !grid.y || !grid.z) {
      return fail("no launch has " + std::to_string(count) + " threads a block and " +
                  std::to_string(bytes) + " bytes of shared memory, of " + std::to_string(most));
    }
    gridDim = grid;
    blockDim = block;
    const std::tuple<Parameters...> given(static_cast<Parameters>(arguments)...);
    run_grid(count, bytes, [&] { std::apply(kernel, given); });
  };
}

}  // namespace emulated
