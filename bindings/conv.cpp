// The convolutions, over [height, width, channels] tensors.
#include "ops/conv/conv.h"

#include "ops/conv/conv_cuda.h"
#include "source.h"

namespace dipengine_python {
namespace {

using Sources = std::vector<const Source*>;

// What forward and backward are given alike.
struct Layer {
  const Sources& sources;
  py::handle weight, bias;
  int stride, pad, padding;
};

// The params of a call on either kind of device: all but its images.
template <typename Params>
struct Call {
  using ConvSource = Pointee<decltype(Params::sources)>;
  using Number = NumberOf<ConvSource>;

  Params p{};
  std::vector<ConvSource> sources;
  const Place& place;
  int64_t weights = 0;

  Call(const Layer& layer, const Place& where) : place(where) {
    p.struct_size = sizeof(p);
    p.source_size = sizeof(ConvSource);
    if constexpr (kOnDevice<ConvSource>) p.fits = 1;
    int64_t inputs = 0;
    for (const Source* source : layer.sources) {
      int32_t dtype = 0;
      sources.push_back(source->see<ConvSource>(&dtype, place));
      if (inputs > 0 && dtype != p.dtype) raise("InputError", "The convolution's sources have several dtypes; convert them.");
      p.dtype = dtype;
      inputs += sources.back().channels;
    }
    p.sources = sources.data();
    p.sources_count = static_cast<int32_t>(sources.size());
    const Tensor weight(layer.weight, "weight", Access::read, place);
    if (weight.dims() != 4 || weight.size(0) != weight.size(1) || weight.size(2) != inputs) {
      raise("InputError", "'weight' must be [kernel, kernel, %lld, channels out]; lay it out so.", static_cast<long long>(inputs));
    }
    set_side(p.kernel, weight.size(0), "weight");
    set_side(p.channels, weight.size(3), "weight");
    weights = weight.count();
    p.weight = static_cast<decltype(p.weight)>(weight.flat(weights, real()));
    if (!layer.bias.is_none()) {
      p.bias = static_cast<decltype(p.bias)>(Tensor(layer.bias, "bias", Access::read, place).flat(p.channels, real()));
    }
    p.stride = layer.stride;
    p.pad = layer.pad;
    p.padding = layer.padding;
    p.raw_dtype = p.gradient_dtype = p.dtype;
  }

  dipengine_dtype real() const { return p.dtype == DIPENGINE_FLOAT64 ? DIPENGINE_FLOAT64 : DIPENGINE_FLOAT32; }

  dipengine_pixels output(const Tensor& tensor) {
    if (tensor.dims() != 3 || tensor.size(2) != p.channels) {
      raise("InputError", "'%s' must be [height, width, %lld].", tensor.name(), static_cast<long long>(p.channels));
    }
    set_side(p.height, tensor.size(0), tensor.name());
    set_side(p.width, tensor.size(1), tensor.name());
    return pixels_of(tensor);
  }

  void set_raw(py::handle object) {
    const Tensor out(object, "raw", Access::write, place);
    p.raw_dtype = out.dtype();
    p.raw = output(out);
  }

  void set_gradient(py::handle gradient, py::handle raw, const Triple& coefficients) {
    const Tensor g(gradient, "gradient", Access::read, place);
    p.gradient_dtype = g.dtype();
    p.gradient = output(g);
    if (!raw.is_none()) {
      const Tensor out(raw, "raw", Access::read, place);
      if (out.dims() != 3 || out.size(0) != g.size(0) || out.size(1) != g.size(1) || out.size(2) != g.size(2)) {
        raise("InputError", "'raw' has another shape than 'gradient'; give the output that the gradient is of.");
      }
      p.raw_dtype = out.dtype();
      p.raw = pixels_of(out);
    }
    set_triple<Number>(coefficients, p.channels, place, &p.gradient_scale, &p.raw_scale, &p.gradient_shift);
  }

