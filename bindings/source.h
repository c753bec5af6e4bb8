// A convolution's source as Python gives it, and per-channel numbers, for both kinds of device: numbers are float64 in CPU
// memory and float32 on a device, sizes int64 and int32.
#pragma once

#include <pybind11/stl.h>

#include <limits>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "ops/conv/conv.h"
#include "ops/conv/conv_cuda.h"
#include "pixels.h"

namespace dipengine_python {

template <typename Pointer>
using Pointee = std::remove_const_t<std::remove_pointer_t<Pointer>>;
// double or float: of a dipengine_conv_source or a dipengine_conv_cuda_source
template <typename ConvSource>
using NumberOf = Pointee<decltype(ConvSource::centre)>;

template <typename ConvSource>
inline constexpr bool kOnDevice = std::is_same_v<ConvSource, dipengine_conv_cuda_source>;

template <typename Number>
Number* per_channel(py::handle object, const char* name, int64_t channels, const Place& place, Access access = Access::read) {
  if (object.is_none()) return nullptr;
  constexpr dipengine_dtype dtype = std::is_same_v<Number, double> ? DIPENGINE_FLOAT64 : DIPENGINE_FLOAT32;
  return static_cast<Number*>(Tensor(object, name, access, place).flat(channels, dtype));
}

template <typename Size>
void set_side(Size& side, int64_t size, const char* name) {
  if (size > std::numeric_limits<Size>::max()) {
    raise("InputError", "The tensor '%s' has a side of %lld, more than a device's kernels count; cut it up.", name,
          static_cast<long long>(size));
  }
  side = static_cast<Size>(size);
}

using Coefficients = std::optional<std::pair<py::object, py::object>>;
using Triple = std::optional<std::vector<py::object>>;

template <typename Number>
void set_triple(const Triple& triple, int64_t channels, const Place& place, const Number** a, const Number** b, const Number** c) {
  if (!triple) return;
  if (triple->size() != 3) raise("InputError", "'coefficients' holds A, B and C.");
  *a = per_channel<Number>((*triple)[0], "A", channels, place);
  *b = per_channel<Number>((*triple)[1], "B", channels, place);
  *c = per_channel<Number>((*triple)[2], "C", channels, place);
}

// Keeps the tensors alive.
struct Source {
  py::object x, d_x, centre, sum, product;
  Coefficients inner, outer;
  int upsample;
  double slope;
  bool accumulate;

  template <typename ConvSource>
  ConvSource see(int32_t* dtype, const Place& place) const {
    using Number = NumberOf<ConvSource>;
    ConvSource s{};
    const Tensor image(x, "x", Access::read, place);
    s.x = pixels_of(image);
    *dtype = image.dtype();
    set_side(s.height, image.size(0), "x");
    set_side(s.width, image.size(1), "x");
    set_side(s.channels, image.size(2), "x");
    s.upsample = upsample;
    s.slope = static_cast<decltype(s.slope)>(slope);
    s.accumulate = accumulate;
    set_affine(s.inner, inner, "inner", s.channels, place);
    set_affine(s.outer, outer, "outer", s.channels, place);
    if (!d_x.is_none()) {
      const Tensor gradient(d_x, "d_x", Access::write, place);
      s.d_x = pixels_of(gradient);
      if (gradient.dtype() != image.dtype() || gradient.size(0) != s.height || gradient.size(1) != s.width ||
          gradient.size(2) != s.channels) {
        raise("InputError", "'d_x' has another shape or dtype than its source; make it alike.");
      }
    }
    s.centre = per_channel<Number>(centre, "centre", s.channels, place);
    s.sum = per_channel<Number>(sum, "sum", s.channels, place, Access::write);
    s.product = per_channel<Number>(product, "product", s.channels, place, Access::write);
    if (s.sum != nullptr && s.d_x.data == nullptr) {
      raise("InputError", "A source has a place for the sums of its gradient and none for the gradient 'd_x'; give it one.");
    }
    return s;
  }

 private:
  template <typename Affine>
  static void set_affine(Affine& affine, const Coefficients& given, const char* name, int64_t channels, const Place& place) {
    using Number = Pointee<decltype(affine.scale)>;
    if (!given) return;
    affine.scale = per_channel<Number>(given->first, name, channels, place);
    affine.shift = per_channel<Number>(given->second, name, channels, place);
  }
};

// The norm behind an output: where its moments go and, where asked for, its fold.
struct Norm {
  py::handle mean, variance, gamma, beta, scale, shift;
  double eps;
};

// Of the fields that the CUDA kernels' params have; those of a CPU have the moments alone.
template <typename Number>
struct NormNumbers {
  Number *mean, *variance;
  const Number *gamma, *beta;
  Number *scale, *shift;

  NormNumbers(const Norm& norm, int64_t channels, const Place& place) {
    mean = per_channel<Number>(norm.mean, "mean", channels, place, Access::write);
    variance = per_channel<Number>(norm.variance, "variance", channels, place, Access::write);
    gamma = per_channel<Number>(norm.gamma, "gamma", channels, place);
    beta = per_channel<Number>(norm.beta, "beta", channels, place);
    scale = per_channel<Number>(norm.scale, "scale", channels, place, Access::write);
    shift = per_channel<Number>(norm.shift, "shift", channels, place, Access::write);
    if ((scale == nullptr) != (shift == nullptr) || (scale != nullptr && (mean == nullptr || variance == nullptr))) {
      raise("InputError", "The fold of a norm lacks one of mean, variance, scale and shift; give all four.");
    }
  }

  template <typename CudaParams>
  void set(CudaParams& p, double eps) const {
    p.mean = mean;
    p.variance = variance;
    p.gamma = gamma;
    p.beta = beta;
    p.eps = eps;
    p.scale = scale;
    p.shift = shift;
  }
};

// The norm's fold on a CPU, from the moments that an op has left.
void fold(const NormNumbers<double>& norm, int64_t channels, double eps);

void bind_norm(py::module_& module);

}  // namespace dipengine_python
