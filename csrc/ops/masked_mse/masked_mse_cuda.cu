// Masked mean squared error and all that looks at the output, on a CUDA device; formulas of masked_mse_math.h.
//
// A block takes whole rows of some 2048 elements, or a piece of a long row, and leaves two sums in the workspace: by thread,
// then by a tree over the block. The last block of a fit, or without tickets a second kernel of one block a fit, adds the
// blocks' sums in their order and moves the fit's scalars on. With everything on 20 bytes are read and 16 written per float32
// element: bound by memory.
#include "ops/masked_mse/masked_mse_cuda.h"

#include "math/bf16.h"
#include "math/divide.h"
#include "ops/masked_mse/masked_mse_math.h"
#include "platform/cuda/block_sums.h"
#include "platform/cuda/launch.h"

namespace dipengine {
namespace {

using Params = dipengine_masked_mse_cuda_params;

constexpr int kThreads = 256;
constexpr int64_t kTileElements = 2048;
constexpr int kAtOnce = 4;  // elements that are read before the first is looked at, since memory is far away

struct Tiling {
  int64_t rows_per_tile, row_blocks, piece, pieces;
};

struct Sums {
  double loss, d2;
};

DIPENGINE_DEVICE void add_sums(Sums& sums, const Sums& more) {
  sums.loss += more.loss;
  sums.d2 += more.d2;
}

DIPENGINE_DEVICE Sums warp_sums(const Sums& own) { return {cuda::warp_sum(own.loss), cuda::warp_sum(own.d2)}; }

struct Launch {
  Params p;
  Tiling tiling;
  Sums* sums;  // [fits, tiles]
};

DIPENGINE_HD Tiling make_tiling(int64_t rows, int64_t inner) {
  Tiling t;
  t.piece = inner < kTileElements ? inner : kTileElements;
  t.pieces = (inner + t.piece - 1) / t.piece;
  t.rows_per_tile = t.pieces > 1 ? 1 : kTileElements / inner;
  t.row_blocks = (rows + t.rows_per_tile - 1) / t.rows_per_tile;
  return t;
}

// Of one fit. Its tiles are no more than those of the largest, and the same as in a call for it alone.
struct FitSize {
  int64_t rows, inner;
  Tiling tiling;
};

DIPENGINE_DEVICE FitSize size_of(const Launch& l, int64_t fit) {
  if (l.p.sizes == nullptr) return {l.p.rows, l.p.inner, l.tiling};
  const int64_t rows = l.p.sizes[2 * fit], inner = l.p.sizes[2 * fit + 1];
  return {rows, inner, make_tiling(rows, inner)};
}

template <typename Element>
DIPENGINE_DEVICE Element* at(const dipengine_image& image, int64_t fit, int64_t row) {
  return static_cast<Element*>(image.data) + fit * image.fit_stride + row * image.row_stride;
}

struct Element {
  float average_gain, es_alpha, scale;
  bool first;
};

// What is read of an element; where there is nothing to be read, the mask is 1 and all else 0.
struct Read {
  float raw, target, mask, average, es_mean;
};
DIPENGINE_DEVICE Read read_element(const Params& p, int64_t fit, int64_t row, int64_t i) {
  Read r = {0, 0, 1, 0, 0};
  r.raw = p.dtype == DIPENGINE_BFLOAT16 ? float_from_bf16(at<const uint16_t>(p.raw, fit, row)[i]) : at<const float>(p.raw, fit, row)[i];
  if (p.target.data != nullptr) r.target = at<const float>(p.target, fit, row)[i];
  if (p.target.data != nullptr && p.mask.data != nullptr)
    r.mask = at<const float>(p.mask, fit, row)[static_cast<uint32_t>(i) / static_cast<uint32_t>(p.mask_repeat)];
  if (p.average.data != nullptr) r.average = at<const float>(p.average, fit, row)[i];
  if (p.es_mean.data != nullptr) r.es_mean = at<const float>(p.es_mean, fit, row)[i];
  return r;
}

DIPENGINE_DEVICE void one_element(const Params& p, const Element& e, const Read& r, int64_t fit, int64_t row, int64_t i, Sums& sums) {
  float x = r.raw, slope = 1;
  if (p.activation == DIPENGINE_ACTIVATION_SIGMOID) {
    const Sigmoid<float> s = sigmoid(x);
    x = s.value;
    slope = s.slope;
  }
  if (p.target.data != nullptr) {
    const float residual = x - r.target;
    sums.loss += static_cast<double>(weighted_square(r.mask, residual));
    if (p.d_raw.data != nullptr) {
      const float d = masked_mse_gradient(e.scale, r.mask, residual, slope);
      if (p.dtype == DIPENGINE_BFLOAT16) {
        at<uint16_t>(p.d_raw, fit, row)[i] = bf16_from_float(d);
      } else {
        at<float>(p.d_raw, fit, row)[i] = d;
      }
    }
  }
  if (p.out.data != nullptr) at<float>(p.out, fit, row)[i] = x;
  if (p.average.data != nullptr) at<float>(p.average, fit, row)[i] = e.first ? x : exponential_average(r.average, x, e.average_gain);
  if (p.es_mean.data != nullptr) {
    const float difference = e.first ? 0.0f : x - r.es_mean;
    sums.d2 += static_cast<double>(difference * difference);
    at<float>(p.es_mean, fit, row)[i] = e.first ? x : exponential_average(r.es_mean, x, e.es_alpha);
  }
}

// By one block, once all of the fit have left their sums.
DIPENGINE_DEVICE void finish(const Launch& launch, int64_t fit, const FitSize& size) {
  const Params& p = launch.p;
  const int64_t most = launch.tiling.row_blocks * launch.tiling.pieces;
  const Sums total = cuda::sums_of_blocks<kThreads>(launch.sums + fit * most, size.tiling.row_blocks * size.tiling.pieces);
  if (cuda::thread_index() != 0) return;
  if (p.target.data != nullptr) p.loss[fit] = total.loss / p.normaliser[fit];
  if (p.es_mean.data != nullptr) {
    const double d2 = total.d2 / (static_cast<double>(size.rows) * static_cast<double>(size.inner));
    p.es_variance[fit] = p.frames[fit] == 0 ? 0.0 : (1 - p.es_alpha) * (p.es_variance[fit] + p.es_alpha * d2);
  }
  ++p.frames[fit];
}

DIPENGINE_KERNEL(kThreads, 2) masked_mse_kernel(DIPENGINE_PARAMS(Launch) launch) {
  const Params& p = launch.p;
  const int64_t fit = cuda::block_y();
  cuda::wait_for_launches();
  if (p.active != nullptr && p.active[fit] == 0) return;
  const FitSize size = size_of(launch, fit);
  const Tiling& t = size.tiling;
  if (cuda::block_x() >= t.row_blocks * t.pieces) return;
  const int64_t frames = p.frames[fit];
  const double warmed = static_cast<double>(frames + 1) / static_cast<double>(frames + 10);
  const double decay = p.warm_up != 0 && warmed < p.average_decay ? warmed : p.average_decay;
  const float scale = p.target.data == nullptr ? 0.0f : static_cast<float>(2 * p.grad_scale / p.normaliser[fit]);
  const Element element = {static_cast<float>(1 - decay), static_cast<float>(p.es_alpha), scale, frames == 0};

  const int64_t block = cuda::block_x() / t.pieces, begin = cuda::block_x() % t.pieces * t.piece;
  const int width = static_cast<int>(size.inner - begin < t.piece ? size.inner - begin : t.piece);
  const int64_t first_row = block * t.rows_per_tile;
  const int rows = static_cast<int>(size.rows - first_row < t.rows_per_tile ? size.rows - first_row : t.rows_per_tile);
  Sums sums{};
  const uint32_t by_width = divider(width);
  for (int first = cuda::thread_index(); first < rows * width; first += kAtOnce * kThreads) {
    Read read[kAtOnce];
    int row[kAtOnce];
    DIPENGINE_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const int k = first + i * kThreads;
      row[i] = divided(k, by_width);
      if (k < rows * width) read[i] = read_element(p, fit, first_row + row[i], begin + k - row[i] * width);
    }
    DIPENGINE_UNROLL
    for (int i = 0; i < kAtOnce; ++i) {
      const int k = first + i * kThreads;
      if (k < rows * width) one_element(p, element, read[i], fit, first_row + row[i], begin + k - row[i] * width, sums);
    }
  }
  cuda::let_next_begin();
  const Sums total = cuda::block_sums<kThreads>(sums);
  if (cuda::thread_index() == 0) launch.sums[fit * cuda::grid_x() + cuda::block_x()] = total;
  if (p.tickets == nullptr || !cuda::last_block(p.tickets + fit, static_cast<int>(t.row_blocks * t.pieces))) return;
  finish(launch, fit, size);
}

DIPENGINE_KERNEL(kThreads, 1) masked_mse_finish_kernel(DIPENGINE_PARAMS(Launch) launch) {
  const int64_t fit = cuda::block_x();
  cuda::wait_for_launches();
  cuda::let_next_begin();
  if (launch.p.active != nullptr && launch.p.active[fit] == 0) return;
  finish(launch, fit, size_of(launch, fit));
}

dipengine_status check_dims(const Params* p) {
  DIPENGINE_TRY(check_struct(p, "dipengine_masked_mse_cuda"));
  DIPENGINE_REQUIRE(p->fits >= 1 && p->rows >= 1 && p->inner >= 1 && p->inner <= 0x7fffffff,
                    "masked_mse was given dims %lld x %lld x %lld; each must be at least 1, and a row at most 2147483647 long.",
                    static_cast<long long>(p->fits), static_cast<long long>(p->rows), static_cast<long long>(p->inner));
  return DIPENGINE_OK;
}

size_t workspace_bytes(const Params& p) {
  const Tiling t = make_tiling(p.rows, p.inner);
  return static_cast<size_t>(p.fits * t.row_blocks * t.pieces) * sizeof(Sums);
}

dipengine_status check_output(const Params& p, const dipengine_image& image, const char* name) {
  DIPENGINE_REQUIRE(
      image.data == nullptr || ((p.rows == 1 || image.row_stride >= p.inner) && (p.fits == 1 || image.fit_stride != 0)),
      "masked_mse cannot write %s through a broadcast or overlapping view; give it its own memory.", name);
  return DIPENGINE_OK;
}

dipengine_status check(const Params* params) {
  DIPENGINE_TRY(check_dims(params));
  const Params& p = *params;
  DIPENGINE_REQUIRE(p.raw.data != nullptr && p.frames != nullptr,
                    "masked_mse needs raw and frames in device memory; one of them is NULL.");
  DIPENGINE_REQUIRE(p.dtype == DIPENGINE_FLOAT32 || p.dtype == DIPENGINE_BFLOAT16,
                    "masked_mse takes raw in float32 or bfloat16 on a device, not dtype %d; convert it.", p.dtype);
  DIPENGINE_REQUIRE(p.activation == DIPENGINE_ACTIVATION_NONE || p.activation == DIPENGINE_ACTIVATION_SIGMOID,
                    "masked_mse has no activation %d; give none (0) or sigmoid (1).", p.activation);
  DIPENGINE_REQUIRE(p.target.data == nullptr || (p.normaliser != nullptr && p.loss != nullptr),
                    "masked_mse needs normaliser and loss where there is a target; one of them is NULL.");
  DIPENGINE_REQUIRE(p.d_raw.data == nullptr || p.target.data != nullptr,
                    "masked_mse has no gradient without a target; give one or leave d_raw out.");
  DIPENGINE_REQUIRE(p.mask.data == nullptr || (p.mask_repeat >= 1 && p.inner % p.mask_repeat == 0),
                    "masked_mse was given mask_repeat %lld, which does not divide the inner size %lld.",
                    static_cast<long long>(p.mask_repeat), static_cast<long long>(p.inner));
  DIPENGINE_REQUIRE(p.average.data == nullptr || (p.average_decay >= 0 && p.average_decay < 1),
                    "masked_mse was given average_decay %g; it must be in [0, 1).", p.average_decay);
  DIPENGINE_REQUIRE(p.es_mean.data == nullptr || (p.es_alpha > 0 && p.es_alpha <= 1 && p.es_variance != nullptr),
                    "masked_mse was given es_alpha %g; it must be in (0, 1], with es_variance beside it.", p.es_alpha);
  DIPENGINE_TRY(check_output(p, p.d_raw, "d_raw"));
  DIPENGINE_TRY(check_output(p, p.out, "out"));
  DIPENGINE_TRY(check_output(p, p.average, "average"));
  DIPENGINE_TRY(check_output(p, p.es_mean, "es_mean"));
  DIPENGINE_REQUIRE(p.workspace != nullptr && reinterpret_cast<uintptr_t>(p.workspace) % alignof(double) == 0 &&
                        p.workspace_bytes >= workspace_bytes(p),
                    "masked_mse needs %zu bytes of workspace, 8-byte aligned, in device memory.", workspace_bytes(p));
  return DIPENGINE_OK;
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_masked_mse_cuda_workspace(const dipengine_masked_mse_cuda_params* params, size_t* bytes) {
  DIPENGINE_TRY(dipengine::check_dims(params));
  DIPENGINE_REQUIRE(bytes != nullptr, "dipengine_masked_mse_cuda_workspace was given no place for its answer.");
  *bytes = dipengine::workspace_bytes(*params);
  return DIPENGINE_OK;
}

dipengine_status dipengine_masked_mse_cuda(const dipengine_masked_mse_cuda_params* params) {
  using namespace dipengine;
  DIPENGINE_TRY(check(params));
  const Launch launch = {*params, make_tiling(params->rows, params->inner), static_cast<Sums*>(params->workspace)};
  const size_t shared = cuda::block_sums_bytes<Sums>(kThreads);
  DIPENGINE_TRY(cuda::launch(masked_mse_kernel, "masked_mse",
                             {launch.tiling.row_blocks * launch.tiling.pieces, params->fits, 1, kThreads, shared}, launch,
                             params->stream));
  if (params->tickets != nullptr) return DIPENGINE_OK;
  return cuda::launch(masked_mse_finish_kernel, "masked_mse_finish", {params->fits, 1, 1, kThreads, shared}, launch,
                      params->stream);
}

}  // extern "C"
