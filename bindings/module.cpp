// dipengine._native: the C++ core for Python. One file per op; this one holds the pool and what the build is.
#include <pybind11/stl.h>

#include <optional>
#include <string>

#include "dlpack.h"
#include "platform/cuda/device.h"

namespace dipengine_python {
namespace {

class Pool {
 public:
  explicit Pool(int threads) { check(dipengine_pool_create(threads, &pool_)); }
  ~Pool() { dipengine_pool_destroy(pool_); }
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int threads() const { return dipengine_pool_size(pool_); }
  dipengine_pool* get() const { return pool_; }

 private:
  dipengine_pool* pool_ = nullptr;
};

std::string cpu_isa() {
  const char* name = dipengine_cpu_isa();
  if (name == nullptr) check(DIPENGINE_INVALID_ARGUMENT);
  return name;
}

// (devices, what is missing where there are none)
py::tuple cuda_devices() {
  int32_t count = 0;
  const dipengine_status status = dipengine_cuda_device_count(&count);
  return py::make_tuple(count, status == DIPENGINE_OK ? "" : dipengine_last_error());
}

// (bytes that can be had, bytes in all)
py::tuple cuda_memory(int32_t device) {
  size_t free_bytes = 0, total_bytes = 0;
  check(dipengine_cuda_device_memory(device, &free_bytes, &total_bytes));
  return py::make_tuple(free_bytes, total_bytes);
}

std::string cuda_device_name(int32_t device) {
  char name[256];
  check(dipengine_cuda_device_name(device, name, sizeof name));
  return name;
}

py::dict build_info() {
  dipengine_build_info info{};
  info.struct_size = sizeof(info);
  check(dipengine_get_build_info(&info));
  py::dict result;
  result["version"] = dipengine_version_string();
  result["abi_version"] = dipengine_abi_version();
  result["compiler"] = info.compiler;
  result["build_type"] = info.build_type;
  result["instruction_sets_built"] = py::str(info.instruction_sets).attr("split")();
  result["cuda"] = info.cuda;
  result["cuda_manifest"] = dipengine_cuda_manifest();
  return result;
}

}  // namespace

dipengine_pool* pool_of(py::handle pool) {
  if (pool.is_none()) return nullptr;
  if (!py::isinstance<Pool>(pool)) raise("InputError", "'pool' is no Pool of this module; give one, or None.");
  return pool.cast<Pool&>().get();
}

}  // namespace dipengine_python

PYBIND11_MODULE(_native, module) {
  using namespace dipengine_python;
  module.doc() = "The C++ core of dipengine. Tensors come in through DLPack and outputs are written into given ones.";

  py::class_<Pool>(module, "Pool", py::module_local(), "Threads for native ops; the calling one is counted.")
      .def(py::init<int>(), py::arg("threads"))
      .def_property_readonly("threads", &Pool::threads);
  module.def("build_info", &build_info, "What the core was built from: version, ABI, compiler, instruction sets, CUDA.");
  module.def("cuda_devices", &cuda_devices,
             "(number of CUDA devices that the kernels could run on, what is missing where there are none).");
  module.attr("CUDA_LEAST_CAPABILITY") = dipengine::cuda::kLeastCapability;
  module.def("cuda_memory", &cuda_memory, py::arg("device"), "(bytes of a device's memory that can be had, all of them).");
  module.def("cuda_device_name", &cuda_device_name, py::arg("device"), "A CUDA device's name, such as \"NVIDIA H200\".");
  module.def("cpu_isa", &cpu_isa, "The instruction set in use. Raises InputError where DIPENGINE_ISA is no known word.");
  module.def("cpu_has_isa", [](const std::string& name) { return dipengine_cpu_has_isa(name.c_str()) != 0; },
             "Whether this CPU has the instruction set, used or not.");
  module.def("cpu_bfloat16", [] { return dipengine_cpu_bfloat16() != 0; },
             "Whether fits are faster with bfloat16 images on the instruction set in use.");
  module.def(
      "set_cpu_isa",
      [](const std::optional<std::string>& name) { check(dipengine_set_cpu_isa(name ? name->c_str() : nullptr)); },
      py::arg("name"), "Cap the instruction set of the process; None: what DIPENGINE_ISA says.");

  bind_activation(module);
  bind_philox(module);
  bind_masked_mse(module);
  bind_adam(module);
  bind_blur(module);
  bind_conv(module);
  bind_fit(module);
  bind_deviance(module);
  bind_resample(module);
}
