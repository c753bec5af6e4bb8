// Devices, and the order of work between streams: what the bindings need beside the ops. device.cu has it; in a library without
// CUDA kernels absent.cpp, where every function that the bindings call fails with a sentence. Streams are cudaStream_t.
#pragma once

#include <cstddef>

#include "dipengine/dipengine.h"

namespace dipengine::cuda {

// The compute capability, before the point, that the kernels need: tensor cores with bf16 and tf32, asynchronous copies.
constexpr int kLeastCapability = 8;

// Makes `device` the calling thread's current one; *before is what was.
dipengine_status enter_device(int device, int* before);
void leave_device(int before);

// The device whose memory `pointer` is in.
dipengine_status device_of(const void* pointer, int* device);

// The same of any pointer; kHost: the host's memory, that which devices reach too among it.
constexpr int kHost = -1;
dipengine_status memory_of(const void* pointer, int* device);

// Work given to `stream` from now on starts behind all that has been given to `before`. The host does not wait.
dipengine_status wait_for(void* stream, void* before);

// Of fewer blocks than that most of a device is idle, so that what one block does is shared out further. The same for all devices, as
// bits hang on it; tests alone set another number.
int& few_blocks();

// Copies `bytes` of the host's memory, which may be gone once this returns, in the stream's order.
dipengine_status upload(void* to, const void* from, size_t bytes, void* stream);

}  // namespace dipengine::cuda
