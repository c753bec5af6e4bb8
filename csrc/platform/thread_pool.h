// A fixed set of threads that share out a numbered list of tasks.
#pragma once

#include "dipengine/dipengine.h"

namespace dipengine {

// Run task(context, i) for every i in [0, count), in any order, on the pool's threads and the calling one; returns when
// all are done. With a null pool, one task, or a pool that is busy with another caller's job (or whose threads did not
// survive a fork), the calling thread does all of it. Tasks must not throw. The list, never the pool, decides how work
// is cut, so results cannot depend on the number of threads.
void run_tasks(dipengine_pool* pool, int64_t count, void (*task)(void* context, int64_t index), void* context);

// The same for a callable `void(int64_t index)`.
template <typename Task>
void run_tasks(dipengine_pool* pool, int64_t count, const Task& task) {
  run_tasks(
      pool, count, [](void* context, int64_t index) { (*static_cast<const Task*>(context))(index); },
      const_cast<void*>(static_cast<const void*>(&task)));
}

// A free one of numbered scratch areas, claimed in `busy`; as many areas as the pool has threads are always enough.
constexpr int kMostScratch = 1024;
static inline int claim_scratch(unsigned char* busy) {
  for (int slot = 0;; slot = (slot + 1) % kMostScratch) {
    if (__atomic_exchange_n(&busy[slot], 1, __ATOMIC_ACQUIRE) == 0) return slot;
  }
}

// run_tasks for a callable `void(int64_t index, int slot)`, slot below dipengine_pool_size(pool).
template <typename Task>
void run_tasks_with_scratch(dipengine_pool* pool, int64_t count, const Task& task) {
  unsigned char busy[kMostScratch] = {};
  run_tasks(pool, count, [&](int64_t index) {
    const int slot = claim_scratch(busy);
    task(index, slot);
    __atomic_store_n(&busy[slot], 0, __ATOMIC_RELEASE);
  });
}

}  // namespace dipengine
