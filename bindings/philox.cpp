// Philox random numbers and the perturbed code.
#include <pybind11/stl.h>

#include <vector>

#include "ops/philox/philox.h"
#include "ops/philox/philox_cuda.h"
#include "place.h"

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

// What both kinds of device are told alike.
template <typename Params>
void set_tensors(Params& params, int64_t fits, const Tensor& code, const Tensor& result, float z_scale, float std) {
  params.fits = fits;
  params.count = result.count() / fits;
  if (code.count() != params.count * code.size(0)) {
    raise("InputError", "perturb was given a code and an output of different sizes; make them alike.");
  }
  params.z_dtype = code.dtype();
  params.z = code.data();
  params.z_fit_stride = code.size(0) == 1 ? 0 : code.stride(0);
  params.z_scale = z_scale;
  params.std = std;
  params.out_dtype = result.dtype();
  params.out = result.data();
  params.out_fit_stride = result.stride(0);
}

void perturb(py::handle z, float z_scale, float std, const std::vector<uint64_t>& seeds, uint32_t noise_stream,
             const std::vector<uint32_t>& steps, py::handle out, py::handle pool, py::handle workspace, py::handle stream) {
  const Place place(z, "z", stream);
  const Tensor code(z, "z", Access::read, place), result(out, "out", Access::write, place);
  check_rows(code);
  check_rows(result);
  const auto fits = static_cast<int64_t>(seeds.size());
  if (fits < 1 || result.size(0) != fits || steps.size() != seeds.size() || (code.size(0) != fits && code.size(0) != 1)) {
    raise("InputError", "perturb needs at least one fit, and a seed, a step, an output and a code (or one code in all) of each.");
  }
  if (place.cuda()) {
    dipengine_perturb_cuda_params params{};
    set_tensors(params, fits, code, result, z_scale, std);
    Numbers numbers;
    const size_t seeds_at = numbers.add(seeds.data(), fits), steps_at = numbers.add(steps.data(), fits);
    const DeviceMemory memory(workspace, numbers.bytes(), place);
    numbers.send(memory.data(), place);
    params.seeds = at<const uint64_t>(memory.data(), seeds_at);
    params.steps = at<const uint32_t>(memory.data(), steps_at);
    params.noise_stream = noise_stream;
    call_on(place, dipengine_perturb_cuda, params);
    return;
  }
  dipengine_perturb_params params{};
  params.struct_size = sizeof(params);
  params.pool = pool_of(pool);
  set_tensors(params, fits, code, result, z_scale, std);
  params.seeds = seeds.data();
  params.steps = steps.data();
  params.stream = noise_stream;
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
  module.def("perturb", &perturb, py::arg("z"), py::arg("z_scale"), py::arg("std"), py::arg("seeds"), py::arg("noise_stream"),
             py::arg("steps"), py::arg("out"), py::arg("pool") = py::none(), py::arg("workspace") = py::none(),
             py::arg("stream") = py::none(),
             "out[f] = z[f] + std * normal(seeds[f], noise_stream, steps[f]); z float32, or uint8 standing for z * z_scale.");
}

}  // namespace dipengine_python
