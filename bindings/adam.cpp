// Adam over lists of tensors.
#include <pybind11/stl.h>

#include <vector>

#include "dlpack.h"
#include "ops/adam/adam.h"

namespace dipengine_python {
namespace {

using Tensors = std::vector<py::object>;

// Data of a [fits, count] tensor laid out like the parameter it belongs to.
void* like(const Tensor& param, py::handle object, const char* name, Access access, dipengine_dtype dtype) {
  const Tensor tensor(object, name, access);
  const bool same = tensor.dims() == 2 && tensor.size(0) == param.size(0) && tensor.size(1) == param.size(1) &&
                    tensor.contiguous_from(1) && (param.size(0) == 1 || tensor.stride(0) == param.stride(0));
  if (!same) raise("InputError", "The tensor '%s' is not laid out like its parameter [fits, count]; make it so.", name);
  if (tensor.dtype() != dtype) raise("InputError", "The tensor '%s' has another dtype than its role needs; convert it.", name);
  return tensor.data();
}

void adam(const Tensors& params, const Tensors& grads, const Tensors& m, const Tensors& v, const Tensors& shadows,
          py::handle steps, py::handle learning_rate, py::handle active, double beta1, double beta2, double eps,
          py::handle pool) {
  const size_t count = params.size();
  if (count == 0 || grads.size() != count || m.size() != count || v.size() != count ||
      (!shadows.empty() && shadows.size() != count)) {
    raise("InputError", "Adam needs lists of parameters, gradients, m and v of one length, of at least one tensor.");
  }
  dipengine_adam_params p{};
  std::vector<dipengine_adam_segment> segments(count);
  for (size_t i = 0; i < count; ++i) {
    const Tensor param(params[i], "param", Access::write), grad(grads[i], "grad");
    if (param.dims() != 2 || !param.contiguous_from(1)) {
      raise("InputError", "A parameter must be [fits, count], contiguous within a fit; copy it into that order.");
    }
    if (i == 0) {
      p.fits = param.size(0);
      p.dtype = param.dtype();
      p.grad_dtype = grad.dtype();
    }
    if (param.size(0) != p.fits) raise("InputError", "Adam was given parameters of different numbers of fits.");
    const auto dtype = static_cast<dipengine_dtype>(p.dtype);
    dipengine_adam_segment& s = segments[i];
    s.param = like(param, params[i], "param", Access::write, dtype);
    s.grad = like(param, grads[i], "grad", Access::read, static_cast<dipengine_dtype>(p.grad_dtype));
    s.m = like(param, m[i], "m", Access::write, dtype);
    s.v = like(param, v[i], "v", Access::write, dtype);
    if (!shadows.empty()) s.shadow = like(param, shadows[i], "shadow", Access::write, DIPENGINE_BFLOAT16);
    s.count = param.size(1);
    s.fit_stride = param.stride(0);
  }
  const Tensor counters(steps, "steps", Access::write);
  if (!counters.is_int64() || counters.count() != p.fits || !counters.contiguous_from(0)) {
    raise("InputError", "'steps' must be int64, one per fit.");
  }
  p.struct_size = sizeof(p);
  p.segment_size = sizeof(dipengine_adam_segment);
  p.pool = pool_of(pool);
  p.segments_count = static_cast<int64_t>(count);
  p.segments = segments.data();
  p.steps = static_cast<int64_t*>(counters.data());
  p.learning_rate = static_cast<double*>(Tensor(learning_rate, "learning_rate").flat(p.fits, DIPENGINE_FLOAT64));
  if (!active.is_none()) p.active = static_cast<uint8_t*>(Tensor(active, "active").flat(p.fits, DIPENGINE_UINT8));
  p.beta1 = beta1;
  p.beta2 = beta2;
  p.eps = eps;
  call(dipengine_adam, p);
}

}  // namespace

void bind_adam(py::module_& module) {
  module.def("adam", &adam, py::arg("params"), py::arg("grads"), py::arg("m"), py::arg("v"), py::kw_only(),
             py::arg("shadows") = Tensors{}, py::arg("steps"), py::arg("learning_rate"), py::arg("active") = py::none(),
             py::arg("beta1") = 0.9, py::arg("beta2") = 0.999, py::arg("eps") = 1e-8, py::arg("pool") = py::none(),
             "One Adam update in place of lists of [fits, count] tensors; steps (int64 [fits]) counts up.\n"
             "See csrc/ops/adam/adam.h.");
}

}  // namespace dipengine_python
