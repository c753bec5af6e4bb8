// A device's memory, streams, and sequences of launches that are recorded once and replayed: what a plan needs beside its ops.
//
// stream.cu has it on CUDA (a sequence is a CUDA graph, which the driver starts as a whole); the emulator its own
// (tests/emulator/emulated_stream.cpp), where launches are kept and run again. All act on the calling thread's current device
// (enter_device), and streams are cudaStream_t.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "dipengine/dipengine.h"

namespace dipengine::cuda {

// `bytes` at a multiple of 256; undefined until written.
dipengine_status allocate(size_t bytes, void** memory);
void release(void* memory);

// A stream that waits for no other.
dipengine_status open_stream(void** stream);
void close_stream(void* stream);

// Until all work given to the stream is done.
dipengine_status wait(void* stream);

// To the host's memory, in the stream's order; there when the call returns. Its counterpart is upload (device.h).
dipengine_status download(void* to, const void* from, size_t bytes, void* stream);

// Rows of floats, of which those of a row lie side by side and `stride` from those of the next.
template <typename Float>
struct FloatRows {
  Float* first;
  int64_t stride;
};
// `count` rows of `length` floats from one place of a device's memory to another of the same one, in the stream's order.
dipengine_status copy_rows(FloatRows<float> to, FloatRows<const float> from, int64_t count, int64_t length, void* stream);

// Keeps what `launches` launches on `stream` in *sequence, with params as they are now, and runs none of it. It is called twice, once
// to load the kernels' code; within, nothing but launches may be given to the stream. What it refers to must outlive the sequence.
dipengine_status record(void* stream, const std::function<dipengine_status()>& launches, void** sequence);
// All of it in its order, behind what the stream has; returns before it has run.
dipengine_status replay(void* sequence, void* stream);
void forget(void* sequence);

}  // namespace dipengine::cuda
