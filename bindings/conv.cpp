// The convolutions and the norm passes between them, over [height, width, channels] tensors.
#include <pybind11/stl.h>

#include <optional>
#include <utility>
#include <vector>

#include "dlpack.h"
#include "ops/conv/conv.h"
#include "ops/norm/norm.h"
#include "pixels.h"

namespace dipengine_python {
namespace {

using Coefficients = std::optional<std::pair<py::object, py::object>>;

double* per_channel(py::handle object, const char* name, int64_t channels, Access access = Access::read) {
  if (object.is_none()) return nullptr;
  return static_cast<double*>(Tensor(object, name, access).flat(channels, DIPENGINE_FLOAT64));
}

// A source as Python gives it; keeps the tensors alive.
struct Source {
  py::object x, d_x, centre, sum, product;
  Coefficients inner, outer;
  int upsample;
  double slope;
  bool accumulate;

  dipengine_conv_source see(int32_t* dtype) const {
    dipengine_conv_source s{};
    const Tensor image(x, "x");
    s.x = pixels_of(image);
    *dtype = image.dtype();
    s.height = image.size(0);
    s.width = image.size(1);
    s.channels = image.size(2);
    s.upsample = upsample;
    s.slope = slope;
    s.accumulate = accumulate;
    s.inner = affine(inner, "inner", s.channels);
    s.outer = affine(outer, "outer", s.channels);
    if (!d_x.is_none()) {
      const Tensor gradient(d_x, "d_x", Access::write);
      s.d_x = pixels_of(gradient);
      if (gradient.dtype() != image.dtype() || gradient.size(0) != s.height || gradient.size(1) != s.width ||
          gradient.size(2) != s.channels) {
        raise("InputError", "'d_x' has another shape or dtype than its source; make it alike.");
      }
    }
    s.centre = per_channel(centre, "centre", s.channels);
    s.sum = per_channel(sum, "sum", s.channels, Access::write);
    s.product = per_channel(product, "product", s.channels, Access::write);
    return s;
  }

 private:
  static dipengine_affine affine(const Coefficients& given, const char* name, int64_t channels) {
    if (!given) return {nullptr, nullptr};
    return {per_channel(given->first, name, channels), per_channel(given->second, name, channels)};
  }
};

using Sources = std::vector<const Source*>;
using Triple = std::optional<std::vector<py::object>>;

struct Call {
  dipengine_conv_params p{};
  std::vector<dipengine_conv_source> sources;

  Call(const Sources& given, py::handle weight_object, py::handle bias, int stride, int pad, int padding, py::handle pool) {
    p.struct_size = sizeof(p);
    p.source_size = sizeof(dipengine_conv_source);
    int64_t inputs = 0;
    for (const Source* source : given) {
      if (source == nullptr) raise("InputError", "One of the convolution's sources is None; give a Source.");
      int32_t dtype = 0;
      sources.push_back(source->see(&dtype));
      if (inputs > 0 && dtype != p.dtype) raise("InputError", "The convolution's sources have several dtypes; convert them.");
      p.dtype = dtype;
      inputs += sources.back().channels;
    }
    p.sources = sources.data();
    p.sources_count = static_cast<int32_t>(sources.size());
    const Tensor weight(weight_object, "weight");
    if (weight.dims() != 4 || weight.size(0) != weight.size(1) || weight.size(2) != inputs) {
      raise("InputError", "'weight' must be [kernel, kernel, %lld, channels out]; lay it out so.", static_cast<long long>(inputs));
    }
    p.kernel = static_cast<int32_t>(weight.size(0));
    p.channels = weight.size(3);
    p.weight = weight.flat(weight.count(), real());
    p.bias = bias.is_none() ? nullptr : Tensor(bias, "bias").flat(p.channels, real());
    p.stride = stride;
    p.pad = pad;
    p.padding = padding;
    p.pool = pool_of(pool);
    p.raw_dtype = p.gradient_dtype = p.dtype;
  }

  dipengine_dtype real() const { return p.dtype == DIPENGINE_FLOAT64 ? DIPENGINE_FLOAT64 : DIPENGINE_FLOAT32; }

  dipengine_pixels output(const Tensor& tensor) {
    if (tensor.dims() != 3 || tensor.size(2) != p.channels) {
      raise("InputError", "'%s' must be [height, width, %lld].", tensor.name(), static_cast<long long>(p.channels));
    }
    p.height = tensor.size(0);
    p.width = tensor.size(1);
    return pixels_of(tensor);
  }

