// Downsampling by a separable filter, and its transpose.
#include "ops/resample/resample.h"

#include "ops/resample/resample_cuda.h"
#include "pixels.h"

namespace dipengine_python {
namespace {

// What both ops and both kinds of device have in common. `large` is the image or its gradient, `small` the output or its gradient.
template <typename Params>
dipengine_pixels set_size(Params& p, const Tensor& large, int64_t factor, int64_t before) {
  p.height = large.size(0);
  p.width = large.size(1);
  p.channels = large.size(2);
  p.factor = factor;
  p.before = before;
  return pixels_of(large);
}

template <typename Params>
dipengine_pixels small_of(const Params& p, py::handle object, const char* name, Access access, int32_t dtype, const Place& place) {
  const auto outputs = [&](int64_t size) { return p.factor > 0 ? (size + p.factor - 1) / p.factor : 0; };
  return pixels_of(object, name, access, dtype, outputs(p.height), outputs(p.width), p.channels, place);
}

const double* set_taps(dipengine_downsample_params& p, const Tensor& taps) {
  p.taps_count = taps.count();
  return static_cast<const double*>(taps.flat(taps.count(), DIPENGINE_FLOAT64));
}

const float* set_taps(dipengine_downsample_cuda_params& p, const Tensor& taps) {
  p.taps_count = taps.count();
  return static_cast<const float*>(taps.flat(taps.count(), DIPENGINE_FLOAT32));
}

void downsample(py::handle image_object, py::handle taps_object, int64_t factor, int64_t before, py::handle out,
                py::handle workspace, py::handle pool, py::handle stream) {
  const Place place(image_object, "image", stream);
  const Tensor image(image_object, "image", Access::read, place), taps(taps_object, "taps", Access::read, place);
  if (place.cuda()) {
    check_float32(image);
    dipengine_downsample_cuda_params p{};
    p.fits = 1;
    p.image = set_size(p, image, factor, before);
    p.taps = set_taps(p, taps);
    p.out = small_of(p, out, "out", Access::write, DIPENGINE_FLOAT32, place);
    call_on(place, workspace, {}, dipengine_downsample_cuda_workspace, dipengine_downsample_cuda, p, [](void*) {});
    return;
  }
  dipengine_downsample_params p{};
  p.struct_size = sizeof(p);
  p.pool = pool_of(pool);
  p.dtype = image.dtype();
  p.image = set_size(p, image, factor, before);
  p.taps = set_taps(p, taps);
  p.out = small_of(p, out, "out", Access::write, p.dtype, place);
  call_in(workspace, dipengine_downsample_workspace, dipengine_downsample, p);
}

void downsample_backward(py::handle d_out, py::handle taps_object, int64_t factor, int64_t before, py::handle d_image_object,
                         py::handle workspace, py::handle pool, py::handle stream) {
  const Place place(d_image_object, "d_image", stream);
  const Tensor d_image(d_image_object, "d_image", Access::write, place), taps(taps_object, "taps", Access::read, place);
  if (place.cuda()) {
    check_float32(d_image);
    dipengine_downsample_cuda_params p{};
    p.fits = 1;
    p.d_image = set_size(p, d_image, factor, before);
    p.taps = set_taps(p, taps);
    p.d_out = small_of(p, d_out, "d_out", Access::read, DIPENGINE_FLOAT32, place);
    call_on(place, workspace, {}, dipengine_downsample_cuda_workspace, dipengine_downsample_cuda_backward, p, [](void*) {});
    return;
  }
  dipengine_downsample_params p{};
  p.struct_size = sizeof(p);
  p.pool = pool_of(pool);
  p.dtype = d_image.dtype();
  p.d_image = set_size(p, d_image, factor, before);
  p.taps = set_taps(p, taps);
  p.d_out = small_of(p, d_out, "d_out", Access::read, p.dtype, place);
  call_in(workspace, dipengine_downsample_workspace, dipengine_downsample_backward, p);
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
