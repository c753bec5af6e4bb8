// The sensor's data term.
#include "ops/deviance/deviance.h"

#include "ops/deviance/deviance_cuda.h"
#include "pixels.h"

namespace dipengine_python {
namespace {

struct Noise {
  double scale, shift, read_variance, floor, normaliser, grad_scale;
};

template <typename Params>
void set_images(Params& p, const Tensor& image, int32_t dtype, py::handle target, py::handle mask, py::handle d_image,
                const Place& place) {
  p.image = pixels_of(image);
  p.height = image.size(0);
  p.width = image.size(1);
  p.channels = image.size(2);
  const auto like = [&](py::handle object, const char* name, Access access, int64_t channels) {
    return pixels_of(object, name, access, dtype, p.height, p.width, channels, place);
  };
  p.target = like(target, "target", Access::read, p.channels);
  p.mask = like(mask, "mask", Access::read, 1);
  p.d_image = like(d_image, "d_image", Access::write, p.channels);
}

void on_device(const Place& place, const Tensor& image, py::handle target, py::handle mask, py::handle d_image, const Noise& noise,
               py::handle result, py::handle workspace) {
  check_float32(image);
  if (!(noise.normaliser > 0)) raise("InputError", "deviance was given normaliser %g; it must be positive.", noise.normaliser);
  if (result.is_none()) raise("InputError", "On a device deviance writes its numbers into 'result', float64 [2]; give it one.");
  dipengine_deviance_cuda_params p{};
  p.fits = 1;
  set_images(p, image, DIPENGINE_FLOAT32, target, mask, d_image, place);
  p.floor = noise.floor;
  p.grad_scale = noise.grad_scale;
  p.loss = static_cast<double*>(Tensor(result, "result", Access::write, place).flat(2, DIPENGINE_FLOAT64));
  p.discrepancy = p.loss + 1;
  Numbers numbers;
  const double each[] = {noise.scale, noise.shift, noise.read_variance, noise.normaliser};
  numbers.add(each, 4);
  call_on(place, workspace, numbers, dipengine_deviance_cuda_workspace, dipengine_deviance_cuda, p, [&](void* memory) {
    const double* const there = static_cast<const double*>(memory);
    p.scale = there;
    p.shift = there + 1;
    p.read_variance = there + 2;
    p.normaliser = there + 3;
  });
}

py::object deviance(py::handle image_object, py::handle target, double scale, double shift, double read_variance, double floor,
                    double normaliser, py::handle mask, py::handle d_image, double grad_scale, py::handle result,
                    py::handle workspace, py::handle pool, py::handle stream) {
  const Place place(image_object, "image", stream);
  const Tensor image(image_object, "image", Access::read, place);
  if (place.cuda()) {
    const Noise noise = {scale, shift, read_variance, floor, normaliser, grad_scale};
    on_device(place, image, target, mask, d_image, noise, result, workspace);
    return py::none();
  }
  dipengine_deviance_params params{};
  params.struct_size = sizeof(params);
  params.pool = pool_of(pool);
  params.dtype = image.dtype();
  set_images(params, image, params.dtype, target, mask, d_image, place);
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
             py::arg("d_image") = py::none(), py::arg("grad_scale") = 1.0, py::arg("result") = py::none(), py::arg("workspace"),
             py::arg("pool") = py::none(), py::arg("stream") = py::none(),
             "(loss, discrepancy) of [height, width, channels] tensors under a sensor's noise, mask [height, width, 1];\n"
             "writes the gradient into d_image. Of CUDA tensors both are written into `result`, float64 [2] there.\n"
             "See csrc/ops/deviance/deviance.h.");
}

}  // namespace dipengine_python
