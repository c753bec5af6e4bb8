#include "dlpack.h"

#include <cstdarg>
#include <cstdio>

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
  raise(status == DIPENGINE_INVALID_ARGUMENT ? "InputError" : "DeviceError", "%s", dipengine_last_error());
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

// The exchange table of a type, or null. The last type is remembered: arguments of a call are mostly of one type.
// (The interpreter's lock guards the memory; a reference keeps the type's address from being used again.)
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

// __dlpack__ refuses a tensor that autograd watches; the exchange table hands it out. Reading it does no harm.
bool requires_grad(py::handle object) {
  const py::object flag = py::getattr(object, "requires_grad", py::none());
  return flag.ptr() == Py_True;
}

}  // namespace

Tensor::Tensor(py::handle object, const char* name, Access access) : name_(name) {
  const DLPackExchangeAPI* exchange = exchange_of(Py_TYPE(object.ptr()));
  if (exchange != nullptr) {
    if (exchange->dltensor_from_py_object_no_sync(object.ptr(), &tensor_) != 0) throw py::error_already_set();
    if (access == Access::write && requires_grad(object)) {
      raise("InputError", "The tensor '%s' requires grad, so it cannot be written in place; detach it.", name_);
    }
  } else {
    take_capsule(object, access);
  }
  const DLDeviceType device = tensor_.device.device_type;
  if (device != kDLCPU && device != kDLCUDAHost) {
    raise("DeviceError", "The tensor '%s' is not in CPU memory; move it there, or use kernels=\"torch\".", name_);
  }
  if (tensor_.dtype.lanes != 1) refuse("has vector elements");
}

void Tensor::take_capsule(py::handle object, Access access) {
  if (PyCapsule_CheckExact(object.ptr())) {
    capsule_ = py::reinterpret_borrow<py::object>(object);
  } else {
    if (!py::hasattr(object, "__dlpack__")) refuse("has no __dlpack__ method");
    const py::object method = object.attr("__dlpack__");
    try {
      capsule_ = method(py::arg("max_version") = py::make_tuple(DLPACK_MAJOR_VERSION, DLPACK_MINOR_VERSION));
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_TypeError)) throw;  // a library from before DLPack 1.0 knows no such argument
      capsule_ = method();
    }
  }
  if (PyCapsule_IsValid(capsule_.ptr(), "dltensor_versioned")) {
    const auto* managed =
        static_cast<const DLManagedTensorVersioned*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor_versioned"));
    if (managed->version.major != DLPACK_MAJOR_VERSION) refuse("comes in a DLPack version other than 1");
    if (access == Access::write && (managed->flags & DLPACK_FLAG_BITMASK_READ_ONLY)) refuse("is read-only");
    if (access == Access::write && (managed->flags & DLPACK_FLAG_BITMASK_IS_COPIED)) refuse("would be written as a copy");
    tensor_ = managed->dl_tensor;
  } else if (PyCapsule_IsValid(capsule_.ptr(), "dltensor")) {
    tensor_ = static_cast<const DLManagedTensor*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"))->dl_tensor;
  } else {
    refuse("is no DLPack capsule, or one that was consumed");
  }
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

}  // namespace dipengine_python
