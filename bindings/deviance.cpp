// The sensor's data term.
#include "ops/deviance/deviance.h"

#include "pixels.h"

namespace dipengine_python {
namespace {

py::tuple deviance(py::handle image_object, py::handle target, double scale, double shift, double read_variance, double floor,
                   double normaliser, py::handle mask, py::handle d_image, double grad_scale, Workspace& workspace,
                   py::handle pool) {
  const Tensor image(image_object, "image");
  dipengine_deviance_params params{};
  params.struct_size = sizeof(params);
  params.pool = pool_of(pool);
  params.dtype = image.dtype();
  params.image = pixels_of(image);
  params.height = image.size(0);
  params.width = image.size(1);
  params.channels = image.size(2);
  const auto like = [&](py::handle object, const char* name, Access access, int64_t channels) {
    return pixels_of(object, name, access, params.dtype, params.height, params.width, channels);
  };
  params.target = like(target, "target", Access::read, params.channels);
  params.mask = like(mask, "mask", Access::read, 1);
  params.d_image = like(d_image, "d_image", Access::write, params.channels);
  params.scale = scale;
  params.shift = shift;
  params.read_variance = read_variance;
  params.floor = floor;
  params.normaliser = normaliser;
  params.grad_scale = grad_scale;
  double loss = 0, discrepancy = 0;
  params.loss = &loss;
  params.discrepancy = &discrepancy;
  call_in(workspace, dipengine_deviance_workspace, dipengine_deviance, params);
  return py::make_tuple(loss, discrepancy);
}

}  // namespace

void bind_deviance(py::module_& module) {
  module.def("deviance", &deviance, py::arg("image"), py::arg("target"), py::kw_only(), py::arg("scale"), py::arg("shift"),
             py::arg("read_variance"), py::arg("floor") = 0.1, py::arg("normaliser"), py::arg("mask") = py::none(),
             py::arg("d_image") = py::none(), py::arg("grad_scale") = 1.0, py::arg("workspace"), py::arg("pool") = py::none(),
             "(loss, discrepancy) of [height, width, channels] tensors under a sensor's noise, mask [height, width, 1];\n"
             "writes the gradient into d_image. See csrc/ops/deviance/deviance.h.");
}

}  // namespace dipengine_python
