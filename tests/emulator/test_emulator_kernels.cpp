// Compiled as kernels are: with every access checked.
#include "emulated_kernels.h"

#include <memory>

#include "ops/norm/parts_merge_cuda.h"
#include "platform/cuda/copy.h"
#include "platform/cuda/launch.h"
#include "platform/cuda/tensor_core.h"

namespace dipengine::emulated {
namespace {

struct MmaParams {
  const void* fragments;
  float* sums;
  bool tf32;
};

DIPENGINE_KERNEL(32, 1) mma_kernel(DIPENGINE_PARAMS(MmaParams) p) {
  cuda::wait_for_launches();
  const int lane = cuda::lane_index();
  const uint32_t* from = static_cast<const uint32_t*>(p.fragments) + 6 * lane;
  const uint32_t a[4] = {from[0], from[1], from[2], from[3]};
  float c[4];
  for (int i = 0; i < 4; ++i) c[i] = p.sums[4 * lane + i];
  if (p.tf32) {
    cuda::mma_tf32(c, a, from[4], from[5]);
  } else {
    cuda::mma_bf16(c, a, from[4], from[5]);
  }
  for (int i = 0; i < 4; ++i) p.sums[4 * lane + i] = c[i];
}

struct LoadParams {
  const uint16_t* from;
  uint16_t* out;
  bool transposed;
};

DIPENGINE_KERNEL(32, 1) load_kernel(DIPENGINE_PARAMS(LoadParams) p) {
  cuda::wait_for_launches();
  const int lane = cuda::lane_index();
  unsigned char* shared = cuda::shared_memory();
  cuda::copy_async16(shared + 16 * lane, p.from + 8 * lane);
  cuda::copy_commit();
  cuda::copy_wait<0>();
  cuda::sync_threads();
  uint32_t words[4];
  if (p.transposed) {
    cuda::load_matrices_transposed(words, shared + 16 * lane);
  } else {
    cuda::load_matrices(words, shared + 16 * lane);
  }
  for (int m = 0; m < 4; ++m) {
    p.out[8 * lane + 2 * m] = static_cast<uint16_t>(words[m]);
    p.out[8 * lane + 2 * m + 1] = static_cast<uint16_t>(words[m] >> 16);
  }
}

struct MistakeParams {
  float* data;
  uint32_t* common;  // a ticket, and a number that the last block counts up
  const float* on_the_host;
  Mistake mistake;
};

DIPENGINE_KERNEL(64, 1) mistake_kernel(DIPENGINE_PARAMS(MistakeParams) p) {
  const int t = cuda::thread_index();
  const Mistake m = p.mistake;
  if (m == Mistake::lets_next_begin_at_once) cuda::let_next_begin();
  if (m != Mistake::no_wait_for_launches) cuda::wait_for_launches();
  float* own = p.data + 128 * cuda::block_x();
  float* shared = reinterpret_cast<float*>(cuda::shared_memory());
  for (int round = 0; round < 2; ++round) {
    shared[t] = own[64 * round + t];
    if (m != Mistake::no_barrier) cuda::sync_threads();
    own[64 * round + t] = shared[63 - t];
    if (m != Mistake::no_second_barrier) cuda::sync_threads();
  }
  shared[t] = 1;
  if (m != Mistake::no_warp_barrier) cuda::sync_warp();
  shared[t ^ 1] = 2;
  cuda::sync_threads();

  if (t < 16) cuda::copy_async16(shared + 64 + 4 * t, own + 4 * t);
  cuda::copy_commit();
  if (t < 16) cuda::copy_async16(shared + 128 + 4 * t, own + 64 + 4 * t);
  cuda::copy_commit();
  if (m == Mistake::wait_for_one_too_few)
    cuda::copy_wait<1>();
  else if (m != Mistake::no_wait)
    cuda::copy_wait<0>();
  cuda::sync_threads();
  float sum = shared[128 + t] + shared[64 + t];
  if (m == Mistake::copy_into_what_is_read && t < 16) cuda::copy_async16(shared + 64 + 4 * t, own + 4 * t);
  if (m == Mistake::copy_left && t == 63) cuda::copy_async16(shared, own);
  cuda::copy_commit();
  if (m != Mistake::copy_left) cuda::copy_wait<0>();

  if (m == Mistake::unwritten) sum += shared[200];
  if (m == Mistake::past_shared) sum += shared[256 + (t == 63)];
  if (m == Mistake::past_global && cuda::block_x() == 1 && t == 63) own[128] = sum;
  if (m == Mistake::barrier_in_a_branch && t < 32) cuda::sync_threads();
  if (m == Mistake::shuffle_in_a_branch && t < 16) sum = cuda::shuffle_xor(sum, 1);
  if (m == Mistake::two_barriers_at_once) {
    if (t < 32) {
      cuda::sync_threads();
    } else {
      cuda::sync_threads();
    }
  }
  if (m == Mistake::misaligned) cuda::store16(shared + 1, cuda::load16(shared));
  if (m == Mistake::misaligned_word) *reinterpret_cast<float*>(reinterpret_cast<unsigned char*>(shared) + 2) = sum;
  if (m == Mistake::host_memory) sum += *p.on_the_host;
  if (m == Mistake::overflow) own[t] = static_cast<float>((t + 0x7fffffff) / 2);
  if (m == Mistake::blocks_share_a_place && t == 0) p.data[0] = sum;
  if (m != Mistake::none && m != Mistake::no_ticket && m != Mistake::reads_behind_its_ticket) return;
  const uint32_t seen = p.common[1];
  const bool last = m == Mistake::no_ticket ? cuda::block_x() == 1 : cuda::last_block(p.common, 2);
  if (m == Mistake::reads_behind_its_ticket) own[t] = static_cast<float>(p.common[1]);
  if (last && t == 0) p.common[1] = seen + 1;
}

DIPENGINE_KERNEL(1024, 1) idle_kernel(DIPENGINE_PARAMS(int)) { cuda::wait_for_launches(); }

struct MergeParams {
  Merging m;
  bool moments;
};

DIPENGINE_KERNEL(32, 1) merge_kernel(DIPENGINE_PARAMS(MergeParams) p) {
  cuda::wait_for_launches();
  const PartTree& t = p.m.tree;
  const int64_t fit = cuda::block_z(), channels = p.m.sums.channels;
  const int channel = cuda::block_y() * 8 + cuda::thread_index() % 8;
  for (int i = cuda::thread_index() / 8; i < t.parts && channel < channels; i += 4) {
    const int64_t at = ((fit * t.blocks + cuda::block_x()) * t.parts + i) * channels + channel;
    const_cast<PartSums*>(p.m.sums.parts)[at] = {p.m.from[2 * at], p.m.from[2 * at + 1]};
  }
  if (p.moments) {
    merge_by_blocks<32, 8>(t, MomentsMerge{p.m.moments}, fit, cuda::block_y(), cuda::block_x());
  } else {
    merge_by_blocks<32, 8>(t, SumsMerge{p.m.sums}, fit, cuda::block_y(), cuda::block_x());
  }
}

}  // namespace

dipengine_status mma(const void* fragments, float* sums, bool tf32) {
  return cuda::launch(mma_kernel, "mma", {1, 1, 1, 32, 0}, MmaParams{fragments, sums, tf32}, nullptr);
}

dipengine_status load_matrices(const uint16_t* from, uint16_t* out, bool transposed) {
  return cuda::launch(load_kernel, "load_matrices", {1, 1, 1, 32, 512}, LoadParams{from, out, transposed}, nullptr);
}

dipengine_status make_mistake(float* data, uint32_t* common, Mistake mistake) {
  const auto on_the_host = std::make_unique<float>(1.0f);
  return cuda::launch(mistake_kernel, "mistake", {2, 1, 1, 64, 1024}, MistakeParams{data, common, on_the_host.get(), mistake}, nullptr);
}

dipengine_status launch_with(int threads, size_t shared) {
  return cuda::launch(idle_kernel, "idle", {1, 1, 1, threads, shared}, 0, nullptr);
}

dipengine_status merge(const Merging& merging, bool moments, int64_t fits) {
  const PartTree& t = merging.tree;
  return cuda::launch(merge_kernel, "merge", {t.blocks, t.channel_tiles, fits, 32, merge_shared_bytes(32)}, MergeParams{merging, moments},
                      nullptr);
}

}  // namespace dipengine::emulated
