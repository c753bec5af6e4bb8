// Downsampling by a separable filter, and its transpose.
#include "ops/resample/resample.h"

#include "ops/resample/resample_cuda.h"
#include "pixels.h"

namespace dipengine_python {
namespace {

const double* set_taps(dipengine_downsample_params& p, const Tensor& taps) {
  p.taps_count = taps.count();
  return static_cast<const double*>(taps.flat(taps.count(), DIPENGINE_FLOAT64));
}

const float* set_taps(dipengine_downsample_cuda_params& p, const Tensor& taps) {
  p.taps_count = taps.count();
  return static_cast<const float*>(taps.flat(taps.count(), DIPENGINE_FLOAT32));
}

struct Filter {
  py::handle taps;
  int64_t factor, before;
};

// What a call is given: `large` is the image or its gradient, `small` the output or its gradient.
struct Given {
  py::handle large, small;
  const char *large_name, *small_name;
  Access large_access, small_access;
  Filter filter;
};

template <typename Params>
void set(Params& p, const ImageOp<Params>& op, const Given& given, const Tensor& large, const Place& place) {
  const Filter& filter = given.filter;
  p.height = large.size(0);
  p.width = large.size(1);
  p.channels = large.size(2);
  p.factor = filter.factor;
  p.before = filter.before;
  p.*op.large = pixels_of(large);
  p.taps = set_taps(p, Tensor(filter.taps, "taps", Access::read, place));
  const auto outputs = [&](int64_t size) { return p.factor > 0 ? (size + p.factor - 1) / p.factor : 0; };
  p.*op.small = pixels_of(given.small, given.small_name, given.small_access, large.dtype(), outputs(p.height), outputs(p.width),
                          p.channels, place);
}

using Cpu = ImageOp<dipengine_downsample_params>;
using Cuda = ImageOp<dipengine_downsample_cuda_params>;

void run(const Given& given, const Cpu& on_cpu, const Cuda& on_device, py::handle workspace, py::handle pool, py::handle stream) {
  const Place place(given.large, given.large_name, stream);
  const Tensor large(given.large, given.large_name, given.large_access, place);
  if (place.cuda()) {
    check_float32(large);
    dipengine_downsample_cuda_params p{};
    p.fits = 1;
    set(p, on_device, given, large, place);
    call_on(place, workspace, {}, dipengine_downsample_cuda_workspace, on_device.run, p, [](void*) {});
    return;
  }
  dipengine_downsample_params p{};
  p.struct_size = sizeof(p);
  p.pool = pool_of(pool);
  p.dtype = large.dtype();
  set(p, on_cpu, given, large, place);
  call_in(workspace, dipengine_downsample_workspace, on_cpu.run, p);
}

void downsample(py::handle image, py::handle taps, int64_t factor, int64_t before, py::handle out, py::handle workspace,
                py::handle pool, py::handle stream) {
  const Given given = {image, out, "image", "out", Access::read, Access::write, {taps, factor, before}};
  run(given, {&dipengine_downsample_params::image, &dipengine_downsample_params::out, dipengine_downsample},
      {&dipengine_downsample_cuda_params::image, &dipengine_downsample_cuda_params::out, dipengine_downsample_cuda}, workspace,
      pool, stream);
}

void downsample_backward(py::handle d_out, py::handle taps, int64_t factor, int64_t before, py::handle d_image,
                         py::handle workspace, py::handle pool, py::handle stream) {
  const Given given = {d_image, d_out, "d_image", "d_out", Access::write, Access::read, {taps, factor, before}};
  run(given, {&dipengine_downsample_params::d_image, &dipengine_downsample_params::d_out, dipengine_downsample_backward},
      {&dipengine_downsample_cuda_params::d_image, &dipengine_downsample_cuda_params::d_out, dipengine_downsample_cuda_backward},
      workspace, pool, stream);
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
