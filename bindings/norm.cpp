// The norm passes between the convolutions, over [height, width, channels] tensors.
#include "ops/norm/norm.h"

#include "ops/norm/norm_cuda.h"
#include "source.h"

namespace dipengine_python {

void fold(const NormNumbers<double>& norm, int64_t channels, double eps) {
  if (norm.scale == nullptr) return;
  dipengine_norm_fold(channels, norm.mean, norm.variance, norm.gamma, norm.beta, eps, norm.scale, norm.shift);
}

namespace {

// A pass over one source: its params on either kind of device.
template <typename Params>
struct Pass {
  using ConvSource = Pointee<decltype(Params::source)>;

  Params p{};
  ConvSource source;
  const Place& place;

  Pass(const Source& given, const Place& where) : place(where) {
    source = given.see<ConvSource>(&p.dtype, place);
    p.struct_size = sizeof(p);
    p.source_size = sizeof(source);
    if constexpr (kOnDevice<ConvSource>) p.fits = 1;
    p.source = &source;
  }

  dipengine_pixels like_source(py::handle object, const char* name, Access access) const {
    return pixels_of(object, name, access, p.dtype, source.height, source.width, source.channels, place);
  }

  void set_gradient(py::handle g, const Triple& coefficients) {
    p.g = like_source(g, "g", Access::read);
    set_triple<NumberOf<ConvSource>>(coefficients, source.channels, place, &p.a, &p.b, &p.c);
  }
};

using OnCpu = Pass<dipengine_norm_params>;
using OnDevice = Pass<dipengine_norm_cuda_params>;

void run(OnCpu& pass, dipengine_status (*op)(const dipengine_norm_params*), py::handle workspace, py::handle pool) {
  pass.p.pool = pool_of(pool);
  call_in(workspace, dipengine_norm_workspace, op, pass.p);
}

void run(OnDevice& pass, dipengine_status (*op)(const dipengine_norm_cuda_params*), py::handle workspace) {
  call_on(pass.place, workspace, {}, dipengine_norm_cuda_workspace, op, pass.p, [](void*) {});
}

void norm_statistics(const Source& source, py::handle mean, py::handle variance, py::handle gamma, py::handle beta, double eps,
                     py::handle scale, py::handle shift, py::handle workspace, py::handle pool, py::handle stream) {
  const Place place(source.x, "x", stream);
  const Norm norm = {mean, variance, gamma, beta, scale, shift, eps};
  if (place.cuda()) {
    OnDevice pass(source, place);
    NormNumbers<float>(norm, pass.source.channels, place).set(pass.p, eps);
    run(pass, dipengine_norm_cuda_statistics, workspace);
    return;
  }
  OnCpu pass(source, place);
  const NormNumbers<double> numbers(norm, pass.source.channels, place);
  pass.p.mean = numbers.mean;
  pass.p.variance = numbers.variance;
  run(pass, dipengine_norm_statistics, workspace, pool);
  fold(numbers, pass.source.channels, eps);
}

void norm_apply(const Source& source, py::handle y, py::handle workspace, py::handle pool) {
  const Place place(source.x, "x", py::none());
  if (place.cuda()) raise("DeviceError", "norm_apply has no CUDA kernel, as convolutions normalise while loading; use the twin.");
  OnCpu pass(source, place);
  pass.p.y = pass.like_source(y, "y", Access::write);
  run(pass, dipengine_norm_apply, workspace, pool);
}

void norm_backward(const Source& source, py::handle g, const Triple& coefficients, py::handle workspace, py::handle pool,
                   py::handle stream) {
  const Place place(source.x, "x", stream);
  if (place.cuda()) {
    OnDevice pass(source, place);
    pass.set_gradient(g, coefficients);
    run(pass, dipengine_norm_cuda_backward, workspace);
    return;
  }
  OnCpu pass(source, place);
  pass.set_gradient(g, coefficients);
  run(pass, dipengine_norm_backward, workspace, pool);
}

struct GradientNumbers {
  py::handle mean, variance, gamma, sum, product, d_gamma, d_beta;
  const std::vector<py::object>& coefficients;
};

template <typename Gradient>
Gradient fold_gradient(const GradientNumbers& given, double count, double eps, bool centred, const Place& place) {
  using Number = Pointee<decltype(Gradient::a)>;
  Gradient g{};
  const int64_t n = Tensor(given.mean, "mean", Access::read, place).count();
  if (given.coefficients.size() != 3) raise("InputError", "'coefficients' has places for A, B and C.");
  const auto read = [&](py::handle object, const char* name) { return per_channel<Number>(object, name, n, place); };
  const auto write = [&](py::handle object, const char* name) {
    return per_channel<Number>(object, name, n, place, Access::write);
  };
  g.struct_size = sizeof(g);
  g.channels = n;
  g.count = count;
  g.mean = read(given.mean, "mean");
  g.variance = read(given.variance, "variance");
  g.gamma = read(given.gamma, "gamma");
  g.eps = eps;
  g.sum = read(given.sum, "sum");
  g.product = read(given.product, "product");
  g.centred = centred;
  g.a = write(given.coefficients[0], "A");
  g.b = write(given.coefficients[1], "B");
  g.c = write(given.coefficients[2], "C");
  g.d_gamma = write(given.d_gamma, "d_gamma");
  g.d_beta = write(given.d_beta, "d_beta");
  return g;
}

void norm_fold_gradient(double count, py::handle mean, py::handle variance, py::handle gamma, double eps, py::handle sum,
                        py::handle product, bool centred, const std::vector<py::object>& coefficients, py::handle d_gamma,
                        py::handle d_beta, py::handle stream) {
  const Place place(mean, "mean", stream);
  const GradientNumbers given = {mean, variance, gamma, sum, product, d_gamma, d_beta, coefficients};
  if (place.cuda()) {
    auto g = fold_gradient<dipengine_norm_cuda_gradient>(given, count, eps, centred, place);
    g.fits = 1;
    call_on(place, dipengine_norm_cuda_fold_gradient, g);
    return;
  }
  const auto g = fold_gradient<dipengine_norm_gradient>(given, count, eps, centred, place);
  check(dipengine_norm_fold_gradient(&g));
}

}  // namespace

void bind_norm(py::module_& module) {
  module.def("norm_statistics", &norm_statistics, py::arg("source"), py::kw_only(), py::arg("mean"), py::arg("variance"),
             py::arg("gamma") = py::none(), py::arg("beta") = py::none(), py::arg("eps") = 0.0, py::arg("scale") = py::none(),
             py::arg("shift") = py::none(), py::arg("workspace"), py::arg("pool") = py::none(), py::arg("stream") = py::none(),
             "Mean and variance of the (upsampled) activation of a source, and with scale and shift the norm behind it as\n"
             "scale * v + shift. See csrc/ops/norm/norm.h and norm_cuda.h.");
  module.def("norm_apply", &norm_apply, py::arg("source"), py::kw_only(), py::arg("y"), py::arg("workspace"),
             py::arg("pool") = py::none(), "y = leaky_relu(inner(x)), of tensors in CPU memory.");
  module.def("norm_backward", &norm_backward, py::arg("source"), py::kw_only(), py::arg("g"), py::arg("coefficients") = py::none(),
             py::arg("workspace"), py::arg("pool") = py::none(), py::arg("stream") = py::none(),
             "d_x = leaky_relu'(inner(x)) (A g + B t + C), and its two sums.");
  module.def("norm_fold_gradient", &norm_fold_gradient, py::kw_only(), py::arg("count"), py::arg("mean"), py::arg("variance"),
             py::arg("gamma") = py::none(), py::arg("eps"), py::arg("sum"), py::arg("product"), py::arg("centred"),
             py::arg("coefficients"), py::arg("d_gamma") = py::none(), py::arg("d_beta") = py::none(),
             py::arg("stream") = py::none(), "BatchNorm's backward as d_v = A g + B v + C, [channels].");
}

}  // namespace dipengine_python
