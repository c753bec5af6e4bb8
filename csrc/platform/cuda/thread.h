// What a kernel's thread knows and waits for: its place, barriers, shuffles, its block's shared memory.
//
// A kernel is written with the functions of csrc/platform/cuda/ alone: no <<<>>>, no asm, no built-in variable anywhere
// else. So the same source compiles with nvcc for a GPU and with g++ for the emulator (tests/emulator/), which defines
// what is only declared here and checks every contract stated here. Blocks are one-dimensional, of whole warps of 32.
#pragma once

#include <cstdint>

#include "math/host_device.h"

#if defined(__CUDACC__)
#define DIPENGINE_DEVICE static __device__ __forceinline__
// A kernel: at most `threads` a block, and registers such that `blocks` blocks fit a multiprocessor. It takes one params
// struct by value, declared with DIPENGINE_PARAMS (kept in constant memory, not copied).
#define DIPENGINE_KERNEL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define DIPENGINE_PARAMS(Type) const __grid_constant__ Type
#define DIPENGINE_UNROLL _Pragma("unroll")
#define DIPENGINE_UNROLL_BY_8 _Pragma("unroll 8")
#define DIPENGINE_NO_UNROLL _Pragma("unroll 1")
#else
#define DIPENGINE_DEVICE static inline
#define DIPENGINE_KERNEL(threads, blocks) void
#define DIPENGINE_PARAMS(Type) const Type
#define DIPENGINE_UNROLL
#define DIPENGINE_UNROLL_BY_8
#define DIPENGINE_NO_UNROLL
#endif

namespace dipengine::cuda {

constexpr int kWarp = 32;

#if defined(__CUDACC__)

DIPENGINE_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
DIPENGINE_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
DIPENGINE_DEVICE int block_x() { return static_cast<int>(blockIdx.x); }
DIPENGINE_DEVICE int block_y() { return static_cast<int>(blockIdx.y); }
DIPENGINE_DEVICE int block_z() { return static_cast<int>(blockIdx.z); }
DIPENGINE_DEVICE int grid_x() { return static_cast<int>(gridDim.x); }

// The block's shared memory, all of it given at launch: 16-byte aligned, undefined until written.
DIPENGINE_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(16) unsigned char dipengine_shared[];
  return dipengine_shared;
}

// Every thread of the block must come; orders all accesses to shared and global memory among them.
DIPENGINE_DEVICE void sync_threads() { __syncthreads(); }

// The same of the 32 lanes of a warp.
DIPENGINE_DEVICE void sync_warp() { __syncwarp(); }

// Whether this block is the last of `count` to come to `ticket`, which is 0 before the first and behind the last. Every thread of each
// block must come. The last one sees all that the others wrote before they came.
DIPENGINE_DEVICE bool last_block(uint32_t* ticket, int count) {
  __syncthreads();
  int last = 0;
  if (threadIdx.x == 0) {
    __threadfence();  // of all threads' writes: barriers and fences add up
    last = atomicInc(ticket, static_cast<unsigned>(count - 1)) == static_cast<unsigned>(count - 1) ? 1 : 0;
    __threadfence();
  }
  return __syncthreads_or(last) != 0;
}

// The value of lane (own ^ mask). All 32 lanes must come. Orders no memory.
template <typename T>
DIPENGINE_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(0xffffffffu, value, mask);
}

// Every thread of every kernel must come, once, before it touches any memory but its params and what is shared in its block: the launches
// before this one on its stream may still run until then (launch.h). Behind it all that they wrote is there.
DIPENGINE_DEVICE void wait_for_launches() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Behind wait_for_launches(), where a block has little left to do: once all blocks have come, or ended, the next launch may begin.
DIPENGINE_DEVICE void let_next_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

#else

int thread_index();
int block_threads();
int block_x();
int block_y();
int block_z();
int grid_x();
unsigned char* shared_memory();
// The place of the call is how a test names a barrier, to delete it.
void sync_threads(const char* file = __builtin_FILE(), int line = __builtin_LINE());
void sync_warp(const char* file = __builtin_FILE(), int line = __builtin_LINE());
bool last_block(uint32_t* ticket, int count, const char* file = __builtin_FILE(), int line = __builtin_LINE());
float shuffle_xor(float value, int mask, const char* file = __builtin_FILE(), int line = __builtin_LINE());
double shuffle_xor(double value, int mask, const char* file = __builtin_FILE(), int line = __builtin_LINE());
void wait_for_launches(const char* file = __builtin_FILE(), int line = __builtin_LINE());
void let_next_begin();

#endif

DIPENGINE_DEVICE int lane_index() { return thread_index() % kWarp; }
DIPENGINE_DEVICE int warp_index() { return thread_index() / kWarp; }

// The sum over all lanes of a warp, in every lane, by the same tree in each: the same bits everywhere.
template <typename T>
DIPENGINE_DEVICE T warp_sum(T value) {
  DIPENGINE_UNROLL
  for (int mask = kWarp / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

}  // namespace dipengine::cuda
