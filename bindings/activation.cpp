// The output sigmoid's gradient.
#include "ops/activation/activation.h"

#include "pixels.h"

namespace dipengine_python {
namespace {

void sigmoid_backward(py::handle x, py::handle d_x, py::handle d_raw, py::handle pool) {
  const Tensor value(x, "x");
  dipengine_sigmoid_backward_params params{};
  params.struct_size = sizeof(params);
  params.pool = pool_of(pool);
  params.dtype = value.dtype();
  params.x = pixels_of(value);
  params.height = value.size(0);
  params.width = value.size(1);
  params.channels = value.size(2);
  const auto like = [&](py::handle object, const char* name, Access access) {
    return pixels_of(object, name, access, params.dtype, params.height, params.width, params.channels);
  };
  params.d_x = like(d_x, "d_x", Access::read);
  params.d_raw = like(d_raw, "d_raw", Access::write);
  call(dipengine_sigmoid_backward, params);
}

}  // namespace

void bind_activation(py::module_& module) {
  module.def("sigmoid_backward", &sigmoid_backward, py::arg("x"), py::arg("d_x"), py::arg("d_raw"),
             py::arg("pool") = py::none(),
             "d_raw = d_x (1 - x) x over [height, width, channels] tensors. See csrc/ops/activation/activation.h.");
}

}  // namespace dipengine_python
