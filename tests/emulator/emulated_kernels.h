// Kernels for the emulator's own tests (test_emulator_kernels.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

#include "dipengine/dipengine.h"
#include "ops/norm/parts_cuda.h"

namespace dipengine::emulated {

// Lane l's operands: bf16 8 of A then 4 of B in fragments[12 l]; tf32 4 and 2 floats in fragments[6 l]; sums[4 l] in and out.
dipengine_status mma(const void* fragments, float* sums, bool tf32);

// Four 8x8 matrices to what each lane gets, 8 elements a lane.
dipengine_status load_matrices(const uint16_t* from, uint16_t* out, bool transposed);

enum class Mistake {
  none,
  no_barrier,
  no_second_barrier,
  no_warp_barrier,
  unwritten,
  past_shared,
  past_global,
  no_wait,
  wait_for_one_too_few,
  copy_into_what_is_read,
  copy_left,
  barrier_in_a_branch,
  shuffle_in_a_branch,
  two_barriers_at_once,
  misaligned,
  misaligned_word,
  overflow,
  host_memory,
  blocks_share_a_place,
  no_ticket,
  reads_behind_its_ticket,
  no_wait_for_launches,
  lets_next_begin_at_once
};
// Two blocks of 64 threads turn data[256] around, and the last counts common[1] up by the ticket before it; or make a mistake.
dipengine_status make_mistake(float* data, uint32_t* common, Mistake mistake);

dipengine_status launch_with(int threads, size_t shared);

// Blocks of 32 threads, 8 channels each, that leave the parts of `from` and merge them (ops/norm/parts_merge_cuda.h).
struct Merging {
  PartTree tree;
  MomentsLaunch moments;
  SumsLaunch sums;
  const float* from;
};
dipengine_status merge(const Merging& merging, bool moments, int64_t fits);

}  // namespace dipengine::emulated
