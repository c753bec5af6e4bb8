// What the bindings of image ops share: workspace, and tensors as [height, width, channels] pixels.
#pragma once

#include <cstdlib>

#include "dipengine/pixels.h"
#include "place.h"

namespace dipengine_python {

// Memory that ops work in; grows to the largest that was asked for.
class Workspace {
 public:
  ~Workspace() { std::free(memory_); }
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  size_t bytes() const { return bytes_; }
  void* reserve(size_t bytes) {
    if (bytes > bytes_) {
      std::free(memory_);
      bytes_ = (bytes + 63) / 64 * 64;
      memory_ = std::aligned_alloc(64, bytes_);
      if (memory_ == nullptr) {
        bytes_ = 0;
        raise("DeviceError", "A workspace of %zu bytes could not be had; use a smaller image or network.", bytes);
      }
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  size_t bytes_ = 0;
};

// The image operations' CUDA kernels are for one dtype.
inline void check_float32(const Tensor& tensor) {
  if (tensor.dtype() == DIPENGINE_FLOAT32) return;
  raise("InputError", "On a device the tensor '%s' must be float32; convert it.", tensor.name());
}

inline dipengine_pixels pixels_of(const Tensor& tensor) {
  if (tensor.dims() != 3 || (tensor.size(2) > 1 && tensor.stride(2) != 1)) {
    raise("InputError", "The tensor '%s' is not [height, width, channels] with channels contiguous; lay it out so.", tensor.name());
  }
  // Strides of axes of size 1 mean nothing: give them what a dense tensor has.
  const int64_t pixel = tensor.size(1) > 1 ? tensor.stride(1) : tensor.size(2);
  return {tensor.data(), tensor.size(0) > 1 ? tensor.stride(0) : tensor.size(1) * pixel, pixel};
}

// A tensor of the given size and dtype; absent where `object` is None.
inline dipengine_pixels pixels_of(py::handle object, const char* name, Access access, int32_t dtype, int64_t height,
                                  int64_t width, int64_t channels, const Place& place = Place()) {
  if (object.is_none()) return {};
  const Tensor tensor(object, name, access, place);
  if (tensor.dims() != 3 || tensor.size(0) != height || tensor.size(1) != width || tensor.size(2) != channels) {
    raise("InputError", "The tensor '%s' is not [%lld, %lld, %lld]; give it that shape.", name,
          static_cast<long long>(height), static_cast<long long>(width), static_cast<long long>(channels));
  }
  if (tensor.dtype() != dtype) raise("InputError", "The tensor '%s' has another dtype than its role needs; convert it.", name);
  return pixels_of(tensor);
}

// Workspace of the size that `size` asks for, then the op.
template <typename Params>
void call_in(py::handle memory, dipengine_status (*size)(const Params*, size_t*), dipengine_status (*op)(const Params*),
             Params& params) {
  size_t bytes = 0;
  check(size(&params, &bytes));
  if (!py::isinstance<Workspace>(memory)) raise("InputError", "A call in CPU memory takes a Workspace; give one.");
  auto& workspace = memory.cast<Workspace&>();
  params.workspace = workspace.reserve(bytes);
  params.workspace_bytes = workspace.bytes();
  call(op, params);
}

// The same on a device; `numbers` lie behind the workspace, and set_numbers(where) tells params so.
template <typename Params, typename SetNumbers>
void call_on(const Place& place, py::handle memory, const Numbers& numbers, dipengine_status (*size)(const Params*, size_t*),
             dipengine_status (*op)(const Params*), Params& params, const SetNumbers& set_numbers) {
  params.struct_size = sizeof(params);
  size_t bytes = 0;
  check(size(&params, &bytes));
  params.workspace_bytes = (bytes + 255) / 256 * 256;
  const DeviceMemory workspace(memory, params.workspace_bytes + numbers.bytes(), place);
  params.workspace = workspace.data();
  void* const behind = at<char>(workspace.data(), params.workspace_bytes);
  numbers.send(behind, place);
  set_numbers(behind);
  call_on(place, op, params);
}

}  // namespace dipengine_python
