// Blur by a known kernel, and its transpose.
#include "ops/blur/blur.h"

#include <type_traits>

#include "ops/blur/blur_cuda.h"
#include "pixels.h"

namespace dipengine_python {
namespace {

// What a call is given: `large` is the image or its gradient, `small` the output or its gradient.
struct Given {
  py::handle large, small;
  const char *large_name, *small_name;
  Access large_access, small_access;
  py::handle kernel;
};

template <typename Params>
void set(Params& p, const ImageOp<Params>& op, const Given& given, const Tensor& small, const Place& place) {
  using Weight = std::remove_const_t<std::remove_pointer_t<decltype(p.kernel)>>;
  const Tensor kernel(given.kernel, "kernel", Access::read, place);
  p.*op.small = pixels_of(small);
  p.height = small.size(0);
  p.width = small.size(1);
  p.channels = small.size(2);
  if (kernel.dims() != 2) raise("InputError", "The kernel has %d axes; give [height, width].", kernel.dims());
  p.kernel_height = kernel.size(0);
  p.kernel_width = kernel.size(1);
  constexpr dipengine_dtype dtype = std::is_same_v<Weight, double> ? DIPENGINE_FLOAT64 : DIPENGINE_FLOAT32;
  p.kernel = static_cast<const Weight*>(kernel.flat(kernel.count(), dtype));
  p.*op.large = pixels_of(given.large, given.large_name, given.large_access, small.dtype(), p.height + p.kernel_height - 1,
                          p.width + p.kernel_width - 1, p.channels, place);
}

using Cpu = ImageOp<dipengine_blur_params>;
using Cuda = ImageOp<dipengine_blur_cuda_params>;

void run(const Given& given, const Cpu& on_cpu, const Cuda& on_device, py::handle workspace, py::handle pool, py::handle stream) {
  const Place place(given.small, given.small_name, stream);
  const Tensor small(given.small, given.small_name, given.small_access, place);
  if (place.cuda()) {
    check_float32(small);
    dipengine_blur_cuda_params p{};
    p.fits = 1;
    set(p, on_device, given, small, place);
    call_on(place, on_device.run, p);
    return;
  }
  dipengine_blur_params p{};
  p.struct_size = sizeof(p);
  p.pool = pool_of(pool);
  p.dtype = small.dtype();
  set(p, on_cpu, given, small, place);
  call_in(workspace, dipengine_blur_workspace, on_cpu.run, p);
}

void blur(py::handle image, py::handle kernel, py::handle out, py::handle workspace, py::handle pool, py::handle stream) {
  run({image, out, "image", "out", Access::read, Access::write, kernel},
      {&dipengine_blur_params::image, &dipengine_blur_params::out, dipengine_blur},
      {&dipengine_blur_cuda_params::image, &dipengine_blur_cuda_params::out, dipengine_blur_cuda}, workspace, pool, stream);
}

void blur_backward(py::handle d_out, py::handle kernel, py::handle d_image, py::handle workspace, py::handle pool,
                   py::handle stream) {
  run({d_image, d_out, "d_image", "d_out", Access::write, Access::read, kernel},
      {&dipengine_blur_params::d_image, &dipengine_blur_params::d_out, dipengine_blur_backward},
      {&dipengine_blur_cuda_params::d_image, &dipengine_blur_cuda_params::d_out, dipengine_blur_cuda_backward}, workspace, pool,
      stream);
}

}  // namespace

void bind_blur(py::module_& module) {
  module.def("blur", &blur, py::arg("image"), py::arg("kernel"), py::arg("out"), py::arg("workspace"),
             py::arg("pool") = py::none(), py::arg("stream") = py::none(),
             "out [height, width, channels] = the valid part of image (*) kernel; image is kh - 1 rows and kw - 1 columns\n"
             "larger; kernel [kh, kw]: float64 in CPU memory, float32 beside CUDA images, which need no workspace.\n"
             "See csrc/ops/blur/blur.h.");
  module.def("blur_backward", &blur_backward, py::arg("d_out"), py::arg("kernel"), py::arg("d_image"), py::arg("workspace"),
             py::arg("pool") = py::none(), py::arg("stream") = py::none(), "d_image = the transpose of blur, applied to d_out.");
}

}  // namespace dipengine_python
