#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <time.h>

#include <condition_variable>
#include <system_error>
#include <thread>
#include <vector>

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
// Then whoever is waited for may have lost its core: offer this one, and after that stop using it at all.
constexpr int kYields = 100;
constexpr long kSleepNs = 50000;

template <class Done>
void spin_until(Done &&done) {
  for (int spins = 0; !done(); spins++) {
    if (spins < kSpins) {
      pause_briefly();
    } else if (spins < kSpins + kYields) {
      sched_yield();
    } else {
      const timespec duration{0, kSleepNs};
      nanosleep(&duration, nullptr);
    }
  }
}

struct Job {
  Work work = nullptr;
  void *context = nullptr;
  Shared *shared = nullptr;
  int threads = 0;
};

}  // namespace

class Pool {
 public:
  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      is_ending_ = true;
      epoch_.fetch_add(1, std::memory_order_release);
    }
    wake_.notify_all();
    for (std::thread &worker : workers_) worker.join();
  }

  void run(int threads, Work work, void *context) {
    Shared shared;
    if (threads > 1) open({work, context, &shared, threads});
    Team team(shared, 0, threads);
    work(context, team);
    if (threads > 1) close();
  }

  std::mutex job_mutex;  // one job at a time, where callers do not see to it

 private:
  void open(const Job &job) {
    std::lock_guard<std::mutex> lock(mutex_);
    try {
      for (int thread = (int)workers_.size() + 1; thread < job.threads; thread++)
        workers_.emplace_back(&Pool::serve, this, thread);
    } catch (const std::system_error &) {
      // The system has no more threads for us: those that there are do the work, if need be the caller alone.
    }
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
        if (is_ending_) return;
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

  std::mutex mutex_;  // the fields below
  std::condition_variable wake_;
  std::atomic<uint64_t> epoch_{0};
  std::atomic<int> inside_{0};
  Job job_;
  bool is_open_ = false, is_ending_ = false;
  std::vector<std::thread> workers_;
};

namespace {

struct Watched {
  std::mutex *call;
  Pool **pool;
};

// Never destroyed: threads may use them while the process ends.
struct Process {
  std::mutex mutex;  // of `watched`
  std::vector<Watched> watched;
  Pool *pool = new Pool;
};

Process *the_process = nullptr;

// Callers lock their own mutex before the pool's, and so does a fork.
void before_fork() {
  the_process->mutex.lock();
  for (const Watched &one : the_process->watched) one.call->lock();
  the_process->pool->job_mutex.lock();
}

void after_fork() {
  the_process->pool->job_mutex.unlock();
  for (const Watched &one : the_process->watched) one.call->unlock();
  the_process->mutex.unlock();
}

// The old pools are left as they are: their threads are not in this process and cannot be joined.
void in_child() {
  Pool *old = the_process->pool;
  the_process->pool = new Pool;
  for (const Watched &one : the_process->watched) *one.pool = new Pool;
  old->job_mutex.unlock();
  for (const Watched &one : the_process->watched) one.call->unlock();
  the_process->mutex.unlock();
}

Process &process() {
  static std::once_flag once;
  std::call_once(once, [] {
    the_process = new Process;
    pthread_atfork(before_fork, after_fork, in_child);
  });
  return *the_process;
}

}  // namespace

void Team::wait(uint64_t phase) const {
  spin_until([&] { return (shared_.next.load(std::memory_order_acquire) & kPhase) != phase; });
}

int clamp_threads(int threads) { return threads < 1 ? 1 : threads > 256 ? 256 : threads; }

Pool *new_pool() { return new Pool; }

void delete_pool(Pool *pool) { delete pool; }

void run_on_pool(Pool *pool, int threads, Work work, void *context) {
  threads = clamp_threads(threads);
  if (pool) return pool->run(threads, work, context);
  Pool &shared = *process().pool;
  std::lock_guard<std::mutex> one_job(shared.job_mutex);
  shared.run(threads, work, context);
}

void watch_forks(std::mutex *call, Pool **pool) {
  Process &all = process();
  std::lock_guard<std::mutex> lock(all.mutex);
  all.watched.push_back({call, pool});
}

void forget_forks(std::mutex *call) {
  Process &all = process();
  std::lock_guard<std::mutex> lock(all.mutex);
  for (size_t i = 0; i < all.watched.size(); i++)
    if (all.watched[i].call == call) {
      all.watched.erase(all.watched.begin() + i);
      return;
    }
}
