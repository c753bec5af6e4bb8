#include "dlpack.h"

#include <cstdarg>
#include <cstdio>
#include <string>

#include "place.h"
#include "platform/cuda/device.h"

namespace dipengine_python {

void raise(const char* error, const char* format, ...) {
  char message[512];
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof(message), format, arguments);
  va_end(arguments);
  py::set_error(py::module_::import("dipengine.errors").attr(error), message);
  throw py::error_already_set();
}

void check(dipengine_status status) {
  if (status == DIPENGINE_OK) return;
  const char* const error = status == DIPENGINE_INVALID_ARGUMENT ? "InputError"
                            : status == DIPENGINE_DEVICE_FAILED  ? "DeviceFailed"
                                                                 : "DeviceError";
  raise(error, "%s", dipengine_last_error());
}

namespace {

const DLPackExchangeAPI* look_up_exchange(PyTypeObject* type) {
  PyObject* capsule = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__");
  if (capsule == nullptr) {
    PyErr_Clear();
    return nullptr;
  }
  const auto* api = static_cast<const DLPackExchangeAPI*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
  Py_DECREF(capsule);  // the table itself lives as long as the process
  if (api == nullptr) {
    PyErr_Clear();
    return nullptr;
  }
  const bool usable = api->header.version.major == DLPACK_MAJOR_VERSION && api->dltensor_from_py_object_no_sync;
  return usable ? api : nullptr;
}

// __dlpack__ refuses a tensor that autograd watches; the exchange table hands it out. Reading it does no harm.
bool requires_grad(py::handle object) {
  const py::object flag = py::getattr(object, "requires_grad", py::none());
  return flag.ptr() == Py_True;
}

bool is_cuda(int device) { return device == kDLCUDA || device == kDLCUDAManaged; }

// True where what the type's library has queued on its current stream needs no order beside the place's.
bool same_stream(const DLPackExchangeAPI* exchange, const Place& place) {
  if (!place.cuda()) return true;
  void* stream = nullptr;
  if (exchange->current_work_stream == nullptr || exchange->current_work_stream(kDLCUDA, place.device(), &stream) != 0) {
    PyErr_Clear();
    return false;
  }
  return (stream == nullptr ? 1 : reinterpret_cast<uintptr_t>(stream)) == place.stream_number();
}

}  // namespace

// The last type is remembered: arguments of a call are mostly of one type. (The interpreter's lock guards the memory; a
// reference keeps the type's address from being used again.)
const DLPackExchangeAPI* exchange_of(PyTypeObject* type) {
  static PyTypeObject* last = nullptr;
  static const DLPackExchangeAPI* api = nullptr;
  if (type != last) {
    const DLPackExchangeAPI* found = look_up_exchange(type);
    Py_INCREF(type);
    PyTypeObject* previous = last;
    last = type;
    api = found;
    Py_XDECREF(previous);
  }
  return api;
}

Tensor::Tensor(py::handle object, const char* name, Access access) : Tensor(object, name, access, Place()) {}

Tensor::Tensor(py::handle object, const char* name, Access access, const Place& place) : name_(name) {
  const DLPackExchangeAPI* exchange = exchange_of(Py_TYPE(object.ptr()));
  if (exchange != nullptr && same_stream(exchange, place)) {
    if (exchange->dltensor_from_py_object_no_sync(object.ptr(), &tensor_) != 0) throw py::error_already_set();
    if (access == Access::write && requires_grad(object)) {
      raise("InputError", "The tensor '%s' requires grad, so it cannot be written in place; detach it.", name_);
    }
  } else if (place.cuda() && !PyCapsule_CheckExact(object.ptr()) && !py::hasattr(object, "__dlpack__")) {
    answer_of(name_, "__cuda_array_interface__", [&] { take_interface(object, access, place); });
  } else {
    take_capsule(object, access, place);
  }
  const DLDevice device = tensor_.device;
  if (place.cuda() && !(is_cuda(device.device_type) && device.device_id == place.device())) refuse_place(place);
  if (!place.cuda() && device.device_type != kDLCPU && device.device_type != kDLCUDAHost) {
    raise("DeviceError", "The tensor '%s' is not in CPU memory; move it there, or use kernels=\"torch\".", name_);
  }
  if (tensor_.dtype.lanes != 1) refuse("has vector elements");
}

