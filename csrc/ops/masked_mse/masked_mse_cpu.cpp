// One tile of masked_mse on a CPU; compiled once per instruction set, and in float64 for the portable one.
//
// A row is taken in chunks of 240 elements, which stay in the first-level cache while a series of short loops, one for
// each thing asked for, goes over them: every loop is free of branches and vectorises, and no combination of options
// needs a kernel of its own. Memory is read and written once: with everything on, 20 bytes read and 16 written per
// element in float32, some 30 floating-point operations.
//
// Sums are kept in lanes (math/lanes.h), so vector width does not matter.
#include "ops/masked_mse/masked_mse_kernels.h"

#include "math/bf16.h"
#include "math/lanes.h"

namespace dipengine::DIPENGINE_ISA_NAMESPACE {
namespace {

constexpr int kChunk = 240;  // a multiple of the lanes, and of 2, 3 and 4 channels
static_assert(kChunk % kLanes == 0 && kMaskedMseTileElements % kChunk == 0, "a chunk begins at lane 0");

void load(const float* __restrict from, float* __restrict to, int n) {
  for (int i = 0; i < n; ++i) to[i] = from[i];
}
void load(const uint16_t* __restrict from, float* __restrict to, int n) {
  for (int i = 0; i < n; ++i) to[i] = float_from_bf16(from[i]);
}
void store(const float* __restrict from, float* __restrict to, int n) {
  for (int i = 0; i < n; ++i) to[i] = from[i];
}
void store(const float* __restrict from, uint16_t* __restrict to, int n) {
  for (int i = 0; i < n; ++i) to[i] = bf16_from_float(from[i]);
}
#if defined(DIPENGINE_WITH_FLOAT64)
void load(const double* __restrict from, double* __restrict to, int n) {
  for (int i = 0; i < n; ++i) to[i] = from[i];
}
void store(const double* __restrict from, double* __restrict to, int n) {
  for (int i = 0; i < n; ++i) to[i] = from[i];
}
#endif

// weights[i] = mask[i / repeat], a chunk's part: begins at a whole pixel
template <int repeat, typename Real>
void repeat_weights(const Real* __restrict mask, Real* __restrict weights, int pixels) {
  for (int i = 0; i < pixels; ++i) {
    for (int channel = 0; channel < repeat; ++channel) weights[repeat * i + channel] = mask[i];
  }
}

// x = sigmoid(x), slope = its derivative
template <typename Real>
void apply_sigmoid(Real* __restrict x, Real* __restrict slope, int n) {
  for (int i = 0; i < n; ++i) {
    const Sigmoid<Real> s = sigmoid(x[i]);
    x[i] = s.value;
    slope[i] = s.slope;
  }
}

// The chunk's buffers and sums; aligned and in one place, so that they stay in the first-level cache.
template <typename Real>
struct alignas(64) Scratch {
  Real x[kChunk], slope[kChunk], weight[kChunk], residual[kChunk], terms[kChunk];
  double loss_lanes[kLanes] = {}, d2_lanes[kLanes] = {};
};

template <typename Real, typename Stored>
struct Tile {
  const dipengine_masked_mse_params& p;
  const int64_t fit;
  const Real scale;  // of the gradient: d/dx of (x - t)^2 brings the 2
  const Real average_gain, es_alpha;
  const bool first;
  Scratch<Real> s;

  Tile(const dipengine_masked_mse_params& params, int64_t fit_index)
      : p(params),
        fit(fit_index),
        scale(params.target.data ? static_cast<Real>(2 * params.grad_scale / params.normaliser[fit_index]) : Real(0)),
        average_gain(static_cast<Real>(1 - params.average_decay)),
        es_alpha(static_cast<Real>(params.es_alpha)),
        first(params.first_frame != nullptr && params.first_frame[fit_index] != 0) {
    for (int i = 0; i < kChunk; ++i) {
      s.slope[i] = 1;
      s.weight[i] = 1;
    }
  }

  template <typename Element>
  Element* at(const dipengine_image& image, int64_t outer, int64_t row) const {
    return static_cast<Element*>(image.data) + fit * image.fit_stride + outer * image.outer_stride +
           row * image.row_stride;
  }

