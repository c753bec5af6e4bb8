// The switch between fibers on x86-64: only what a call preserves has to be kept.
#include "fiber.h"

#if defined(__x86_64__)
asm(R"(
.text
.globl dipengine_switch_fiber
.hidden dipengine_switch_fiber
.type dipengine_switch_fiber, @function
dipengine_switch_fiber:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size dipengine_switch_fiber, .-dipengine_switch_fiber
)");
#endif