void Tensor::take_capsule(py::handle object, Access access, const Place& place) {
  if (PyCapsule_CheckExact(object.ptr())) {
    capsule_ = py::reinterpret_borrow<py::object>(object);
  } else {
    if (!py::hasattr(object, "__dlpack__")) refuse("has no __dlpack__ method");
    const py::object method = object.attr("__dlpack__");
    py::dict arguments;
    if (place.cuda()) {
      // A tensor in CPU memory is refused here: some libraries would refuse the stream instead.
      if (py::hasattr(object, "__dlpack_device__")) {
        const auto kind = [&] { return object.attr("__dlpack_device__")().cast<py::tuple>()[0].cast<int>(); };
        if (!is_cuda(answer_of(name_, "__dlpack_device__", kind))) refuse_place(place);
      }
      arguments["stream"] = place.stream_number();
    }
    py::dict versioned = arguments.attr("copy")();
    versioned["max_version"] = py::make_tuple(DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION);
    try {
      capsule_ = method(**versioned);
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;  // a library from before DLPack 1.0 knows no such argument
      capsule_ = method(**arguments);
    }
  }
  if (PyCapsule_IsValid(capsule_.ptr(), "dltensor_versioned")) {
    const auto* managed =
        static_cast<const DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor_versioned"));
    if (managed->version.major != DLPACK_MAJOR_VERSION) refuse("comes in a DLPack version other than 1");
    if (access == Access::write && (managed->flags & DLPACK_FLAG_BITMASK_READ_ONLY)) refuse("is read-only");
    if (managed->flags & DLPACK_FLAG_BITMASK_IS_COPIED) {
      if (access == Access::write) refuse("would be written as a copy");
      if (capsule_.ptr() != object.ptr()) refuse("is handed out as a copy, which would be gone before it is read");
    }
    tensor_ = managed->dl_tensor;
  } else if (PyCapsule_IsValid(capsule_.ptr(), "dltensor")) {
    tensor_ = static_cast<const DLManagedTensor*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"))->dl_tensor;
  } else {
    refuse("is no DLPack capsule, or one that was consumed");
  }
}

// Version 3 of https://nvidia.github.io/numba-cuda/user/cuda_array_interface.html, and those before it, which have no stream.
void Tensor::take_interface(py::handle object, Access access, const Place& place) {
  if (!py::hasattr(object, "__cuda_array_interface__")) refuse("has neither __dlpack__ nor __cuda_array_interface__");
  const py::dict interface = object.attr("__cuda_array_interface__");
  const auto optional = [&](const char* key) -> py::object {
    if (!interface.contains(key)) return py::none();
    return interface[key];
  };
  if (!optional("mask").is_none()) refuse("is masked");
  const auto data = interface["data"].cast<py::tuple>();
  if (access == Access::write && data[1].cast<bool>()) refuse("is read-only");
  tensor_.data = reinterpret_cast<void*>(data[0].cast<uintptr_t>());
  tensor_.device = {kDLCUDA, place.device()};
  if (tensor_.data != nullptr) check(dipengine::cuda::device_of(tensor_.data, &tensor_.device.device_id));

  const auto type = interface["typestr"].cast<std::string>();  // "<f4"
  const int bytes = type.size() == 3 && type[0] != '>' ? type[2] - '0' : 0;
  const size_t kind = bytes < 1 || bytes > 8 ? std::string::npos : std::string("iufb").find(type[1]);
  if (kind == std::string::npos) refuse("has a dtype that no op takes");
  const DLDataTypeCode codes[] = {kDLInt, kDLUInt, kDLFloat, kDLBool};
  tensor_.dtype = {static_cast<uint8_t>(codes[kind]), static_cast<uint8_t>(8 * bytes), 1};

  for (const py::handle size : interface["shape"]) shape_.push_back(size.cast<int64_t>());
  if (const py::object strides = optional("strides"); !strides.is_none()) {
    for (const py::handle stride : strides) {
      const auto step = stride.cast<int64_t>();
      if (step % bytes != 0) refuse("has strides that are no whole elements");
      strides_.push_back(step / bytes);
    }
    if (strides_.size() != shape_.size()) refuse("has strides of another number of axes than its shape");
    tensor_.strides = strides_.data();
  }
  tensor_.shape = shape_.data();
  tensor_.ndim = static_cast<int32_t>(shape_.size());

  const py::object stream = optional("stream");
  if (stream.is_none()) return;  // the producer asks for no order
  const auto number = stream.cast<uintptr_t>();
  if (number == 0) refuse("names stream 0, which the interface does not allow");
  if (number != place.stream_number()) check(dipengine::cuda::wait_for(place.stream(), reinterpret_cast<void*>(number)));
}

