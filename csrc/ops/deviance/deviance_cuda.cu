// The sensor's data term on a CUDA device; formulas of deviance_math.h, in float64.
//
// A block takes whole rows of some 2048 elements, or a piece of a long row, and leaves its five sums in the workspace: by
// thread, then by a tree over the block. A second kernel of one block a fit adds the blocks' sums in their order. Some 60
// float64 operations and 3 divisions an element of 12 bytes read and 4 written: bound by memory on devices with full
// float64 units, by those on others.
#include "ops/deviance/deviance_cuda.h"

#include <cmath>

#include "ops/deviance/deviance_math.h"
#include "platform/cuda/block_sums.h"
#include "platform/cuda/launch.h"
#include "platform/pixels.h"

namespace dipengine {

DIPENGINE_DEVICE DeviancePartial warp_sums(const DeviancePartial& own) {
  return {cuda::warp_sum(own.loss), cuda::warp_sum(own.squares), cuda::warp_sum(own.bright), cuda::warp_sum(own.shares),
          cuda::warp_sum(own.shares2)};
}

namespace {

using Params = dipengine_deviance_cuda_params;

constexpr int kThreads = 256;
constexpr int64_t kTileElements = 2048;
const char* const kOp = "dipengine_deviance_cuda";

struct Tiling {
  int32_t row_elements, rows_per_tile, row_blocks, piece, pieces;
};

struct Launch {
  Params p;
  Tiling tiling;
  DeviancePartial* sums;  // [fits, tiles]
};

DIPENGINE_HD Tiling make_tiling(int64_t rows, int64_t row_elements) {
  const int64_t piece = row_elements < kTileElements ? row_elements : kTileElements;
  const int64_t pieces = (row_elements + piece - 1) / piece;
  const int64_t rows_per_tile = pieces > 1 ? 1 : kTileElements / row_elements;
  const int64_t row_blocks = (rows + rows_per_tile - 1) / rows_per_tile;
  return {static_cast<int32_t>(row_elements), static_cast<int32_t>(rows_per_tile), static_cast<int32_t>(row_blocks),
          static_cast<int32_t>(piece), static_cast<int32_t>(pieces)};
}

// Of one fit: its tiles are the same as in a call for it alone.
struct FitSize {
  int64_t rows;
  Tiling tiling;
};

DIPENGINE_DEVICE FitSize size_of(const Launch& l, int64_t fit) {
  if (l.p.sizes == nullptr) return {l.p.height, l.tiling};
  return {l.p.sizes[2 * fit], make_tiling(l.p.sizes[2 * fit], l.p.sizes[2 * fit + 1])};
}

DIPENGINE_DEVICE float* at(const dipengine_pixels& image, int64_t fit_stride, int64_t row, int64_t pixel, int64_t channel) {
  return static_cast<float*>(image.data) + cuda::block_y() * fit_stride + row * image.row_stride + pixel * image.pixel_stride +
         channel;
}

struct Fit {
  double scale, shift, gradient;  // gradient: what residual / variance is multiplied with
  Sensor sensor;
};

DIPENGINE_DEVICE void one_element(const Params& p, const Fit& f, int64_t row, int64_t pixel, int64_t channel,
                                  DeviancePartial& sums) {
  const double image = static_cast<double>(*at(p.image, p.image_fit_stride, row, pixel, channel));
  const double target = static_cast<double>(*at(p.target, p.target_fit_stride, row, pixel, channel));
  const double weight = p.mask.data == nullptr ? 1.0 : static_cast<double>(*at(p.mask, p.mask_fit_stride, row, pixel, 0));
  const double residual = (image - target) * f.scale;  // in units first: exact, or nearly
  const double e = image * f.scale + f.shift, k = target * f.scale + f.shift;
  const double inverse = 1 / sensor_variance(f.sensor, e);
  sums.loss += weight * sensor_deviance(f.sensor, e, k, residual);
  if (p.d_image.data != nullptr) {
    *at(p.d_image, p.d_image_fit_stride, row, pixel, channel) = static_cast<float>(f.gradient * weight * residual * inverse);
  }
  if (p.discrepancy == nullptr) return;
  const double share = sensor_share(f.sensor, e), squares = weight * residual * residual * inverse, shares = weight * share;
  sums.squares += squares;
  sums.bright += squares * share;
  sums.shares += shares;
  sums.shares2 += shares * shares;
}

DIPENGINE_KERNEL(kThreads, 2) deviance_kernel(DIPENGINE_PARAMS(Launch) launch) {
  const Params& p = launch.p;
  const int64_t fit = cuda::block_y();
  cuda::wait_for_launches();
  if (p.active != nullptr && p.active[fit] == 0) return;
  const FitSize size = size_of(launch, fit);
  const Tiling& t = size.tiling;
  if (cuda::block_x() >= static_cast<int64_t>(t.row_blocks) * t.pieces) return;
  const double scale = p.scale[fit];
  const Fit f = {scale, p.shift[fit], 2 * scale * p.grad_scale / p.normaliser[fit], {p.read_variance[fit], p.floor}};
  const int channels = static_cast<int>(p.channels);
  const int begin = cuda::block_x() % t.pieces * t.piece, left = t.row_elements - begin, width = left < t.piece ? left : t.piece;
  const int64_t first_row = static_cast<int64_t>(cuda::block_x() / t.pieces) * t.rows_per_tile;
  const int64_t past = first_row + t.rows_per_tile;
  const int rows = static_cast<int>((past < size.rows ? past : size.rows) - first_row);
  DeviancePartial sums{};
  for (int k = cuda::thread_index(); k < rows * width; k += kThreads) {
    const int element = begin + k % width;
    one_element(p, f, first_row + k / width, element / channels, element % channels, sums);
  }
  cuda::let_next_begin();
  const DeviancePartial total = cuda::block_sums<kThreads>(sums);
  if (cuda::thread_index() == 0) launch.sums[fit * cuda::grid_x() + cuda::block_x()] = total;
}

DIPENGINE_KERNEL(kThreads, 2) deviance_finish_kernel(DIPENGINE_PARAMS(Launch) launch) {
  const Params& p = launch.p;
  const int64_t fit = cuda::block_x(), most = static_cast<int64_t>(launch.tiling.row_blocks) * launch.tiling.pieces;
  cuda::wait_for_launches();
  cuda::let_next_begin();
  if (p.active != nullptr && p.active[fit] == 0) return;
  const Tiling t = size_of(launch, fit).tiling;
  const DeviancePartial total =
      cuda::sums_of_blocks<kThreads>(launch.sums + fit * most, static_cast<int64_t>(t.row_blocks) * t.pieces);
  if (cuda::thread_index() != 0) return;
  p.loss[fit] = total.loss / p.normaliser[fit];
  if (p.discrepancy != nullptr) p.discrepancy[fit] = discrepancy_of(total, p.normaliser[fit]);
}

dipengine_status check_dims(const Params* params) {
  DIPENGINE_TRY(check_struct(params, kOp));
  const Params& p = *params;
  DIPENGINE_TRY(check_size(p.height, p.width, p.channels, kOp));
  constexpr int64_t most = int64_t{1} << 30;
  DIPENGINE_REQUIRE(p.fits >= 1 && p.height <= most && p.channels <= most && p.width <= most / p.channels,
                    "%s was given %lld fits of %lld x %lld pixels of %lld channels; give at least one fit, and rows of at most "
                    "2^30 elements.",
                    kOp, static_cast<long long>(p.fits), static_cast<long long>(p.height), static_cast<long long>(p.width),
                    static_cast<long long>(p.channels));
  return DIPENGINE_OK;
}

size_t workspace_bytes(const Params& p) {
  const Tiling t = make_tiling(p.height, p.width * p.channels);
  return static_cast<size_t>(p.fits * t.row_blocks * t.pieces) * sizeof(DeviancePartial);
}

dipengine_status check(const Params* params) {
  DIPENGINE_TRY(check_dims(params));
  const Params& p = *params;
  DIPENGINE_TRY(check_pixels(p.image, p.width, p.channels, kOp, "image"));
  DIPENGINE_TRY(check_pixels(p.target, p.width, p.channels, kOp, "target"));
  if (p.mask.data != nullptr) DIPENGINE_TRY(check_pixels(p.mask, p.width, 1, kOp, "mask"));
  if (p.d_image.data != nullptr) DIPENGINE_TRY(check_pixels(p.d_image, p.width, p.channels, kOp, "d_image"));
  DIPENGINE_REQUIRE(p.d_image.data == nullptr || p.fits == 1 || p.d_image_fit_stride != 0,
                    "%s cannot write d_image of several fits into one place; space them.", kOp);
  DIPENGINE_REQUIRE(p.scale != nullptr && p.shift != nullptr && p.read_variance != nullptr && p.normaliser != nullptr &&
                        p.loss != nullptr,
                    "%s needs scale, shift, read_variance, normaliser and loss of each fit in device memory; one of them is NULL.",
                    kOp);
  DIPENGINE_REQUIRE(p.floor > 0 && std::isfinite(p.floor), "%s was given floor %g; give one above 0.", kOp, p.floor);
  DIPENGINE_REQUIRE(
      p.workspace != nullptr && reinterpret_cast<uintptr_t>(p.workspace) % 16 == 0 && p.workspace_bytes >= workspace_bytes(p),
      "%s needs %zu bytes of workspace, 16-byte aligned, in device memory.", kOp, workspace_bytes(p));
  return DIPENGINE_OK;
}

}  // namespace
}  // namespace dipengine

