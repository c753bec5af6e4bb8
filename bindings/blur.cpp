// Blur by a known kernel, and its transpose.
#include "ops/blur/blur.h"

#include "pixels.h"

namespace dipengine_python {
namespace {

struct Call {
  dipengine_blur_params p{};

  // `small` is the output or its gradient.
  Call(const Tensor& small, py::handle kernel_object, py::handle pool) {
    p.struct_size = sizeof(p);
    p.pool = pool_of(pool);
    p.dtype = small.dtype();
    pixels_of(small);  // for its check of the axes
    p.height = small.size(0);
    p.width = small.size(1);
    p.channels = small.size(2);
    const Tensor kernel(kernel_object, "kernel");
    if (kernel.dims() != 2) raise("InputError", "The kernel has %d axes; give [height, width].", kernel.dims());
    p.kernel_height = kernel.size(0);
    p.kernel_width = kernel.size(1);
    p.kernel = static_cast<const double*>(kernel.flat(kernel.count(), DIPENGINE_FLOAT64));
  }

  dipengine_pixels large(py::handle object, const char* name, Access access) const {
    return pixels_of(object, name, access, p.dtype, p.height + p.kernel_height - 1, p.width + p.kernel_width - 1, p.channels);
  }
};

void blur(py::handle image, py::handle kernel, py::handle out_object, Workspace& workspace, py::handle pool) {
  const Tensor out(out_object, "out", Access::write);
  Call c(out, kernel, pool);
  c.p.image = c.large(image, "image", Access::read);
  c.p.out = pixels_of(out);
  call_in(workspace, dipengine_blur_workspace, dipengine_blur, c.p);
}

void blur_backward(py::handle d_out_object, py::handle kernel, py::handle d_image, Workspace& workspace, py::handle pool) {
  const Tensor d_out(d_out_object, "d_out");
  Call c(d_out, kernel, pool);
  c.p.d_out = pixels_of(d_out);
  c.p.d_image = c.large(d_image, "d_image", Access::write);
  call_in(workspace, dipengine_blur_workspace, dipengine_blur_backward, c.p);
}

}  // namespace

void bind_blur(py::module_& module) {
  module.def("blur", &blur, py::arg("image"), py::arg("kernel"), py::arg("out"), py::arg("workspace"),
             py::arg("pool") = py::none(),
             "out [height, width, channels] = the valid part of image (*) kernel; image is kh - 1 rows and kw - 1 columns\n"
             "larger, kernel float64 [kh, kw]. See csrc/ops/blur/blur.h.");
  module.def("blur_backward", &blur_backward, py::arg("d_out"), py::arg("kernel"), py::arg("d_image"), py::arg("workspace"),
             py::arg("pool") = py::none(), "d_image = the transpose of blur, applied to d_out.");
}

}  // namespace dipengine_python
