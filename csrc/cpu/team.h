// Threads that help with work which the caller could do alone: torch's own, where they can be had
// (`openmp.h`), since after each of torch's operations these go on spinning on their cores for a
// while. Else they are started once and sleep in between, and nobody waits for one to wake up:
// parts of the work are taken by whoever is there.
#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <list>
#include <mutex>
#include <system_error>
#include <thread>

#include "openmp.h"

namespace compressor {

class Team {
 public:
  // This process's team, never destroyed: its threads sleep until the process ends. Threads do not
  // survive a fork, so a child begins with a team of its own.
  static Team& own() {
    static std::atomic<Team*> team{nullptr};
    Team* found = team.load();
    while (found == nullptr || found->process_ != getpid()) {
      Team* fresh = new Team;
      if (team.compare_exchange_strong(found, fresh)) return *fresh;
      delete fresh;  // another thread was quicker, and `found` is its
    }
    return *found;
  }

  // body(part) for every part below `parts`, by this thread and at most `helpers` others. The first
  // exception is passed on when all are done.
  void run(int64_t parts, int helpers, const std::function<void(int64_t)>& body) {
    Task task(parts, helpers, body);
    if (const OpenMpFork fork = openmp_fork()) {
      fork([](void* given) { static_cast<Task*>(given)->work(); }, &task, helpers + 1, 0);
    } else {
      share(task, helpers);
    }
    if (task.failure) std::rethrow_exception(task.failure);
  }

 private:
  struct Task {
    Task(int64_t parts, int places, const std::function<void(int64_t)>& body)
        : parts(parts), places(places), body(body) {}

    void work() {
      for (int64_t part = next++; part < parts; part = next++) {
        try {
          body(part);
        } catch (...) {
          const std::lock_guard<std::mutex> lock(failing);
          if (!failure) failure = std::current_exception();
        }
      }
    }

    const int64_t parts;
    int places;       // for helpers; this and `working` are guarded by the team's mutex
    int working = 0;  // helpers that may still use `body`
    const std::function<void(int64_t)>& body;
    std::atomic<int64_t> next{0};
    std::mutex failing;
    std::exception_ptr failure;
  };

  // Until the task is done.
  void share(Task& task, int helpers) {
    std::unique_lock<std::mutex> lock(mutex_);
    grow(helpers);
    tasks_.push_back(&task);
    lock.unlock();
    for (int i = 0; i < helpers; ++i) ready_.notify_one();
    task.work();
    lock.lock();
    tasks_.remove(&task);
    left_.wait(lock, [&] { return task.working == 0; });
  }

  // A system that has no thread left gives fewer helpers.
  void grow(int helpers) {
    try {
      for (; threads_ < helpers; ++threads_) std::thread([this] { help(); }).detach();
    } catch (const std::system_error&) {
    }
  }

  [[noreturn]] void help() {
    std::unique_lock<std::mutex> lock(mutex_);
    while (true) {
      const auto found = std::find_if(tasks_.begin(), tasks_.end(), [](const Task* task) {
        return task->places > 0 && task->next < task->parts;
      });
      if (found == tasks_.end()) {
        ready_.wait(lock);
        continue;
      }
      Task& task = **found;
      --task.places;
      ++task.working;
      lock.unlock();
      task.work();
      lock.lock();
      if (--task.working == 0) left_.notify_all();
    }
  }

  const pid_t process_ = getpid();
  int threads_ = 0;
  std::list<Task*> tasks_;
  std::mutex mutex_;
  std::condition_variable ready_, left_;
};

}  // namespace compressor
