// A device's memory, streams, and sequences of launches that are recorded once and replayed: what a plan needs beside its ops.
//
// stream.cu has it on CUDA (a sequence is a CUDA graph, which the driver starts as a whole); the emulator its own
// (tests/emulator/emulated_stream.cpp), where launches are kept and run again. All act on the calling thread's current device
// (enter_device), and streams are cudaStream_t.
#pragma once

#include <cstddef>
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

// Keeps what `launches` launches on `stream` in *sequence, with params as they are now, and runs none of it. It is called twice, once
// to load the kernels' code; within, nothing but launches may be given to the stream. What it refers to must outlive the sequence.
dipengine_status record(void* stream, const std::function<dipengine_status()>& launches, void** sequence);
// All of it in its order, behind what the stream has; returns before it has run.
dipengine_status replay(void* sequence, void* stream);
void forget(void* sequence);

}  // namespace dipengine::cuda
