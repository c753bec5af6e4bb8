// Fibers: stacks to run on, and a switch from one to another in a few nanoseconds.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdlib>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace dipengine::emulator {

#if defined(__x86_64__)

using Context = void*;  // the stack pointer, above it the registers that a call preserves

extern "C" void dipengine_switch_fiber(Context* from, Context to);  // fiber.cpp

inline void switch_fiber(Context& from, Context& to) { dipengine_switch_fiber(&from, to); }

inline void make_fiber(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + bytes) - 8;  // a multiple of 16; entry sees what a call would leave
  for (int i = 0; i < 8; ++i) top[i] = nullptr;
  top[6] = reinterpret_cast<void*>(entry);
  context = top;
}

#else

using Context = ucontext_t;

inline void switch_fiber(Context& from, Context& to) { swapcontext(&from, &to); }

inline void make_fiber(Context& context, unsigned char* stack, size_t bytes, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = bytes;
  context.uc_link = nullptr;
  makecontext(&context, entry, 0);
}

#endif

// One mapping for all stacks of a block, so that one comparison tells whether an address is on one.
class Stacks {
 public:
  static constexpr size_t kEach = 64 * 1024, kMost = 1024;
  Stacks() {
    void* all = mmap(nullptr, kEach * kMost, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (all == MAP_FAILED) std::abort();
    base_ = static_cast<unsigned char*>(all);
  }
  unsigned char* of(int thread) { return base_ + static_cast<size_t>(thread) * kEach; }
  bool holds(uintptr_t address) const { return address - reinterpret_cast<uintptr_t>(base_) < kEach * kMost; }

 private:
  unsigned char* base_;
};

}  // namespace dipengine::emulator
