// Tensors of any array library, seen through DLPack or the CUDA array interface: no copy, no arithmetic, no reference kept
// after the call.
#pragma once

#include <pybind11/pybind11.h>

#include <vector>

#include "dipengine/dipengine.h"
#include "dlpack/dlpack.h"

namespace dipengine_python {

namespace py = pybind11;

// Raise dipengine.errors.<error> with a printf-style sentence.
[[noreturn]] void raise(const char* error, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Turn a failed status of this thread's last call into an exception.
void check(dipengine_status status);

// Run op(&params) without the interpreter's lock.
template <typename Params>
void call(dipengine_status (*op)(const Params*), const Params& params) {
  dipengine_status status;
  {
    py::gil_scoped_release unlocked;
    status = op(&params);
  }
  check(status);
}

enum class Access { read, write };

// What ask() finds out of a producer, whose answers may be anything: InputError where they are not what its protocol says.
template <typename Ask>
auto answer_of(const char* name, const char* protocol, const Ask& ask) {
  try {
    return ask();
  } catch (const py::cast_error&) {
  } catch (py::error_already_set& error) {
    const bool answer = error.matches(PyExc_KeyError) || error.matches(PyExc_IndexError) || error.matches(PyExc_TypeError) ||
                        error.matches(PyExc_OverflowError);
    if (!answer) throw;
  }
  raise("InputError", "The tensor '%s' has a %s that does not keep to its protocol; give an array of another library.", name,
        protocol);
}

class Place;

// The DLPack C exchange table of a type (PyTorch 2.10 and newer have one), or null.
const DLPackExchangeAPI* exchange_of(PyTypeObject* type);

// A strided tensor. It borrows: the Python object must outlive it, as a function's arguments do.
//
// Taken from, in this order: the type's exchange table (no capsule, well under a microsecond; on a device only where its
// current stream is the place's); a capsule from obj.__dlpack__(), versioned or legacy, which stays unconsumed and is freed by
// its own destructor; obj.__cuda_array_interface__. The producer is given the place's stream, or that stream waits for the one
// that the interface names. Raises DeviceError for another device, InputError for what is no tensor or cannot be written.
class Tensor {
 public:
  Tensor(py::handle object, const char* name, Access access = Access::read);  // in CPU memory
  Tensor(py::handle object, const char* name, Access access, const Place& place);

  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  const char* name() const { return name_; }
  int dims() const { return tensor_.ndim; }
  int64_t size(int axis) const { return tensor_.shape[axis]; }
  int64_t stride(int axis) const;  // in elements
  int64_t count() const;           // of elements
  void* data() const { return static_cast<char*>(tensor_.data) + tensor_.byte_offset; }

  // True where axes [first, dims) are C-contiguous with stride 1 at the end; axes of size 1 have no say.
  bool contiguous_from(int first) const;

  dipengine_dtype dtype() const;  // raises InputError for any that ops do not know
  bool is_int64() const { return tensor_.dtype.code == kDLInt && tensor_.dtype.bits == 64; }

  // data() after checking that the tensor is C-contiguous, has `count` elements and the dtype named.
  void* flat(int64_t count, dipengine_dtype dtype) const;
  int64_t* flat_int64(int64_t count) const;

 private:
  void take_capsule(py::handle object, Access access, const Place& place);
  void take_interface(py::handle object, Access access, const Place& place);
  [[noreturn]] void refuse(const char* why) const;
  [[noreturn]] void refuse_place(const Place& place) const;

  const char* name_;
  DLTensor tensor_{};
  py::object capsule_;
  std::vector<int64_t> shape_, strides_;  // of an interface, which has no memory of its own for them
};

// The native pool behind a `Pool` object, or null for None.
dipengine_pool* pool_of(py::handle pool);

void bind_activation(py::module_& module);
void bind_philox(py::module_& module);
void bind_masked_mse(py::module_& module);
void bind_adam(py::module_& module);
void bind_blur(py::module_& module);
void bind_conv(py::module_& module);  // and the norm passes
void bind_fit(py::module_& module);
void bind_deviance(py::module_& module);
void bind_resample(py::module_& module);

}  // namespace dipengine_python
