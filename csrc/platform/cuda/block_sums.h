// Sums over all elements of a fit in a fixed order: a thread's own, a tree over the block, and the blocks' one by one.
//
// Sums is a struct that has add_sums(Sums&, const Sums&) and warp_sums(const Sums&), the sums over a warp's lanes, beside it. A
// block needs block_sums_bytes() of shared memory.
#pragma once

#include "platform/cuda/thread.h"

namespace dipengine::cuda {

template <typename Sums>
constexpr size_t block_sums_bytes(int threads) {
  return static_cast<size_t>(threads / kWarp) * sizeof(Sums);
}

// The block's sums, in thread 0.
template <int kThreads, typename Sums>
DIPENGINE_DEVICE Sums block_sums(const Sums& own) {
  Sums* shared = reinterpret_cast<Sums*>(shared_memory());
  const Sums warp = warp_sums(own);
  if (lane_index() == 0) shared[warp_index()] = warp;
  sync_threads();
  Sums total{};
  if (thread_index() == 0) {
    for (int i = 0; i < kThreads / kWarp; ++i) add_sums(total, shared[i]);
  }
  return total;
}

// The sums of what `count` blocks left, by one block, in its thread 0.
template <int kThreads, typename Sums>
DIPENGINE_DEVICE Sums sums_of_blocks(const Sums* parts, int64_t count) {
  Sums own{};
  for (int64_t i = thread_index(); i < count; i += kThreads) add_sums(own, parts[i]);
  return block_sums<kThreads>(own);
}

}  // namespace dipengine::cuda
