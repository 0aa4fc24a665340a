// Pools of threads, one for each workspace. They spin briefly between jobs, then sleep; no OpenMP, so torch's own
// threads are never fought over a core for longer than a job lasts. Where the system gives fewer threads than were asked
// for, a job runs on those there are.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>

class Pool;
class Team;
using Work = void (*)(void *context, Team &team);

Pool *new_pool();
void delete_pool(Pool *);
// Runs `work` on at most `threads` threads, the caller being thread 0; one job at a time. A thread that comes late,
// because its core is busy with something else, is not waited for. Null is a pool of the process.
void run_on_pool(Pool *pool, int threads, Work work, void *context);
// fork() waits until `call` is free, so that the child finds it free as well; its pool, whose threads are not in the
// child, is replaced there.
void watch_forks(std::mutex *call, Pool **pool);
void forget_forks(std::mutex *call);
int clamp_threads(int threads);

struct Shared {  // where the threads of one job meet
  alignas(64) std::atomic<uint64_t> next{0};  // phase << 32 | first item nobody took
  alignas(64) std::atomic<int64_t> done{0};   // items of this phase that are finished
};

// One thread's view of a job: phases of items, handed out as threads come free. A phase begins when the one before is
// done, whoever did it; a thread that missed it goes on to the next. Which thread does an item never changes its result.
class Team {
 public:
  Team(Shared &shared, int thread, int threads) : thread(thread), threads(threads), shared_(shared) {}
  const int thread, threads;

  // Every thread calls this with the same items, in the same order of phases; returns when all items are done.
  template <class F>
  void share(int64_t items, int64_t chunk, F &&function) {
    const uint64_t phase = phase_++ << 32;
    if (items == 0) return pass(phase);
    for (;;) {
      uint64_t seen = shared_.next.load(std::memory_order_acquire);
      if ((seen & kPhase) != phase) return;
      const int64_t first = seen & ~kPhase, end = first + chunk < items ? first + chunk : items;
      if (first >= items) return wait(phase);
      if (!shared_.next.compare_exchange_weak(seen, phase | end, std::memory_order_acq_rel)) continue;
      function(first, end);
      if (shared_.done.fetch_add(end - first, std::memory_order_acq_rel) + end - first < items) continue;
      shared_.done.store(0, std::memory_order_relaxed);
      shared_.next.store(phase + kOne, std::memory_order_release);
      return;
    }
  }

 private:
  static constexpr uint64_t kOne = 1ull << 32, kPhase = ~(kOne - 1);
  void pass(uint64_t phase) { shared_.next.compare_exchange_strong(phase, phase + kOne); }
  void wait(uint64_t phase) const;

  Shared &shared_;
  uint64_t phase_ = 0;
};
