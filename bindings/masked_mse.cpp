// The masked mean squared error with its statistics.
#include <pybind11/stl.h>

#include <optional>
#include <vector>

#include "ops/masked_mse/masked_mse.h"
#include "ops/masked_mse/masked_mse_cuda.h"
#include "pixels.h"

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
dipengine_image same_shape(py::handle object, const char* name, Access access, const Tensor& raw, dipengine_dtype dtype,
                           const Place& place) {
  if (object.is_none()) return {};
  const Tensor tensor(object, name, access, place);
  bool same = tensor.dims() == raw.dims();
  for (int i = 0; same && i < raw.dims(); ++i) same = tensor.size(i) == raw.size(i);
  if (!same) raise("InputError", "The tensor '%s' has another shape than raw; crop or reshape it.", name);
  if (tensor.dtype() != dtype) raise("InputError", "The tensor '%s' has another dtype than its role needs; convert it.", name);
  if (!tensor.contiguous_from(3)) raise("InputError", "The tensor '%s' has rows with gaps; copy it into raw's layout.", name);
  return image_of(tensor);
}

// Weights [fits|1, outer|1, rows|1, inner... (the last axis may be 1)]; sets mask_repeat.
template <typename AnyParams>
void set_mask(py::handle object, const Tensor& raw, dipengine_dtype dtype, AnyParams& params, const Place& place) {
  if (object.is_none()) return;
  const Tensor mask(object, "mask", Access::read, place);
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

void set_dims(const Tensor& raw, dipengine_masked_mse_cuda_params& params) {
  Params same{};
  set_dims(raw, same);
  if (same.outer != 1) {
    raise("InputError", "On a device raw must be [fits, 1, rows, inner...]; it has %lld for 1; lay channels last.",
          static_cast<long long>(same.outer));
  }
  params.fits = same.fits;
  params.rows = same.rows;
  params.inner = same.inner;
}

// What a call is given, whatever device its tensors are on.
struct Given {
  py::handle raw, target, mask, d_raw, out, average, es_mean, loss;
  bool use_sigmoid;
  const std::vector<double>& normaliser;
  double grad_scale, average_decay, es_alpha;
};

template <typename AnyParams>
void set_common(AnyParams& params, const Given& given, const Tensor& raw, const Place& place) {
  set_dims(raw, params);
  const dipengine_dtype dtype = raw.dtype();
  const dipengine_dtype real = dtype == DIPENGINE_FLOAT64 ? DIPENGINE_FLOAT64 : DIPENGINE_FLOAT32;
  params.dtype = dtype;
  params.activation = given.use_sigmoid ? DIPENGINE_ACTIVATION_SIGMOID : DIPENGINE_ACTIVATION_NONE;
  params.raw = same_shape(given.raw, "raw", Access::read, raw, dtype, place);
  params.target = same_shape(given.target, "target", Access::read, raw, real, place);
  set_mask(given.mask, raw, real, params, place);
  params.d_raw = same_shape(given.d_raw, "d_raw", Access::write, raw, dtype, place);
  params.out = same_shape(given.out, "out", Access::write, raw, real, place);
  params.average = same_shape(given.average, "average", Access::write, raw, real, place);
  params.es_mean = same_shape(given.es_mean, "es_mean", Access::write, raw, real, place);
  if (params.target.data != nullptr && static_cast<int64_t>(given.normaliser.size()) != params.fits) {
    raise("InputError", "'normaliser' needs one number per fit.");
  }
  params.grad_scale = given.grad_scale;
  params.average_decay = given.average_decay;
  params.es_alpha = given.es_alpha;
}

const uint8_t* per_fit(const Flags& flags, const char* name, int64_t fits) {
  if (!flags) return nullptr;
  if (static_cast<int64_t>(flags->size()) != fits) raise("InputError", "'%s' needs one flag per fit.", name);
  return flags->data();
}

double* per_fit(py::handle object, const char* name, int64_t fits, const Place& place) {
  if (object.is_none()) return nullptr;
  return static_cast<double*>(Tensor(object, name, Access::write, place).flat(fits, DIPENGINE_FLOAT64));
}

void on_device(const Place& place, const Given& given, const Tensor& raw, const Flags& active, bool warm_up, py::handle frames,
               py::handle es_variance, py::handle workspace) {
  dipengine_masked_mse_cuda_params params{};
  set_common(params, given, raw, place);
  for (double number : given.normaliser) {
    if (!(number > 0)) raise("InputError", "masked_mse was given normaliser %g; it must be positive.", number);
  }
  if (frames.is_none()) raise("InputError", "On a device masked_mse counts its frames there; give 'frames', int64, one per fit.");
  params.warm_up = warm_up;
  params.frames = Tensor(frames, "frames", Access::write, place).flat_int64(params.fits);
  params.es_variance = per_fit(es_variance, "es_variance", params.fits, place);
  params.loss = per_fit(given.loss, "loss", params.fits, place);
  Numbers numbers;
  const uint8_t* flags = per_fit(active, "active", params.fits);
  const size_t normaliser_at = numbers.add(given.normaliser.data(), static_cast<int64_t>(given.normaliser.size()));
  const size_t active_at = flags == nullptr ? 0 : numbers.add(flags, params.fits);
  call_on(place, workspace, numbers, dipengine_masked_mse_cuda_workspace, dipengine_masked_mse_cuda, params, [&](void* memory) {
    params.normaliser = at<const double>(memory, normaliser_at);
    if (flags != nullptr) params.active = at<const uint8_t>(memory, active_at);
  });
}

void masked_mse(py::handle raw_object, py::handle target, py::handle mask, py::handle d_raw, py::handle out,
                py::handle average, py::handle es_mean, bool use_sigmoid, const std::vector<double>& normaliser,
                double grad_scale, double average_decay, bool warm_up, double es_alpha, const Flags& first_frame,
                const Flags& active, py::handle loss, py::handle d2, py::handle frames, py::handle es_variance,
                py::handle workspace, py::handle pool, py::handle stream) {
  const Place place(raw_object, "raw", stream);
  const Tensor raw(raw_object, "raw", Access::read, place);
  const Given given = {raw_object,  target,     mask,       d_raw,         out,     average, es_mean, loss,
                       use_sigmoid, normaliser, grad_scale, average_decay, es_alpha};
  if (place.cuda()) {
    on_device(place, given, raw, active, warm_up, frames, es_variance, workspace);
    return;
  }
  Params params{};
  set_common(params, given, raw, place);
  params.normaliser = normaliser.data();
  params.first_frame = per_fit(first_frame, "first_frame", params.fits);
  params.active = per_fit(active, "active", params.fits);
  params.loss = per_fit(loss, "loss", params.fits, place);
  params.d2 = per_fit(d2, "d2", params.fits, place);
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
             py::arg("warm_up") = false, py::arg("es_alpha") = 0.1, py::arg("first_frame") = py::none(),
             py::arg("active") = py::none(), py::arg("loss") = py::none(), py::arg("d2") = py::none(),
             py::arg("frames") = py::none(), py::arg("es_variance") = py::none(), py::arg("workspace"),
             py::arg("pool") = py::none(), py::arg("stream") = py::none(),
             "Masked MSE over [fits, outer, rows, inner...] tensors, with gradient, average and ES-EMV mean in one pass;\n"
             "NCHW as it is, NHWC as [N, 1, H, W, C]. See csrc/ops/masked_mse/masked_mse.h. first_frame and d2 are for tensors in\n"
             "CPU memory. CUDA tensors are NHWC, and warm_up, frames (int64) and es_variance (float64, one a fit, in and out,\n"
             "there) as in masked_mse_cuda.h.");
  module.def("masked_mse_workspace", &masked_mse_workspace, py::arg("raw"), "Bytes of workspace for a raw of this shape.");
}

}  // namespace dipengine_python
