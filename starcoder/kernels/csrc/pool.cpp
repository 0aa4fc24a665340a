#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <condition_variable>
#include <mutex>
#include <thread>

namespace {

inline void pause_briefly() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// About 50 us of spinning: longer than a phase of a step waits, shorter than anyone notices.
constexpr int kSpins = 2000;

class Pool {
 public:
  void run(int threads, Work work, void *context) {
    std::lock_guard<std::mutex> one_job(job_mutex_);
    while (workers_ < threads - 1) {
      std::thread(&Pool::serve, this, workers_ + 1, epoch_.load()).detach();
      workers_++;
    }
    Shared shared;
    work_ = work, context_ = context, shared_ = &shared, threads_ = threads;
    running_.store(workers_, std::memory_order_relaxed);
    {
      std::lock_guard<std::mutex> lock(sleep_mutex_);
      epoch_.fetch_add(1, std::memory_order_release);
    }
    if (workers_ > 0) wake_.notify_all();
    Team team(shared, 0, threads);
    work(context, team);
    for (int spins = 0; running_.load(std::memory_order_acquire) > 0; spins++)
      spins < kSpins ? pause_briefly() : (void)sched_yield();
  }

 private:
  void serve(int thread, uint64_t seen) {
    for (;;) {
      int spins = 0;
      while (epoch_.load(std::memory_order_acquire) == seen && spins++ < kSpins) pause_briefly();
      if (epoch_.load(std::memory_order_acquire) == seen) {
        std::unique_lock<std::mutex> lock(sleep_mutex_);
        wake_.wait(lock, [&] { return epoch_.load(std::memory_order_acquire) != seen; });
      }
      seen++;
      if (thread < threads_) {
        Team team(*shared_, thread, threads_);
        work_(context_, team);
      }
      running_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex job_mutex_, sleep_mutex_;
  std::condition_variable wake_;
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int> running_{0};
  Work work_ = nullptr;
  void *context_ = nullptr;
  Shared *shared_ = nullptr;
  int threads_ = 0, workers_ = 0;
};

// Never destroyed: its threads outlive main. A forked child has no workers and starts its own pool.
Pool *pool = nullptr;
std::once_flag once;
void new_pool() { pool = new Pool; }

}  // namespace

void Team::sync() {
  if (thread == 0) shared_.next[(phase_ + 1) % 3].store(0, std::memory_order_relaxed);
  phase_++;
  if (threads == 1) return;
  const int generation = shared_.generation.load(std::memory_order_acquire);
  if (shared_.arrived.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
    shared_.arrived.store(0, std::memory_order_relaxed);
    shared_.generation.store(generation + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; shared_.generation.load(std::memory_order_acquire) == generation; spins++)
    spins < kSpins ? pause_briefly() : (void)sched_yield();
}

int clamp_threads(int threads) { return threads < 1 ? 1 : threads > 256 ? 256 : threads; }

void run_on_pool(int threads, Work work, void *context) {
  std::call_once(once, [] {
    new_pool();
    pthread_atfork(nullptr, nullptr, new_pool);
  });
  pool->run(clamp_threads(threads), work, context);
}
