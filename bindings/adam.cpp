// Adam over lists of tensors.
#include <pybind11/stl.h>

#include <algorithm>
#include <vector>

#include "ops/adam/adam.h"
#include "ops/adam/adam_cuda.h"
#include "place.h"

namespace dipengine_python {
namespace {

using Tensors = std::vector<py::object>;

// Data of a [fits, count] tensor laid out like the parameter it belongs to.
void* like(const Tensor& param, py::handle object, const char* name, Access access, dipengine_dtype dtype, const Place& place) {
  const Tensor tensor(object, name, access, place);
  const bool same = tensor.dims() == 2 && tensor.size(0) == param.size(0) && tensor.size(1) == param.size(1) &&
                    tensor.contiguous_from(1) && (param.size(0) == 1 || tensor.stride(0) == param.stride(0));
  if (!same) raise("InputError", "The tensor '%s' is not laid out like its parameter [fits, count]; make it so.", name);
  if (tensor.dtype() != dtype) raise("InputError", "The tensor '%s' has another dtype than its role needs; convert it.", name);
  return tensor.data();
}

// Fits, steps, rates and flags lie in the host's memory, where they are counted on.
void on_device(const Place& place, const dipengine_adam_params& p, py::handle workspace) {
  if (p.dtype != DIPENGINE_FLOAT32) raise("InputError", "On a device Adam takes parameters in float32; convert them.");
  std::vector<int64_t> next(p.steps, p.steps + p.fits);
  for (int64_t& step : next) ++step;
  Numbers numbers;
  const size_t steps_at = numbers.add(next.data(), p.fits), rates_at = numbers.add(p.learning_rate, p.fits);
  const size_t active_at = p.active == nullptr ? 0 : numbers.add(p.active, p.fits);
  const DeviceMemory memory(workspace, numbers.bytes(), place);
  numbers.send(memory.data(), place);
  dipengine_adam_cuda_params cuda{};
  cuda.segment_size = p.segment_size;
  cuda.grad_dtype = p.grad_dtype;
  cuda.fits = p.fits;
  cuda.steps = at<const int64_t>(memory.data(), steps_at);
  cuda.learning_rate = at<const double>(memory.data(), rates_at);
  if (p.active != nullptr) cuda.active = at<const uint8_t>(memory.data(), active_at);
  cuda.beta1 = p.beta1;
  cuda.beta2 = p.beta2;
  cuda.eps = p.eps;
  for (int64_t first = 0; first < p.segments_count; first += DIPENGINE_ADAM_CUDA_MAX_SEGMENTS) {
    cuda.segments = p.segments + first;
    cuda.segments_count = std::min<int64_t>(p.segments_count - first, DIPENGINE_ADAM_CUDA_MAX_SEGMENTS);
    call_on(place, dipengine_adam_cuda, cuda);
  }
  for (int64_t fit = 0; fit < p.fits; ++fit) p.steps[fit] += p.active == nullptr || p.active[fit] != 0;
}

void adam(const Tensors& params, const Tensors& grads, const Tensors& m, const Tensors& v, const Tensors& shadows,
          py::handle steps, py::handle learning_rate, py::handle active, double beta1, double beta2, double eps,
          py::handle pool, py::handle workspace, py::handle stream) {
  const size_t count = params.size();
  if (count == 0 || grads.size() != count || m.size() != count || v.size() != count ||
      (!shadows.empty() && shadows.size() != count)) {
    raise("InputError", "Adam needs lists of parameters, gradients, m and v of one length, of at least one tensor.");
  }
  const Place place(params[0], "param", stream);
  dipengine_adam_params p{};
  std::vector<dipengine_adam_segment> segments(count);
  for (size_t i = 0; i < count; ++i) {
    const Tensor param(params[i], "param", Access::write, place);
    if (param.dims() != 2 || !param.contiguous_from(1)) {
      raise("InputError", "A parameter must be [fits, count], contiguous within a fit; copy it into that order.");
    }
    if (i == 0) {
      p.fits = param.size(0);
      p.dtype = param.dtype();
      p.grad_dtype = Tensor(grads[i], "grad", Access::read, place).dtype();
    }
    if (param.size(0) != p.fits) raise("InputError", "Adam was given parameters of different numbers of fits.");
    const auto dtype = static_cast<dipengine_dtype>(p.dtype);
    dipengine_adam_segment& s = segments[i];
    s.param = like(param, params[i], "param", Access::write, dtype, place);
    s.grad = like(param, grads[i], "grad", Access::read, static_cast<dipengine_dtype>(p.grad_dtype), place);
    s.m = like(param, m[i], "m", Access::write, dtype, place);
    s.v = like(param, v[i], "v", Access::write, dtype, place);
    if (!shadows.empty()) s.shadow = like(param, shadows[i], "shadow", Access::write, DIPENGINE_BFLOAT16, place);
    s.count = param.size(1);
    s.fit_stride = param.stride(0);
  }
  p.struct_size = sizeof(p);
  p.segment_size = sizeof(dipengine_adam_segment);
  p.pool = pool_of(pool);
  p.segments_count = static_cast<int64_t>(count);
  p.segments = segments.data();
  p.steps = Tensor(steps, "steps", Access::write).flat_int64(p.fits);
  p.learning_rate = static_cast<double*>(Tensor(learning_rate, "learning_rate").flat(p.fits, DIPENGINE_FLOAT64));
  if (!active.is_none()) p.active = static_cast<uint8_t*>(Tensor(active, "active").flat(p.fits, DIPENGINE_UINT8));
  p.beta1 = beta1;
  p.beta2 = beta2;
  p.eps = eps;
  if (place.cuda()) {
    on_device(place, p, workspace);
  } else {
    call(dipengine_adam, p);
  }
}

}  // namespace

void bind_adam(py::module_& module) {
  module.def("adam", &adam, py::arg("params"), py::arg("grads"), py::arg("m"), py::arg("v"), py::kw_only(),
             py::arg("shadows") = Tensors{}, py::arg("steps"), py::arg("learning_rate"), py::arg("active") = py::none(),
             py::arg("beta1") = 0.9, py::arg("beta2") = 0.999, py::arg("eps") = 1e-8, py::arg("pool") = py::none(),
             py::arg("workspace") = py::none(), py::arg("stream") = py::none(),
             "One Adam update in place of lists of [fits, count] tensors; steps (int64 [fits], in CPU memory like the learning\n"
             "rates and flags) counts up. See csrc/ops/adam/adam.h.");
}

}  // namespace dipengine_python
