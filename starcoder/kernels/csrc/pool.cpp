#include "pool.h"

#include <pthread.h>
#include <sched.h>

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

// Some 100 us: longer than threads wait for each other in a step, shorter than anyone notices.
constexpr int kSpins = 4000;

template <class Done>
void spin_until(Done &&done) {
  for (int spins = 0; !done(); spins++) spins < kSpins ? pause_briefly() : (void)sched_yield();
}

struct Job {
  Work work = nullptr;
  void *context = nullptr;
  Shared *shared = nullptr;
  int threads = 0;
};

class Pool {
 public:
  void run(int threads, Work work, void *context) {
    std::lock_guard<std::mutex> one_job(job_mutex_);
    Shared shared;
    if (threads > 1) open({work, context, &shared, threads});
    Team team(shared, 0, threads);
    work(context, team);
    if (threads > 1) close();
  }

 private:
  void open(const Job &job) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (; workers_ < job.threads - 1; workers_++) std::thread(&Pool::serve, this, workers_ + 1).detach();
    job_ = job;
    is_open_ = true;
    epoch_.fetch_add(1, std::memory_order_release);
    wake_.notify_all();
  }

  void close() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      is_open_ = false;
    }
    spin_until([&] { return inside_.load(std::memory_order_acquire) == 0; });
  }

  void serve(int thread) {
    uint64_t seen = 0;
    for (;;) {
      for (int spins = 0; epoch_.load(std::memory_order_acquire) == seen && spins < kSpins; spins++) pause_briefly();
      Job job;
      {
        std::unique_lock<std::mutex> lock(mutex_);
        wake_.wait(lock, [&] { return epoch_.load(std::memory_order_relaxed) != seen; });
        seen = epoch_.load(std::memory_order_relaxed);
        if (!is_open_ || thread >= job_.threads) continue;
        job = job_;
        inside_.fetch_add(1, std::memory_order_relaxed);
      }
      Team team(*job.shared, thread, job.threads);
      job.work(job.context, team);
      inside_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::mutex job_mutex_, mutex_;  // one job at a time; the fields below
  std::condition_variable wake_;
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int> inside_{0};
  Job job_;
  bool is_open_ = false;
  int workers_ = 0;
};

// Never destroyed: its threads outlive main. A forked child has no workers and starts its own pool.
Pool *pool = nullptr;
std::once_flag once;
void new_pool() { pool = new Pool; }

}  // namespace

void Team::wait(uint64_t phase) const {
  spin_until([&] { return (shared_.next.load(std::memory_order_acquire) & kPhase) != phase; });
}

int clamp_threads(int threads) { return threads < 1 ? 1 : threads > 256 ? 256 : threads; }

void run_on_pool(int threads, Work work, void *context) {
  std::call_once(once, [] {
    new_pool();
    pthread_atfork(nullptr, nullptr, new_pool);
  });
  pool->run(clamp_threads(threads), work, context);
}