void Tensor::refuse_place(const Place& place) const {
  raise("DeviceError", "The tensor '%s' is not on CUDA device %d with the others; move it there.", name_, place.device());
}

void Tensor::refuse(const char* why) const {
  raise("InputError", "The tensor '%s' %s; give a NumPy array, a torch tensor or another DLPack producer.", name_, why);
}

int64_t Tensor::stride(int axis) const {
  if (tensor_.strides != nullptr) return tensor_.strides[axis];
  int64_t stride = 1;  // legacy producers leave strides out for C order
  for (int i = tensor_.ndim - 1; i > axis; --i) stride *= tensor_.shape[i];
  return stride;
}

int64_t Tensor::count() const {
  int64_t count = 1;
  for (int i = 0; i < tensor_.ndim; ++i) count *= tensor_.shape[i];
  return count;
}

bool Tensor::contiguous_from(int first) const {
  if (count() == 0) return true;  // strides of an empty tensor mean nothing
  int64_t expected = 1;
  for (int i = tensor_.ndim - 1; i >= first; --i) {
    if (tensor_.shape[i] != 1 && stride(i) != expected) return false;
    expected *= tensor_.shape[i];
  }
  return true;
}

dipengine_dtype Tensor::dtype() const {
  const DLDataType type = tensor_.dtype;
  if (type.code == kDLFloat && type.bits == 32) return DIPENGINE_FLOAT32;
  if (type.code == kDLFloat && type.bits == 64) return DIPENGINE_FLOAT64;
  if (type.code == kDLBfloat && type.bits == 16) return DIPENGINE_BFLOAT16;
  if ((type.code == kDLUInt || type.code == kDLBool) && type.bits == 8) return DIPENGINE_UINT8;
  raise("InputError", "The tensor '%s' has a dtype (DLPack code %d, %d bits) that no op takes; convert it.", name_,
        type.code, type.bits);
}

void* Tensor::flat(int64_t expected, dipengine_dtype wanted) const {
  if (dtype() != wanted) raise("InputError", "The tensor '%s' has another dtype than its role needs; convert it.", name_);
  if (count() != expected) {
    raise("InputError", "The tensor '%s' has %lld elements where %lld are needed; reshape or resize it.", name_,
          static_cast<long long>(count()), static_cast<long long>(expected));
  }
  if (!contiguous_from(0)) raise("InputError", "The tensor '%s' is not C-contiguous; copy it into that order.", name_);
  return data();
}

int64_t* Tensor::flat_int64(int64_t expected) const {
  if (!is_int64() || count() != expected || !contiguous_from(0)) raise("InputError", "'%s' must be int64, one per fit.", name_);
  return static_cast<int64_t*>(data());
}

}  // namespace dipengine_python
