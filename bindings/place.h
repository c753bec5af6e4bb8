// Where a call's tensors live, and what a call on a CUDA device needs beside them: a stream, memory, its numbers.
#pragma once

#include <cstring>
#include <vector>

#include "dlpack.h"

namespace dipengine_python {

// CPU memory, or one CUDA device, the thread's current one while this lives, and the stream that the call works on.
class Place {
 public:
  Place() = default;  // CPU memory
  // Where `first` lives. stream (of CUDA tensors): a cudaStream_t as a number, an object that has one as `cuda_stream` (PyTorch)
  // or `ptr` (CuPy) or answers `__cuda_stream__()` with it (CUDA Python), or None: what `first`'s library, or else PyTorch, calls
  // the current one; without either the default stream. Raises DeviceError for a device that ops do not run on.
  Place(py::handle first, const char* name, py::handle stream);
  ~Place();
  Place(const Place&) = delete;
  Place& operator=(const Place&) = delete;

  bool cuda() const { return cuda_; }
  int device() const { return device_; }
  void* stream() const { return reinterpret_cast<void*>(stream_); }
  // The same as DLPack and the CUDA array interface write it: 1 is the default stream, 2 that of the thread.
  uintptr_t stream_number() const { return stream_; }

 private:
  bool cuda_ = false;
  int device_ = 0, before_ = 0;
  uintptr_t stream_ = 0;
};

// A call's memory on a device: `bytes` of a uint8 tensor there that workspace(bytes) makes. It may be made use of by others as
// soon as the stream has come past the call.
class DeviceMemory {
 public:
  DeviceMemory(py::handle workspace, size_t bytes, const Place& place);
  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

 private:
  py::object tensor_;
  void* data_ = nullptr;
  size_t bytes_;
};

// Numbers of the host that a call reads on its device, brought there in one copy.
class Numbers {
 public:
  // Where they will be in the memory that they are sent to.
  template <typename T>
  size_t add(const T* values, int64_t count) {
    const size_t at = (bytes_.size() + 15) / 16 * 16, size = static_cast<size_t>(count) * sizeof(T);
    bytes_.resize(at + size);
    if (size > 0) std::memcpy(bytes_.data() + at, values, size);
    return at;
  }
  size_t bytes() const { return (bytes_.size() + 255) / 256 * 256; }
  void send(void* to, const Place& place) const;

 private:
  std::vector<char> bytes_;
};

template <typename T>
T* at(void* memory, size_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(memory) + offset);
}

// op(&params) on the place's stream.
template <typename Params>
void call_on(const Place& place, dipengine_status (*op)(const Params*), Params& params) {
  params.struct_size = sizeof(params);
  params.stream = place.stream();
  call(op, params);
}

}  // namespace dipengine_python