extern "C" {

dipengine_status dipengine_deviance_cuda_workspace(const dipengine_deviance_cuda_params* params, size_t* bytes) {
  DIPENGINE_TRY(dipengine::check_dims(params));
  DIPENGINE_REQUIRE(bytes != nullptr, "dipengine_deviance_cuda_workspace was given no place for its answer.");
  *bytes = dipengine::workspace_bytes(*params);
  return DIPENGINE_OK;
}

dipengine_status dipengine_deviance_cuda(const dipengine_deviance_cuda_params* params) {
  using namespace dipengine;
  DIPENGINE_TRY(check(params));
  const Launch launch = {*params, make_tiling(params->height, params->width * params->channels),
                         static_cast<DeviancePartial*>(params->workspace)};
  const size_t shared = cuda::block_sums_bytes<DeviancePartial>(kThreads);
  const int64_t tiles = static_cast<int64_t>(launch.tiling.row_blocks) * launch.tiling.pieces;
  DIPENGINE_TRY(cuda::launch(deviance_kernel, "deviance", {tiles, params->fits, 1, kThreads, shared}, launch, params->stream));
  return cuda::launch(deviance_finish_kernel, "deviance_finish", {params->fits, 1, 1, kThreads, shared}, launch, params->stream);
}

}  // extern "C"
