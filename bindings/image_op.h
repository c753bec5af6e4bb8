// What an image operation and its transpose share (blur, downsampling): a large image and the small one that it becomes, of which
// one is read and the other written, in either kind of memory.
#pragma once

#include <type_traits>

#include "pixels.h"

namespace dipengine_python {

// `large` is the image or its gradient, `small` the output or its gradient.
struct Images {
  py::handle large, small;
  const char *large_name, *small_name;
  Access large_access, small_access;

  static Images forward(py::handle image, py::handle out) { return {image, out, "image", "out", Access::read, Access::write}; }
  static Images backward(py::handle d_out, py::handle d_image) {
    return {d_image, d_out, "d_image", "d_out", Access::write, Access::read};
  }
};

// One direction in one kind of memory: which of its params are the images.
template <typename Params>
struct ImageOp {
  dipengine_pixels Params::*large;
  dipengine_pixels Params::*small;
  dipengine_status (*run)(const Params*);
  dipengine_status (*workspace)(const Params*, size_t*);  // NULL: it needs none
};

template <typename Cpu, typename Cuda>
struct ImageOps {
  ImageOp<Cpu> on_cpu;
  ImageOp<Cuda> on_device;
};

struct Surroundings {
  py::handle workspace, pool, stream;
};

template <typename Params, typename = void>
inline constexpr bool kTakesWorkspace = false;
template <typename Params>
inline constexpr bool kTakesWorkspace<Params, std::void_t<decltype(Params::workspace)>> = true;

// set(params, op, first, place) sets everything but what all ops have alike; `first` is the image that decides about sizes, where
// it lives about the place, and its dtype about that of the others.
template <typename Cpu, typename Cuda, typename Set>
void run_image_op(const ImageOps<Cpu, Cuda>& ops, py::handle object, const char* name, Access access, const Surroundings& around,
                  const Set& set) {
  const Place place(object, name, around.stream);
  const Tensor first(object, name, access, place);
  if (!place.cuda()) {
    Cpu p{};
    p.struct_size = sizeof(p);
    p.pool = pool_of(around.pool);
    p.dtype = first.dtype();
    set(p, ops.on_cpu, first, place);
    call_in(around.workspace, ops.on_cpu.workspace, ops.on_cpu.run, p);
    return;
  }
  check_float32(first);
  Cuda p{};
  p.fits = 1;
  set(p, ops.on_device, first, place);
  if constexpr (kTakesWorkspace<Cuda>) {
    call_on(place, around.workspace, {}, ops.on_device.workspace, ops.on_device.run, p, [](void*) {});
  } else {
    call_on(place, ops.on_device.run, p);
  }
}

// A filter's numbers: float64 in CPU memory, float32 on a device.
template <typename Weight>
const Weight* weights_of(const Tensor& tensor) {
  constexpr dipengine_dtype dtype = std::is_same_v<Weight, double> ? DIPENGINE_FLOAT64 : DIPENGINE_FLOAT32;
  return static_cast<const Weight*>(tensor.flat(tensor.count(), dtype));
}

}  // namespace dipengine_python