  void load_weights(int64_t outer, int64_t row, int64_t start, int n) {
    const Real* mask = at<const Real>(p.mask, outer, row);
    switch (p.mask_repeat) {  // the usual numbers of channels, vectorised
      case 1: return load(mask + start, s.weight, n);
      case 2: return repeat_weights<2>(mask + start / 2, s.weight, n / 2);
      case 3: return repeat_weights<3>(mask + start / 3, s.weight, n / 3);
      case 4: return repeat_weights<4>(mask + start / 4, s.weight, n / 4);
      default: break;
    }
    for (int i = 0; i < n; ++i) s.weight[i] = mask[(start + i) / p.mask_repeat];
  }

  void compare_with_target(int64_t outer, int64_t row, int64_t start, int n) {
    const Real* __restrict target = at<const Real>(p.target, outer, row) + start;
    if (p.mask.data != nullptr) load_weights(outer, row, start, n);
    for (int i = 0; i < n; ++i) {
      s.residual[i] = s.x[i] - target[i];
      s.terms[i] = weighted_square(s.weight[i], s.residual[i]);
    }
    add_to_lanes(s.loss_lanes, s.terms, n);
    if (p.d_raw.data == nullptr) return;
    for (int i = 0; i < n; ++i) s.terms[i] = masked_mse_gradient(scale, s.weight[i], s.residual[i], s.slope[i]);
    store(s.terms, at<Stored>(p.d_raw, outer, row) + start, n);
  }

  void update_average(Real* __restrict average, int n) {
    if (first) {
      store(s.x, average, n);
    } else {
      for (int i = 0; i < n; ++i) average[i] = exponential_average(average[i], s.x[i], average_gain);
    }
  }

  void update_es(Real* __restrict mean, int n) {
    if (first) {
      store(s.x, mean, n);
      return;
    }
    for (int i = 0; i < n; ++i) {
      const Real difference = s.x[i] - mean[i];
      s.terms[i] = difference * difference;
      mean[i] = exponential_average(mean[i], s.x[i], es_alpha);
    }
    add_to_lanes(s.d2_lanes, s.terms, n);
  }

  void chunk(int64_t outer, int64_t row, int64_t start, int n) {
    load(at<const Stored>(p.raw, outer, row) + start, s.x, n);
    if (p.activation == DIPENGINE_ACTIVATION_SIGMOID) apply_sigmoid(s.x, s.slope, n);
    if (p.target.data != nullptr) compare_with_target(outer, row, start, n);
    if (p.out.data != nullptr) store(s.x, at<Real>(p.out, outer, row) + start, n);
    if (p.average.data != nullptr) update_average(at<Real>(p.average, outer, row) + start, n);
    if (p.es_mean.data != nullptr) update_es(at<Real>(p.es_mean, outer, row) + start, n);
  }
};

template <typename Real, typename Stored>
void run_tile(const dipengine_masked_mse_params& p, const MaskedMseTiling& tiling, int64_t fit, int64_t index,
              MaskedMsePartial* partial) {
  Tile<Real, Stored> tile(p, fit);
  const int64_t piece = index % tiling.pieces;
  const int64_t block = index / tiling.pieces % tiling.row_blocks;
  const int64_t outer = index / tiling.pieces / tiling.row_blocks;
  const int64_t first_row = block * tiling.rows_per_tile, past = first_row + tiling.rows_per_tile;
  const int64_t last_row = past < p.rows ? past : p.rows;
  const int64_t begin = piece * tiling.piece, end = begin + tiling.piece < p.inner ? begin + tiling.piece : p.inner;
  for (int64_t row = first_row; row < last_row; ++row) {
    for (int64_t start = begin; start < end; start += kChunk) {
      tile.chunk(outer, row, start, static_cast<int>(end - start < kChunk ? end - start : kChunk));
    }
  }
  partial->loss = fold_lanes(tile.s.loss_lanes);
  partial->d2 = fold_lanes(tile.s.d2_lanes);
}

}  // namespace

extern const MaskedMseKernels masked_mse_kernels;
#if defined(DIPENGINE_WITH_FLOAT64)
const MaskedMseKernels masked_mse_kernels = {run_tile<float, float>, run_tile<float, uint16_t>,
                                             run_tile<double, double>};
#else
const MaskedMseKernels masked_mse_kernels = {run_tile<float, float>, run_tile<float, uint16_t>, nullptr};
#endif

}  // namespace dipengine::DIPENGINE_ISA_NAMESPACE
