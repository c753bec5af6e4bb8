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

}  // namespace dipengine
