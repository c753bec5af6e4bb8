#include "platform/thread_pool.h"

#include <unistd.h>

#include <atomic>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <vector>

#include "platform/error.h"

namespace {

// How long a thread polls before it parks: some 20 microseconds, about what a wake-up costs.
constexpr int kSpins = 512;

void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

// One word, `state`, holds the number of the job, whether it may still be joined, and how many workers are inside it.
// A worker joins by a compare-and-swap on an open job; the caller closes the job when no task is left and waits only for
// the workers inside. So a worker that sleeps through a short job costs the caller nothing.
struct dipengine_pool {
  static constexpr uint64_t kInside = (1u << 16) - 1;  // workers inside
  static constexpr uint64_t kOpen = 1u << 16;
  static constexpr uint64_t kJob = 1u << 17;  // lowest bit of the job number

  explicit dipengine_pool(int threads) : owner(getpid()) {
    const unsigned cores = std::thread::hardware_concurrency();
    spins = static_cast<unsigned>(threads) > cores ? 0 : kSpins;
    workers.reserve(static_cast<size_t>(threads - 1));
    try {
      for (int i = 1; i < threads; ++i) workers.emplace_back([this] { work(); });
    } catch (...) {
      stop();
      throw;
    }
  }

  ~dipengine_pool() { stop(); }

  // True in a child process: it has a copy of the objects, not the threads.
  bool forked() const { return owner != getpid(); }

  void run(int64_t tasks, void (*function)(void*, int64_t), void* data) {
    // A second caller, or a task that calls back, does its own work: results are the same, and nothing can deadlock.
    if (workers.empty() || tasks == 1 || forked() || busy.exchange(true, std::memory_order_acquire)) {
      for (int64_t i = 0; i < tasks; ++i) function(data, i);
      return;
    }
    task = function;
    context = data;
    count = tasks;
    next.store(0, std::memory_order_relaxed);
    const uint64_t job = (state.load(std::memory_order_relaxed) & ~(kOpen | kInside)) + kJob;
    state.store(job | kOpen);  // sequentially consistent, as is the load of `parked`: one side sees the other
    if (parked.load() > 0) {
      { std::lock_guard<std::mutex> lock(mutex); }
      wake.notify_all();
    }
    take_tasks();
    uint64_t now = state.fetch_and(~kOpen, std::memory_order_acq_rel) & ~kOpen;
    for (int i = 0; (now & kInside) != 0; ++i) {
      if (i < spins) {
        pause_cpu();
      } else {
        std::this_thread::yield();
      }
      now = state.load(std::memory_order_acquire);
    }
    busy.store(false, std::memory_order_release);
  }

  void take_tasks() {
    for (int64_t i = next.fetch_add(1, std::memory_order_relaxed); i < count;
         i = next.fetch_add(1, std::memory_order_relaxed)) {
      task(context, i);
    }
  }

  // True while a job other than `last` may be joined, or the pool is to end.
  bool called(uint64_t now, uint64_t last) const {
    return stopping.load() || ((now & kOpen) != 0 && now / kJob != last);
  }

  void work() {
    uint64_t last = 0;
    for (;;) {
      uint64_t now = state.load(std::memory_order_acquire);
      for (int i = 0; i < spins && !called(now, last); ++i) {
        pause_cpu();
        now = state.load(std::memory_order_acquire);
      }
      if (!called(now, last)) {
        std::unique_lock<std::mutex> lock(mutex);
        parked.fetch_add(1);
        wake.wait(lock, [&] { return called(now = state.load(), last); });
        parked.fetch_sub(1);
      }
      if (stopping.load()) return;
      while (called(now, last) && !stopping.load()) {
        if (state.compare_exchange_weak(now, now + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
          last = now / kJob;
          take_tasks();
          state.fetch_sub(1, std::memory_order_release);
          break;
        }
      }
    }
  }

  void stop() {
    {
      std::lock_guard<std::mutex> lock(mutex);
      stopping.store(true);
    }
    wake.notify_all();
    for (std::thread& worker : workers) worker.join();
  }

  alignas(64) std::atomic<uint64_t> state{0};
  alignas(64) std::atomic<int64_t> next{0};
  alignas(64) std::atomic<bool> busy{false};
  void (*task)(void*, int64_t) = nullptr;
  void* context = nullptr;
  int64_t count = 0;
  const pid_t owner;
  int spins;
  std::atomic<int> parked{0};
  std::atomic<bool> stopping{false};
  std::mutex mutex;
  std::condition_variable wake;
  std::vector<std::thread> workers;
};

namespace dipengine {

void run_tasks(dipengine_pool* pool, int64_t count, void (*task)(void*, int64_t), void* context) {
  if (pool != nullptr) {
    pool->run(count, task, context);
    return;
  }
  for (int64_t i = 0; i < count; ++i) task(context, i);
}

}  // namespace dipengine

extern "C" {

dipengine_status dipengine_pool_create(int32_t threads, dipengine_pool** pool) {
  DIPENGINE_REQUIRE(pool != nullptr, "dipengine_pool_create was given no place for the pool; pass a pointer to one.");
  *pool = nullptr;
  DIPENGINE_REQUIRE(threads >= 1 && threads <= 1024, "A pool of %d threads cannot be made; ask for 1 to 1024.", threads);
  try {
    *pool = new dipengine_pool(threads);
  } catch (const std::exception&) {
    return dipengine::fail(DIPENGINE_OUT_OF_RESOURCES,
                           "The system refused %d threads; ask for fewer or raise its limit.", threads);
  }
  return DIPENGINE_OK;
}

void dipengine_pool_destroy(dipengine_pool* pool) {
  // After a fork there is nothing to join, and destroying a condition variable that had waiters would wait for them.
  if (pool != nullptr && !pool->forked()) delete pool;
}

int32_t dipengine_pool_size(const dipengine_pool* pool) {
  return pool == nullptr ? 1 : static_cast<int32_t>(pool->workers.size()) + 1;
}

}  // extern "C"
