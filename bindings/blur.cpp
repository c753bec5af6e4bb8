// Blur by a known kernel, and its transpose.
#include "ops/blur/blur.h"

#include "image_op.h"
#include "ops/blur/blur_cuda.h"

namespace dipengine_python {
namespace {

using Cpu = dipengine_blur_params;
using Cuda = dipengine_blur_cuda_params;

void run(const ImageOps<Cpu, Cuda>& ops, const Images& images, py::handle kernel_object, const Surroundings& around) {
  const auto set = [&](auto& p, const auto& op, const Tensor& small, const Place& place) {
    p.*op.small = pixels_of(small);
    p.height = small.size(0);
    p.width = small.size(1);
    p.channels = small.size(2);
    const Tensor kernel(kernel_object, "kernel", Access::read, place);
    if (kernel.dims() != 2) raise("InputError", "The kernel has %d axes; give [height, width].", kernel.dims());
    p.kernel_height = kernel.size(0);
    p.kernel_width = kernel.size(1);
    p.kernel = weights_of<std::remove_const_t<std::remove_pointer_t<decltype(p.kernel)>>>(kernel);
    p.*op.large = pixels_of(images.large, images.large_name, images.large_access, small.dtype(), p.height + p.kernel_height - 1,
                            p.width + p.kernel_width - 1, p.channels, place);
  };
  run_image_op(ops, images.small, images.small_name, images.small_access, around, set);
}

void blur(py::handle image, py::handle kernel, py::handle out, py::handle workspace, py::handle pool, py::handle stream) {
  run({{&Cpu::image, &Cpu::out, dipengine_blur, dipengine_blur_workspace}, {&Cuda::image, &Cuda::out, dipengine_blur_cuda, nullptr}},
      Images::forward(image, out), kernel, {workspace, pool, stream});
}

void blur_backward(py::handle d_out, py::handle kernel, py::handle d_image, py::handle workspace, py::handle pool,
                   py::handle stream) {
  run({{&Cpu::d_image, &Cpu::d_out, dipengine_blur_backward, dipengine_blur_workspace},
       {&Cuda::d_image, &Cuda::d_out, dipengine_blur_cuda_backward, nullptr}},
      Images::backward(d_out, d_image), kernel, {workspace, pool, stream});
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
