// Moving 16 bytes at a time: between global memory and registers, and asynchronously from global to shared memory.
#pragma once

#include "platform/cuda/thread.h"

namespace dipengine::cuda {

// Eight bfloat16 or four float32 values, in memory order. Addresses of all functions here: multiples of 16, but of load8.
struct alignas(16) Bytes16 {
  uint32_t word[4];
};

struct alignas(8) Bytes8 {
  uint32_t word[2];
};

#if defined(__CUDACC__)

// From shared memory; a multiple of 8.
DIPENGINE_DEVICE Bytes8 load8(const void* from) {
  const uint2 v = *static_cast<const uint2*>(from);
  return {{v.x, v.y}};
}

// From and to global or shared memory.
DIPENGINE_DEVICE Bytes16 load16(const void* from) {
  const uint4 v = *static_cast<const uint4*>(from);
  return {{v.x, v.y, v.z, v.w}};
}
DIPENGINE_DEVICE void store16(void* to, Bytes16 v) {
  *static_cast<uint4*>(to) = make_uint4(v.word[0], v.word[1], v.word[2], v.word[3]);
}

// From global memory that nobody writes from wait_for_launches() on: compilers move it past what is stored. Where that waits, nothing may
// be moved to before it, as what is read-only for the whole kernel (ld.global.nc) may.
DIPENGINE_DEVICE Bytes16 load16_global(const void* from) {
#if __CUDA_ARCH__ >= 900
  Bytes16 v;
  asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.word[0]), "=r"(v.word[1]), "=r"(v.word[2]), "=r"(v.word[3])
               : "l"(__cvta_generic_to_global(from)));
  return v;
#else
  const uint4 v = __ldg(static_cast<const uint4*>(from));
  return {{v.x, v.y, v.z, v.w}};
#endif
}

// Begin to copy 16 bytes from global to shared memory (cp.async, past the first-level cache). They may arrive at any time
// from now on, and have arrived for certain behind the issuing thread's copy_wait of their group; other threads see them
// behind a barrier after that.
DIPENGINE_DEVICE void copy_async16(void* shared_to, const void* from) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared_to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}

// The same, or 16 zero bytes where not `there`, and nothing is read.
DIPENGINE_DEVICE void copy_async16(void* shared_to, const void* from, bool there) {
  const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared_to));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
}

// All copies that the thread began since its last commit are one group (it may be empty).
DIPENGINE_DEVICE void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until at most `groups` of the thread's youngest groups are under way.
template <int groups>
DIPENGINE_DEVICE void copy_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(groups) : "memory");
}

#else

Bytes8 load8(const void* from);
Bytes16 load16(const void* from);
void store16(void* to, Bytes16 value);
Bytes16 load16_global(const void* from);
void copy_async16(void* shared_to, const void* from);
void copy_async16(void* shared_to, const void* from, bool there);
void copy_commit();
void copy_wait_groups(int groups, const char* file, int line);
template <int groups>
void copy_wait(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  copy_wait_groups(groups, file, line);
}

#endif

}  // namespace dipengine::cuda
