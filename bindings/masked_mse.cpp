// The masked mean squared error with its statistics.
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "dlpack.h"
#include "ops/masked_mse/masked_mse.h"

namespace dipengine_python {
namespace {

using Params = dipengine_masked_mse_params;
using Flags = std::optional<std::vector<uint8_t>>;

int64_t inner_of(const Tensor& tensor) {
  int64_t inner = 1;
  for (int i = 3; i < tensor.dims(); ++i) inner *= tensor.size(i);
  return inner;
}

dipengine_image image_of(const Tensor& tensor) {
  // A stride of 0 repeats an axis of one element along the whole of raw's.
  const auto stride = [&](int axis) { return tensor.size(axis) == 1 ? 0 : tensor.stride(axis); };
  return {tensor.data(), stride(0), stride(1), stride(2)};
}

// A tensor of raw's dims [fits, outer, rows, inner...] and of the given dtype; absent where `object` is None.
dipengine_image same_shape(py::handle object, const char* name, Access access, const Tensor& raw, dipengine_dtype dtype) {
  if (object.is_none()) return {};
  const Tensor tensor(object, name, access);
  bool same = tensor.dims() == raw.dims();
  for (int i = 0; same && i < raw.dims(); ++i) same = tensor.size(i) == raw.size(i);
  if (!same) raise("InputError", "The tensor '%s' has another shape than raw; crop or reshape it.", name);
  if (tensor.dtype() != dtype) raise("InputError", "The tensor '%s' has another dtype than its role needs; convert it.", name);
  if (!tensor.contiguous_from(3)) raise("InputError", "The tensor '%s' has rows with gaps; copy it into raw's layout.", name);
  return image_of(tensor);
}

// Weights [fits|1, outer|1, rows|1, inner... (the last axis may be 1)]; sets mask_repeat.
void set_mask(py::handle object, const Tensor& raw, dipengine_dtype dtype, Params& params) {
  if (object.is_none()) return;
  const Tensor mask(object, "mask");
  const int last = raw.dims() - 1;
  bool fits = mask.dims() == raw.dims();
  for (int i = 0; fits && i <= last; ++i) fits = mask.size(i) == raw.size(i) || (mask.size(i) == 1 && (i < 3 || i == last));
  if (!fits) raise("InputError", "The mask's shape cannot be broadcast to raw's; give one weight per pixel or element.");
  if (mask.dtype() != dtype) raise("InputError", "The mask has another dtype than its role needs; convert it.");
  if (!mask.contiguous_from(3)) raise("InputError", "The mask has rows with gaps; copy it into raw's layout.");
  params.mask = image_of(mask);
  params.mask_repeat = mask.size(last) == raw.size(last) ? 1 : raw.size(last);
}

void set_dims(const Tensor& raw, Params& params) {
  if (raw.dims() < 4) raise("InputError", "raw must be [fits, outer, rows, inner...]; it has %d axes.", raw.dims());
  params.struct_size = sizeof(params);
  params.fits = raw.size(0);
  params.outer = raw.size(1);
  params.rows = raw.size(2);
  params.inner = inner_of(raw);
}

const uint8_t* per_fit(const Flags& flags, const char* name, int64_t fits) {
  if (!flags) return nullptr;
  if (static_cast<int64_t>(flags->size()) != fits) raise("InputError", "'%s' needs one flag per fit.", name);
  return flags->data();
}

double* per_fit(py::handle object, const char* name, int64_t fits) {
  if (object.is_none()) return nullptr;
  return static_cast<double*>(Tensor(object, name, Access::write).flat(fits, DIPENGINE_FLOAT64));
}

void masked_mse(py::handle raw_object, py::handle target, py::handle mask, py::handle d_raw, py::handle out,
                py::handle average, py::handle es_mean, bool use_sigmoid, const std::vector<double>& normaliser,
                double grad_scale, double average_decay, double es_alpha, const Flags& first_frame, const Flags& active,
                py::handle loss, py::handle d2, py::handle workspace, py::handle pool) {
  const Tensor raw(raw_object, "raw");
  Params params{};
  set_dims(raw, params);
  const dipengine_dtype dtype = raw.dtype();
  const dipengine_dtype real = dtype == DIPENGINE_FLOAT64 ? DIPENGINE_FLOAT64 : DIPENGINE_FLOAT32;
  params.dtype = dtype;
  params.activation = use_sigmoid ? DIPENGINE_ACTIVATION_SIGMOID : DIPENGINE_ACTIVATION_NONE;
  params.raw = same_shape(raw_object, "raw", Access::read, raw, dtype);
  params.target = same_shape(target, "target", Access::read, raw, real);
  set_mask(mask, raw, real, params);
  params.d_raw = same_shape(d_raw, "d_raw", Access::write, raw, dtype);
  params.out = same_shape(out, "out", Access::write, raw, real);
  params.average = same_shape(average, "average", Access::write, raw, real);
  params.es_mean = same_shape(es_mean, "es_mean", Access::write, raw, real);
  if (params.target.data != nullptr && static_cast<int64_t>(normaliser.size()) != params.fits) {
    raise("InputError", "'normaliser' needs one number per fit.");
  }
  params.normaliser = normaliser.data();
  params.grad_scale = grad_scale;
  params.average_decay = average_decay;
  params.es_alpha = es_alpha;
  params.first_frame = per_fit(first_frame, "first_frame", params.fits);
  params.active = per_fit(active, "active", params.fits);
  params.loss = per_fit(loss, "loss", params.fits);
  params.d2 = per_fit(d2, "d2", params.fits);
  const Tensor bytes(workspace, "workspace", Access::write);
  params.workspace = bytes.flat(bytes.count(), DIPENGINE_UINT8);
  params.workspace_bytes = static_cast<size_t>(bytes.count());
  params.pool = pool_of(pool);
  call(dipengine_masked_mse, params);
}

size_t masked_mse_workspace(py::handle raw_object) {
  const Tensor raw(raw_object, "raw");
  Params params{};
  set_dims(raw, params);
  size_t bytes = 0;
  check(dipengine_masked_mse_workspace(&params, &bytes));
  return bytes;
}

}  // namespace

void bind_masked_mse(py::module_& module) {
  module.def("masked_mse", &masked_mse, py::arg("raw"), py::kw_only(), py::arg("target") = py::none(),
             py::arg("mask") = py::none(), py::arg("d_raw") = py::none(), py::arg("out") = py::none(),
             py::arg("average") = py::none(), py::arg("es_mean") = py::none(), py::arg("sigmoid") = true,
             py::arg("normaliser") = std::vector<double>{}, py::arg("grad_scale") = 1.0, py::arg("average_decay") = 0.0,
             py::arg("es_alpha") = 0.1, py::arg("first_frame") = py::none(), py::arg("active") = py::none(),
             py::arg("loss") = py::none(), py::arg("d2") = py::none(), py::arg("workspace"), py::arg("pool") = py::none(),
             "Masked MSE over [fits, outer, rows, inner...] tensors, with gradient, average and ES-EMV mean in one pass;\n"
             "NCHW as it is, NHWC as [N, 1, H, W, C]. See csrc/ops/masked_mse/masked_mse.h.");
  module.def("masked_mse_workspace", &masked_mse_workspace, py::arg("raw"), "Bytes of workspace for a raw of this shape.");
}

}  // namespace dipengine_python
