// Blur by a known kernel, and its transpose.
#include "ops/blur/blur.h"

#include "ops/blur/blur_cuda.h"
#include "pixels.h"

namespace dipengine_python {
namespace {

// What both ops and both kinds of device have in common. `small` is the output or its gradient.
template <typename Params>
dipengine_pixels set_size(Params& p, const Tensor& small, const Tensor& kernel) {
  const dipengine_pixels pixels = pixels_of(small);
  p.height = small.size(0);
  p.width = small.size(1);
  p.channels = small.size(2);
  if (kernel.dims() != 2) raise("InputError", "The kernel has %d axes; give [height, width].", kernel.dims());
  p.kernel_height = kernel.size(0);
  p.kernel_width = kernel.size(1);
  return pixels;
}

template <typename Params>
dipengine_pixels large_of(const Params& p, py::handle object, const char* name, Access access, int32_t dtype, const Place& place) {
  return pixels_of(object, name, access, dtype, p.height + p.kernel_height - 1, p.width + p.kernel_width - 1, p.channels, place);
}

const float* device_kernel(const Tensor& small, const Tensor& kernel) {
  check_float32(small);
  return static_cast<const float*>(kernel.flat(kernel.count(), DIPENGINE_FLOAT32));
}

dipengine_blur_params cpu_params(const Tensor& small, const Tensor& kernel, py::handle pool) {
  dipengine_blur_params p{};
  p.struct_size = sizeof(p);
  p.pool = pool_of(pool);
  p.dtype = small.dtype();
  p.kernel = static_cast<const double*>(kernel.flat(kernel.count(), DIPENGINE_FLOAT64));
  return p;
}

void blur(py::handle image, py::handle kernel_object, py::handle out_object, py::handle workspace, py::handle pool,
          py::handle stream) {
  const Place place(out_object, "out", stream);
  const Tensor out(out_object, "out", Access::write, place), kernel(kernel_object, "kernel", Access::read, place);
  if (place.cuda()) {
    dipengine_blur_cuda_params p{};
    p.fits = 1;
    p.kernel = device_kernel(out, kernel);
    p.out = set_size(p, out, kernel);
    p.image = large_of(p, image, "image", Access::read, DIPENGINE_FLOAT32, place);
    call_on(place, dipengine_blur_cuda, p);
    return;
  }
  dipengine_blur_params p = cpu_params(out, kernel, pool);
  p.out = set_size(p, out, kernel);
  p.image = large_of(p, image, "image", Access::read, p.dtype, place);
  call_in(workspace, dipengine_blur_workspace, dipengine_blur, p);
}

void blur_backward(py::handle d_out_object, py::handle kernel_object, py::handle d_image, py::handle workspace, py::handle pool,
                   py::handle stream) {
  const Place place(d_out_object, "d_out", stream);
  const Tensor d_out(d_out_object, "d_out", Access::read, place), kernel(kernel_object, "kernel", Access::read, place);
  if (place.cuda()) {
    dipengine_blur_cuda_params p{};
    p.fits = 1;
    p.kernel = device_kernel(d_out, kernel);
    p.d_out = set_size(p, d_out, kernel);
    p.d_image = large_of(p, d_image, "d_image", Access::write, DIPENGINE_FLOAT32, place);
    call_on(place, dipengine_blur_cuda_backward, p);
    return;
  }
  dipengine_blur_params p = cpu_params(d_out, kernel, pool);
  p.d_out = set_size(p, d_out, kernel);
  p.d_image = large_of(p, d_image, "d_image", Access::write, p.dtype, place);
  call_in(workspace, dipengine_blur_workspace, dipengine_blur_backward, p);
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