  void set_results(py::handle d_weight, py::handle d_bias) {
    const auto into = [&](py::handle object, const char* name, int64_t count) {
      return object.is_none() ? nullptr : Tensor(object, name, Access::write, place).flat(count, real());
    };
    p.d_weight = static_cast<decltype(p.d_weight)>(into(d_weight, "d_weight", weights));
    p.d_bias = static_cast<decltype(p.d_bias)>(into(d_bias, "d_bias", p.channels));
  }
};

Place place_of(const Sources& sources, py::handle stream) {
  for (const Source* source : sources) {
    if (source == nullptr) raise("InputError", "One of the convolution's sources is None; give a Source.");
  }
  if (sources.empty()) raise("InputError", "A convolution was given no source; give one or two.");
  return Place(sources[0]->x, "x", stream);
}

constexpr size_t kStep = 256;  // of the parts of a call's memory
size_t padded(size_t bytes) { return (bytes + kStep - 1) / kStep * kStep; }

void forward_on_device(Call<dipengine_conv_cuda_params>& c, py::handle workspace) {
  auto& p = c.p;
  size_t packed = 0, more = 0;
  check(dipengine_conv_cuda_packed_bytes(&p, &packed));
  check(dipengine_conv_cuda_workspace(&p, &more));
  const DeviceMemory memory(workspace, padded(packed) + more, c.place);
  p.packed = memory.data();
  p.packed_bytes = packed;
  p.workspace = at<char>(memory.data(), padded(packed));
  p.workspace_bytes = more;
  call_on(c.place, dipengine_conv_cuda_pack, p);
  call_on(c.place, dipengine_conv_cuda_forward, p);
}

void backward_on_device(Call<dipengine_conv_cuda_params>& c, py::handle workspace) {
  auto& p = c.p;
  if (p.d_weight == nullptr && p.d_bias != nullptr) {
    raise("InputError", "On a device 'd_bias' comes with 'd_weight'; give both, or neither.");
  }
  size_t packed = 0, for_data = 0, for_weights = 0;
  check(dipengine_conv_cuda_data_gradient_sizes(&p, &packed, &for_data));
  if (p.d_weight != nullptr) check(dipengine_conv_cuda_weight_gradient_workspace(&p, &for_weights));
  const size_t more = for_data > for_weights ? for_data : for_weights;  // one behind the other on the stream
  const DeviceMemory memory(workspace, padded(packed) + more, c.place);
  p.packed = memory.data();
  p.packed_bytes = packed;
  p.workspace = memory.data() == nullptr ? nullptr : at<char>(memory.data(), padded(packed));
  p.workspace_bytes = more;
  if (p.d_weight != nullptr) call_on(c.place, dipengine_conv_cuda_weight_gradient, p);
  bool wanted = false;
  for (int32_t i = 0; i < p.sources_count; ++i) wanted = wanted || p.sources[i].d_x.data != nullptr || p.sources[i].sum != nullptr;
  if (!wanted) return;
  if (packed > 0) call_on(c.place, dipengine_conv_cuda_data_pack, p);  // sources of few channels need none
  call_on(c.place, dipengine_conv_cuda_data_gradient, p);
}

void conv_forward(const Sources& sources, py::handle weight, py::handle raw, int stride, int pad, int padding, py::handle bias,
                  py::handle mean, py::handle variance, py::handle gamma, py::handle beta, double eps, py::handle scale,
                  py::handle shift, py::handle workspace, py::handle pool, py::handle stream) {
  const Place place = place_of(sources, stream);
  const Layer layer = {sources, weight, bias, stride, pad, padding};
  const Norm norm = {mean, variance, gamma, beta, scale, shift, eps};
  if (place.cuda()) {
    Call<dipengine_conv_cuda_params> c(layer, place);
    c.set_raw(raw);
    NormNumbers<float>(norm, c.p.channels, place).set(c.p, eps);
    forward_on_device(c, workspace);
    return;
  }
  Call<dipengine_conv_params> c(layer, place);
  c.set_raw(raw);
  const NormNumbers<double> numbers(norm, c.p.channels, place);
  c.p.mean = numbers.mean;
  c.p.variance = numbers.variance;
  c.p.pool = pool_of(pool);
  call_in(workspace, dipengine_conv_forward_workspace, dipengine_conv_forward, c.p);
  fold(numbers, c.p.channels, eps);
}

void conv_backward(const Sources& sources, py::handle weight, py::handle gradient, py::handle raw, const Triple& coefficients,
                   int stride, int pad, int padding, py::handle d_weight, py::handle d_bias, py::handle workspace, py::handle pool,
                   py::handle stream) {
  const Place place = place_of(sources, stream);
  const Layer layer = {sources, weight, py::none(), stride, pad, padding};
  const auto set = [&](auto& c) {
    c.set_gradient(gradient, raw, coefficients);
    c.set_results(d_weight, d_bias);
  };
  if (place.cuda()) {
    Call<dipengine_conv_cuda_params> c(layer, place);
    set(c);
    backward_on_device(c, workspace);
    return;
  }
  Call<dipengine_conv_params> c(layer, place);
  set(c);
  c.p.pool = pool_of(pool);
  call_in(workspace, dipengine_conv_backward_workspace, dipengine_conv_backward, c.p);
}

}  // namespace

void bind_conv(py::module_& module) {
  py::class_<Workspace>(module, "Workspace", py::module_local(),
                        "Memory that ops work in; grows as they ask. Not for two threads at once.")
      .def(py::init<>())
      .def_property_readonly("bytes", &Workspace::bytes);

  py::class_<Source>(module, "Source", py::module_local(),
                     "One source of a convolution: x [height, width, channels] and what is folded into loading it.\n"
                     "See csrc/ops/conv/conv.h. upsample: 0 none, 1 nearest, 2 bilinear. Numbers of a channel: float64 in CPU\n"
                     "memory, float32 beside CUDA images.")
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
             py::arg("mean") = py::none(), py::arg("variance") = py::none(), py::arg("gamma") = py::none(),
             py::arg("beta") = py::none(), py::arg("eps") = 0.0, py::arg("scale") = py::none(), py::arg("shift") = py::none(),
             py::arg("workspace"), py::arg("pool") = py::none(), py::arg("stream") = py::none(),
             "Write raw [height, width, out], its mean and variance per channel, and with scale and shift the norm behind it as\n"
             "scale * raw + shift. weight [k, k, in, out]. CUDA tensors: bfloat16 or float32, see csrc/ops/conv/conv_cuda.h.");
  module.def("conv_backward", &conv_backward, py::arg("sources"), py::arg("weight"), py::arg("gradient"), py::kw_only(),
             py::arg("raw") = py::none(), py::arg("coefficients") = py::none(), py::arg("stride") = 1, py::arg("pad") = 0,
             py::arg("padding") = 0, py::arg("d_weight") = py::none(), py::arg("d_bias") = py::none(), py::arg("workspace"),
             py::arg("pool") = py::none(), py::arg("stream") = py::none(),
             "Gradients of conv_forward from d_raw = A gradient + B raw + C.");
  bind_norm(module);
}

}  // namespace dipengine_python
