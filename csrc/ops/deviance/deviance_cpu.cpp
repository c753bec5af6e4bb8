// One tile of deviance on a CPU: chunks of a row that stay in the first-level cache, one vectorised loop for each thing
// asked for, sums in lanes (math/lanes.h).
#include "math/lanes.h"
#include "ops/deviance/deviance_kernels.h"
#include "platform/pixels.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {
namespace {

constexpr int kChunk = 240;  // a multiple of the lanes
static_assert(kChunk % kLanes == 0 && kDevianceTileElements % kChunk == 0, "a chunk begins at lane 0");

// Element `start` + i of a row is channel (start + i) % channels of pixel (start + i) / channels.
template <typename Function>
void each_element(int64_t channels, int64_t start, int n, const Function& function) {
  int64_t pixel = start / channels, channel = start % channels;
  for (int i = 0; i < n; ++i) {
    function(i, pixel, channel);
    if (++channel == channels) {
      channel = 0;
      ++pixel;
    }
  }
}

template <typename Real>
void load(const dipengine_pixels& from, int64_t channels, int64_t row, int64_t start, int n, double* __restrict to) {
  const Real* __restrict pixels = row_of<const Real>(from, row);
  if (from.pixel_stride == channels) {
    for (int i = 0; i < n; ++i) to[i] = static_cast<double>(pixels[start + i]);
    return;
  }
  each_element(channels, start, n, [&](int i, int64_t pixel, int64_t channel) {
    to[i] = static_cast<double>(pixels[pixel * from.pixel_stride + channel]);
  });
}

template <typename Real>
void store(const double* __restrict from, const dipengine_pixels& to, int64_t channels, int64_t row, int64_t start, int n) {
  Real* __restrict pixels = row_of<Real>(to, row);
  if (to.pixel_stride == channels) {
    for (int i = 0; i < n; ++i) pixels[start + i] = static_cast<Real>(from[i]);
    return;
  }
  each_element(channels, start, n, [&](int i, int64_t pixel, int64_t channel) {
    pixels[pixel * to.pixel_stride + channel] = static_cast<Real>(from[i]);
  });
}

template <typename Real>
void load_weights(const dipengine_pixels& mask, int64_t channels, int64_t row, int64_t start, int n, double* __restrict to) {
  const Real* __restrict weights = row_of<const Real>(mask, row);
  each_element(channels, start, n, [&](int i, int64_t pixel, int64_t) {
    to[i] = static_cast<double>(weights[pixel * mask.pixel_stride]);
  });
}

struct alignas(64) Scratch {
  double image[kChunk], target[kChunk], weight[kChunk], residual[kChunk], inverse[kChunk], terms[kChunk];
  double loss[kLanes] = {}, squares[kLanes] = {}, bright[kLanes] = {}, shares[kLanes] = {}, shares2[kLanes] = {};
};

// The sums that the discrepancy is made of.
inline void add_residuals(const dipengine_deviance_params& p, Scratch& s, const Sensor& sensor, int n) {
  double squares[kChunk], shares[kChunk];
  for (int i = 0; i < n; ++i) {
    const double share = sensor_share(sensor, s.image[i] * p.scale + p.shift);
    squares[i] = s.weight[i] * s.residual[i] * s.residual[i] * s.inverse[i];
    shares[i] = s.weight[i] * share;
    s.terms[i] = squares[i] * share;
  }
  add_to_lanes(s.bright, s.terms, n);
  for (int i = 0; i < n; ++i) s.terms[i] = shares[i] * shares[i];
  add_to_lanes(s.shares2, s.terms, n);
  add_to_lanes(s.squares, squares, n);
  add_to_lanes(s.shares, shares, n);
}

template <typename Real>
void run_chunk(const dipengine_deviance_params& p, Scratch& s, int64_t row, int64_t start, int n) {
  load<Real>(p.image, p.channels, row, start, n, s.image);
  load<Real>(p.target, p.channels, row, start, n, s.target);
  if (p.mask.data != nullptr) load_weights<Real>(p.mask, p.channels, row, start, n, s.weight);
  const Sensor sensor{p.read_variance, p.floor};
  for (int i = 0; i < n; ++i) {
    s.residual[i] = (s.image[i] - s.target[i]) * p.scale;  // in units first: exact, or nearly
    const double e = s.image[i] * p.scale + p.shift, k = s.target[i] * p.scale + p.shift;
    s.inverse[i] = 1 / sensor_variance(sensor, e);
    s.terms[i] = s.weight[i] * sensor_deviance(sensor, e, k, s.residual[i]);
  }
  add_to_lanes(s.loss, s.terms, n);
  if (p.d_image.data != nullptr) {
    const double scale = 2 * p.scale * p.grad_scale / p.normaliser;
    for (int i = 0; i < n; ++i) s.terms[i] = scale * s.weight[i] * s.residual[i] * s.inverse[i];
    store<Real>(s.terms, p.d_image, p.channels, row, start, n);
  }
  if (p.discrepancy != nullptr) add_residuals(p, s, sensor, n);
}

template <typename Real>
void run_tile(const dipengine_deviance_params& p, const DevianceTiling& tiling, int64_t index, DeviancePartial* partial) {
  Scratch s;
  for (double& weight : s.weight) weight = 1;
  const int64_t first = index / tiling.pieces * tiling.rows_per_tile, past = first + tiling.rows_per_tile;
  const int64_t last = past < p.height ? past : p.height, elements = p.width * p.channels;
  const int64_t begin = index % tiling.pieces * tiling.piece, stop = begin + tiling.piece;
  const int64_t end = stop < elements ? stop : elements;
  for (int64_t row = first; row < last; ++row) {
    for (int64_t start = begin; start < end; start += kChunk) {
      run_chunk<Real>(p, s, row, start, static_cast<int>(end - start < kChunk ? end - start : kChunk));
    }
  }
  partial->loss = fold_lanes(s.loss);
  partial->squares = fold_lanes(s.squares);
  partial->bright = fold_lanes(s.bright);
  partial->shares = fold_lanes(s.shares);
  partial->shares2 = fold_lanes(s.shares2);
}

}  // namespace

extern const DevianceKernels deviance_kernels;
#if defined(DIPENGINE_WITH_FLOAT64)
const DevianceKernels deviance_kernels = {run_tile<float>, run_tile<double>};
#else
const DevianceKernels deviance_kernels = {run_tile<float>, nullptr};
#endif

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
