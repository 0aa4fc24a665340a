// One pool of threads for the process. They spin briefly between jobs, then sleep; no OpenMP, so torch's own
// threads are never fought over a core for longer than a job lasts.
#pragma once
#include <atomic>
#include <cstdint>

class Team;
using Work = void (*)(void *context, Team &team);

// Runs `work` on `threads` threads, the caller being thread 0; one job at a time.
void run_on_pool(int threads, Work work, void *context);
int clamp_threads(int threads);

struct Shared {  // what the threads of one job meet at
  alignas(64) std::atomic<int> arrived{0};
  alignas(64) std::atomic<int> generation{0};
  alignas(64) std::atomic<int64_t> next[3] = {};
};

// One thread's view of a job: phases of items, handed out as threads come free, with a barrier after each. Which
// thread does an item never changes its result.
class Team {
 public:
  Team(Shared &shared, int thread, int threads) : thread(thread), threads(threads), shared_(shared) {}
  const int thread, threads;

  template <class F>
  void share(int64_t items, int64_t chunk, F &&function) {
    std::atomic<int64_t> &next = shared_.next[phase_ % 3];
    for (;;) {
      const int64_t first = next.fetch_add(chunk, std::memory_order_relaxed);
      if (first >= items) break;
      function(first, first + chunk < items ? first + chunk : items);
    }
    sync();
  }
  void sync();

 private:
  Shared &shared_;
  unsigned phase_ = 0;
};
