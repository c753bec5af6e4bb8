// Philox random numbers and the perturbed code.
#include <pybind11/stl.h>

#include <vector>

#include "dlpack.h"
#include "ops/philox/philox.h"

namespace dipengine_python {
namespace {

template <dipengine_status (*op)(const dipengine_philox_params*), dipengine_dtype dtype>
void fill(uint64_t seed, uint32_t stream, uint32_t step, py::handle out, py::handle pool) {
  const Tensor tensor(out, "out", Access::write);
  dipengine_philox_params params{};
  params.struct_size = sizeof(params);
  params.pool = pool_of(pool);
  params.seed = seed;
  params.stream = stream;
  params.step = step;
  params.count = tensor.count();
  params.out = tensor.flat(params.count, dtype);
  call(op, params);
}

void check_rows(const Tensor& tensor) {
  if (tensor.dims() < 1 || !tensor.contiguous_from(1)) {
    raise("InputError", "The tensor '%s' must be [fits, ...], C-contiguous within a fit; copy it into that order.",
          tensor.name());
  }
}

void perturb(py::handle z, float z_scale, float std, const std::vector<uint64_t>& seeds, uint32_t stream,
             const std::vector<uint32_t>& steps, py::handle out, py::handle pool) {
  const Tensor code(z, "z"), result(out, "out", Access::write);
  check_rows(code);
  check_rows(result);
  const auto fits = static_cast<int64_t>(seeds.size());
  if (result.size(0) != fits || steps.size() != seeds.size() || (code.size(0) != fits && code.size(0) != 1)) {
    raise("InputError", "perturb needs one seed, one step, one output and one code (or one code in all) per fit.");
  }
  dipengine_perturb_params params{};
  params.struct_size = sizeof(params);
  params.pool = pool_of(pool);
  params.fits = fits;
  params.count = result.count() / fits;
  if (code.count() != params.count * code.size(0)) {
    raise("InputError", "perturb was given a code and an output of different sizes; make them alike.");
  }
  params.seeds = seeds.data();
  params.steps = steps.data();
  params.stream = stream;
  params.z_dtype = code.dtype();
  params.z = code.data();
  params.z_fit_stride = code.size(0) == 1 ? 0 : code.stride(0);
  params.z_scale = z_scale;
  params.std = std;
  params.out_dtype = result.dtype();
  params.out = result.data();
  params.out_fit_stride = result.stride(0);
  call(dipengine_perturb, params);
}

}  // namespace

void bind_philox(py::module_& module) {
  const auto define = [&](const char* name, auto function, const char* doc) {
    module.def(name, function, py::arg("seed"), py::arg("stream"), py::arg("step"), py::arg("out"),
               py::arg("pool") = py::none(), doc);
  };
  define("philox_uniform", &fill<dipengine_philox_uniform, DIPENGINE_FLOAT32>, "out (float32) = uniforms in [0, 1).");
  define("philox_normal", &fill<dipengine_philox_normal, DIPENGINE_FLOAT32>, "out (float32) = standard normals.");
  define("philox_bytes", &fill<dipengine_philox_bytes, DIPENGINE_UINT8>, "out (uint8) = random bytes.");
  module.def("perturb", &perturb, py::arg("z"), py::arg("z_scale"), py::arg("std"), py::arg("seeds"), py::arg("stream"),
             py::arg("steps"), py::arg("out"), py::arg("pool") = py::none(),
             "out[f] = z[f] + std * normal(seeds[f], stream, steps[f]); z float32, or uint8 standing for z * z_scale.");
}

}  // namespace dipengine_python