  void run(dipengine_status (*size)(const dipengine_conv_params*, size_t*), dipengine_status (*op)(const dipengine_conv_params*),
           Workspace& workspace) {
    size_t bytes = 0;
    check(size(&p, &bytes));
    p.workspace = workspace.reserve(bytes);
    p.workspace_bytes = workspace.bytes();
    call(op, p);
  }
};

void conv_forward(const Sources& sources, py::handle weight, py::handle raw, int stride, int pad, int padding, py::handle bias,
                  py::handle mean, py::handle variance, Workspace& workspace, py::handle pool) {
  Call c(sources, weight, bias, stride, pad, padding, pool);
  const Tensor out(raw, "raw", Access::write);
  c.p.raw_dtype = out.dtype();
  c.p.raw = c.output(out);
  c.p.mean = per_channel(mean, "mean", c.p.channels, Access::write);
  c.p.variance = per_channel(variance, "variance", c.p.channels, Access::write);
  c.run(dipengine_conv_forward_workspace, dipengine_conv_forward, workspace);
}

void set_triple(const Triple& triple, int64_t channels, const double** a, const double** b, const double** c) {
  if (!triple) return;
  if (triple->size() != 3) raise("InputError", "'coefficients' holds A, B and C.");
  *a = per_channel((*triple)[0], "A", channels);
  *b = per_channel((*triple)[1], "B", channels);
  *c = per_channel((*triple)[2], "C", channels);
}

void conv_backward(const Sources& sources, py::handle weight, py::handle gradient, py::handle raw, const Triple& coefficients,
                   int stride, int pad, int padding, py::handle d_weight, py::handle d_bias, Workspace& workspace, py::handle pool) {
  Call c(sources, weight, py::none(), stride, pad, padding, pool);
  const Tensor g(gradient, "gradient");
  c.p.gradient_dtype = g.dtype();
  c.p.gradient = c.output(g);
  if (!raw.is_none()) {
    const Tensor out(raw, "raw");
    if (out.dims() != 3 || out.size(0) != g.size(0) || out.size(1) != g.size(1) || out.size(2) != g.size(2)) {
      raise("InputError", "'raw' has another shape than 'gradient'; give the output that the gradient is of.");
    }
    c.p.raw_dtype = out.dtype();
    c.p.raw = pixels_of(out);
  }
  set_triple(coefficients, c.p.channels, &c.p.gradient_scale, &c.p.raw_scale, &c.p.gradient_shift);
  if (!d_weight.is_none()) {
    const Tensor shape(weight, "weight");
    c.p.d_weight = Tensor(d_weight, "d_weight", Access::write).flat(shape.count(), c.real());
  }
  if (!d_bias.is_none()) c.p.d_bias = Tensor(d_bias, "d_bias", Access::write).flat(c.p.channels, c.real());
  c.run(dipengine_conv_backward_workspace, dipengine_conv_backward, workspace);
}

void norm_pass(dipengine_status (*op)(const dipengine_norm_params*), const Source& given, py::handle mean, py::handle variance,
               py::handle y, py::handle g, const Triple& coefficients, Workspace& workspace, py::handle pool) {
  dipengine_norm_params p{};
  dipengine_conv_source source = given.see(&p.dtype);
  p.struct_size = sizeof(p);
  p.source_size = sizeof(source);
  p.pool = pool_of(pool);
  p.source = &source;
  p.mean = per_channel(mean, "mean", source.channels, Access::write);
  p.variance = per_channel(variance, "variance", source.channels, Access::write);
  auto image = [&](py::handle object, const char* name, Access access) -> dipengine_pixels {
    if (object.is_none()) return {nullptr, 0, 0};
    const Tensor tensor(object, name, access);
    if (tensor.dtype() != p.dtype || tensor.dims() != 3 || tensor.size(0) != source.height || tensor.size(1) != source.width ||
        tensor.size(2) != source.channels) {
      raise("InputError", "'%s' has another shape or dtype than its source; make it alike.", name);
    }
    return pixels_of(tensor);
  };
  p.y = image(y, "y", Access::write);
  p.g = image(g, "g", Access::read);
  set_triple(coefficients, source.channels, &p.a, &p.b, &p.c);
  size_t bytes = 0;
  check(dipengine_norm_workspace(&p, &bytes));
  p.workspace = workspace.reserve(bytes);
  p.workspace_bytes = workspace.bytes();
  call(op, p);
}

void norm_fold(py::handle mean, py::handle variance, py::handle gamma, py::handle beta, double eps, py::handle scale, py::handle shift) {
  const int64_t n = Tensor(mean, "mean").count();
  if (variance.is_none() || scale.is_none() || shift.is_none()) {
    raise("InputError", "The norm's fold lacks one of variance, scale and shift; give all three.");
  }
  dipengine_norm_fold(n, per_channel(mean, "mean", n), per_channel(variance, "variance", n), per_channel(gamma, "gamma", n),
                      per_channel(beta, "beta", n), eps, per_channel(scale, "scale", n, Access::write),
                      per_channel(shift, "shift", n, Access::write));
}

void norm_fold_gradient(double count, py::handle mean, py::handle variance, py::handle gamma, double eps, py::handle sum,
                        py::handle product, bool centred, const std::vector<py::object>& coefficients, py::handle d_gamma,
                        py::handle d_beta) {
  dipengine_norm_gradient g{};
  const int64_t n = Tensor(mean, "mean").count();
  if (coefficients.size() != 3) raise("InputError", "'coefficients' has places for A, B and C.");
  g.struct_size = sizeof(g);
  g.channels = n;
  g.count = count;
  g.mean = per_channel(mean, "mean", n);
  g.variance = per_channel(variance, "variance", n);
  g.gamma = per_channel(gamma, "gamma", n);
  g.eps = eps;
  g.sum = per_channel(sum, "sum", n);
  g.product = per_channel(product, "product", n);
  g.centred = centred;
  g.a = per_channel(coefficients[0], "A", n, Access::write);
  g.b = per_channel(coefficients[1], "B", n, Access::write);
  g.c = per_channel(coefficients[2], "C", n, Access::write);
  g.d_gamma = per_channel(d_gamma, "d_gamma", n, Access::write);
  g.d_beta = per_channel(d_beta, "d_beta", n, Access::write);
  check(dipengine_norm_fold_gradient(&g));
}

}  // namespace

void bind_conv(py::module_& module) {
  py::class_<Workspace>(module, "Workspace", py::module_local(), "Memory that ops work in; grows as they ask. Not for two threads at once.")
      .def(py::init<>())
      .def_property_readonly("bytes", &Workspace::bytes);

  py::class_<Source>(module, "Source", py::module_local(),
                     "One source of a convolution: x [height, width, channels] and what is folded into loading it.\n"
                     "See csrc/ops/conv/conv.h. upsample: 0 none, 1 nearest, 2 bilinear.")
      .def(py::init([](py::object x, int upsample, Coefficients inner, Coefficients outer, double slope, py::object d_x,
                       bool accumulate, py::object centre, py::object sum, py::object product) {
             return Source{std::move(x), std::move(d_x), std::move(centre), std::move(sum), std::move(product),
                           std::move(inner), std::move(outer), upsample, slope, accumulate};
           }),
           py::arg("x"), py::kw_only(), py::arg("upsample") = 0, py::arg("inner") = py::none(), py::arg("outer") = py::none(),
           py::arg("slope") = 1.0, py::arg("d_x") = py::none(), py::arg("accumulate") = false, py::arg("centre") = py::none(),
           py::arg("sum") = py::none(), py::arg("product") = py::none());

  module.def("conv_forward", &conv_forward, py::arg("sources"), py::arg("weight"), py::arg("raw"), py::kw_only(),
             py::arg("stride") = 1, py::arg("pad") = 0, py::arg("padding") = 0, py::arg("bias") = py::none(),
             py::arg("mean") = py::none(), py::arg("variance") = py::none(), py::arg("workspace"), py::arg("pool") = py::none(),
             "Write raw [height, width, out], and its mean and variance per channel. weight [k, k, in, out].");
  module.def("conv_backward", &conv_backward, py::arg("sources"), py::arg("weight"), py::arg("gradient"), py::kw_only(),
             py::arg("raw") = py::none(), py::arg("coefficients") = py::none(), py::arg("stride") = 1, py::arg("pad") = 0,
             py::arg("padding") = 0, py::arg("d_weight") = py::none(), py::arg("d_bias") = py::none(), py::arg("workspace"),
             py::arg("pool") = py::none(), "Gradients of conv_forward from d_raw = A gradient + B raw + C.");
  auto pass = [&](const char* name, dipengine_status (*op)(const dipengine_norm_params*), const char* text) {
    module.def(
        name,
        [op](const Source& source, py::handle mean, py::handle variance, py::handle y, py::handle g, const Triple& coefficients,
             Workspace& workspace, py::handle pool) { norm_pass(op, source, mean, variance, y, g, coefficients, workspace, pool); },
        py::arg("source"), py::kw_only(), py::arg("mean") = py::none(), py::arg("variance") = py::none(), py::arg("y") = py::none(),
        py::arg("g") = py::none(), py::arg("coefficients") = py::none(), py::arg("workspace"), py::arg("pool") = py::none(), text);
  };
  pass("norm_statistics", dipengine_norm_statistics, "Mean and variance of the (upsampled) activation of a source.");
  pass("norm_apply", dipengine_norm_apply, "y = leaky_relu(inner(x)).");
  pass("norm_backward", dipengine_norm_backward, "d_x = leaky_relu'(inner(x)) (A g + B t + C), and its two sums.");
  module.def("norm_fold", &norm_fold, py::arg("mean"), py::arg("variance"), py::arg("gamma"), py::arg("beta"), py::arg("eps"),
             py::arg("scale"), py::arg("shift"), "BatchNorm as scale * v + shift, float64 [channels].");
  module.def("norm_fold_gradient", &norm_fold_gradient, py::kw_only(), py::arg("count"), py::arg("mean"), py::arg("variance"),
             py::arg("gamma") = py::none(), py::arg("eps"), py::arg("sum"), py::arg("product"), py::arg("centred"),
             py::arg("coefficients"), py::arg("d_gamma") = py::none(), py::arg("d_beta") = py::none(),
             "BatchNorm's backward as d_v = A g + B v + C, float64 [channels].");
}

}  // namespace dipengine_python
