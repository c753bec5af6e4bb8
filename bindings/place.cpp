#include "place.h"

#include <cstdint>

#include "platform/cuda/device.h"

namespace dipengine_python {

namespace {

constexpr uintptr_t kDefaultStream = 1;  // cudaStreamLegacy

bool is_cuda(int32_t type) { return type == kDLCUDA || type == kDLCUDAManaged; }

// The device of an array that says so, or of its memory.
DLDevice device_of(py::handle object, const char* name) {
  if (const DLPackExchangeAPI* exchange = exchange_of(Py_TYPE(object.ptr()))) {
    DLTensor tensor;
    if (exchange->dltensor_from_py_object_no_sync(object.ptr(), &tensor) != 0) throw py::error_already_set();
    return tensor.device;
  }
  if (py::hasattr(object, "__dlpack_device__")) {
    return answer_of(name, "__dlpack_device__", [&]() -> DLDevice {
      const auto said = object.attr("__dlpack_device__")().cast<py::tuple>();
      return {static_cast<DLDeviceType>(said[0].cast<int>()), said[1].cast<int>()};
    });
  }
  if (!PyCapsule_CheckExact(object.ptr()) && py::hasattr(object, "__cuda_array_interface__")) {
    const auto address = answer_of(name, "__cuda_array_interface__", [&] {
      return object.attr("__cuda_array_interface__")["data"].cast<py::tuple>()[0].cast<uintptr_t>();
    });
    int device = 0;  // of an empty array, which lives anywhere
    if (address != 0) check(dipengine::cuda::device_of(reinterpret_cast<const void*>(address), &device));
    return {kDLCUDA, device};
  }
  return {kDLCPU, 0};  // or Tensor says what is wrong with it
}

uintptr_t current_stream(py::handle object, DLDevice device) {
  const DLPackExchangeAPI* exchange = exchange_of(Py_TYPE(object.ptr()));
  void* stream = nullptr;
  if (exchange != nullptr && exchange->current_work_stream != nullptr) {
    if (exchange->current_work_stream(device.device_type, device.device_id, &stream) != 0) throw py::error_already_set();
    return reinterpret_cast<uintptr_t>(stream);
  }
  const py::dict modules = py::module_::import("sys").attr("modules");
  if (!modules.contains("torch")) return 0;
  const py::object torch_cuda = modules["torch"].attr("cuda");
  if (!torch_cuda.attr("is_available")().cast<bool>()) return 0;
  return torch_cuda.attr("current_stream")(device.device_id).attr("cuda_stream").cast<uintptr_t>();
}

uintptr_t number_of(py::handle stream) {
  py::object number = py::reinterpret_borrow<py::object>(stream);
  if (py::hasattr(stream, "cuda_stream")) {
    number = stream.attr("cuda_stream");
  } else if (py::hasattr(stream, "ptr")) {
    number = stream.attr("ptr");
  } else if (py::hasattr(stream, "__cuda_stream__")) {
    const py::object said = stream.attr("__cuda_stream__")();  // version and stream
    if (PyTuple_Check(said.ptr()) && PyTuple_GET_SIZE(said.ptr()) == 2) number = py::reinterpret_borrow<py::tuple>(said)[1];
  }
  const uintptr_t value = PyLong_Check(number.ptr()) ? PyLong_AsSize_t(number.ptr()) : static_cast<uintptr_t>(-1);
  if (value == static_cast<uintptr_t>(-1)) {  // what PyLong_AsSize_t gives for numbers that it cannot hold
    PyErr_Clear();
    raise("InputError",
          "'stream' is neither a cudaStream_t as a number nor a stream of PyTorch, CuPy or CUDA Python; give one of them, or None.");
  }
  return value;
}

}  // namespace

Place::Place(py::handle first, const char* name, py::handle stream) {
  const DLDevice device = device_of(first, name);
  if (device.device_type == kDLCPU || device.device_type == kDLCUDAHost) {
    if (!stream.is_none()) raise("InputError", "A stream was given, but the tensor '%s' is in CPU memory; leave it out.", name);
    return;
  }
  if (!is_cuda(device.device_type)) {
    raise("DeviceError", "The tensor '%s' is on a device that is neither a CPU nor CUDA; move it to one of them.", name);
  }
  const uintptr_t number = stream.is_none() ? current_stream(first, device) : number_of(stream);
  stream_ = number == 0 ? kDefaultStream : number;
  device_ = device.device_id;
  // The last that can fail: what throws from here is not destroyed, and the device would stay the current one.
  check(dipengine::cuda::enter_device(device_, &before_));
  cuda_ = true;
}

Place::~Place() {
  if (cuda_ && before_ != device_) dipengine::cuda::leave_device(before_);
}

DeviceMemory::DeviceMemory(py::handle workspace, size_t bytes, const Place& place) : bytes_(bytes) {
  if (bytes == 0) return;
  if (!PyCallable_Check(workspace.ptr())) {
    raise("InputError", "A call on a CUDA device takes its workspace as a function from bytes to a uint8 tensor there; give one.");
  }
  tensor_ = workspace(bytes);
  const Tensor tensor(tensor_, "workspace", Access::write, place);
  const bool aligned = reinterpret_cast<uintptr_t>(tensor.data()) % 16 == 0;
  if (tensor.dtype() != DIPENGINE_UINT8 || !tensor.contiguous_from(0) || static_cast<size_t>(tensor.count()) < bytes || !aligned) {
    raise("InputError", "The workspace must be %zu bytes, a contiguous uint8 tensor at a multiple of 16; the function gave another.",
          bytes);
  }
  data_ = tensor.data();
}

void Numbers::send(void* to, const Place& place) const {
  if (!bytes_.empty()) check(dipengine::cuda::upload(to, bytes_.data(), bytes_.size(), place.stream()));
}

}  // namespace dipengine_python
