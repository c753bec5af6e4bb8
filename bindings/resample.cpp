// Downsampling by a separable filter, and its transpose.
#include "ops/resample/resample.h"

#include "pixels.h"

namespace dipengine_python {
namespace {

struct Call {
  dipengine_downsample_params p{};

  // `large` is the image or its gradient, `small` the output or its gradient.
  Call(const Tensor& large, py::handle taps_object, int64_t factor, int64_t before, py::handle pool) {
    p.struct_size = sizeof(p);
    p.pool = pool_of(pool);
    p.dtype = large.dtype();
    pixels_of(large);  // for its check of the axes
    p.height = large.size(0);
    p.width = large.size(1);
    p.channels = large.size(2);
    p.factor = factor;
    p.before = before;
    const Tensor taps(taps_object, "taps");
    p.taps_count = taps.count();
    p.taps = static_cast<const double*>(taps.flat(taps.count(), DIPENGINE_FLOAT64));
  }

  dipengine_pixels small(py::handle object, const char* name, Access access) const {
    const auto outputs = [&](int64_t size) { return p.factor > 0 ? (size + p.factor - 1) / p.factor : 0; };
    return pixels_of(object, name, access, p.dtype, outputs(p.height), outputs(p.width), p.channels);
  }
};

void downsample(py::handle image_object, py::handle taps, int64_t factor, int64_t before, py::handle out,
                Workspace& workspace, py::handle pool) {
  const Tensor image(image_object, "image");
  Call c(image, taps, factor, before, pool);
  c.p.image = pixels_of(image);
  c.p.out = c.small(out, "out", Access::write);
  call_in(workspace, dipengine_downsample_workspace, dipengine_downsample, c.p);
}

void downsample_backward(py::handle d_out, py::handle taps, int64_t factor, int64_t before, py::handle d_image_object,
                         Workspace& workspace, py::handle pool) {
  const Tensor d_image(d_image_object, "d_image", Access::write);
  Call c(d_image, taps, factor, before, pool);
  c.p.d_out = c.small(d_out, "d_out", Access::read);
  c.p.d_image = pixels_of(d_image);
  call_in(workspace, dipengine_downsample_workspace, dipengine_downsample_backward, c.p);
}

}  // namespace

void bind_resample(py::module_& module) {
  module.def("downsample", &downsample, py::arg("image"), py::arg("taps"), py::arg("factor"), py::arg("before"),
             py::arg("out"), py::arg("workspace"), py::arg("pool") = py::none(),
             "out [ceil(height / factor), ceil(width / factor), channels] = the filtered image; taps: float64, one axis.\n"
             "See csrc/ops/resample/resample.h.");
  module.def("downsample_backward", &downsample_backward, py::arg("d_out"), py::arg("taps"), py::arg("factor"),
             py::arg("before"), py::arg("d_image"), py::arg("workspace"), py::arg("pool") = py::none(),
             "d_image [height, width, channels] = the transpose of downsample, applied to d_out.");
}

}  // namespace dipengine_python
