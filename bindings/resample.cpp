// Downsampling by a separable filter, and its transpose.
#include "ops/resample/resample.h"

#include "image_op.h"
#include "ops/resample/resample_cuda.h"

namespace dipengine_python {
namespace {

using Cpu = dipengine_downsample_params;
using Cuda = dipengine_downsample_cuda_params;

struct Filter {
  py::handle taps;
  int64_t factor, before;
};

void run(const ImageOps<Cpu, Cuda>& ops, const Images& images, const Filter& filter, const Surroundings& around) {
  const auto set = [&](auto& p, const auto& op, const Tensor& large, const Place& place) {
    p.*op.large = pixels_of(large);
    p.height = large.size(0);
    p.width = large.size(1);
    p.channels = large.size(2);
    p.factor = filter.factor;
    p.before = filter.before;
    const Tensor taps(filter.taps, "taps", Access::read, place);
    p.taps_count = taps.count();
    p.taps = weights_of<std::remove_const_t<std::remove_pointer_t<decltype(p.taps)>>>(taps);
    const auto outputs = [&](int64_t size) { return p.factor > 0 ? (size + p.factor - 1) / p.factor : 0; };
    p.*op.small = pixels_of(images.small, images.small_name, images.small_access, large.dtype(), outputs(p.height), outputs(p.width),
                            p.channels, place);
  };
  run_image_op(ops, images.large, images.large_name, images.large_access, around, set);
}

void downsample(py::handle image, py::handle taps, int64_t factor, int64_t before, py::handle out, py::handle workspace,
                py::handle pool, py::handle stream) {
  run({{&Cpu::image, &Cpu::out, dipengine_downsample, dipengine_downsample_workspace},
       {&Cuda::image, &Cuda::out, dipengine_downsample_cuda, dipengine_downsample_cuda_workspace}},
      Images::forward(image, out), {taps, factor, before}, {workspace, pool, stream});
}

void downsample_backward(py::handle d_out, py::handle taps, int64_t factor, int64_t before, py::handle d_image,
                         py::handle workspace, py::handle pool, py::handle stream) {
  run({{&Cpu::d_image, &Cpu::d_out, dipengine_downsample_backward, dipengine_downsample_workspace},
       {&Cuda::d_image, &Cuda::d_out, dipengine_downsample_cuda_backward, dipengine_downsample_cuda_workspace}},
      Images::backward(d_out, d_image), {taps, factor, before}, {workspace, pool, stream});
}

}  // namespace

void bind_resample(py::module_& module) {
  module.def("downsample", &downsample, py::arg("image"), py::arg("taps"), py::arg("factor"), py::arg("before"),
             py::arg("out"), py::arg("workspace"), py::arg("pool") = py::none(), py::arg("stream") = py::none(),
             "out [ceil(height / factor), ceil(width / factor), channels] = the filtered image; taps, one axis: float64 in CPU\n"
             "memory, float32 beside CUDA images. See csrc/ops/resample/resample.h.");
  module.def("downsample_backward", &downsample_backward, py::arg("d_out"), py::arg("taps"), py::arg("factor"),
             py::arg("before"), py::arg("d_image"), py::arg("workspace"), py::arg("pool") = py::none(),
             py::arg("stream") = py::none(), "d_image [height, width, channels] = the transpose of downsample, applied to d_out.");
}

}  // namespace dipengine_python
